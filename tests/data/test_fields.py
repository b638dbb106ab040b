from __future__ import annotations

import tracemalloc

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from astrozoo.data import open_fields
from astrozoo.errors import ConfigError, DataError


def write(
    folder, name, *, lat="lat", lon="lon", time="time", attrs=None, calendar="standard", start="2000-01-01", steps=4,
    units="K", descending=False, west=False, variable="t2m", nlat=6, engine="netcdf4", encoding=None,
):  # fmt: skip
    """A file whose value at each cell tells where it is: 1000 * step + lat + lon / 1000."""
    lats = np.linspace(-75.0, 75.0, nlat)[:: -1 if descending else 1]
    lons = np.arange(8) * 45.0
    if west:
        lons = lons - 180.0
    times = xr.date_range(start, periods=steps, freq="D", calendar=calendar, use_cftime=calendar != "standard")
    values = 1000.0 * np.arange(steps)[:, None, None] + lats[:, None] + (lons % 360)[None] / 1000.0
    coords = {
        time: times,
        lat: (lat, lats, (attrs or {}).get("lat", {})),
        lon: (lon, lons, (attrs or {}).get("lon", {})),
    }
    dataset = xr.Dataset({variable: ((time, lat, lon), values, {"units": units})}, coords)
    path = folder / name
    if name.endswith(".zarr"):
        dataset.to_zarr(path, consolidated=False)
    else:
        dataset.to_netcdf(path, engine=engine, encoding=encoding)
    return path


def assert_standard(fields, steps=4):
    assert fields["t2m"].dims == ("time", "lat", "lon")
    expected = 1000.0 * np.arange(steps)[:, None, None] + fields.lat.values[:, None] + fields.lon.values[None] / 1000.0
    np.testing.assert_allclose(fields["t2m"].values, expected, atol=1e-6)
    assert np.all(np.diff(fields.lat) > 0)
    np.testing.assert_allclose(fields.lon, np.arange(8) * 45.0)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lat": "latitude", "lon": "longitude", "time": "valid_time"},
        {"lat": "rlat", "lon": "rlon"},
        {"lat": "y", "lon": "x", "attrs": {"lat": {"units": "degrees_north"}, "lon": {"standard_name": "longitude"}}},
        {"lat": "j", "lon": "i", "attrs": {"lat": {"axis": "Y", "units": "degrees"}, "lon": {"units": "degrees_E"}}},
        {"time": "record", "calendar": "noleap"},
        {"descending": True},
        {"west": True},
        {"west": True, "descending": True, "calendar": "360_day"},
        {"calendar": "noleap"},
        {"engine": "h5netcdf"},
        {"engine": "scipy"},
        {"name": "a.zarr"},
    ],
    ids=["plain", "long names", "rotated", "units and standard_name", "axis",
         "dates tell time", "north first", "west first",
         "360 days", "noleap", "h5netcdf", "netcdf3", "zarr"],
)  # fmt: skip
def test_conventions_all_give_the_standard_form(tmp_path, options):
    options = dict(options)
    path = write(tmp_path, options.pop("name", "a.nc"), **options)
    assert_standard(open_fields(path))


def test_packed_integers_and_missing_values_are_decoded(tmp_path):
    path = write(tmp_path, "a.nc", steps=1, encoding={
        "t2m": {"dtype": "int16", "scale_factor": 0.01, "add_offset": 10.0, "_FillValue": -32768}})  # fmt: skip
    with xr.open_dataset(path, mask_and_scale=False) as raw:
        packed = raw.load()
    packed["t2m"][0, 2, 3] = -32768
    (tmp_path / "b").mkdir()
    packed.to_netcdf(tmp_path / "b" / "b.nc")
    fields = open_fields(tmp_path / "b" / "b.nc")
    assert int(fields["t2m"].isnull().sum()) == 1
    assert np.isnan(fields["t2m"].values[0, 2, 3])
    assert float(fields["t2m"][0, 0, 0]) == pytest.approx(-75.0, abs=0.01)


