import gzip
import io

import numpy as np
import pytest
from fits_files import file_of, fits, mixed_file, numbers, table_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_checks import assert_agree, assert_releases_the_lock, assert_same, assert_threads_change_nothing

from astrozoo import accel
from astrozoo.errors import DataError, InputError


@pytest.fixture
def mixed():
    return mixed_file()


def test_every_kind_of_column_is_what_astropy_reads(provider, mixed):
    found = accel.read_fits_columns(mixed, hdu="mixed")
    with fits.open(io.BytesIO(mixed)) as file:
        data = file["MIXED"].data
        assert list(found.columns) == data.names
        for name, values in found.columns.items():
            expected = np.asarray(data[name])
            assert values.dtype.isnative
            if name != "i1":  # which astropy makes float64
                assert (name, values.dtype) == (name, expected.dtype.newbyteorder("="))
            np.testing.assert_array_equal(values, expected, err_msg=name)
    assert found.units == {"text": "name", "time": "BJD - 2454833, days"}


def test_chosen_columns_are_what_fitsio_reads(provider, mixed, tmp_path):
    fitsio = pytest.importorskip("fitsio")
    (tmp_path / "mixed.fits").write_bytes(mixed)
    names = ["D", "E3", "J23", "u2", "u4", "u8", "K", "text"]
    expected = fitsio.read(tmp_path / "mixed.fits", columns=names, ext="MIXED")
    found = accel.read_fits_columns(tmp_path / "mixed.fits", names, hdu=3).columns
    for name in names:
        np.testing.assert_array_equal(found[name], expected[name])


def test_keywords_come_as_values(provider, mixed):
    found = accel.read_fits_columns(mixed, [], hdu="MIXED")
    assert not found.columns
    expected = {"TELESCOP": "Kepler", "EXPOSURE": 1.5, "NSECTORS": 3, "CLEAN": True, "LONG": ("word " * 30).rstrip()}
    assert {key: found.header[key] for key in expected} == expected
    assert [type(found.header[key]) for key in expected] == [str, float, int, bool, str]
    assert (found.primary["MISSION"], found.primary["OBSERVER"]) == ("K2", "O'Neill")
    with fits.open(io.BytesIO(mixed)) as file:
        assert dict(found.header) == {key: value for key, value in file[3].header.items() if key != "COMMENT"}


def test_the_first_table_is_read_unless_one_is_named(provider, mixed):
    for hdu in (None, 2, "FIRST", "first"):
        assert accel.read_fits_columns(mixed, hdu=hdu).columns["x"].tolist() == [1, 2]


def test_column_names_ignore_case_unless_it_tells_them_apart(provider):
    table = table_of(fits.Column("Flux", "J", array=[1]), fits.Column("time", "J", array=[2]))
    changed = file_of(table).replace(b"TTYPE2  = 'time    '", b"TTYPE2  = 'FLUX    '")
    for name, expected in [("flux", ("Flux", 1)), ("Flux", ("Flux", 1)), ("FLUX", ("FLUX", 2))]:
        ((key, value),) = accel.read_fits_columns(changed, name).columns.items()
        assert (key, value.item()) == expected
    assert list(accel.read_fits_columns(file_of(table), ["TIME", "flux", "Time"]).columns) == ["time", "Flux"]


def test_blank_and_repeated_names_become_numbers(provider):
    raw = file_of(table_of(*[fits.Column(name, "J", array=[i]) for i, name in enumerate(["aaaa", "bbbb", "cccc"])]))
    raw = raw.replace(b"'bbbb    '", b"'        '").replace(b"'cccc    '", b"'aaaa    '")
    found = accel.read_fits_columns(raw).columns
    assert {name: value.item() for name, value in found.items()} == {"aaaa": 0, "col2": 1, "col3": 2}


@pytest.mark.parametrize("code", list("BIJK"))
@pytest.mark.parametrize("keywords", [{"TSCAL1": 0.25}, {"TZERO1": 3}, {"TSCAL1": 2, "TZERO1": 32768.0}, {"TNULL1": 7}])
def test_scaled_integers_and_those_with_tnull_are_float64(provider, code, keywords):
    stored = numbers(code, 50)
    stored[::5] = 7
    table = table_of(fits.Column("x", code, array=stored), fits.Column("y", code, array=stored))
    table.header.update({**keywords, "TNULL1": 7, "TNULL2": 7} if "TSCAL1" in keywords else keywords)
    found = accel.read_fits_columns(file_of(table)).columns
    expected = stored * np.float64(keywords.get("TSCAL1", 1.0)) + keywords.get("TZERO1", 0.0)
    if "TNULL1" in table.header:
        expected[::5] = np.nan
    assert found["x"].dtype == np.float64
    np.testing.assert_array_equal(found["x"], expected)
    assert found["y"].dtype == (np.float64 if "TNULL2" in table.header else stored.dtype)


