"""PyTorch's FlexAttention: one compiled kernel that skips the blocks a mask leaves empty.

Dong et al. 2024 (arXiv:2412.05496). Serves windows, layouts of blocks, segments and padding on CUDA without an N^2 mask
in the kernel. On CPU it has no gradients and is not used.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from astrozoo.attention.backends.base import scale_of
from astrozoo.attention.backends.probe import compare_with_math
from astrozoo.attention.request import AttentionRequest
from astrozoo.attention.terms import Terms

__all__ = ["BLOCK", "FlexBackend", "block_mask", "compiled_flex", "run_flex"]

BLOCK = 128  # tokens of the blocks that are computed or skipped as a whole
KINDS = 128  # of calls that the kernel is compiled for in one process
_HEAD_DIMS = (16, 32, 64, 128, 256)  # others fail to compile or are slow in its Triton templates


class FlexBackend:
    """The backend `flex`."""

    name = "flex"
    priority = 75

    def version(self) -> str:
        """Version of PyTorch."""
        return torch.__version__

    def refusals(self, request: AttentionRequest) -> tuple[str, ...]:
        """As `AttentionBackend.refusals`."""
        reasons = []
        if request.device_type != "cuda":
            reasons.append(f"on {request.device_type} it has no gradients")
        if request.empty:
            reasons.append("there are no queries or no keys")
        if request.dropout:
            reasons.append("it drops no weights")
        if request.mask in ("dense", "bias", "positions"):
            reasons.append(f"a mask of kind {request.mask} has no blocks to skip")
        if request.dtype not in (torch.float16, torch.bfloat16, torch.float32):
            reasons.append(f"it takes no {request.dtype}")
        if request.head_dim not in _HEAD_DIMS or request.v_head_dim not in _HEAD_DIMS:
            reasons.append(f"head_dim {request.head_dim} is none of {_HEAD_DIMS}")
        return tuple(reasons)

    def unwanted(self, request: AttentionRequest) -> str:
        """Only block patterns are worth its compilation: elsewhere the other kernels are as fast or faster."""
        if request.window is None and request.mask not in ("blocks", "segments", "key"):
            return "there is no block pattern to use"
        return ""

    def probe(self, request: AttentionRequest) -> str:
        """As `AttentionBackend.probe`: whether Triton compiles and runs it on this device."""
        return _probe(request.device, request.dtype, request.head_dim)

    def kernel(self, request: AttentionRequest) -> str:
        """The compiled Triton template."""
        return "flex_attention"

    def run(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        terms: Terms,
        request: AttentionRequest,
        kernel: str,
    ) -> tuple[Tensor, Tensor | None]:
        """As `AttentionBackend.run`."""
        return run_flex(query, key, value, terms, lse=request.lse)


def run_flex(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    terms: Terms,
    *,
    lse: bool = False,
    score_mod: Callable[..., Tensor] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Output and log-sum-exp on the compiled kernel.

    Args:
        query: As for `Backend.run`.
        key: As for `Backend.run`.
        value: As for `Backend.run`.
        terms: Causality, window, blocks, segments and padding; the rest must be empty.
        lse: Whether to return the log-sum-exp.
        score_mod: From a scaled logit and its (batch, head, query, key), what takes its place.
    """
    blocks = block_mask(terms, query.shape[0], query.shape[2], key.shape[2], query.device)
    answer = compiled_flex()(
        query, key, value, block_mask=blocks, scale=scale_of(query, terms), score_mod=score_mod,
        enable_gqa=query.shape[1] != key.shape[1], return_lse=lse,
    )  # fmt: skip
    return answer if lse else (answer, None)


