import gzip
import os
import threading

import numpy as np
import pytest
from fits_files import file_of, fits, mixed_file, table_of
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from kernel_checks import assert_same, both

from astrozoo import accel
from astrozoo.errors import DataError


@pytest.fixture
def mixed():
    return mixed_file()


def outcome(raw, names, hdu):
    try:
        return list(accel.read_fits_columns(raw, names, hdu=hdu))
    except DataError as error:
        return str(error)


KEYS = st.sampled_from([
    "NAXIS1", "NAXIS2", "TFIELDS", "TFORM1", "TFORM5", "TDIM22", "TNULL3", "TZERO30", "PCOUNT", "TTYPE2", "XTENSION",
])  # fmt: skip
VALUES = st.from_regex(r"-?[0-9]{1,22}|'[0-9]{0,3}[A-Z].?'|'\([0-9, ]*\)'|[ -~]{0,30}", fullmatch=True)


@pytest.mark.usefixtures("rust")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=200)
@given(
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255) | st.sampled_from(b" '=/0123T"))),
    card=st.none() | st.tuples(KEYS, VALUES),
    keep=st.none() | st.floats(0, 1),
    names=st.sampled_from([None, ["time"], ["E23", "u8"]]),
    hdu=st.sampled_from([None, 3, "MIXED"]),
)
@example(changes=[], card=("NAXIS2", "1000000000000000000"), keep=None, names=None, hdu=3)
@example(changes=[], card=("TFORM1", "'99999999999999999E'"), keep=None, names=None, hdu=3)
def test_damaged_files_are_the_same_error_or_table_for_both(mixed, changes, card, keep, names, hdu):
    raw = bytearray(mixed)
    if card:
        key, value = card
        at = raw.rfind(f"{key:8}=".encode())
        if at >= 0:
            raw[at : at + 80] = f"{key:8}= {value}".encode().ljust(80)[:80]
    for place, byte in changes:
        raw[int(place * len(raw))] = byte
    if keep is not None:
        del raw[int(keep * len(raw)) :]
    expected, found = both(lambda: outcome(bytes(raw), names, hdu))
    if isinstance(expected, str):
        assert found == expected
    else:
        assert_same(expected, found)


def test_a_file_that_shrinks_while_it_is_read_is_an_error(provider, tmp_path):
    path = tmp_path / "x.fits"
    raw = file_of(table_of(fits.Column("a", "100E", array=np.ones((30_000, 100), "f4"))))
    path.write_bytes(raw)
    stop = threading.Event()

    def cut():
        while not stop.is_set():
            os.truncate(path, 3_000_000)
            path.write_bytes(raw)

    other = threading.Thread(target=cut)
    other.start()
    try:
        for _ in range(10):
            try:
                found = accel.read_fits_columns(path).columns["a"]
                assert found.shape == (30_000, 100)
            except DataError:
                pass  # as it should
    finally:
        stop.set()
        other.join()


def changed(mixed, key, value):
    raw = bytearray(mixed)
    at = raw.rfind(f"{key:8}=".encode())
    raw[at : at + 80] = f"{key:8}= {value}".encode().ljust(80)
    return bytes(raw)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("NAXIS2", "1000000000000000"), ("NAXIS2", "-1"), ("NAXIS", "3"), ("NAXIS1", "7.5"), ("NAXIS1", ""),
        ("BITPIX", "12"), ("PCOUNT", "-2"), ("GCOUNT", "0"), ("TFIELDS", "'x'"), ("TFORM2", "'3Y'"), ("TFORM2", "5"),
        ("TDIM22", "'(9,9)'"),
    ],
)  # fmt: skip
def test_wrong_keywords_are_named(provider, mixed, key, value):
    with pytest.raises(DataError, match=rf"(?s)bytes given: .*{key}"):
        accel.read_fits_columns(changed(mixed, key, value), hdu=3)


def test_sizes_beyond_64_bits_are_refused(provider, mixed):
    with pytest.raises(DataError, match=r"HDU 3 \(from byte 14400\) announces 2\^62 bytes of data or more"):
        accel.read_fits_columns(changed(mixed, "NAXIS2", "1000000000000000000"), hdu=3)


def test_a_file_cut_short_says_where_it_ends(provider, mixed, tmp_path):
    path = tmp_path / "cut.fits"
    path.write_bytes(mixed[:-5760])
    with pytest.raises(
        DataError, match=rf"(?s)cut.fits: .* the file ends at byte {len(mixed) - 5760}: it was cut short"
    ):
        accel.read_fits_columns(path, hdu=3)
    path.write_bytes(mixed[:2900])
    with pytest.raises(DataError, match=r"HDU 1 \(from byte 2880\) has no END card within 20 bytes"):
        accel.read_fits_columns(path)


@pytest.mark.parametrize("raw", [b"", b"SIMPLE", b"hello" * 1000, gzip.compress(b"x")])
def test_what_is_no_fits_file_is_said_to_be_none(provider, raw):
    with pytest.raises(DataError, match="it is no FITS file"):
        accel.read_fits_columns(raw)


def test_files_that_cannot_be_opened_are_data_errors(provider, tmp_path):
    for path in (tmp_path / "none.fits", tmp_path / "none.fits.gz"):
        with pytest.raises(DataError, match=r"none\.fits.* cannot be read: No such file or directory"):
            accel.read_fits_columns(path)
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        accel.read_fits_columns(tmp_path)
    (tmp_path / "cut.fits.gz").write_bytes(gzip.compress(bytes(100_000))[:-20])
    (tmp_path / "no.fits.gz").write_bytes(b"none")
    for path in (tmp_path / "cut.fits.gz", tmp_path / "no.fits.gz"):
        with pytest.raises(DataError, match="gzip cannot read it"):
            accel.read_fits_columns(path)
