"""NATTEN's fused kernels of neighbourhood attention, where the package and a GPU are there.

Hassani et al. 2024 (arXiv:2403.04690). They know no periodic axis, no mask and no bias: `refusals` says so, and the
tiled form serves instead. A kernel is tried once against that form before it is trusted.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

from astrozoo.attention.backends.base import expand_heads
from astrozoo.attention.terms import Terms

__all__ = ["natten_attention", "natten_refusals", "natten_version", "probe_natten"]

_TOLERANCE = {torch.float32: 1e-2, torch.float16: 2e-2, torch.bfloat16: 6e-2}  # float32 products may be TF32


def natten_version() -> str:
    """Version of the package; empty where it is not installed."""
    package = _package()
    return "" if isinstance(package, str) else str(getattr(package, "__version__", "unknown"))


def natten_refusals(
    query: Tensor,
    value: Tensor,
    terms: Terms,
    *,
    shape: tuple[int, ...],
    periodic: tuple[bool, ...],
    kernel: tuple[int, ...],
    biased: bool,
) -> tuple[str, ...]:
    """Why it cannot serve a call; empty if it can. Tensors as for `attend`, `kernel` cut to the grid already."""
    if torch.compiler.is_compiling():
        return ("it is not traced by torch.compile here",)
    package = _package()
    if isinstance(package, str):
        return (package,)
    reasons = []
    if query.device.type != "cuda":
        reasons.append(f"its kernels run on CUDA, not on {query.device.type}")
    if any(wraps and reach < cells for wraps, reach, cells in zip(periodic, kernel, shape, strict=True)):
        reasons.append("it knows no periodic axis")
    if min(kernel) < 2:
        reasons.append("it takes no kernel of one cell")
    if biased:
        reasons.append("it takes no relative bias")
    if terms.key_mask is not None:
        reasons.append("it takes no key_mask")
    if terms.causal and terms.positions is not None:
        reasons.append("it takes no positions")
    if terms.dropout:
        reasons.append("it drops no weights")
    if query.dtype not in _TOLERANCE:
        reasons.append(f"it takes no {query.dtype}")
    if query.shape[3] != value.shape[3] or query.shape[3] % 8:
        reasons.append(f"head_dim {query.shape[3]} and v_head_dim {value.shape[3]} are not one multiple of 8")
    if torch.are_deterministic_algorithms_enabled() and torch.is_grad_enabled():
        reasons.append("its backward is not deterministic")
    if not getattr(package, "HAS_LIBNATTEN", True):
        reasons.append("the installed natten was built without its kernels")
    return tuple(reasons)


def natten_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    shape: tuple[int, ...],
    kernel: tuple[int, ...],
    causal: tuple[bool, ...],
    scale: float | None,
) -> Tensor:
    """Neighbourhood attention: (batch, head, token, dim) in and out, tokens row-major on a grid of `shape`."""
    key, value = expand_heads(query, key, value)
    run: Callable[..., Tensor] = getattr(_package(), f"na{len(shape)}d")

    def on_grid(heads: Tensor) -> Tensor:
        return heads.transpose(1, 2).contiguous().unflatten(1, shape)  # (batch, *shape, head, dim)

    out = run(on_grid(query), on_grid(key), on_grid(value), kernel_size=kernel, is_causal=causal, scale=scale)
    return out.flatten(1, len(shape)).transpose(1, 2)


@functools.cache
def probe_natten(
    ours: Callable[..., Tensor],
    device: str,
    dtype: torch.dtype,
    head_dim: int,
    kernel: tuple[int, ...],
    causal: tuple[bool, ...],
) -> str:
    """Why it fails on this device although it should not, found by one run with gradients; empty if fine.

    Args:
        ours: The form to compare with, called as `natten_attention`.
        device: Of the call.
        dtype: Of the call.
        head_dim: Of the call.
        kernel: Of the call, cut to at most 8 cells with its parity kept.
        causal: Of the call.
    """
    shape = tuple(cells + 3 for cells in kernel)
    with torch.inference_mode(False), torch.enable_grad():
        generator = torch.Generator(device).manual_seed(0)
        inputs = torch.randn(4, 1, 2, torch.Size(shape).numel(), head_dim, device=device, generator=generator)
        results = []
        try:
            for run in (natten_attention, ours):
                heads = [part.to(dtype).detach().requires_grad_() for part in inputs[:3]]
                out = run(*heads, shape=shape, kernel=kernel, causal=causal, scale=None)
                results.append((out, *torch.autograd.grad(out, heads, inputs[3].to(dtype))))
        except Exception as error:  # a kernel may fail in any way; the answer is its message
            return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
        for name, got, want in zip(("output", "dq", "dk", "dv"), *results, strict=True):
            gap = (got.float() - want.float()).abs().max().item() / want.float().abs().max().item()
            if not gap <= _TOLERANCE[dtype]:
                return f"{name} differs from the tiled form by {gap:.1e}"
    return ""


@functools.cache
def _package() -> ModuleType | str:
    """The package, or why it is not there."""
    try:
        return importlib.import_module("natten")
    except ModuleNotFoundError:
        return "the package natten is not installed"
    except Exception as error:  # a binary for another torch fails in its own way
        return f"the package natten cannot be imported: {type(error).__name__}: {error}"
