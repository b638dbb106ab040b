"""Trying a kernel once before it is trusted: forward and backward on a tiny input, compared with plain attention."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from astrozoo.attention.backends.math import softmax_attention
from astrozoo.attention.terms import Terms

__all__ = ["compare_with_math", "for_real"]

TOKENS = 64


def for_real() -> AbstractContextManager[object]:
    """Within the block tensors hold values, and no mode of the caller (fake tensors, counters) sees what is done."""
    manager: AbstractContextManager[object] = _disable_current_modes()
    return manager


def compare_with_math(
    run: Callable[[Tensor, Tensor, Tensor, Terms], Tensor],
    *,
    device: str,
    dtype: torch.dtype,
    head_dim: int,
    causal: bool,
    window: int | None = None,
) -> str:
    """Why a kernel is not to be trusted on this device, or an empty string if it is right.

    Args:
        run: Output from query, key, value (1, 2, token, head_dim) and terms.
        device: Where to try.
        dtype: Of the tensors.
        head_dim: Width of a head.
        causal: As in `Terms`.
        window: As in `Terms`.
    """
    with for_real():
        return _compare_with_math(run, device, dtype, head_dim, Terms(causal=causal, window=window))


def _compare_with_math(
    run: Callable[[Tensor, Tensor, Tensor, Terms], Tensor],
    device: str,
    dtype: torch.dtype,
    head_dim: int,
    terms: Terms,
) -> str:
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(1, 2, TOKENS, head_dim, generator=generator).to(device, dtype) for _ in range(4)]
    found: list[list[Tensor]] = []
    try:
        for kernel in (lambda q, k, v, terms: softmax_attention(q, k, v, terms)[0], run):
            q, k, v = (tensor.clone().requires_grad_() for tensor in tensors[:3])
            # What it warns of, such as the first use of cuBLAS in autograd's thread, makes no kernel wrong.
            with (
                warnings.catch_warnings(action="ignore"),
                torch.enable_grad(),
                torch.autocast(torch.device(device).type, enabled=False),
            ):
                out = kernel(q, k, v, terms)
                found.append([out.detach(), *torch.autograd.grad(out, (q, k, v), tensors[3])])
    except Exception as error:  # whatever a kernel or its compiler raises means that it cannot be used here
        reason = str(error).strip().splitlines()
        return f"it fails on {device}: {type(error).__name__}{': ' + reason[0] if reason else ''}"
    tolerance = 0.02 if dtype in (torch.float16, torch.bfloat16) else 1e-4
    for got, want in zip(found[1], found[0], strict=True):
        if not float((got - want).norm()) <= tolerance * float(want.norm()):
            return f"it gives wrong values on {device}"
    return ""
