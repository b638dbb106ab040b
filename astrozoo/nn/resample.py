"""Coarser and finer grids: convolutions whose kernel is their stride, for grids of any size.

`Coarsen` fills up sizes that the stride does not divide (wrapping in a periodic longitude, repeating the edge
elsewhere) and `Refine` crops what it makes to the size asked for, so `n` cells become `ceil(n / stride)` and `n` again.
A single level stays one at no cost: the level planes of the kernel are summed, which is what repeating the level would
do.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Coarsen", "Refine", "fill_up"]


def fill_up(x: Tensor, multiples: tuple[int, int, int], *, longitude: str) -> Tensor:
    """`x[batch, channel, level, lat, lon]` extended to sizes that `multiples` divide.

    A periodic longitude goes on around the circle; elsewhere the edge is repeated.
    """
    missing = [-size % step for size, step in zip(x.shape[2:], multiples, strict=True)]
    # Not F.pad: on a GPU its gradient adds in no fixed order, or slowly where only reproducible results are allowed.
    for dim, count in enumerate(missing, 2):
        if count:
            wraps = dim == 4 and longitude == "periodic"
            more = x.narrow(dim, 0, count) if wraps else x.narrow(dim, -1, 1).expand(_with(x.shape, dim, count))
            x = torch.cat([x, more], dim)
    return x


def _with(shape: Sequence[int], dim: int, size: int) -> list[int]:
    """`shape` with another size of one dimension."""
    return [size if index == dim else old for index, old in enumerate(shape)]


class Coarsen(nn.Conv3d):
    """Every `stride` cells become one: `[batch, in_channel, level, lat, lon]` -> `[batch, out_channel, ...]`."""

    def __init__(self, in_channels: int, out_channels: int, stride: tuple[int, int, int], *, longitude: str) -> None:
        super().__init__(in_channels, out_channels, stride, stride)
        self.longitude = longitude

    def reset_parameters(self) -> None:
        """Variance-preserving initialisation, zero bias."""
        nn.init.kaiming_normal_(self.weight, nonlinearity="linear")
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """`x[batch, in_channel, level, lat, lon]` -> `[batch, out_channel, ceil(size / stride), ...]`."""
        weight, (level, lat, lon) = self.weight, self.kernel_size
        if x.shape[2] == 1 and level > 1:
            weight, level = weight.sum(2, keepdim=True), 1
        x = fill_up(x, (level, lat, lon), longitude=self.longitude)
        return F.conv3d(x, weight, self.bias, (level, lat, lon))


class Refine(nn.ConvTranspose3d):
    """`[batch, in_channel, level, lat, lon]` -> `[batch, out_channel, *sizes]`, at most `stride` times as fine."""

    def __init__(self, in_channels: int, out_channels: int, stride: tuple[int, int, int]) -> None:
        super().__init__(in_channels, out_channels, stride, stride)

    def reset_parameters(self) -> None:
        """Variance-preserving initialisation (every fine cell sees one coarse cell), zero bias."""
        nn.init.normal_(self.weight, std=self.in_channels**-0.5)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, sizes: Sequence[int]) -> Tensor:  # type: ignore[override]
        """`x[batch, in_channel, level, lat, lon]` and the sizes `(level, lat, lon)` wanted."""
        weight, (level, lat, lon) = self.weight, self.kernel_size
        if sizes[0] == 1 and level > 1:
            weight, level = weight[:, :, :1], 1
        x = F.conv_transpose3d(x, weight, self.bias, (level, lat, lon))
        return x[:, :, : sizes[0], : sizes[1], : sizes[2]]
