"""Depthwise convolutions with large kernels on latitude-longitude grids, one kernel per channel.

A kernel of a channel is the product of a planar kernel and a kernel over levels. Three-dimensional depthwise kernels
are among the slowest operations of GPUs, and cost `level_kernel * kernel**2` products per cell instead of
`level_kernel + kernel**2`; what a product cannot express, the pointwise convolutions between two of them can.

Layout: `[batch, channel, level, lat, lon]`. Kernel sizes are odd.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from astrozoo.nn.sphere import pad_grid

__all__ = ["DepthwiseGridConv3d"]


class DepthwiseGridConv3d(nn.Module):
    """A size-preserving depthwise convolution whose halo is the globe's, `kernel` x `kernel` cells x `level_kernel`.

    Levels end where the atmosphere does: beyond the top and bottom lie zeros. A single level meets only the centre of
    the kernel over levels, which then scales the planar kernel: one planar convolution, with the same result.

    Attributes:
        weight: Planar kernels `[channel, 1, kernel, kernel]`.
        level_weight: Kernels over levels `[channel, level_kernel]`; None where `level_kernel` is 1.
        bias: `[channel]`.
    """

    def __init__(self, channels: int, *, kernel: int, level_kernel: int, longitude: str, poles: str) -> None:
        super().__init__()
        if kernel % 2 == 0 or level_kernel % 2 == 0 or min(kernel, level_kernel) < 1:
            raise ValueError(f"kernel is {kernel} and level_kernel {level_kernel}; both must be odd and positive.")
        self.longitude = longitude
        self.poles = poles
        self.weight = nn.Parameter(torch.empty(channels, 1, kernel, kernel))
        self.level_weight = nn.Parameter(torch.empty(channels, level_kernel)) if level_kernel > 1 else None
        self.bias = nn.Parameter(torch.empty(channels))

    def reset_parameters(self) -> None:
        """Variance-preserving in the plane; over levels the identity and a little of the neighbours; zero bias."""
        nn.init.kaiming_normal_(self.weight, nonlinearity="linear")
        if self.level_weight is not None:
            nn.init.normal_(self.level_weight, std=0.1)
            nn.init.ones_(self.level_weight[:, self.level_weight.shape[1] // 2])
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """`x[batch, channel, level, lat, lon]` -> like `x`."""
        levels, halo = x.shape[2], self.weight.shape[-1] // 2
        weight, bias, taps = self.weight, self.bias, self.level_weight
        if levels == 1 and taps is not None:
            weight, taps = weight * taps[:, taps.shape[1] // 2, None, None, None], None
        planes = x.squeeze(2) if levels == 1 else x.transpose(1, 2).flatten(0, 1)  # [batch * level, channel, lat, lon]
        planes = pad_grid(planes, halo, halo, longitude=self.longitude, poles=self.poles)
        planes = F.conv2d(planes, weight, bias if taps is None else None, groups=weight.shape[0])
        if levels == 1:
            return planes.unsqueeze(2)
        y = planes.unflatten(0, (-1, levels)).transpose(1, 2)
        return y if taps is None else _mix_levels(y, taps, bias)

    def extra_repr(self) -> str:
        """Channels, kernels and edges."""
        channels, _, kernel, _ = self.weight.shape
        level_kernel = 1 if self.level_weight is None else self.level_weight.shape[1]
        return (
            f"{channels}, kernel={kernel}, level_kernel={level_kernel}, longitude={self.longitude!r}, "
            f"poles={self.poles!r}"
        )


def _mix_levels(x: Tensor, taps: Tensor, bias: Tensor) -> Tensor:
    """`x[batch, channel, level, lat, lon]` with the kernels `taps[channel, level_kernel]`, zeros beyond the ends."""
    levels, half = x.shape[2], taps.shape[1] // 2
    padded = F.pad(x, (0, 0, 0, 0, half, half))
    y = bias.to(x.dtype)[:, None, None, None]
    for offset, tap in enumerate(taps.to(x.dtype)[..., None, None, None].unbind(1)):
        y = y + tap * padded[:, :, offset : offset + levels]
    return y