def test_region_across_greenwich_stays_in_one_piece(tmp_path):
    lon = np.array([350.0, 355.0, 0.0, 5.0, 10.0])
    data = xr.Dataset({"t": (("lat", "lon"), np.tile(lon, (3, 1)))}, {"lat": [40.0, 45.0, 50.0], "lon": lon})
    data.to_netcdf(tmp_path / "a.nc")
    fields = open_fields(tmp_path / "a.nc")
    np.testing.assert_array_equal(fields.lon, [-10.0, -5.0, 0.0, 5.0, 10.0])
    np.testing.assert_array_equal(fields["t"].values[0] % 360, fields.lon.values % 360)


def test_files_are_joined_along_time_in_order(tmp_path):
    late = write(tmp_path, "b.nc", start="2000-01-05")
    early = write(tmp_path, "a.nc", start="2000-01-01", west=True)
    fields = open_fields([late, early])
    assert fields.sizes["time"] == 8
    assert np.all(np.diff(fields.time.values) > np.timedelta64(0))
    np.testing.assert_allclose(fields["t2m"].values[:4], fields["t2m"].values[4:], atol=1e-6)


def test_files_of_equal_times_are_members_labelled_by_their_names(tmp_path):
    fields = open_fields([write(tmp_path, f"run.{label}.nc") for label in ("57", "59", "66")])
    assert fields["t2m"].dims == ("member", "time", "lat", "lon")
    assert list(fields.member.values) == ["57", "59", "66"]


def test_years_of_several_members_are_joined_both_ways(tmp_path):
    for label in ("57", "59"):
        (tmp_path / label).mkdir()
    paths = [
        write(tmp_path, f"{label}/{year}.nc", start=f"{year}-01-01") for year in (2001, 2000) for label in ("57", "59")
    ]
    fields = open_fields(paths)
    assert fields["t2m"].dims == ("member", "time", "lat", "lon")
    assert list(fields.member.values) == ["57", "59"]
    assert sorted(set(fields.time.dt.year.values)) == [2000, 2001]
    for path in paths:
        one = open_fields(path)["t2m"]
        same = fields["t2m"].sel(member=path.parent.name, time=one.time)
        np.testing.assert_array_equal(same, one)


def test_variables_of_several_years_and_a_static_field_are_joined(tmp_path):
    paths = [
        write(tmp_path, f"{name}_{year}.nc", variable=name, start=f"{year}-01-01")
        for name in ("t2m", "u10")
        for year in (2000, 2001)
    ]
    orography = write(tmp_path, "orography.nc", variable="z", steps=1)
    with xr.open_dataset(orography) as timed:
        timed.isel(time=0, drop=True).to_netcdf(tmp_path / "static.nc")
    fields = open_fields([*paths, tmp_path / "static.nc"])
    assert {name: variable.dims for name, variable in fields.data_vars.items()} == {
        "t2m": ("time", "lat", "lon"), "u10": ("time", "lat", "lon"), "z": ("lat", "lon"),
    }  # fmt: skip
    np.testing.assert_array_equal(fields["u10"][4:], open_fields(paths[3])["u10"])


def test_one_variable_with_and_without_levels_is_a_data_error(tmp_path):
    path = write(tmp_path, "surface.nc")
    with xr.open_dataset(path) as surface:
        surface.expand_dims(level=[500.0]).to_netcdf(tmp_path / "upper.nc")
    with pytest.raises(DataError, match=r"'t2m' has dimensions .*level.*upper\.nc and .*surface\.nc"):
        open_fields([tmp_path / "upper.nc", path])


def test_dates_beside_plain_numbers_are_a_data_error(tmp_path):
    path = write(tmp_path, "dated.nc")
    with xr.open_dataset(path) as dated:
        dated.assign_coords(time=np.arange(4.0)).to_netcdf(tmp_path / "numbered.nc")
    with pytest.raises(DataError, match=r"dated\.nc holds dates, that of .*numbered\.nc plain numbers"):
        open_fields([path, tmp_path / "numbered.nc"])


