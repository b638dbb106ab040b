"""Peers at equal numbers of parameters."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

__all__ = ["at_parameters"]


def at_parameters(
    make: Callable[[float], Any], parameters: int, within: float = 0.05, device: str = "meta"
) -> Callable[[], Any]:
    """`make` at the scale of its default widths that comes nearest to this number of parameters.

    Args:
        make: Builds a model at a scale.
        parameters: How many it should have.
        within: Share of them that it may have more or less.
        device: Where models are built to be counted; one that reads values while it is built needs `cpu`.

    Raises:
        ValueError: No scale comes as near as `within`, a share of the number.
    """
    import torch

    def count(scale: float) -> int:
        with torch.device(device):
            return sum(parameter.numel() for parameter in make(scale).parameters())

    low, high = 0.05, 50.0 if device == "meta" else 8.0
    for _ in range(24 if device == "meta" else 7):  # bisection
        middle = math.sqrt(low * high)
        low, high = (middle, high) if count(middle) < parameters else (low, middle)
    scale = min((low, high), key=lambda scale: abs(count(scale) - parameters))
    if abs(count(scale) / parameters - 1) > within:
        raise ValueError(
            f"no width of the peer comes within {within:.0%} of {parameters:,} parameters: {count(scale):,}."
        )
    return lambda: make(scale)
