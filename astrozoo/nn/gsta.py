"""Gated spatiotemporal attention: large kernels that gate features, on latitude-longitude grids with levels.

Tan, Gao, Li, Li (2022), "SimVP: Towards Simple yet Powerful Spatiotemporal Predictive Learning", arXiv:2211.12509.
Times are channels, so that the pointwise convolutions mix times while depthwise ones with a large kernel, decomposed
into a dense and a dilated one (Guo et al. 2022, arXiv:2202.09741), gather what is around.
Where we differ, and why: normalisation over channels replaces batch norm (one sample's forecast must not depend on its
neighbours'); the dense depthwise kernels reach over levels too; convolutions know the globe.

Layout: `[batch, channel, level, lat, lon]`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from astrozoo.nn.drop import DropPath
from astrozoo.nn.film import FiLM
from astrozoo.nn.norm import ChannelNorm
from astrozoo.nn.separable import DepthwiseGridConv3d

__all__ = ["GatedLargeKernel", "GatedSpatiotemporalBlock"]


class GatedLargeKernel(nn.Module):
    """`x + project(sigmoid(g) * f)`, with `f` and `g` of a large kernel over `gelu(expand(x))`.

    The large kernel is a depthwise one of 5 x 5 cells, one of `dilated` x `dilated` cells that lie `dilation` apart,
    and a pointwise convolution that also makes the gate: 7 cells 3 apart see 23 x 23 cells.
    """

    def __init__(
        self, channels: int, *, longitude: str, poles: str, level_kernel: int = 3, dilated: int = 7, dilation: int = 3
    ) -> None:
        super().__init__()
        self.expand = nn.Conv3d(channels, channels, 1)
        self.dense = DepthwiseGridConv3d(
            channels, kernel=2 * dilation - 1, level_kernel=level_kernel, longitude=longitude, poles=poles
        )
        self.dilated = DepthwiseGridConv3d(
            channels, kernel=dilated, level_kernel=1, dilation=dilation, longitude=longitude, poles=poles
        )
        self.gate = nn.Conv3d(channels, 2 * channels, 1)
        self.project = nn.Conv3d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`x[batch, channel, level, lat, lon]` -> like `x`."""
        features, gate = self.gate(self.dilated(self.dense(F.gelu(self.expand(x))))).chunk(2, 1)
        return x + self.project(gate.sigmoid() * features)


class GatedSpatiotemporalBlock(nn.Module):
    """`x + scale * attention(norm(x))`, then the same with a perceptron that has a depthwise convolution inside.

    The learnt scale of either branch starts at 0.01, so that a deep stack starts near the identity.
    """

    def __init__(
        self,
        channels: int,
        *,
        longitude: str,
        poles: str,
        level_kernel: int = 3,
        mlp_ratio: float = 4.0,
        condition_width: int = 0,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        hidden = int(mlp_ratio * channels)

        def film() -> nn.Module | None:
            return FiLM(condition_width, channels) if condition_width else None

        self.norm1 = ChannelNorm(channels)
        self.film1 = film()
        self.attention = GatedLargeKernel(channels, longitude=longitude, poles=poles, level_kernel=level_kernel)
        self.scale1 = nn.Parameter(torch.empty(channels, 1, 1, 1))
        self.norm2 = ChannelNorm(channels)
        self.film2 = film()
        self.expand = nn.Conv3d(channels, hidden, 1)
        self.local = DepthwiseGridConv3d(hidden, kernel=3, level_kernel=1, longitude=longitude, poles=poles)
        self.project = nn.Conv3d(hidden, channels, 1)
        self.scale2 = nn.Parameter(torch.empty(channels, 1, 1, 1))
        self.dropout = nn.Dropout(dropout)
        self.drop_path = DropPath(drop_path)

    def reset_parameters(self) -> None:
        """Scales of the branches 0.01."""
        nn.init.constant_(self.scale1, 0.01)
        nn.init.constant_(self.scale2, 0.01)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """`x[batch, channel, level, lat, lon]`, `condition[batch, embedding]` -> like `x`."""
        branch = self.norm1(x)
        if self.film1 is not None:
            branch = self.film1(branch, condition)
        x = x + self.drop_path(self.scale1.to(branch.dtype) * self.attention(branch))
        branch = self.norm2(x)
        if self.film2 is not None:
            branch = self.film2(branch, condition)
        branch = self.dropout(F.gelu(self.local(self.expand(branch))))
        return x + self.drop_path(self.scale2.to(branch.dtype) * self.project(branch))
