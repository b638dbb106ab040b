"""Where the rows of a latitude-longitude grid lie, by the name of the rule that places them, and the area of each.

    centres  cell centres of equal spacing: no row on an edge (most model output after regridding)
    poles    equal spacing, the first and the last row on the edges (ERA5 and other reanalyses)
    gauss    zeros of a Legendre polynomial (spectral climate models)

Rows go from south to north, as the data layer gives them; areas are the same in either order.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["ROWS", "area_shares", "latitudes"]

ROWS = ("centres", "poles", "gauss")
GLOBE = (-90.0, 90.0)


def latitudes(rows: str, count: int, edges: tuple[float, float] = GLOBE) -> NDArray[np.float64]:
    """`[lat]`, degrees north from south to north.

    Args:
        rows: One of `ROWS`; `gauss` only for the whole globe.
        count: Number of rows.
        edges: Southern and northern edge of the grid in degrees north.
    """
    south, north = edges
    if rows == "gauss":
        return np.rad2deg(np.arcsin(np.polynomial.legendre.leggauss(count)[0]))
    if rows == "poles":
        return np.linspace(south, north, count)
    return south + (north - south) * (np.arange(count) + 0.5) / count


def area_shares(rows: str, count: int, edges: tuple[float, float] = GLOBE) -> NDArray[np.float64]:
    """`[lat]`, the share of the area that each row stands for; the sum is 1.

    Zones between the edges of cells, halfway between rows; Gaussian weights for `gauss`, which is how a spectral model
    takes its own means.
    """
    if rows == "gauss":
        shares = np.polynomial.legendre.leggauss(count)[1]
    elif count == 1:
        shares = np.ones(1)
    else:
        lat = latitudes(rows, count, edges)
        middle = (lat[1:] + lat[:-1]) / 2
        first, last = edges if rows == "centres" else (lat[0] - (middle[0] - lat[0]), 2 * lat[-1] - middle[-1])
        bounds = np.clip(np.concatenate([[first], middle, [last]]), *GLOBE)
        shares = np.diff(np.sin(np.deg2rad(bounds)))
    return np.asarray(shares / shares.sum())
