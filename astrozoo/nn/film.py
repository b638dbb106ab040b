"""Conditioning by feature-wise scale and shift."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["FiLM"]


class FiLM(nn.Module):
    """Scale and shift channels by a linear function of a vector (Perez et al. 2017, arXiv:1709.07871).

    Starts as the identity, so a model begins as its unconditioned self.
    """

    def __init__(self, condition_dim: int, channels: int) -> None:
        super().__init__()
        self.affine = nn.Linear(condition_dim, 2 * channels)

    def reset_parameters(self) -> None:
        """Scale 1, shift 0."""
        nn.init.zeros_(self.affine.weight)
        nn.init.zeros_(self.affine.bias)

    def forward(self, x: Tensor, condition: Tensor, *, channels_last: bool = False) -> Tensor:
        """`x[batch, channel, ...]`, or `x[batch, ..., channel]` of tokens, `condition[batch, param]` -> like `x`."""
        affine = self.affine(condition).to(x.dtype)
        ones = (1,) * (x.ndim - 2)
        sizes = (2, *ones, -1) if channels_last else (2, -1, *ones)
        scale, shift = affine.unflatten(-1, sizes).unbind(1)  # 2 x [batch, channel, 1, ...] or [batch, 1, ..., channel]
        return x * (1 + scale) + shift
