"""How gates of recurrences start (Gu and Dao 2023, arXiv:2312.00752): a spread of time scales, none too short."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["draw_rates", "draw_steps"]


@torch.no_grad()
def draw_rates(log_rate: Tensor, low: float = 1.0, high: float = 16.0) -> None:
    """Fill with logarithms of rates that are uniform between `low` and `high`."""
    nn.init.uniform_(log_rate, low, high)
    log_rate.log_()


@torch.no_grad()
def draw_steps(bias: Tensor, low: float = 1e-3, high: float = 0.1) -> None:
    """Fill with numbers whose softplus is log-uniform between `low` and `high`."""
    nn.init.uniform_(bias, math.log(low), math.log(high))
    step = bias.exp()
    bias.copy_(step + torch.log(-torch.expm1(-step)))  # the inverse of softplus
