"""The residual block of convolutions that U-shaped families share."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from astrozoo.nn.drop import DropPath
from astrozoo.nn.film import FiLM
from astrozoo.nn.norm import ChannelNorm
from astrozoo.nn.sphere import GridConv3d

__all__ = ["ResidualBlock"]


class ResidualBlock(nn.Module):
    """`x + conv(silu(conv(norm(x))))`, scaled and shifted by a condition after the norm.

    Args:
        width: Channels.
        longitude: `periodic` or `regional`, as of the grid.
        poles: `cross` or `edge`, as of the grid.
        level_kernel: Extent of the convolutions in level.
        condition_width: Width of the vector that scales and shifts; 0 for none.
        dropout: Probability of dropping a channel between the convolutions during training.
        drop_path: Probability of dropping the branch during training.
    """

    def __init__(
        self,
        width: int,
        *,
        longitude: str,
        poles: str,
        level_kernel: int = 3,
        condition_width: int = 0,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm = ChannelNorm(width)
        self.film = FiLM(condition_width, width) if condition_width else None
        self.conv1 = GridConv3d(width, width, longitude=longitude, poles=poles, level_kernel=level_kernel)
        self.dropout = nn.Dropout3d(dropout)
        self.conv2 = GridConv3d(width, width, longitude=longitude, poles=poles, level_kernel=level_kernel)
        self.drop_path = DropPath(drop_path)

    def reset_parameters(self) -> None:
        """The second convolution starts at zero: a deep stack starts as the identity."""
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """`x[batch, channel, level, lat, lon]`, `condition[batch, condition_width]` -> like `x`."""
        branch = self.norm(x)
        if self.film is not None:
            branch = self.film(branch, condition)
        branch = self.conv2(self.dropout(F.silu(self.conv1(branch))))
        residual: Tensor = x + self.drop_path(branch)
        return residual