@pytest.mark.parametrize("kind", ["one file", "converted", "joined", "chunked"])
def test_one_time_step_reads_no_more_than_a_piece(tmp_path, kind):
    # Contiguous in the file, which dask by itself takes for one piece; west first, so that longitudes are reordered.
    lon = np.arange(128) * 2.8125 - 180
    values = np.random.default_rng(0).standard_normal((600, 64, 128)).astype("f4")
    coords = {"time": pd.date_range("2000", periods=600), "lat": np.linspace(-88, 88, 64), "lon": lon}
    xr.Dataset({"t2m": (("time", "lat", "lon"), values, {"units": "K"})}, coords).to_netcdf(tmp_path / "a.0.nc")
    (tmp_path / "a.1.nc").hardlink_to(tmp_path / "a.0.nc")
    options = {"converted": {"units": {"t2m": "degC"}}, "chunked": {"chunks": {"time": 50}}}.get(kind, {})
    paths = tmp_path / ("a.*.nc" if kind == "joined" else "a.0.nc")
    open_fields(paths, **options)  # imports
    tracemalloc.start()
    try:
        row = open_fields(paths, **options)["t2m"].isel(time=[300]).compute(scheduler="synchronous")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < values.nbytes
    expected = np.roll(values[300], 64, axis=1) - (273.15 if kind == "converted" else 0.0)
    np.testing.assert_allclose(row.values.reshape(-1, 64, 128)[0], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"calendar": "360_day"}, "calendar"),
        ({"nlat": 4}, "lat"),
        ({"units": "degC"}, "degC"),
        ({"steps": 2}, "overlap"),
    ],
    ids=["calendar", "grid", "units", "times"],
)
def test_clashing_files_are_both_named(tmp_path, other, message):
    paths = [write(tmp_path, "first.nc"), write(tmp_path, "second.nc", **other)]
    with pytest.raises(DataError, match=message) as caught:
        open_fields(paths)
    assert "first.nc" in str(caught.value)
    assert "second.nc" in str(caught.value)


def test_units_are_converted_when_compatible(tmp_path):
    fields = open_fields([write(tmp_path, "k.nc"), write(tmp_path, "c.nc", units="degC")], units={"t2m": "K"})
    difference = fields["t2m"].isel(member=1) - fields["t2m"].isel(member=0)
    np.testing.assert_allclose(difference, 273.15, atol=1e-6)
    with pytest.raises(DataError, match="cannot be converted"):
        open_fields(write(tmp_path, "x.nc"), units={"t2m": "m s**-1"})


def test_unknown_variable_offers_near_names(tmp_path):
    with pytest.raises(DataError, match=r"'t2n'.*Did you mean 't2m'.*It has: t2m"):
        open_fields(write(tmp_path, "a.nc"), ["t2n"])


@pytest.mark.parametrize("engine", ["netcdf4", "scipy"])
def test_truncated_file_is_a_data_error(tmp_path, engine):
    path = write(tmp_path, "a.nc", steps=200, engine=engine)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(DataError, match=r"a\.nc"):
        open_fields(path)


def test_missing_file_and_text_file_are_data_errors(tmp_path):
    write(tmp_path, "field.nc")
    with pytest.raises(DataError, match=r"Did you mean 'field.nc'"):
        open_fields(tmp_path / "fields.nc")
    (tmp_path / "a.nc").write_text("no data here")
    with pytest.raises(DataError, match="cannot be opened"):
        open_fields(tmp_path / "a.nc")


@pytest.mark.parametrize("dims", [("y", "x"), ("nlat", "nlon"), ("lat", "lon")])
@pytest.mark.parametrize("names", [("latitude", "longitude"), ("TLAT", "TLONG"), ("phi", "lambda")])
def test_curvilinear_grid_is_a_data_error_that_says_so(tmp_path, dims, names):
    lat, lon = np.meshgrid(np.linspace(40, 50, 3), np.linspace(0, 10, 4), indexing="ij")
    coords = {names[0]: (dims, lat, {"units": "degrees_north"}), names[1]: (dims, lon, {"units": "degrees_east"})}
    xr.Dataset({"t": (("time", *dims), np.zeros((2, 3, 4)))}, coords).to_netcdf(tmp_path / "a.nc")
    with pytest.raises(DataError, match="curvilinear"):
        open_fields(tmp_path / "a.nc")


