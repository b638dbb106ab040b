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

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """`x[batch, channel, ...]`, `condition[batch, param]` -> like `x`."""
        affine = self.affine(condition).to(x.dtype)
        scale, shift = affine.unflatten(-1, (2, -1) + (1,) * (x.ndim - 2)).unbind(1)  # 2 x [batch, channel, 1, ...]
        return x * (1 + scale) + shift
