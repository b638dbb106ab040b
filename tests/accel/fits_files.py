"""FITS files for the tests of `read_fits_columns`, written by astropy."""

import functools
import io

import numpy as np
import pytest

fits = pytest.importorskip("astropy.io.fits", reason="astropy writes the files")


def file_of(*hdus, **keywords):
    """Bytes of a file with these HDUs behind a primary one with `keywords`."""
    primary = fits.PrimaryHDU()
    primary.header.update(keywords)
    buffer = io.BytesIO()
    fits.HDUList([primary, *hdus]).writeto(buffer)
    return buffer.getvalue()


def table_of(*columns, name=None, **keywords):
    table = fits.BinTableHDU.from_columns(columns, name=name)
    table.header.update(keywords)
    return table


def numbers(code, shape, seed=0):
    generator = np.random.default_rng(seed)
    if code in "BIJK":
        info = np.iinfo({"B": "u1", "I": "i2", "J": "i4", "K": "i8"}[code])
        values = generator.integers(info.min, info.max, shape, info.dtype, endpoint=True)
    elif code == "L":
        values = generator.random(shape) < 0.5
    elif code in "ED":
        values = generator.normal(size=shape).astype({"E": "f4", "D": "f8"}[code])
        values[generator.random(shape) < 0.2] = np.nan
    else:
        values = (generator.normal(size=shape) + 1j * generator.normal(size=shape)).astype(
            {"C": "c8", "M": "c16"}[code]
        )
    return values


@functools.cache
def mixed_file():
    """All kinds of columns, in the second table of the file."""
    codes, rows = "LBIJKEDCM", 11
    columns = [fits.Column(code, code, array=numbers(code, rows)) for code in codes]
    columns += [fits.Column(f"{code}3", f"3{code}", array=numbers(code, (rows, 3), 1)) for code in codes]
    columns += [
        fits.Column(f"{code}23", f"6{code}", dim="(3,2)", array=numbers(code, (rows, 2, 3), 2)) for code in codes
    ]
    offsets = (("B", "i1", 7), ("I", "u2", 15), ("J", "u4", 31), ("K", "u8", 63))
    columns += [
        fits.Column(kind, code, bzero=-(2**7) if kind == "i1" else 2**bit, array=numbers("K", rows, 3).astype(kind))
        for code, kind, bit in offsets
    ]
    columns += [
        fits.Column("bits", "11X", array=np.random.default_rng(4).random((rows, 11)) < 0.5),
        fits.Column("text", "9A", array=[f"star {i}" for i in range(rows)], unit="name"),
        fits.Column("texts", "12A", dim="(4,3)", array=np.array([["ab", "c d", " e"]] * rows)),
        fits.Column("time", "D", unit="BJD - 2454833, days", array=np.arange(rows)),
    ]
    image = fits.ImageHDU(np.zeros((7, 5), "i2"), name="picture")
    first = table_of(fits.Column("x", "J", array=[1, 2]), name="first")
    second = table_of(
        *columns, name="MIXED", TELESCOP="Kepler", EXPOSURE=1.5, NSECTORS=3, CLEAN=True, LONG="word " * 30
    )
    return file_of(image, first, second, MISSION="K2", OBSERVER="O'Neill")