def test_latitudes_stored_as_plain_variables_are_found(tmp_path):
    path = write(tmp_path, "a.nc", lat="y", lon="x")
    with xr.open_dataset(path) as raw:
        plain = raw.drop_vars(["y", "x"]).assign(
            breite=("y", raw.y.values, {"units": "degrees_north"}),
            laenge=("x", raw.x.values, {"units": "degrees_east"}),
        )
        plain.to_netcdf(tmp_path / "b.nc")
    assert_standard(open_fields(tmp_path / "b.nc"))


def test_vertical_axis_is_found_by_the_direction_it_points_in(tmp_path, make_fields):
    fields = make_fields(levels=3).rename(level="k")
    fields["k"] = ("k", np.arange(3.0), {"positive": "down", "units": "1"})
    fields.to_netcdf(tmp_path / "a.nc")
    assert open_fields(tmp_path / "a.nc")["t2m"].dims == ("time", "level", "lat", "lon")


def test_opened_dataset_is_brought_into_standard_form(tmp_path):
    with xr.open_dataset(write(tmp_path, "a.nc", lat="latitude", west=True, descending=True)) as opened:
        assert_standard(open_fields(opened, "t2m"))


def test_empty_time_axis_and_unknown_engine_are_named(tmp_path, make_fields):
    make_fields().isel(time=slice(0, 0)).to_netcdf(tmp_path / "a.nc")
    with pytest.raises(DataError, match=r"a\.nc has no time step"):
        open_fields(tmp_path / "a.nc")
    with pytest.raises(ConfigError, match=r"'netcdf5', expected one that is installed: .*netcdf4"):
        open_fields(tmp_path / "a.nc", engine="netcdf5")


def test_unknown_dimensions_are_a_data_error(tmp_path):
    xr.Dataset({"t": (("foo", "bar"), np.zeros((2, 3)))}).to_netcdf(tmp_path / "a.nc")
    with pytest.raises(DataError, match="foo, bar"):
        open_fields(tmp_path / "a.nc")


def test_pressure_levels_become_hpa_and_can_be_selected(tmp_path, make_fields):
    fields = make_fields(levels=3).rename(level="plev")
    fields["plev"] = ("plev", fields.plev.values * 100.0, {"units": "Pa", "standard_name": "air_pressure"})
    fields.to_netcdf(tmp_path / "a.nc")
    opened = open_fields(tmp_path / "a.nc", levels=[850, 200])
    assert list(opened.level.values) == [850.0, 200.0]
    np.testing.assert_array_equal(opened["t2m"], fields["t2m"].isel(plev=[2, 0]))
    with pytest.raises(DataError, match="no level 700"):
        open_fields(tmp_path / "a.nc", levels=[700])


@pytest.mark.filterwarnings("ignore:variable .* has non-conforming")  # by xarray itself, which we compare with
def test_real_files_open_in_standard_form(shared_data):
    climate = shared_data / "climate"
    north_america = open_fields(climate / "A1B_north_america.nc")
    assert dict(north_america.sizes) == {"time": 240, "lat": 37, "lon": 49}
    winds = open_fields(climate / "eraint_uvz.nc", ["u", "v"])
    assert winds["u"].dims == ("time", "level", "lat", "lon")
    assert winds.lat.values[0] == -90.0
    assert (winds.lon.values[0], winds.lon.values[-1]) == (0.0, 359.25)
    assert list(winds.level.values) == [200.0, 500.0, 850.0]
    with xr.open_dataset(climate / "eraint_uvz.nc", drop_variables=["z"], mask_and_scale=True) as raw:
        expected = raw["u"].sel(latitude=45.0, longitude=-90.0).values
    np.testing.assert_array_equal(winds["u"].sel(lat=45.0, lon=270.0).values, expected)
