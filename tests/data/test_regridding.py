from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from astrozoo import accel
from astrozoo.data import regrid
from astrozoo.errors import DataError, InputError

FILE = Path(__file__).parents[2] / "examples/data/TREFHT.B06.57.atm.1890-1999ANN.nc"
LAT, LON = np.arange(-87.5, 90, 5.0), np.arange(0.0, 360.0, 7.5)


@pytest.fixture
def fields(make_fields):
    """On a grid whose longitudes stand before its latitudes, with what belongs to cells and what does not."""
    fields = make_fields(steps=3, names=("t2m", "sst"))
    fields["t2m"] = fields["t2m"].transpose("time", "lon", "lat")
    fields["co2"] = ("time", [280.0, 281.0, 282.0], {"units": "ppm"})
    fields["weight"] = ("lat", np.ones(8))
    fields = fields.assign_coords(area=(("lat", "lon"), np.ones((8, 16))))
    return fields.assign_attrs(title="test")


def area_mean(field):
    """With rows of equal width between midpoints, and polar caps."""
    lat = np.asarray(field.lat, dtype=np.float64)
    edges = np.sin(np.deg2rad(np.concatenate([[-90.0], (lat[1:] + lat[:-1]) / 2, [90.0]])))
    return float((field.mean("lon").astype(np.float64) * xr.DataArray(np.diff(edges), dims="lat")).sum() / 2)


def test_a_file_keeps_its_global_mean():
    with xr.open_dataset(FILE, decode_times=False) as file:
        temperature = file["TREFHT"].isel(time=slice(0, 3)).load()
    found = regrid(temperature, LAT, LON)
    assert found.dims == ("time", "lat", "lon")
    assert found.shape == (3, 36, 48)
    assert (found.dtype, found.name, found.attrs) == (np.float32, "TREFHT", temperature.attrs)
    assert found.lat.attrs == temperature.lat.attrs
    for step in range(3):
        assert area_mean(found[step]) == pytest.approx(area_mean(temperature[step]), rel=1e-6)


def test_variables_keep_dimensions_and_attributes_and_others_pass(fields):
    found = regrid(fields, LAT, LON)
    assert list(found.data_vars) == ["t2m", "sst", "co2"]
    assert found["t2m"].dims == ("time", "lon", "lat")
    assert found["sst"].dims == ("time", "lat", "lon")
    assert (found["t2m"].attrs, found.attrs) == ({"units": "K"}, {"title": "test"})
    xr.testing.assert_identical(found["co2"], fields["co2"])
    assert "area" not in found.coords
    expected = accel.regrid_conservative(fields["sst"], fields.lat, fields.lon, LAT, LON)
    np.testing.assert_array_equal(found["sst"], expected)


def test_axes_are_found_under_other_names(fields):
    renamed = fields[["sst"]].drop_vars("area").rename(lat="j", lon="i").rename_vars(j="nav_lat", i="nav_lon")
    found = regrid(renamed, LAT, LON)
    assert found["sst"].dims == ("time", "j", "i")
    np.testing.assert_array_equal(found["sst"], regrid(fields, LAT, LON)["sst"])
    np.testing.assert_array_equal(found["nav_lat"], LAT)


def test_bounds_of_the_file_make_its_cells(fields):
    edges = np.array([-90, -70, -50, -25, 0, 25, 50, 70, 90.0])
    fields["lat_bnds"] = (("lat", "nv"), np.stack([edges[:-1], edges[1:]], 1))
    fields.lat.attrs["bounds"] = "lat_bnds"
    found = regrid(fields, LAT, LON)
    expected = accel.regrid_conservative(fields["sst"], fields["lat_bnds"], fields.lon, LAT, LON)
    np.testing.assert_array_equal(found["sst"], expected)
    assert "lat_bnds" not in found
    assert "bounds" not in found.lat.attrs


def test_target_bounds_and_attributes_may_be_given(fields):
    rows = np.stack([LAT - 2.5, LAT + 2.5], 1)
    found = regrid(fields, rows, xr.DataArray(LON, dims="x", attrs={"long_name": "east"}))
    np.testing.assert_array_equal(found.lat, LAT)
    assert found.lon.attrs == {"long_name": "east"}
    np.testing.assert_allclose(found["sst"], regrid(fields, LAT, LON)["sst"], rtol=1e-6)


def test_chunks_stay_lazy_and_give_the_same(fields):
    pytest.importorskip("dask.array", reason="chunks are dask's")
    lazy = regrid(fields.chunk(time=1, lat=4), LAT, LON, min_known=0.2)
    assert lazy["sst"].chunks is not None
    xr.testing.assert_identical(lazy.compute(), regrid(fields, LAT, LON, min_known=0.2))


def test_gaps_follow_min_known(fields):
    fields["sst"][:, :4] = np.nan
    share = [regrid(fields, [-45.0, 0.0, 45.0], LON, min_known=least)["sst"].isnull().mean() for least in (0, 0.5, 1)]
    assert share[0] < share[2]
    assert share[0] <= share[1] <= share[2]


def test_a_grid_that_is_no_grid_of_rows_and_columns_is_refused(fields):
    curved = xr.Dataset(
        {"t": (("y", "x"), np.ones((3, 4)))},
        {"lat": (("y", "x"), np.ones((3, 4))), "lon": (("y", "x"), np.ones((3, 4)))},
    )
    with pytest.raises(DataError, match="curvilinear"):
        regrid(curved, LAT, LON)
    with pytest.raises(DataError, match="one lon axis"):
        regrid(fields.isel(lon=0), LAT, LON)
    with pytest.raises(DataError, match="neither strictly ascending"):
        regrid(fields.isel(lat=[0, 2, 1]), LAT, LON)


def test_mistakes_in_the_target_are_found_before_dask_computes(fields):
    with pytest.raises(InputError, match="target_lat"):
        regrid(fields.chunk(time=1), [0.0, 120.0], LON)
    with pytest.raises(DataError, match="'name' has dtype"):
        regrid(fields.assign(name=(("lat", "lon"), np.full((8, 16), "a"))), LAT, LON)