@functools.cache
def compiled_flex() -> Callable[..., Any]:
    """FlexAttention, compiled for any length: a fixed length would compile anew for each.

    Widths, masks and gradients are kinds of their own; where there are more than PyTorch's limit it would run
    uncompiled and slow without a word. Here the limit is higher, and reaching it is an error.
    """
    from torch._dynamo import config
    from torch.nn.attention.flex_attention import flex_attention

    compiled = torch.compile(flex_attention, dynamic=True)

    def run(*args: Any, **options: Any) -> Any:
        if torch.compiler.is_compiling():  # a part of the graph that is traced
            return flex_attention(*args, **options)
        with config.patch(recompile_limit=KINDS, fail_on_recompile_limit_hit=True):
            return compiled(*args, **options)

    return run


def block_mask(terms: Terms, batch: int, queries: int, keys: int, device: torch.device) -> Any:
    """The `BlockMask` of the terms.

    What causality, a window and a layout leave follows from the numbers of blocks alone; padding and segments then hide
    within them. Where these are all there is to go by, PyTorch compares every pair of tokens to find empty blocks.
    """
    from torch.nn.attention.flex_attention import BlockMask, create_block_mask

    rule = _mask_rule(terms, queries, keys)
    hiding = terms.segments is not None or terms.key_mask is not None
    if hiding and terms.window is None and terms.blocks is None:
        return create_block_mask(rule, batch, None, queries, keys, device=device)
    some, full = _blocks(terms, queries, keys, device)
    full = torch.zeros_like(full) if hiding else full & some
    return BlockMask.from_kv_blocks(
        *_listed(some & ~full), *_listed(full), BLOCK_SIZE=BLOCK, mask_mod=rule, seq_lengths=(queries, keys)
    )


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Of bool (row, column), how many are true in each row (1, 1, row), and their columns (1, 1, row, column) first."""
    order = blocks.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
    return blocks.sum(dim=1, dtype=torch.int32)[None, None], order.to(torch.int32)[None, None]


def _blocks(terms: Terms, queries: int, keys: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Of which blocks causality, window and layout show any pair, and of which all: bool (query block, key block)."""
    rows, columns = (queries + BLOCK - 1) // BLOCK, (keys + BLOCK - 1) // BLOCK
    first = torch.arange(rows, device=device)[:, None] * BLOCK + (keys - queries)
    start = torch.arange(columns, device=device) * BLOCK
    last, end = first + BLOCK - 1, start + BLOCK - 1
    some = torch.ones(rows, columns, dtype=torch.bool, device=device)
    full = some & (end < keys)
    if terms.causal:
        some, full = some & (start <= last), full & (end <= first)
    if terms.window is not None:
        some = some & (start - last < terms.window) & (first - end < terms.window)
        full = full & (end - first < terms.window) & (last - start < terms.window)
    if terms.blocks is not None:
        any_seen, all_seen = terms.blocks.in_blocks_of(BLOCK, rows, columns)
        some, full = some & any_seen, full & all_seen
    return some, full


def _mask_rule(terms: Terms, queries: int, keys: int) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    # A rule that captures a symbolic length does not compile within a larger graph; a number does.
    shift = 0 if queries == keys else keys - queries

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:  # noqa: ARG001
        seen = key >= 0
        if terms.causal:
            seen = seen & (query + shift >= key)
        if terms.window is not None:
            seen = seen & ((query + shift - key).abs() < terms.window)
        if terms.blocks is not None:
            seen = seen & terms.blocks.seen[query // terms.blocks.size, key // terms.blocks.size]
        if terms.key_mask is not None:
            seen = seen & terms.key_mask[batch if terms.key_mask.shape[0] > 1 else 0, key]
        if terms.segments is not None:
            own, other = terms.segments
            row, column = (batch if ids.shape[0] > 1 else 0 for ids in (own, other))
            seen = seen & (own[row, query] == other[column, key])
        return seen

    return visible


@functools.cache
def _probe(device: str, dtype: torch.dtype, head_dim: int) -> str:
    def run(query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> Tensor:
        out: Tensor = compiled_flex()(query, key, value, scale=scale_of(query, terms))
        return out

    return compare_with_math(run, device=device, dtype=dtype, head_dim=head_dim, causal=False)
