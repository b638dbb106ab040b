"""Latitude-longitude grids: what lies beyond the edge of the array, and convolutions that know it.

A global grid has no edge in longitude: column -1 is the last column. Nor does it end at a pole: walking north from the
first row one comes down the other side, so the row beyond is that same row seen half a turn away. With an odd number
of longitudes half a turn falls between two columns and their mean is taken. Rows are taken as cell centres (no row lies
on the pole itself; one that does is seen twice, which is harmless), and channels as scalars: the sign that a wind
component changes over the pole is left to the network.

Layout: `[..., lat, lon]` for halos, `[batch, channel, level, lat, lon]` for convolutions.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["LONGITUDES", "POLES", "GridConv3d", "half_turn", "pad_grid"]

LONGITUDES = ("periodic", "regional")
POLES = ("cross", "edge")
_HALF = (torch.bfloat16, torch.float16)


def half_turn(x: Tensor) -> Tensor:
    """`x[..., lon]` seen from the opposite meridian; the mean of two neighbours where the number of columns is odd."""
    lon = x.shape[-1]
    turned = torch.roll(x, lon // 2, -1)
    return turned if lon % 2 == 0 else (turned + torch.roll(x, lon // 2 + 1, -1)) / 2


def pad_grid(x: Tensor, rows: int, columns: int, *, longitude: str = "periodic", poles: str = "cross") -> Tensor:
    """Add a halo to a latitude-longitude grid.

    Args:
        x: `[..., lat, lon]` of at least 3 dimensions.
        rows: Rows added at either end; more than `lat` go on over the other pole and come back.
        columns: Columns added at either end; more than `lon` go round more than once.
        longitude: `periodic` wraps around; `regional` repeats the outermost column.
        poles: `cross` continues on the other side of the pole; `edge` repeats the outermost row.

    Returns:
        `[..., lat + 2 * rows, lon + 2 * columns]`.
    """
    while rows > x.shape[-2]:  # before the columns: a turned row has to be a whole one
        lat = x.shape[-2]
        x, rows = pad_grid(x, lat, 0, longitude=longitude, poles=poles), rows - lat
    while columns > x.shape[-1]:
        lon = x.shape[-1]
        x, columns = pad_grid(x, rows, lon, longitude=longitude, poles=poles), columns - lon
        rows = 0
    if torch.compiler.is_compiling():
        return _pad(x, rows, columns, longitude, poles)  # the compiler fuses the copies and their gradient by itself
    return _PadGrid.apply(x, rows, columns, longitude, poles)


def _pad(x: Tensor, rows: int, columns: int, longitude: str, poles: str) -> Tensor:
    if rows:
        if poles == "cross":
            north, south = half_turn(x[..., :rows, :].flip(-2)), half_turn(x[..., -rows:, :].flip(-2))
        else:
            north, south = (x[..., row : row + 1, :].expand(*x.shape[:-2], rows, -1) for row in (0, x.shape[-2] - 1))
        x = torch.cat([north, x, south], -2)
    if columns:
        if longitude == "periodic":
            west, east = x[..., -columns:], x[..., :columns]
        else:
            west, east = (x[..., column : column + 1].expand(*x.shape[:-1], columns) for column in (0, x.shape[-1] - 1))
        x = torch.cat([west, x, east], -1)
    return x


class _PadGrid(torch.autograd.Function):
    """`_pad` with a gradient that copies the grid once; autograd's own makes a zero-filled grid for every slice."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, rows: int, columns: int, longitude: str, poles: str) -> Tensor:
        return _pad(x, rows, columns, longitude, poles)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        _, ctx.rows, ctx.columns, ctx.longitude, ctx.poles = inputs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, columns = ctx.rows, ctx.columns

        def fold_columns(padded: Tensor) -> Tensor:
            if not columns:
                return padded.clone()
            folded = padded[..., columns:-columns].clone()
            west, east = padded[..., :columns], padded[..., -columns:]
            if ctx.longitude == "periodic":
                folded[..., -columns:] += west
                folded[..., :columns] += east
            else:
                folded[..., :1] += west.sum(-1, keepdim=True)
                folded[..., -1:] += east.sum(-1, keepdim=True)
            return folded

        if not rows:
            return fold_columns(gradient), None, None, None, None
        folded = fold_columns(gradient[..., rows:-rows, :])
        north, south = fold_columns(gradient[..., :rows, :]), fold_columns(gradient[..., -rows:, :])
        if ctx.poles == "cross":  # half a turn is its own transpose
            folded[..., :rows, :] += half_turn(north).flip(-2)
            folded[..., -rows:, :] += half_turn(south).flip(-2)
        else:
            folded[..., :1, :] += north.sum(-2, keepdim=True)
            folded[..., -1:, :] += south.sum(-2, keepdim=True)
        return folded, None, None, None, None


class GridConv3d(nn.Conv3d):
    """A size-preserving 3-D convolution whose halo is the globe's: `[batch, channel, level, lat, lon]`.

    Levels end where the atmosphere does: beyond the top and bottom lie zeros. On a single level the outer planes of the
    kernel meet only those zeros, so they are skipped; the result is the same.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, longitude: str, poles: str, kernel: int = 3, level_kernel: int = 3
    ) -> None:
        super().__init__(in_channels, out_channels, (level_kernel, kernel, kernel))
        self.longitude = longitude
        self.poles = poles

    def reset_parameters(self) -> None:
        """He initialisation for the forward pass, zero bias."""
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu")
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """`x[batch, in_channel, level, lat, lon]` -> `[batch, out_channel, level, lat, lon]`."""
        levels, rows, columns = (size // 2 for size in self.kernel_size)
        weight = self.weight
        if x.shape[2] == 1:  # planar kernels are faster than 3-D ones of one level
            plane = pad_grid(x.squeeze(2), rows, columns, longitude=self.longitude, poles=self.poles)
            return F.conv2d(plane, weight[:, :, levels], self.bias).unsqueeze(2)
        x = pad_grid(x, rows, columns, longitude=self.longitude, poles=self.poles)
        if levels and x.device.type == "cpu" and (x.dtype in _HALF or torch.is_autocast_enabled("cpu")):
            # With its own zero padding, oneDNN's bfloat16 gradient of the weight reads memory that nobody wrote where
            # levels are as few as two (seen with oneDNN 3.13): NaN whenever that memory holds one.
            x, levels = F.pad(x, (0, 0, 0, 0, levels, levels)), 0
        return F.conv3d(x, weight, self.bias, padding=(levels, 0, 0))

    def extra_repr(self) -> str:
        """As for any convolution, and the edges."""
        return f"{super().extra_repr()}, longitude={self.longitude!r}, poles={self.poles!r}"
