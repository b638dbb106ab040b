"""Inverted bottlenecks: widen, look at the neighbours channel by channel, weigh the channels, narrow.

Sandler et al. 2018 (arXiv:1801.04381), with the squeeze and excitation of Hu et al. 2018 (arXiv:1709.01507) as in
EfficientNet (Tan and Le 2019, arXiv:1905.11946), and one normalisation in front as in CoAtNet (Dai et al. 2021,
arXiv:2106.04803).

Layout: `[batch, channel, level, lat, lon]`.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from astrozoo.nn.drop import DropPath
from astrozoo.nn.film import FiLM
from astrozoo.nn.gates import area_mean
from astrozoo.nn.norm import ChannelNorm
from astrozoo.nn.separable import DepthwiseGridConv3d

__all__ = ["MBConv", "SqueezeExcitation"]


class SqueezeExcitation(nn.Module):
    """Scale every channel by a function of the global means of all: what is far away has a say.

    Args:
        channels: Channels.
        squeezed: Width of the function's hidden layer.
        poles: `cross` for a globe, whose means are by area, or `edge`.
    """

    def __init__(self, channels: int, squeezed: int, *, poles: str) -> None:
        super().__init__()
        self.poles = poles
        self.squeeze = nn.Linear(channels, squeezed)
        self.excite = nn.Linear(squeezed, channels)

    def forward(self, x: Tensor) -> Tensor:
        """`x[batch, channel, level, lat, lon]` -> like `x`."""
        means = area_mean(x, poles=self.poles).mean(-1).to(x.dtype)  # [batch, channel]
        scale = self.excite(F.silu(self.squeeze(means))).sigmoid().to(x.dtype)
        return x * scale[:, :, None, None, None]


class MBConv(nn.Module):
    """`x + narrow(excite(gelu(depthwise(gelu(widen(norm(x)))))))`, scaled and shifted by a condition after the norm.

    Args:
        width: Channels.
        longitude: `periodic` or `regional`, as of the grid.
        poles: `cross` or `edge`, as of the grid.
        expansion: Channels in between, in units of `width`.
        kernel: Extent of the depthwise convolution in lat and lon.
        level_kernel: Its extent in level.
        squeeze: Hidden width of squeeze and excitation, in units of `width`; it has at least one channel.
        condition_width: Width of the vector that scales and shifts; 0 for none.
        dropout: Probability of dropping a channel in between during training.
        drop_path: Probability of dropping the branch during training.
    """

    def __init__(
        self,
        width: int,
        *,
        longitude: str,
        poles: str,
        expansion: int = 4,
        kernel: int = 3,
        level_kernel: int = 3,
        squeeze: float = 0.25,
        condition_width: int = 0,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        hidden = expansion * width
        self.norm = ChannelNorm(width)
        self.film = FiLM(condition_width, width) if condition_width else None
        self.widen = nn.Linear(width, hidden)
        self.depthwise = DepthwiseGridConv3d(
            hidden, kernel=kernel, level_kernel=level_kernel, longitude=longitude, poles=poles
        )
        self.excitation = SqueezeExcitation(hidden, max(1, int(squeeze * width)), poles=poles)
        self.dropout = nn.Dropout3d(dropout)
        self.narrow = nn.Linear(hidden, width)
        self.drop_path = DropPath(drop_path)

    def reset_parameters(self) -> None:
        """Variance-preserving pointwise layers; the last starts at zero, so that a deep stack is the identity."""
        nn.init.kaiming_normal_(self.widen.weight, nonlinearity="relu")
        nn.init.zeros_(self.narrow.weight)
        for layer in (self.widen, self.narrow):
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """`x[batch, channel, level, lat, lon]`, `condition[batch, condition_width]` -> like `x`."""
        branch = self.norm(x)
        if self.film is not None:
            branch = self.film(branch, condition)
        branch = F.gelu(_pointwise(self.widen, branch))  # [batch, hidden, level, lat, lon]
        branch = self.dropout(self.excitation(F.gelu(self.depthwise(branch))))
        residual: Tensor = x + self.drop_path(_pointwise(self.narrow, branch))
        return residual


def _pointwise(layer: nn.Linear, x: Tensor) -> Tensor:
    """A linear map of the channels of each cell: a product of matrices, without a copy where channels lie last."""
    return layer(x.movedim(1, -1)).movedim(-1, 1)
