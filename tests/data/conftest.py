from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import xarray as xr


@pytest.fixture
def make_fields() -> Callable[..., xr.Dataset]:
    """A global 8 x 16 grid of smooth noise with annual steps."""

    def make(steps: int = 40, names: tuple[str, ...] = ("t2m",), members: int = 0, levels: int = 0) -> xr.Dataset:
        rng = np.random.default_rng(0)
        sizes = {"member": members, "time": steps, "level": levels, "lat": 8, "lon": 16}
        sizes = {dim: size for dim, size in sizes.items() if size}
        coords = {
            "time": pd.date_range("1950-01-01", periods=steps, freq="YS"),
            "lat": ("lat", np.linspace(-78.75, 78.75, 8), {"units": "degrees_north"}),
            "lon": ("lon", np.arange(16) * 22.5, {"units": "degrees_east"}),
        }
        if levels:
            coords["level"] = ("level", np.array([200.0, 500.0, 850.0])[:levels], {"units": "hPa"})
        if members:
            coords["member"] = np.arange(members)
        variables = {
            name: (tuple(sizes), (280 + 10 * rng.standard_normal(tuple(sizes.values()))).astype("f4"), {"units": "K"})
            for name in names
        }
        return xr.Dataset(variables, coords)

    return make
