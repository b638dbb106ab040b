import datetime as dt

import numpy as np
import pytest
import xarray as xr

from astrozoo.data import fill_gaps
from astrozoo.errors import DataError


def make(times):
    generator = np.random.default_rng(0)
    values = generator.normal(size=(len(times), 3, 4))
    values[generator.random(values.shape) < 0.4] = np.nan
    return xr.Dataset(
        {
            "u": (("time", "lat", "lon"), values, {"units": "m s-1"}),
            "v": (("lat", "lon", "time"), values.transpose(1, 2, 0).astype(np.float32)),
            "mask": (("lat", "lon"), np.ones((3, 4))),
            "count": ("time", np.arange(len(times))),
        },
        coords={"time": times},
    )


DAYS = np.array("2001-01-01", "M8[ns]") + np.cumsum([1, 2, 1, 1, 5, 1, 1, 3, 1, 1, 2, 1]).astype("m8[D]")
CFTIME = xr.date_range("0900-01-01", periods=12, freq="D", calendar="360_day", use_cftime=True)


@pytest.mark.parametrize(
    "times", [DAYS, CFTIME, np.cumsum(np.linspace(0.2, 2.0, 12))], ids=["dates", "cftime", "numbers"]
)
def test_it_is_what_xarray_does(times):
    fields = make(times)
    filled = fill_gaps(fields)
    for name in ("u", "v"):
        xr.testing.assert_allclose(filled[name], fields[name].interpolate_na("time"), rtol=1e-6)
        assert filled[name].dims == fields[name].dims
        assert filled[name].dtype == fields[name].dtype
    assert filled["u"].attrs == {"units": "m s-1"}
    xr.testing.assert_identical(filled[["mask", "count"]], fields[["mask", "count"]])


@pytest.mark.parametrize("max_gap", [dt.timedelta(days=3), np.timedelta64(72, "h")])
def test_the_longest_gap_is_a_length_of_time(max_gap):
    fields = make(DAYS)
    xr.testing.assert_allclose(
        fill_gaps(fields["u"], max_gap=max_gap), fields["u"].interpolate_na("time", max_gap=max_gap)
    )


@pytest.mark.parametrize("calendar", ["standard", "noleap"])
def test_a_gap_of_just_the_longest_length_is_filled_at_every_hour(calendar):
    """Hours are no exact fractions of a day, so lengths counted in days would differ in their last digit."""
    hours = xr.date_range("2000-01-01", periods=499, freq="h", calendar=calendar, use_cftime=calendar != "standard")
    series = np.where(np.arange(499) % 3 == 0, np.arange(499.0), np.nan)
    fields = xr.DataArray(series, dims="time", coords={"time": hours})
    np.testing.assert_allclose(fill_gaps(fields, max_gap=dt.timedelta(hours=3)), np.arange(499.0))
    np.testing.assert_array_equal(fill_gaps(fields, max_gap=dt.timedelta(hours=2)), series)


def test_only_the_named_variables_are_filled():
    fields = make(DAYS)
    filled = fill_gaps(fields, variables=["v"])
    xr.testing.assert_identical(filled["u"], fields["u"])
    xr.testing.assert_identical(filled["v"], fill_gaps(fields)["v"])
    xr.testing.assert_identical(filled, fill_gaps(fields, variables="v"))
    with pytest.raises(DataError, match=r"no variable 'w'.*They have: u, v"):
        fill_gaps(fields, variables=["w"])
    with pytest.raises(DataError, match="'mask' has no dimension 'time'"):
        fill_gaps(fields, variables=["mask"])
    with pytest.raises(DataError, match="leave it out"):
        fill_gaps(fields["u"], variables=["u"])


@pytest.mark.parametrize("lazy", [False, True])
def test_half_precision_and_attributes_are_kept(lazy):
    fields = make(DAYS).astype(np.float16).assign_attrs(title="winds")
    filled = fill_gaps(fields.chunk(lat=1) if lazy else fields).compute()
    assert filled["u"].dtype == np.float16
    assert (filled.attrs, filled["u"].attrs) == ({"title": "winds"}, {"units": "m s-1"})


def test_no_times_are_nothing_to_fill():
    assert fill_gaps(make(DAYS).isel(time=slice(0))).sizes["time"] == 0


def test_lazy_fields_stay_lazy_and_give_the_same():
    fields = make(DAYS)
    lazy = fill_gaps(fields.chunk(lat=1, time=-1))
    assert lazy["u"].chunks is not None
    xr.testing.assert_allclose(lazy.compute(), fill_gaps(fields))
    with pytest.raises(DataError, match=r"cut along time.*chunk\(time=-1\)"):
        fill_gaps(fields.chunk(time=3))


def test_what_does_not_fit_is_refused():
    fields = make(DAYS)
    with pytest.raises(DataError, match="needs a dimension 'time'"):
        fill_gaps(fields[["mask"]])
    with pytest.raises(DataError, match="do not increase"):
        fill_gaps(fields.isel(time=slice(None, None, -1)))
    with pytest.raises(DataError, match="give a timedelta"):
        fill_gaps(fields, max_gap=3.0)
    with pytest.raises(DataError, match="at least 0"):
        fill_gaps(fields, max_gap=dt.timedelta(days=-1))
