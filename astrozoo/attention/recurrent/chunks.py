"""What all recurrent kernels share: the dtype they sum in, chunks of tokens, groups of heads, masks and segments.

Inside, tensors are (batch, group, member, token, dim): the heads of a group share what has one member. The last two
steps of a kernel undo that.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from astrozoo.errors import InputError

__all__ = ["check_heads", "fold", "grouped", "hide", "leading", "real_tokens", "segment_runs", "sum_dtype", "unfold"]


def sum_dtype(*tensors: Tensor) -> torch.dtype:
    """The widest dtype of the tensors, float32 at least: a long sum in half precision stops growing."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def check_heads(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Check the shapes of queries, keys and values, up to the number of queries and the groups of heads.

    Raises:
        InputError: If they are not (batch, head, token, dim), or do not fit together.
    """
    if q.ndim != 4 or k.ndim != 4 or v.ndim != 4:
        fault = "expected (batch, head, token, dim) for each"
    elif k.shape[:3] != v.shape[:3]:
        fault = "k and v must agree in batch, head and token"
    elif q.shape[0] != k.shape[0] or q.shape[-1] != k.shape[-1]:
        fault = "q and k must agree in batch and dim"
    else:
        return
    raise InputError(f"q is {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}; {fault}.")


def grouped(tensor: Tensor, groups: int, name: str) -> Tensor:
    """`tensor[batch, head, ...]` -> (batch, group, member, ...).

    Raises:
        InputError: If the heads do not fall into `groups` groups; `name` says whose heads they are.
    """
    heads = tensor.shape[1]
    if groups == 0 or heads % groups:
        raise InputError(f"{name} has {heads} heads, which is no multiple of the {groups} heads it shares.")
    return tensor.unflatten(1, (groups, heads // groups))


def real_tokens(key_mask: Tensor | None, batch: int, length: int) -> Tensor | None:
    """A key mask as bool (batch | 1, token), True for a real token.

    Raises:
        InputError: If it is no bool or integer tensor of that shape.
    """
    if key_mask is None:
        return None
    if key_mask.is_floating_point() or key_mask.ndim != 2 or key_mask.shape[0] not in (1, batch):
        raise InputError(
            f"key_mask is {key_mask.dtype} {tuple(key_mask.shape)}; expected bool or integer ({batch}, {length})."
        )
    if key_mask.shape[1] != length:
        raise InputError(f"key_mask is for {key_mask.shape[1]} tokens, but there are {length}.")
    return key_mask != 0


def hide(tensor: Tensor, real: Tensor | None, trailing: int) -> Tensor:
    """Zero in place of what is no real token, whatever was there: NaN times 0 would still be NaN.

    Args:
        tensor: (batch, ..., token, *trailing).
        real: bool (batch | 1, token), or None for all.
        trailing: Number of dims after the tokens.
    """
    if real is None:
        return tensor
    between = tensor.ndim - 2 - trailing
    return tensor.masked_fill(~real.reshape(real.shape[0], *(1,) * between, real.shape[1], *(1,) * trailing), 0)


def fold(tensor: Tensor, size: int, dim: int) -> Tensor:
    """Cut dim -1 or -2 into chunks of `size`: (..., token) -> (..., chunk, size), zeros behind the last token.

    There is one chunk at least, so that no token at all needs no case of its own.
    """
    length = tensor.shape[dim]
    chunks = (max(length, 1) + size - 1) // size
    behind = (*(0, 0) * (-1 - dim), 0, chunks * size - length)
    return F.pad(tensor, behind).unflatten(dim, (chunks, size))


def unfold(tensor: Tensor, length: int) -> Tensor:
    """Undo `fold` along dim -2: (..., chunk, size, dim) -> (..., token, dim)."""
    return leading(tensor.flatten(-3, -2), length, -2)


def leading(tensor: Tensor, count: int, dim: int) -> Tensor:
    """A copy of the first `count` along `dim`.

    Whether a view of them is contiguous would depend on the length, and then so would a compiled graph.
    """
    return tensor.index_select(dim, torch.arange(count, device=tensor.device))


def segment_runs(segments: Tensor, real: Tensor | None) -> Tensor:
    """Number the stretches of equal ids: int (batch, token), 0 at the first, one more at every change.

    A token that is not real starts nothing and ends nothing: a real token is compared with the last real one before
    it, however padding lies between them. The first real token continues what the state holds.

    Args:
        segments: int (batch | 1, token).
        real: bool (batch | 1, token), or None for all.

    Raises:
        InputError: If the ids are no integers, or not two-dimensional.
    """
    if segments.is_floating_point() or segments.ndim != 2:
        raise InputError(f"segments is {segments.dtype} {tuple(segments.shape)}; expected integers (batch, token).")
    if real is None:
        changed = segments[:, 1:] != segments[:, :-1]
        return F.pad(changed.long(), (1, 0))[:, : segments.shape[1]].cumsum(1)
    shape = torch.broadcast_shapes(segments.shape, real.shape)
    segments, real = segments.expand(shape), real.expand(shape)
    index = torch.arange(shape[1], device=segments.device).masked_fill(~real, -1)
    latest = F.pad(index, (1, 0), value=-1).cummax(1).values[:, :-1]
    changed = real & (latest >= 0) & (segments.gather(1, latest.clamp(min=0)) != segments)
    return changed.long().cumsum(1)