def test_unsigned_integers_with_tnull_are_float64(provider):
    table = table_of(fits.Column("x", "I", bzero=32768, array=np.array([0, 5, 65535], "u2")))
    table.header["TNULL1"] = -32768 + 5
    found = accel.read_fits_columns(file_of(table)).columns["x"]
    np.testing.assert_array_equal(found, [0.0, np.nan, 65535.0])


def test_scaled_floats_are_float64_and_complex_offsets_are_real(provider):
    single, wave = numbers("E", 20), numbers("C", 20)
    table = table_of(fits.Column("x", "E", array=single), fits.Column("y", "C", array=wave))
    table.header.update({"TSCAL1": 2.0, "TZERO1": 1.0, "TSCAL2": 0.5, "TZERO2": 3.0})
    found = accel.read_fits_columns(file_of(table)).columns
    np.testing.assert_array_equal(found["x"], single.astype("f8") * 2 + 1)
    np.testing.assert_array_equal(found["y"], wave.astype("c16") * 0.5 + 3)


def test_strings_end_before_a_nul_and_trailing_blanks(provider):
    table = table_of(fits.Column("s", "6A", array=np.array([b"abcdef", b"ghijkl", b"mnopqr", b"stuvwx"])))
    raw = file_of(table).replace(b"abcdef", b"a\0cdef").replace(b"ghijkl", b" g h  ").replace(b"mnopqr", b"      ")
    raw = raw.replace(b"stuvwx", b"\xe9tuvwx")
    assert accel.read_fits_columns(raw).columns["s"].tolist() == ["a", " g h", "", "étuvwx"]


def test_tables_without_rows_keep_shapes_and_dtypes(provider):
    columns = [fits.Column("a", "3E"), fits.Column("b", "5A"), fits.Column("c", "J"), fits.Column("d", "0D")]
    found = accel.read_fits_columns(file_of(table_of(*columns))).columns
    assert [(value.shape, value.dtype.str[1:]) for value in found.values()] == [
        ((0, 3), "f4"), ((0,), "U5"), ((0,), "i4"), ((0, 0), "f8"),
    ]  # fmt: skip


def test_columns_of_no_elements_have_an_empty_dimension(provider):
    table = table_of(fits.Column("a", "J", array=[1, 2]), fits.Column("b", "J", array=[3, 4]))
    raw = file_of(table).replace(b"TFORM1  = 'J ", b"TFORM1  = '2J").replace(b"TFORM2  = 'J ", b"TFORM2  = '0A")
    found = accel.read_fits_columns(raw).columns
    assert found["a"].tolist() == [[1, 3], [2, 4]]
    assert (found["b"].shape, found["b"].dtype.kind) == ((2, 0), "U")


def test_a_tdim_smaller_than_the_repeat_count_takes_the_first_elements(provider):
    table = table_of(fits.Column("a", "6E", dim="(3,2)", array=np.arange(12).reshape(2, 2, 3)))
    raw = file_of(table).replace(b"(3,2)", b"(2,2)")
    np.testing.assert_array_equal(accel.read_fits_columns(raw).columns["a"], [[[0, 1], [2, 3]], [[6, 7], [8, 9]]])


def test_the_heap_is_skipped_and_variable_columns_are_refused_by_name(provider):
    spectra = np.array([np.arange(3), np.arange(5)], dtype=object)
    table = table_of(fits.Column("wave", "PJ()", array=spectra), fits.Column("id", "J", array=[4, 5]), name="var")
    raw = file_of(table, table_of(fits.Column("z", "D", array=[1.0]), name="after"))
    assert accel.read_fits_columns(raw, "id").columns["id"].tolist() == [4, 5]
    assert accel.read_fits_columns(raw, hdu="after").columns["z"].tolist() == [1.0]
    with pytest.raises(DataError, match=r"'wave' holds arrays of variable length \(TFORM1\)"):
        accel.read_fits_columns(raw)


def test_paths_compressed_files_and_bytes_give_the_same(provider, mixed, tmp_path):
    expected = accel.read_fits_columns(mixed, hdu=3)
    (tmp_path / "x.fits").write_bytes(mixed)
    (tmp_path / "x.fits.gz").write_bytes(gzip.compress(mixed))
    for source in (str(tmp_path / "x.fits"), tmp_path / "x.fits.gz", bytearray(mixed), memoryview(mixed)):
        assert_same(expected, accel.read_fits_columns(source, hdu=3))


