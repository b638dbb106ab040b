from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from astrozoo.data import open_fields
from astrozoo.errors import DataError


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
        {"descending": True},
        {"west": True},
        {"west": True, "descending": True, "calendar": "360_day"},
        {"calendar": "noleap"},
        {"engine": "h5netcdf"},
        {"engine": "scipy"},
        {"name": "a.zarr"},
    ],
    ids=["plain", "long names", "rotated", "units and standard_name", "axis", "north first", "west first",
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
