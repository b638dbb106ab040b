"""Convolutions in wave space along level, latitude and longitude, with the same weights on any grid.

Waves that a field is decomposed into:

circle    a full circle of longitude: cosines and sines of whole waves, which is the discrete Fourier transform.
meridian  a meridian that goes on beyond the poles on the opposite one (`half_turn`) closes to a great circle of twice
          its length: the double Fourier sphere (Merilees 1973). With the angle counted from the pole, cosines carry the
          mean of both meridians and sines half their difference, so the doubled grid is never made.
segment   an axis with two ends (level, the edges of a region) is continued by its mirror image, which has no jump: only
          cosines are left of it (the cosine transform). The convolution of that image gives sines too.

Transforms are products with tables of few waves: `modes` is a fraction of the grid's size in these operators, so this
takes less time than a fast Fourier transform of all of them, runs on tensor cores in the dtype of the features (cuFFT
takes half precision only for powers of two), needs no complex dtype and compiles like any matrix product. Tables are
made in float32 (float64 for float64) from exact whole fractions of a turn.

Coefficients are amplitudes: products are means over the axis, so a wave has the same coefficients on every grid that
resolves it. Waves at or beyond the Nyquist wavenumber of a grid are left out, and their weights unused.

Layout: `x[batch, level, lat, lon, channel]`; tables `[mode, phase, size]` with phases cosine and sine.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from astrozoo.nn.precision import full_precision
from astrozoo.nn.sphere import half_turn

__all__ = [
    "AxisConv",
    "PlaneConv",
    "WavePosition",
    "WaveTables",
    "Waves",
    "analysis",
    "plane_analysis",
    "plane_table",
    "rotations",
    "synthesis",
    "wave_table",
]


def wave_table(size: int, modes: int, kind: str, like: Tensor) -> Tensor:
    """Waves at `size` cells, with a mean square of 1: `[min(modes, resolved), phase, size]`, on the device of `like`.

    Cells of a meridian or segment lie at `(index + 1/2) / size` of its length; a segment of length 1 holds half a wave
    of mode 1. The phases are cosine and sine; the sine of mode 0 is 0.
    """
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    kept = min(modes, (size + 1) // 2 if kind == "circle" else size)
    cell = torch.arange(size, device=like.device)
    mode = torch.arange(kept, device=like.device)[:, None]
    turn = size if kind == "circle" else 4 * size  # a whole turn, in the units of the next line
    steps = mode * (cell if kind == "circle" else 2 * cell + 1) % turn
    angle = steps.to(dtype) * (2 * math.pi / turn)
    scale = torch.where(mode > 0, 2.0, 1.0).to(dtype).sqrt()
    return torch.stack([scale * angle.cos(), scale * angle.sin()], 1)


class WaveTables(NamedTuple):
    """Tables of the three axes, each `[mode, phase, size]`."""

    level: Tensor
    lat: Tensor
    lon: Tensor


class Waves:
    """Which waves a grid has: made once from a configuration, gives the tables of any grid.

    Args:
        modes: Waves kept in level, lat and lon, mode 0 (the mean) included; None keeps all that a grid resolves.
        longitude: `periodic` for a full circle, `regional` for a segment.
        poles: `cross` for a meridian, `edge` for a segment.
    """

    def __init__(self, modes: tuple[int, int, int] | None, *, longitude: str, poles: str) -> None:
        self.modes = modes
        self.kinds = (
            "segment",
            "meridian" if poles == "cross" else "segment",
            "circle" if longitude == "periodic" else "segment",
        )

    def tables(self, x: Tensor) -> WaveTables:
        """Tables for `x[batch, level, lat, lon, channel]`; all layers of a model can share them."""
        with full_precision(x):
            return WaveTables(
                *(
                    wave_table(size, modes, kind, x)
                    for size, modes, kind in zip(x.shape[1:4], self.modes or x.shape[1:4], self.kinds, strict=True)
                )
            )


def analysis(x: Tensor, table: Tensor) -> Tensor:
    """Means over the axis of products with waves: `x[outer, size, inner]` -> `[outer, mode * phase, inner]`."""
    rows = table.flatten(0, -2)
    return (rows / rows.shape[-1]).to(x.dtype) @ x


def synthesis(coefficients: Tensor, table: Tensor) -> Tensor:
    """Sum of waves: `coefficients[outer, mode * phase, inner]` -> `[outer, size, inner]`."""
    return table.flatten(0, -2).mT.to(coefficients.dtype) @ coefficients


def rotations(weight: Tensor) -> Tensor:
    """Complex weights `[part, ..., in, out]` as real matrices `[..., 2 * in, 2 * out]` for rows `(cosine, sine)`."""
    real, imaginary = weight.unbind(0)
    return torch.cat([torch.cat([real, imaginary], -1), torch.cat([-imaginary, real], -1)], -2)


class AxisConv(nn.Module):
    """A convolution along one axis, given by a complex matrix per wave (Tran et al. 2021, arXiv:2111.13802).

    Args:
        in_channels, out_channels: Features per cell.
        modes: Number of waves with weights.
        axis: 1 for level, 2 for lat, 3 for lon.
        kind: `circle`, `meridian` or `segment`.
        mean: False leaves out the mean over the axis, so that an axis of one cell contributes nothing at no cost.
    """

    def __init__(
        self, in_channels: int, out_channels: int, modes: int, *, axis: int, kind: str, mean: bool = True
    ) -> None:
        super().__init__()
        self.axis, self.kind, self.first = axis, kind, 0 if mean else 1
        self.weight = nn.Parameter(torch.empty(2, modes - self.first, in_channels, out_channels))

    def reset_parameters(self) -> None:
        """Variance of a wave preserved."""
        nn.init.normal_(self.weight, std=(2 * self.weight.shape[2]) ** -0.5)

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        """`x[batch, level, lat, lon, in_channel]`, `table[mode, phase, size]` of the axis -> `[..., out_channel]`."""
        shape, axis = x.shape, self.axis
        table = table[self.first :]
        modes = table.shape[0]
        if modes == 0:
            return x.new_zeros(*shape[:4], self.weight.shape[3])
        inner = math.prod(shape[axis + 1 : 4])
        x = x.reshape(-1, shape[axis], inner * shape[4])
        weight = self.weight[:, :modes].to(x.dtype)
        if self.kind == "segment":
            waves = analysis(x, table[:, :1]).view(-1, modes, inner, shape[4])
            matrix = torch.cat(weight.unbind(0), -1)  # (mode, in, 2 * out)
        else:
            waves = analysis(x, table).view(-1, modes, 2, inner, shape[4])
            if self.kind == "meridian":
                opposite = half_turn(waves, dim=3)
                cosine, sine = waves.unbind(2)
                other_cosine, other_sine = opposite.unbind(2)
                waves = torch.cat([cosine + other_cosine, sine - other_sine], -1) / 2
            else:
                waves = waves.transpose(2, 3).flatten(3)
            matrix = rotations(weight)  # (mode, 2 * in, 2 * out)
        # (outer, mode, inner, channels) x (mode, channels, 2 * out): one product per wave
        rows = waves.transpose(0, 1).flatten(1, 2)
        mixed = (rows @ matrix).view(modes, -1, inner, 2, self.weight.shape[3])
        y = synthesis(mixed.permute(1, 0, 3, 2, 4).flatten(3).flatten(1, 2), table)
        return y.view(*shape[:4], -1)

    def extra_repr(self) -> str:
        """Axis, kind and sizes."""
        _, modes, in_channels, out_channels = self.weight.shape
        return f"{in_channels}, {out_channels}, modes={modes}, axis={self.axis}, kind={self.kind}"


def plane_table(tables: WaveTables, lat_kind: str) -> Tensor:
    """Latitude's waves for each wave of longitude: `[lon_mode, lat_mode, lat]`.

    On the opposite meridian a wave of odd number in longitude has the other sign, so that what continues over the poles
    holds only sines of latitude there, and only cosines for even numbers. A segment has cosines throughout.
    """
    cosine, sine = tables.lat.unbind(1)
    odd = torch.arange(tables.lon.shape[0], device=cosine.device)[:, None, None] % 2
    return torch.where(odd == 1, sine, cosine) if lat_kind == "meridian" else cosine.expand(*odd.shape[:1], -1, -1)


def plane_analysis(x: Tensor, tables: WaveTables, plane: Tensor, lon_phases: int) -> Tensor:
    """Waves in lon and lat: `x[batch, level, lat, lon, channel]` -> `[lon_mode, lat_mode, outer, phase * channel]`.

    Args:
        x: Features.
        tables: Those of the grid.
        plane: `plane_table` of them.
        lon_phases: 2 where longitude is a circle, 1 (cosines only) where it is a segment.
    """
    batch, level, lat, lon, channels = x.shape
    waves = analysis(x.reshape(-1, lon, channels), tables.lon[:, :lon_phases])
    waves = waves.view(batch * level, lat, plane.shape[0], lon_phases * channels)
    # Tables of lat differ between waves of lon: (lon_mode, lat_mode, lat) x (lon_mode, lat, outer * channels)
    waves = waves.permute(2, 1, 0, 3).flatten(2)
    return ((plane / lat).to(x.dtype) @ waves).unflatten(2, (batch * level, -1))


class PlaneConv(nn.Module):
    """A convolution over lat and lon, given by complex matrices per pair of waves (Li et al. 2020, arXiv:2010.08895).

    Args:
        channels: Features per cell.
        modes: Waves of lat and of lon.
        kinds: Kinds of lat and of lon.
        rank: None for a matrix of its own per pair; `(channels, lat, lon)` for a Tucker decomposition of all of them
            (Kossaifi et al. 2023, arXiv:2310.00120): what is transformed has `channels` features, and matrices are
            mixed from `lat * lon` of them.
    """

    def __init__(
        self, channels: int, modes: tuple[int, int], *, kinds: tuple[str, str], rank: tuple[int, int, int] | None = None
    ) -> None:
        super().__init__()
        self.kinds = kinds
        inner, pairs = (channels, modes) if rank is None else (rank[0], rank[1:])
        # The convolution of a meridian or segment gives both phases in lat: (lat phase, complex part, ...)
        self.weight = nn.Parameter(torch.empty(2, 2, *pairs, inner, inner))
        self.project = self.expand = self.lat_factor = self.lon_factor = None
        if rank is not None:
            self.project, self.expand = nn.Linear(channels, inner, bias=False), nn.Linear(inner, channels, bias=False)
            self.lat_factor = nn.Parameter(torch.empty(modes[0], rank[1]))
            self.lon_factor = nn.Parameter(torch.empty(modes[1], rank[2]))

    def reset_parameters(self) -> None:
        """Variance of a wave preserved."""
        nn.init.normal_(self.weight, std=(4 * self.weight.shape[-1]) ** -0.5)
        for factor in (self.lat_factor, self.lon_factor):
            if factor is not None:
                nn.init.normal_(factor, std=factor.shape[1] ** -0.5)

    def matrices(self, lat_modes: int, lon_modes: int) -> Tensor:
        """Complex matrices of the pairs of waves: `[lat phase, complex part, lat_mode, lon_mode, in, out]`."""
        if self.lat_factor is None or self.lon_factor is None:
            return self.weight[:, :, :lat_modes, :lon_modes]
        return torch.einsum(
            "kp,lq,zwpqio->zwklio", self.lat_factor[:lat_modes], self.lon_factor[:lon_modes], self.weight
        )

    def forward(self, x: Tensor, tables: WaveTables, plane: Tensor) -> Tensor:
        """`x[batch, level, lat, lon, channel]`, the grid's tables and `plane_table` of them -> like `x`."""
        if self.project is not None:
            x = self.project(x)
        batch, level, lat, lon, channels = x.shape
        lon_phases = 1 if self.kinds[1] == "segment" else 2
        lon_modes, lat_modes, _ = plane.shape
        waves = plane_analysis(x, tables, plane, lon_phases)
        matrix = self.matrices(lat_modes, lon_modes).to(x.dtype).transpose(2, 3)
        if lon_phases == 1:
            blocks = [torch.cat(phase.unbind(0), -1) for phase in matrix.unbind(0)]
        else:
            blocks = [rotations(phase) for phase in matrix.unbind(0)]
        mixed = waves @ torch.cat(blocks, -1)  # (lon_mode, lat_mode, outer, lat phase * lon phase * channels)
        mixed = mixed.view(lon_modes, lat_modes, batch * level, 2, 2, channels).permute(2, 1, 3, 0, 4, 5)
        y = synthesis(mixed.flatten(3).flatten(1, 2), tables.lat)  # (outer, lat, lon_mode * lon phase * channels)
        y = synthesis(y.view(batch * level * lat, lon_modes * 2, channels), tables.lon)
        y = y.view(batch, level, lat, lon, channels)
        return y if self.expand is None else self.expand(y)

    def extra_repr(self) -> str:
        """Kinds."""
        return f"kinds={self.kinds}"


