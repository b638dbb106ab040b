"""Normalisation that depends neither on the batch nor on the size of the grid."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from astrozoo.nn.precision import full_precision

__all__ = ["ChannelNorm", "RMSNorm"]


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of each grid cell (Ba et al. 2016, arXiv:1607.06450).

    Statistics over the grid would count the crowded cells near the poles like any others and change with the region
    that is cut out; statistics over the batch would make one sample's result depend on its neighbours'.
    """

    def __init__(self, channels: int, *, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(channels))
        self.bias = nn.Parameter(torch.empty(channels))

    def reset_parameters(self) -> None:
        """Weight 1, bias 0."""
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """`x[batch, channel, ...]` -> like `x`, in its dtype."""
        # Autocast would return float32 and double the traffic; the kernel sums in float32 whatever the dtype.
        with full_precision(x):
            weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
            return F.layer_norm(x.movedim(1, -1), weight.shape, weight, bias, self.eps).movedim(-1, 1)

    def extra_repr(self) -> str:
        """Channels and epsilon."""
        return f"{self.weight.numel()}, eps={self.eps}"


class RMSNorm(nn.RMSNorm):
    """Division by the root mean square of the last dimension (Zhang and Sennrich 2019, arXiv:1910.07467).

    As PyTorch's, which under autocast meets half-precision features with float32 weights: it warns, leaves its fused
    kernel and returns float32.
    """

    def forward(self, x: Tensor) -> Tensor:
        """`x[..., feature]` -> like `x`, in its dtype; the kernel sums in float32."""
        with full_precision(x):
            weight = None if self.weight is None else self.weight.to(x.dtype)
            return F.rms_norm(x, self.normalized_shape, weight, self.eps)
