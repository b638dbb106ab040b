"""Attention of some queries to some of their keys, so that the parts can be summed, and its gradient.

The forward pass gives the log-sum-exp with the output, by which parts are merged (Milakov and Gimelshein 2018,
arXiv:1805.02867). The backward pass takes output and log-sum-exp over ALL keys: with those the probabilities, and the
row sums of dO * O that their gradient subtracts, are those of the whole softmax (Dao et al. 2022, arXiv:2205.14135).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from astrozoo.attention.backends.base import expand_heads
from astrozoo.nn.precision import full_precision

__all__ = ["block_backward", "block_forward", "inner_dtype", "kernel_of", "merge_"]

Kernel = Literal["cpu_flash", "cuda_flash", "math"]
_HALF = (torch.float16, torch.bfloat16)
TILE = 2**24  # most logits that the plain kernel holds at once


def inner_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums over blocks: at least float32."""
    return torch.promote_types(dtype, torch.float32)


def block_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float,
    causal: bool = False,
    visible: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp of softmax(scale q k') v over the keys given.

    Args:
        query: (batch, head, query, dim).
        key: (batch, key head, key, dim); key heads serve groups of adjacent query heads.
        value: (batch, key head, key, value dim).
        scale: Factor of the logits.
        causal: The i-th query sees the first i + 1 keys; as many queries as keys, no `visible`.
        visible: bool (batch | 1, 1, query | 1, key), where a query sees a key.

    Returns:
        Output (batch, head, query, value dim), 0 where a query sees none of the keys, and log-sum-exp (batch, head,
        query), -inf there and at least float32.
    """
    kernel = kernel_of(query, key, value, visible)
    if kernel == "math":
        return _math_forward(query, key, value, scale, causal, visible)
    if kernel == "cuda_flash":
        flash = torch.ops.aten._scaled_dot_product_flash_attention
        return flash(query, key, value, 0.0, causal, scale=scale)[:2]
    key, value = _cpu_heads(query, key, value)
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, causal, attn_mask=_additive(visible, query.dtype), scale=scale
    )
    if visible is not None:
        dead = ~visible.any(dim=-1)  # (batch | 1, 1, query | 1); the kernel gives them a log-sum-exp of 0
        out, lse = out.masked_fill(dead[..., None], 0), lse.masked_fill(dead, -torch.inf)
    return out, lse


def block_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    *,
    scale: float,
    causal: bool = False,
    visible: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """What the keys of one block add to the gradients of query, key and value.

    Args:
        grad: Gradient of `out`.
        query: As for `block_forward`, as are key, value, scale, causal and visible.
        key: See there.
        value: See there.
        out: Output over all keys, not only these: (batch, head, query, value dim).
        lse: Log-sum-exp over all keys, (batch, head, query), and +inf for a query that sees none at all.
        scale: See there.
        causal: See there.
        visible: See there.
    """
    kernel = kernel_of(query, key, value, visible)
    if kernel == "math":
        return _math_backward(grad, query, key, value, out, lse, scale, causal, visible)
    grad, out, lse = grad.contiguous(), out.contiguous(), lse.contiguous()
    if kernel == "cuda_flash":
        no_dropout = torch.zeros(2, dtype=torch.int64, device=query.device).view(torch.uint64)
        grads: tuple[Tensor, Tensor, Tensor] = torch.ops.aten._scaled_dot_product_flash_attention_backward(
            grad, query, key, value, out, lse, None, None, query.shape[2], key.shape[2], 0.0, causal,
            no_dropout, no_dropout, scale=scale,
        )  # fmt: skip
        return grads
    heads = key.shape[:2]
    key, value = _cpu_heads(query, key, value)
    dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad, query, key, value, out, lse, 0.0, causal, attn_mask=_additive(visible, query.dtype), scale=scale
    )
    if dk.shape[1] != heads[1]:  # (batch, key head * group, ...) -> (batch, key head, ...), summed in float32
        dk, dv = (item.unflatten(1, (heads[1], -1)).sum(dim=2, dtype=torch.float32) for item in (dk, dv))
    return dq, dk, dv


def merge_(out: Tensor, lse: Tensor, block_out: Tensor, block_lse: Tensor) -> None:
    """Add attention to further keys to `out` (batch, head, query, value dim), `lse` (batch, head, query), in place."""
    total = torch.logaddexp(lse, block_lse)
    finite = total.masked_fill(total == -torch.inf, 0)  # nothing seen yet: weights exp(-inf) = 0
    out.mul_(torch.exp(lse - finite)[..., None]).add_(block_out * torch.exp(block_lse - finite)[..., None])
    lse.copy_(total)


def kernel_of(query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None) -> Kernel:
    """Which kernel serves a block: PyTorch's flash kernels where they can, else plain matrix products."""
    if query.shape[-1] != value.shape[-1] or not (query.numel() and key.numel()):
        return "math"
    if query.device.type == "cpu" and query.dtype in (*_HALF, torch.float32, torch.float64):
        return "cpu_flash"
    if query.device.type == "cuda" and visible is None and query.dtype in _HALF:
        # The operator, unlike the function above it, does not pad the dim.
        fits = query.shape[-1] % 8 == 0 and query.shape[-1] <= 256
        if fits and torch.backends.cuda.is_flash_attention_available():
            return "cuda_flash" if torch.cuda.get_device_capability(query.device) >= (8, 0) else "math"
    return "math"


def _cpu_heads(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    # The kernel knows groups, but sums the gradients of a group in the dtype of the keys.
    return expand_heads(query, key, value) if query.dtype in _HALF else (key, value)


def _additive(visible: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    if visible is None:
        return None
    wide = inner_dtype(dtype)
    return torch.zeros(visible.shape, dtype=wide, device=visible.device).masked_fill(~visible, -torch.inf)


def _math_forward(
    query: Tensor, key: Tensor, value: Tensor, scale: float, causal: bool, visible: Tensor | None
) -> tuple[Tensor, Tensor]:
    inner = inner_dtype(query.dtype)
    out = query.new_zeros((*query.shape[:3], value.shape[3]), dtype=inner)
    lse = query.new_full(query.shape[:3], -torch.inf, dtype=inner)
    if key.shape[2] == 0:
        return out, lse
    with full_precision(query):
        wide_key, wide_value = key.to(inner), value.to(inner)
        for rows in _tiles(query, key):
            logits = _logits(query[:, :, rows], wide_key, scale, _seen(rows, query, key, causal, visible))
            total = torch.logsumexp(logits, dim=-1)  # (batch, key head, group * query)
            finite = total.masked_fill(total == -torch.inf, 0)
            part = torch.exp(logits - finite[..., None]) @ wide_value
            out[:, :, rows] = part.reshape(out[:, :, rows].shape)
            lse[:, :, rows] = total.reshape(lse[:, :, rows].shape)
    return out, lse


def _math_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor,
    scale: float, causal: bool, visible: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    inner = inner_dtype(query.dtype)
    dq, dk, dv = (torch.zeros_like(item, dtype=inner) for item in (query, key, value))
    with full_precision(query):
        wide_key, wide_value = key.to(inner), value.to(inner)
        for rows in _tiles(query, key):
            part = query[:, :, rows]
            logits = _logits(part, wide_key, scale, _seen(rows, query, key, causal, visible))
            upstream, total, own = (
                _by_key_head(item[:, :, rows].to(inner), key) for item in (grad, lse[..., None], out)
            )
            weights = torch.exp(logits - total)
            dv += weights.transpose(-1, -2) @ upstream
            delta = (upstream * own).sum(dim=-1, keepdim=True)
            dlogits = scale * weights * (upstream @ wide_value.transpose(-1, -2) - delta)
            dk += dlogits.transpose(-1, -2) @ _by_key_head(part.to(inner), key)
            dq[:, :, rows] = (dlogits @ wide_key).reshape(part.shape)
    return dq, dk, dv


def _tiles(query: Tensor, key: Tensor) -> Iterator[slice]:
    """Rows of queries whose logits are held at once."""
    size = max(1, TILE // max(1, query.shape[0] * query.shape[1] * key.shape[2]))
    for start in range(0, query.shape[2], size):
        yield slice(start, min(start + size, query.shape[2]))


def _seen(rows: slice, query: Tensor, key: Tensor, causal: bool, visible: Tensor | None) -> Tensor | None:
    """`causal` or `visible` of some rows: bool (batch | 1, 1, query | 1, key)."""
    if causal:
        row = torch.arange(rows.start, rows.stop, device=query.device)
        return (row[:, None] >= torch.arange(key.shape[2], device=query.device))[None, None]
    if visible is None or visible.shape[2] == 1:
        return visible
    return visible[:, :, rows]


def _by_key_head(item: Tensor, key: Tensor) -> Tensor:
    """(batch, head, query, dim) -> (batch, key head, group * query, dim), so that no key is repeated for its group."""
    batch, heads, queries, dim = item.shape
    return item.reshape(batch, key.shape[1], heads // key.shape[1] * queries, dim)


def _logits(query: Tensor, key: Tensor, scale: float, seen: Tensor | None) -> Tensor:
    """(batch, key head, group * query, key), -inf where not seen."""
    logits = _by_key_head(query.to(key.dtype) * scale, key) @ key.transpose(-1, -2)
    if seen is None:
        return logits
    apart = logits.unflatten(
        2, (query.shape[1] // key.shape[1], query.shape[2])
    )  # (batch, key head, group, query, key)
    return apart.masked_fill(~seen[:, :, None], -torch.inf).flatten(2, 3)