class WavePosition(nn.Module):
    """Adds a learned function of level and latitude, the same at every longitude of a circle.

    It is a sum of the first cosines over the axis, smooth over the poles and the same on every grid.

    Args:
        channels: Features per cell.
        waves: Cosines per axis, beside the mean.
        longitude: `regional` adds a function of longitude too, for a region has a west and an east.
    """

    def __init__(self, channels: int, waves: int, *, longitude: str) -> None:
        super().__init__()
        axes = 2 if longitude == "periodic" else 3
        self.weight = nn.Parameter(torch.empty(axes, waves, channels))

    def reset_parameters(self) -> None:
        """Small, so that fields come first."""
        nn.init.normal_(self.weight, std=0.1)

    def forward(self, x: Tensor) -> Tensor:
        """`x[batch, level, lat, lon, channel]` -> like `x`."""
        axes, waves, _ = self.weight.shape
        with full_precision(x):
            for axis in range(axes):
                size = x.shape[1 + axis]
                cosines = wave_table(size, waves + 1, "segment", x)[1:, 0]  # (wave, size)
                offset = cosines.mT @ self.weight[axis, : cosines.shape[0]].to(cosines.dtype)
                x = x + offset.to(x.dtype).view(size, *(1,) * (2 - axis), -1)
        return x
