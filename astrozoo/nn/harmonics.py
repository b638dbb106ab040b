"""Spherical harmonics: transforms of fields on any latitude-longitude grid, and filters that act by degree.

A field is `x(lat, lon) = sum over degree l, order m of a[l, m] Y[l, m](lat, lon)` with orthonormal harmonics, so
`a[l, m]` is the integral of `x` times the conjugate of `Y[l, m]`. The sum over longitudes is a truncated Fourier
transform, the one over latitudes a quadrature with associated Legendre functions. Both are tables here, made in double
precision by torch-harmonics, and both are applied as matrix products of real numbers: a transform of few orders is
cheaper so than by FFT, keeps any layout, and has no complex tensors, which compilers do not fuse. Orders at and above
half the number of longitudes are left out (there a turn of the globe is no turn of the coefficients), and degrees that
the quadrature would not integrate exactly.

A filter that depends on the degree alone is what commutes with every rotation of the sphere (Driscoll and Healy 1994),
and with its reflections: whether rows go south to north or north to south is the same to it.

Layout: `[lat, lon, ..., channel]` in space, `[degree, order, 2, ..., channel]` in the spectrum (2: real and imaginary
part), so that both sums and the filter find their operands in place.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from astrozoo.nn.constants import constant, fixed
from astrozoo.nn.latitudes import latitudes
from astrozoo.nn.precision import full_precision

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of backslashes in its docstrings, where the installer left compiling to us
    from torch_harmonics.legendre import legpoly
    from torch_harmonics.quadrature import clenshaw_curtiss_weights, legendre_gauss_weights

__all__ = ["DegreeFilter", "Harmonics", "zonal_harmonics"]


@dataclass(frozen=True)
class Harmonics:
    """The transforms of one grid.

    Attributes:
        rows: Rule that places the latitudes, see `astrozoo.nn.latitudes`.
        lat: Number of latitudes.
        lon: Number of longitudes, a full circle.
        degrees: Number of degrees kept: 0 to `degrees - 1`, and as many orders; at most `truncation`.
    """

    rows: str
    lat: int
    lon: int
    degrees: int

    @classmethod
    def of(cls, rows: str, lat: int, lon: int, degrees: int) -> Harmonics:
        """At most `degrees` degrees, as many as the grid holds."""
        lat, lon = fixed(lat), fixed(lon)
        return cls(rows, lat, lon, min(degrees, cls.truncation(rows, lat, lon)))

    @staticmethod
    def truncation(rows: str, lat: int, lon: int) -> int:
        """Number of degrees that transforms of a grid return exactly.

        With `n` Gaussian latitudes products of two harmonics are integrated exactly up to degree `n - 1` each, with
        equally spaced ones up to `(n - 1) / 2`.
        """
        return min(lat if rows == "gauss" else (lat + 1) // 2, (lon + 1) // 2)

    def analysis(self, x: Tensor) -> Tensor:
        """`x[lat, lon, ...]` -> coefficients `[degree, order, 2, ...]`, in at least float32."""
        with full_precision(x):
            fourier = constant(_fourier, self.lon, self.degrees, like=x)
            legendre = constant(_legendre, self.rows, self.lat, self.degrees, True, like=x)
            waves = torch.matmul(fourier, x.flatten(2).to(fourier.dtype))  # [lat, order * 2, rest]
            waves = waves.unflatten(1, (self.degrees, 2)).flatten(2)  # [lat, order, 2 * rest]
            spectrum = torch.bmm(legendre, waves.transpose(0, 1))  # [order, degree, 2 * rest]
            return spectrum.transpose(0, 1).unflatten(2, (2, *x.shape[2:]))

    def synthesis(self, spectrum: Tensor) -> Tensor:
        """Coefficients `[degree, order, 2, ...]` -> `[lat, lon, ...]`, in at least float32."""
        with full_precision(spectrum):
            fourier = constant(_fourier_back, self.lon, self.degrees, like=spectrum)
            legendre = constant(_legendre, self.rows, self.lat, self.degrees, False, like=spectrum)
            waves = torch.bmm(legendre, spectrum.flatten(2).to(fourier.dtype).transpose(0, 1))  # [order, lat, 2 * rest]
            waves = waves.transpose(0, 1).reshape(self.lat, 2 * self.degrees, -1)  # [lat, order * 2, rest]
            return torch.matmul(fourier, waves).unflatten(2, spectrum.shape[3:])


class DegreeFilter(nn.Module):
    """One matrix of channels per degree: the spherical convolution of `channels` fields with as many kernels each.

    The weights belong to degrees, not to a grid: a finer grid is filtered by the same kernels, a coarser one by those
    of the degrees that it holds.

    Args:
        channels: Fields in and out.
        degrees: Degrees that have weights; higher ones are cut off.
        kind: `isotropic` kernels are axially symmetric (real weights): the filter commutes with every rotation and with
            reflections. `zonal` ones may differ to the east and to the west (complex weights, as in the code of the
            paper): the filter commutes with turns about the polar axis only, which is all the symmetry that a rotating
            planet has.
    """

    def __init__(self, channels: int, degrees: int, *, kind: str = "isotropic") -> None:
        super().__init__()
        self.parts = 2 if kind == "zonal" else 1
        self.weight = nn.Parameter(torch.empty(degrees, channels, self.parts * channels))

    def reset_parameters(self) -> None:
        """Variance-preserving: of every degree, and so of fields."""
        nn.init.normal_(self.weight, std=(self.parts * self.weight.shape[1]) ** -0.5)

    def forward(self, x: Tensor, harmonics: Harmonics) -> Tensor:
        """`x[lat, lon, ..., channel]` -> like `x`, in its dtype."""
        spectrum = harmonics.analysis(x)
        rows = spectrum.flatten(1, -2).to(self.weight.dtype)  # [degree, order * 2 * ..., channel]
        filtered = torch.bmm(rows, self.weight[: harmonics.degrees])  # autocast may take half precision for this sum
        if self.parts == 2:  # times a complex number: order 0 loses its imaginary part in the synthesis
            real, imaginary = filtered.unflatten(1, spectrum.shape[1:-1]).chunk(2, -1)
            turned = torch.stack([-imaginary.select(2, 1), imaginary.select(2, 0)], 2)
            filtered = real + turned
        else:
            filtered = filtered.unflatten(1, spectrum.shape[1:-1])
        return harmonics.synthesis(filtered).to(x.dtype)

    def extra_repr(self) -> str:
        """Degrees and channels."""
        degrees, channels, width = self.weight.shape
        return f"{channels}, degrees={degrees}, kind={'zonal' if width > channels else 'isotropic'!r}"


def zonal_harmonics(rows: str, lat: int, degrees: int, *, like: Tensor) -> Tensor:
    """`[degree, lat]`: `sqrt(2 l + 1) P_l(sin lat)` for degrees 1 to `degrees`, mean square 1 over the sphere."""
    return constant(_zonal, rows, fixed(lat), degrees, like=like)


# -- tables, in double precision ---------------------------------------------------------------------------------------


def _nodes(rows: str, lat: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sines of latitude, south first, and the weights that integrate over them; their sum is 2."""
    if rows == "gauss":
        return legendre_gauss_weights(lat)
    if rows == "poles":
        return clenshaw_curtiss_weights(lat)
    # Fejer's first rule (Waldvogel 2006), which torch-harmonics lacks: the interpolating polynomial integrated.
    angle = np.deg2rad(90.0 - latitudes(rows, lat))[:, None]
    order = np.arange(1, lat // 2 + 1)
    weights = 2 / lat * (1 - 2 * (np.cos(2 * order * angle) / (4 * order**2 - 1)).sum(1))
    return torch.from_numpy(np.cos(angle[:, 0])), torch.from_numpy(weights)


def _legendre(rows: str, lat: int, degrees: int, analysis: bool) -> NDArray[np.float64]:
    """`[order, degree, lat]` with the weights of the quadrature, or `[order, lat, degree]` without them."""
    sines, weights = _nodes(rows, lat)
    functions = legpoly(degrees, degrees, sines)  # [order, degree, lat]
    return np.asarray(functions * weights if analysis else functions.transpose(1, 2))


def _fourier(lon: int, orders: int) -> NDArray[np.float64]:
    """`[order * 2, lon]`: integrals of a field times `exp(-i order lon)`, real and imaginary part."""
    phase = _phase(lon, orders)
    return np.stack([np.cos(phase), -np.sin(phase)], 1).reshape(2 * orders, lon) * (2 * math.pi / lon)


def _fourier_back(lon: int, orders: int) -> NDArray[np.float64]:
    """`[lon, order * 2]`: the field of complex amplitudes; orders above 0 count twice, for the negative ones."""
    phase = _phase(lon, orders)
    twice = np.where(np.arange(orders) == 0, 1.0, 2.0)[:, None, None]
    return (twice * np.stack([np.cos(phase), -np.sin(phase)], 1)).reshape(2 * orders, lon).T.copy()


def _phase(lon: int, orders: int) -> NDArray[np.float64]:
    # Reduced to one turn as whole numbers: exact for any order.
    return np.asarray(2 * math.pi / lon * (np.arange(orders)[:, None] * np.arange(lon) % lon))


def _zonal(rows: str, lat: int, degrees: int) -> NDArray[np.float64]:
    functions = legpoly(1, degrees + 1, _nodes(rows, lat)[0])[0, 1:]
    return np.asarray(functions * math.sqrt(4 * math.pi))
