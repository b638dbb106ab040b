import numpy as np
import pytest
import xarray as xr

from astrozoo.data import describe
from astrozoo.errors import DataError


@pytest.fixture
def fields():
    values = np.random.default_rng(0).normal(280, 10, (20, 6, 8))
    values[:2] = np.nan
    return xr.Dataset(
        {
            "t2m": (("time", "lat", "lon"), values.astype(np.float32), {"units": "K"}),
            "mask": (("lat", "lon"), np.arange(48).reshape(6, 8) % 2),
            "label": ("time", np.array(["a"] * 20)),
        }
    )


def test_numbers_are_those_of_numpy(fields):
    row, mask = describe(fields)
    exact = fields["t2m"].values.astype(np.float64)
    assert (row.name, row.units, row.count) == ("t2m", "K", 18 * 48)
    assert row.missing == pytest.approx(0.1)
    assert (row.mean, row.std) == pytest.approx((np.nanmean(exact), np.nanstd(exact)))
    assert (row.min, row.max) == pytest.approx((np.nanmin(exact), np.nanmax(exact)))
    assert row.quantiles == pytest.approx(np.nanquantile(exact, [0.01, 0.25, 0.5, 0.75, 0.99]))
    assert (mask.mean, mask.missing, mask.units) == (0.5, 0.0, "")


def test_it_prints_a_table_with_a_line_for_each_variable(fields):
    header, *lines = str(describe(fields)).splitlines()
    assert header.split() == [
        "variable",
        "units",
        "known",
        "missing",
        "mean",
        "std",
        "min",
        "1%",
        "25%",
        "50%",
        "75%",
        "99%",
        "max",
    ]
    assert lines[0].split()[:4] == ["t2m", "K", "864", "10.0%"]
    assert len({len(line) for line in [header, *lines]}) == 1


def test_fields_without_numbers_are_refused(fields):
    with pytest.raises(DataError, match="none of the variables"):
        describe(fields[["label"]])