def test_random_groups_before_a_table_are_skipped(provider):
    groups = [f"{key:8}= {value}" for key, value in
              [("SIMPLE", "T"), ("BITPIX", -32), ("NAXIS", 3), ("NAXIS1", 0), ("NAXIS2", 4), ("NAXIS3", 5),
               ("GROUPS", "T"), ("PCOUNT", 2), ("GCOUNT", 100)]]  # fmt: skip
    head = "".join(f"{card:80}" for card in [*groups, "END"]).encode()
    data = bytes(-(-(4 * 100 * (2 + 20)) // 2880) * 2880)
    raw = head.ljust(2880) + data + file_of(table_of(fits.Column("x", "J", array=[9])))[2880:]
    assert accel.read_fits_columns(raw).columns["x"].tolist() == [9]


@pytest.mark.usefixtures("rust")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_providers_agree(data):
    rows = data.draw(st.integers(0, 9))
    columns, keywords = [], {}
    for i in range(1, data.draw(st.integers(1, 6)) + 1):
        code, repeat = data.draw(st.sampled_from("LBIJKEDCM")), data.draw(st.integers(1, 4))
        columns.append(fits.Column(f"c{i}", f"{repeat}{code}", array=numbers(code, (rows, repeat), i)))
        for key in data.draw(st.sets(st.sampled_from(["TSCAL", "TZERO"]))) if code != "L" else ():
            keywords[f"{key}{i}"] = data.draw(st.sampled_from([1, 0, -128, 0.1, 32768.0, 2.0**31, 2.0**63, -3.5]))
        if code in "BIJK" and data.draw(st.booleans()):
            keywords[f"TNULL{i}"] = data.draw(st.integers(-5, 200))
    table = table_of(*columns)
    table.header.update(keywords)
    raw = file_of(table)
    names = data.draw(st.none() | st.lists(st.sampled_from([column.name for column in columns])))
    assert_agree(lambda: accel.read_fits_columns(raw, names), rtol=0.0)


@pytest.mark.usefixtures("rust")
def test_threads_change_nothing(tmp_path):
    table = table_of(*[fits.Column(code, code, array=numbers(code, 200_000)) for code in "JDE"])
    (tmp_path / "x.fits").write_bytes(file_of(table))
    assert_threads_change_nothing(
        lambda threads: accel.read_fits_columns(tmp_path / "x.fits", ["E", "J"], threads=threads)
    )


@pytest.mark.usefixtures("rust")
def test_the_interpreter_lock_is_released(tmp_path):
    table = table_of(fits.Column("a", "100E", array=np.ones((30_000, 100), "f4")))
    (tmp_path / "x.fits").write_bytes(file_of(table))
    assert_releases_the_lock(lambda: accel.read_fits_columns(tmp_path / "x.fits", threads=1))


def test_a_missing_column_names_the_nearest(provider, mixed):
    with pytest.raises(DataError, match=r"no column 'tiem'. Did you mean 'TIME'.* There are: L, B, I"):
        accel.read_fits_columns(mixed, ["L", "tiem"], hdu=3)


@pytest.mark.parametrize(
    ("hdu", "message"),
    [
        (0, r"HDU 0 \(primary\) is no"),
        ("picture", r"HDU 1 \(IMAGE\) is no"),
        (4, "no HDU 4; its"),
        ("x", "no HDU named 'x'"),
    ],
)
def test_an_hdu_that_is_no_table_or_not_there_is_said_so(provider, mixed, hdu, message):
    with pytest.raises(DataError, match=message):
        accel.read_fits_columns(mixed, hdu=hdu)
    with pytest.raises(DataError, match=r"no binary table; its HDUs are: 0 \(primary\), 1 \(IMAGE\)\."):
        accel.read_fits_columns(file_of(fits.ImageHDU(np.zeros(3))))


def test_of_many_hdus_the_first_are_listed(provider):
    many = file_of(*[fits.ImageHDU(name=f"image{i}") for i in range(1, 50)])
    with pytest.raises(DataError, match=r"39 \(IMAGE39\), and 10 more\."):
        accel.read_fits_columns(many)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((5,), "path is of type int"),
        ((b"", [1]), "columns is"),
        ((b"", None, -1), "hdu is -1"),
        ((b"", None, 1.5), "hdu is 1.5"),
    ],
)
def test_arguments_of_other_types_are_refused(arguments, message):
    path, columns, hdu = (*arguments, None, None)[:3]
    with pytest.raises(InputError, match=message):
        accel.read_fits_columns(path, columns, hdu=hdu)
