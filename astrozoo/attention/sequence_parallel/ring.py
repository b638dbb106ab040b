"""Exact attention over a sequence whose tokens are spread over processes: keys and values go round, queries stay.

Liu, Zaharia and Abbeel 2023, "Ring Attention with Blockwise Transformers for Near-Infinite Context" (arXiv:2310.01889).
Each rank holds a shard of queries, keys and values. In W steps it meets the keys of every rank; those of the next step
are on their way while it computes, and the parts are merged by their log-sum-exp. The backward pass sends keys and
values round again, and the gradients that they collect with them, so that each shard comes home with its own. Never are
more than three shards of keys on a rank: its own, those it computes with, and those that come in.

Differences from the paper: causal attention is balanced over ranks by the layout (`layout.py`), and computes nothing
that is wholly in the future. Tensors are (batch, head, token, dim).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from astrozoo.attention.core import hide_unseen
from astrozoo.attention.sequence_parallel import blocks
from astrozoo.attention.sequence_parallel.layout import Layout, Piece, Product
from astrozoo.attention.sequence_parallel.plan import Plan, agree
from astrozoo.attention.sequence_parallel.transport import Transfer, recording, ring_of
from astrozoo.attention.terms import Terms

__all__ = ["ring_attend"]

_GRADIENT_TAG = 8  # of messages with gradients, which are under way together with up to five with keys


def ring_attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    group: Any = None,
    causal: bool = False,
    key_mask: Tensor | None = None,
    segments: Tensor | tuple[Tensor, Tensor] | None = None,
    positions: Tensor | tuple[Tensor, Tensor] | None = None,
    scale: float | None = None,
    layout: Layout = "zigzag",
) -> tuple[Tensor, Tensor]:
    """softmax(scale q k') v over the whole sequence, from and to the shards of this rank; the same as on one process.

    A collective: every rank of the group calls it, in the same order, and runs the backward pass if one does. The
    gradients of `q`, `k` and `v` are those of one process that adds up the losses of all ranks. Ranks may differ in the
    number of their tokens, also have none. A rank that dies lets the others fail after the timeout of the group.

    Args:
        q: float (batch, head, local query, dim).
        k: float (batch, key head, local key, dim); each key head serves a group of adjacent query heads.
        v: float (batch, key head, local key, value dim).
        group: Process group over whose ranks the sequence is spread; None for the whole sequence in this process, even
            where others run. For all processes give `torch.distributed.group.WORLD`.
        causal: A query sees no later key; the last query of the whole sequence is aligned with the last key.
        key_mask: bool or integer (batch | 1, local key), true for a real token; others are not read.
        segments: int (batch | 1, local token), or a pair for queries and keys; a query sees its own segment only.
        positions: int (local token,) or (batch | 1, local token), or a pair for queries and keys, in the whole
            sequence, if it was cut by no `layout`. What `causal` compares; reading them waits for an accelerator.
        scale: Factor of the logits; dim ** -0.5 by default.
        layout: How the sequence was cut (`shard_sequence`): `zigzag`, or `contiguous`, where causal attention leaves
            early ranks idle. Without `causal` it does not matter.

    Returns:
        Output (batch, head, local query, value dim) in the dtype of `q`, and log-sum-exp of the logits (batch, head,
        local query) in at least float32, without gradient. A query that sees no key gives 0 and -inf.

    Raises:
        InputError: Shapes, dtypes or options do not fit, here or between ranks.
        BackendUnavailableError: A group is given where processes cannot talk to each other.
    """
    plan = agree(
        ring_of(group), q, k, v, causal=causal, key_mask=key_mask, segments=segments, positions=positions, scale=scale,
        layout=layout,
    )  # fmt: skip
    if plan.terms.key_mask is not None:
        k, v = hide_unseen(k, v, Terms(key_mask=plan.terms.key_mask))
    out, lse = _RingAttention.apply(q, k, v, plan)
    return out, lse


class _Keys(NamedTuple):
    """What goes round: (batch, key head, key, dim), and (batch, key) of what hides them."""

    key: Tensor
    value: Tensor
    mask: Tensor | None
    segment: Tensor | None
    position: Tensor | None

    def tensors(self) -> list[Tensor]:
        return [item for item in self if item is not None]

    def replaced(self, tensors: list[Tensor]) -> _Keys:
        following = iter(tensors)
        return _Keys(*(None if item is None else next(following) for item in self))  # type: ignore[arg-type]


class _RingAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
        inner = blocks.inner_dtype(query.dtype)
        out = query.new_zeros((*query.shape[:3], value.shape[3]), dtype=inner)
        lse = query.new_full(query.shape[:3], -torch.inf, dtype=inner)
        keys = _own_keys(plan, key, value)
        for step in range(plan.ring.world):
            coming = _send_on(plan, step, keys)
            _add_outputs(plan, step, keys, query, out, lse)
            keys = keys.replaced(coming.wait())
        out = out.to(query.dtype)
        ctx.plan = plan
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.mark_non_differentiable(lse)
        return out, lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        query, key, value, out, lse = ctx.saved_tensors
        plan: Plan = ctx.plan
        ring = plan.ring
        seen = query, out, lse.masked_fill(lse == -torch.inf, torch.inf)  # exp(logit - lse) = 0 where nothing is seen
        dq = torch.zeros_like(query, dtype=blocks.inner_dtype(query.dtype))
        keys = _own_keys(plan, key, value)
        collected = Transfer([], [], [])  # gradients of the keys that are here, from the ranks that had them earlier
        for step in range(ring.world):
            coming = _send_on(plan, step, keys)
            found = _gradients(plan, step, keys, grad, *seen, dq)
            for total, earlier in zip(found, collected.wait(), strict=step > 0):
                total += earlier
            collected = ring.exchange(found, plan.tokens[ring.origin(step + 1)], tag=_GRADIENT_TAG)
            keys = keys.replaced(coming.wait())
        dk, dv = collected.wait()  # after the last step: home again
        return dq.to(query.dtype), dk.to(key.dtype), dv.to(value.dtype), None


def _own_keys(plan: Plan, key: Tensor, value: Tensor) -> _Keys:
    terms = plan.terms
    return _Keys(
        key, value, terms.key_mask,
        None if terms.segments is None else terms.segments[1],
        None if terms.positions is None else terms.positions[1],
    )  # fmt: skip


def _send_on(plan: Plan, step: int, keys: _Keys) -> Transfer:
    """Start to give the keys of a step to the next rank, and to receive those of the next step, if there is one."""
    if step + 1 == plan.ring.world:
        return Transfer(keys.tensors(), [], [])
    return plan.ring.exchange(keys.tensors(), plan.tokens[plan.ring.origin(step + 1)])


def _add_outputs(plan: Plan, step: int, keys: _Keys, query: Tensor, out: Tensor, lse: Tensor) -> None:
    """Merge attention to the keys of a step into `out` and `lse`."""
    for rows, columns, options in _blocks(plan, step, keys, backward=False):
        part = keys.key[:, :, columns], keys.value[:, :, columns]
        blocks.merge_(out[:, :, rows], lse[:, :, rows], *blocks.block_forward(query[:, :, rows], *part, **options))


def _gradients(
    plan: Plan, step: int, keys: _Keys, grad: Tensor, query: Tensor, out: Tensor, lse: Tensor, dq: Tensor
) -> list[Tensor]:
    """Gradients of key and value from this rank's queries; what the queries get is added to `dq`."""
    dk, dv = (torch.zeros_like(item, dtype=dq.dtype) for item in (keys.key, keys.value))
    for rows, columns, options in _blocks(plan, step, keys, backward=True):
        held = query[:, :, rows], keys.key[:, :, columns], keys.value[:, :, columns]
        parts = blocks.block_backward(grad[:, :, rows], *held, out[:, :, rows], lse[:, :, rows], **options)
        for total, index, part in zip((dq, dk, dv), (rows, columns, columns), parts, strict=True):
            total[:, :, index] += part
    return [dk, dv]


def _blocks(plan: Plan, step: int, keys: _Keys, *, backward: bool) -> Iterator[tuple[slice, slice, dict[str, Any]]]:
    """Rows of queries, columns of keys, and the options of the kernel, of every product of a step."""
    for product in plan.products(step):
        rows = slice(product.queries.start, product.queries.stop)
        columns = slice(product.keys.start, product.keys.stop)
        count, width = len(product.queries), len(product.keys)
        scores = count * (count + 1) // 2 if product.kind == "causal" else count * width
        for record in recording():
            if backward:
                record.backward_products += 1
                record.backward_scores += scores
            else:
                record.forward_products += 1
                record.forward_scores += scores
        visible = _visible(plan, product, keys, plan.keys[plan.ring.origin(step)])
        causal = product.kind == "causal" and visible is None
        yield rows, columns, {"scale": plan.scale, "causal": causal, "visible": visible}


def _visible(plan: Plan, product: Product, keys: _Keys, pieces: tuple[Piece, ...]) -> Tensor | None:
    """What a product may see: bool (batch, 1, query | 1, key), or None where its kind says it all."""
    if product.kind != "partial" and keys.mask is None and keys.segment is None:
        return None
    rows = slice(product.queries.start, product.queries.stop)
    columns = slice(product.keys.start, product.keys.stop)
    terms, device = plan.terms, keys.key.device
    segments = positions = None
    if terms.segments is not None and keys.segment is not None:
        segments = terms.segments[0][:, rows], keys.segment[:, columns]
    if product.kind == "partial":
        if terms.positions is not None and keys.position is not None:
            positions = terms.positions[0][:, rows], keys.position[:, columns]
        else:
            positions = _arange(plan.queries, device)[:, rows], _arange(pieces, device)[:, columns]
    visible = Terms(
        causal=product.kind != "full",
        key_mask=None if keys.mask is None else keys.mask[:, columns],
        segments=segments,
        positions=positions,
    ).visible(len(product.queries), len(product.keys), device)
    # A mask of keys alone is the same row for every query; the kernels take it as one.
    return visible[:, :, :1] if visible is not None and visible.stride(2) == 0 else visible


def _arange(pieces: tuple[Piece, ...], device: torch.device) -> Tensor:
    """Positions (1, token) of pieces whose positions rise by one."""
    return torch.cat([torch.arange(piece.first, piece.last + 1, device=device) for piece in pieces])[None]
