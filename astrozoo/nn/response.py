"""Global response normalisation: channels of a layer compete by how strongly they respond on the whole grid.

Paper: Woo et al. (2023), "ConvNeXt V2", arXiv:2301.00808. With `g` a channel's response, `y = x + gamma (x n) + beta`,
`n = g / mean over channels of g`. A channel that responds more than others is amplified, so that channels become
diverse instead of dead or alike.

The response of the paper is the norm over all pixels. Ours is the root of the mean square by area: on a globe of equal
steps in latitude the rows at the poles hold many cells and little air, and count for as much as they cover. As only
ratios of responses matter, a mean instead of a sum changes nothing but what it means for `eps`, which here does not
depend on the size of the grid. All levels count alike.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from astrozoo.nn.precision import full_precision

__all__ = ["ResponseNorm", "row_areas"]


def row_areas(rows: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Tensor:
    """Shares `[lat]` of the globe's area of rows of equal extent from pole to pole; they sum to 1."""
    centres = (torch.arange(rows, device=device, dtype=dtype or torch.float32) + 0.5) * (
        math.pi / rows
    )  # from the pole
    areas = centres.sin()  # the integral over a row of equal extent is proportional to it, exactly
    return areas / areas.sum()


class ResponseNorm(nn.Module):
    """Global response normalisation over the grid, `[batch, channel, level, lat, lon]`; starts as the identity."""

    def __init__(self, channels: int, *, globe: bool, eps: float = 1e-6) -> None:
        """Make the layer.

        Args:
            channels: Number of channels.
            globe: The rows go from pole to pole in equal steps and count by their area; otherwise all alike.
            eps: Added to the mean response, so that fields of zeros stay zero.
        """
        super().__init__()
        self.globe = globe
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(channels))
        self.bias = nn.Parameter(torch.empty(channels))

    def reset_parameters(self) -> None:
        """Zeros: the identity, as in the paper."""
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """`x[batch, channel, level, lat, lon]` -> like `x`, in its dtype."""
        with full_precision(x):
            response = self.response(x)  # [batch, channel]
            ratio = response / (response.mean(1, keepdim=True) + self.eps)
            scale = (1 + self.weight * ratio).to(x.dtype)[..., None, None, None]
            return torch.addcmul(self.bias.to(x.dtype)[:, None, None, None], x, scale)

    def response(self, x: Tensor) -> Tensor:
        """Root mean square `[batch, channel]` by area of `x[batch, channel, level, lat, lon]`, in float32 or more."""
        precise = torch.promote_types(x.dtype, torch.float32)
        levels, rows, columns = x.shape[2:]
        # The norm of each row first: it reads `x` once and makes no field of squares.
        energy = torch.linalg.vector_norm(x, dim=(2, 4), dtype=precise).square() / (levels * columns)
        area = row_areas(rows, device=x.device, dtype=precise) if self.globe else energy.new_full((rows,), 1 / rows)
        return (energy @ area + self.eps**2).sqrt()

    def extra_repr(self) -> str:
        """Channels, and which rows count how much."""
        return f"{self.weight.numel()}, globe={self.globe}, eps={self.eps}"
