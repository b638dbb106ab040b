"""Columns of a light curve and of a catalogue, from files that are in the page cache."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from astrozoo import accel
from astrozoo.bench.accel.case import Case, Floor, Peer, Setup

__all__ = ["CASES"]

_LIGHT_CURVE = (
    "TIME D", "TIMECORR E", "CADENCENO J", "SAP_FLUX E", "SAP_FLUX_ERR E", "SAP_BKG E", "SAP_BKG_ERR E",
    "PDCSAP_FLUX E", "PDCSAP_FLUX_ERR E", "SAP_QUALITY J", "PSF_CENTR1 D", "PSF_CENTR1_ERR E", "PSF_CENTR2 D",
    "PSF_CENTR2_ERR E", "MOM_CENTR1 D", "MOM_CENTR1_ERR E", "MOM_CENTR2 D", "MOM_CENTR2_ERR E", "POS_CORR1 E",
    "POS_CORR2 E",
)  # fmt: skip
_CATALOGUE = ("ID K", *(f"D{i} D" for i in range(12)), *(f"E{i} E" for i in range(12)), *(f"J{i} J" for i in range(5)))
_DTYPES = {"D": ">f8", "E": ">f4", "J": ">i4", "K": ">i8"}


@functools.cache
def _folder() -> Path:
    folder = tempfile.mkdtemp(prefix="astrozoo-bench-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def _write(name: str, columns: Sequence[str], rows: int) -> Path:
    """A file with one table of random numbers; written by hand, as no writer is needed to read."""
    path = _folder() / name
    if path.exists():
        return path
    names, codes = zip(*(column.split() for column in columns), strict=True)
    table = np.empty(rows, [(column, _DTYPES[code]) for column, code in zip(names, codes, strict=True)])
    generator = np.random.default_rng(0)
    for column, code in zip(names, codes, strict=True):
        table[column] = generator.integers(0, 1 << 20, rows) if code in "JK" else generator.normal(size=rows)
    keywords = {
        "XTENSION": "'BINTABLE          '", "BITPIX": 8, "NAXIS": 2, "NAXIS1": table.itemsize, "NAXIS2": rows,
        "PCOUNT": 0, "GCOUNT": 1, "TFIELDS": len(names),
        **{f"TTYPE{i}": f"'{column:18}'" for i, column in enumerate(names, 1)},
        **{f"TFORM{i}": f"'{code:18}'" for i, code in enumerate(codes, 1)},
        "TIMEDEL": 0.02043359821692,
    }  # fmt: skip
    with path.open("wb") as file:
        file.write(_header({"SIMPLE": "T", "BITPIX": 8, "NAXIS": 0, "EXTEND": "T"}))
        file.write(_header(keywords))
        file.write(table.tobytes())
        file.write(bytes(-table.nbytes % 2880))
    return path


def _header(keywords: dict[str, object]) -> bytes:
    cards = [f"{key:8}= {value!s:>20}" for key, value in keywords.items()]
    text = "".join(f"{card:80}" for card in [*cards, "END"])
    return text.ljust(-(-len(text) // 2880) * 2880).encode()


def _case(name: str, columns: Sequence[str], rows: int, chosen: list[str]) -> Callable[[int], Setup]:
    def prepare(threads: int) -> Setup:
        path = _write(name, columns, rows)
        dtypes = dict(column.split() for column in columns)
        written = sum(rows * np.dtype(_DTYPES[dtypes[column]]).itemsize for column in chosen)
        return Setup(
            ours=lambda: accel.read_fits_columns(path, chosen, threads=threads).columns,
            peers={
                "fitsio": Peer(
                    functools.partial(_with_fitsio, path, chosen), "fitsio", 6.0, difference=_difference, error=0.0
                ),
                "astropy": Peer(
                    functools.partial(_with_astropy, path, chosen), "astropy", difference=_difference, error=0.0
                ),
            },
            floor=Floor(read=path.stat().st_size, written=written),
        )

    return prepare


def _with_fitsio(path: Path, chosen: list[str]) -> np.ndarray:
    import fitsio

    with fitsio.FITS(str(path)) as file:
        return file[1].read(columns=chosen)


def _with_astropy(path: Path, chosen: list[str]) -> dict[str, np.ndarray]:
    from astropy.io import fits

    with fits.open(path) as file:
        table = file[1].data
        return {name: table[name].astype(table[name].dtype.newbyteorder("=")) for name in chosen}


def _difference(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray] | np.ndarray) -> float:
    return max(float(np.max(np.abs(values - theirs[name]))) for name, values in ours.items())


_NEEDS = {"fitsio": "fitsio", "astropy": "astropy"}
CASES = [
    Case(
        "read_fits_columns",
        "light curve, 4 of 20 columns, 65,000 rows",
        _case("light_curve.fits", _LIGHT_CURVE, 65_000, ["TIME", "PDCSAP_FLUX", "PDCSAP_FLUX_ERR", "SAP_QUALITY"]),
        needs=_NEEDS,
        rounds=30,
    ),
    Case(
        "read_fits_columns",
        "catalogue, 5 of 30 columns, 1,000,000 rows",
        _case("catalogue.fits", _CATALOGUE, 1_000_000, ["ID", "D0", "D1", "E3", "J2"]),
        needs=_NEEDS,
    ),
]
