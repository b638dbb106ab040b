"""Sums that keep their dtype, whatever autocast says."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

__all__ = ["full_precision"]


def full_precision(tensor: Tensor) -> AbstractContextManager[object]:
    """Autocast switched off on the tensor's device, so that sums keep their dtype."""
    device = tensor.device.type
    if device == "meta":  # knows no autocast; torch 2.11 cannot trace the question which devices do
        return nullcontext()
    return torch.autocast(device, enabled=False)
