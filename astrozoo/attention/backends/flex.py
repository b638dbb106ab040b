"""PyTorch's FlexAttention: one compiled kernel that skips the blocks a mask leaves empty.

Dong et al. 2024 (arXiv:2412.05496). Serves windows, segments and padding on CUDA without an N^2 mask. On CPU it has no
gradients and is not used.
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

__all__ = ["FlexBackend", "compiled_flex", "run_flex"]

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
        if request.window is None and request.mask not in ("segments", "key"):
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
    also: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Output and log-sum-exp on the compiled kernel.

    Args:
        query: As for `Backend.run`.
        key: As for `Backend.run`.
        value: As for `Backend.run`.
        terms: Causality, window, segments and padding; the rest must be empty.
        lse: Whether to return the log-sum-exp.
        score_mod: From a scaled logit and its (batch, head, query, key), what takes its place.
        also: From the numbers of a query and a key, whether the one may see the other; beside the terms.
    """
    from torch.nn.attention.flex_attention import create_block_mask

    batch, _, queries, _ = query.shape
    keys = key.shape[2]
    rule = _mask_rule(terms, queries, keys, also)
    per_row = terms.segments is not None or terms.key_mask is not None
    blocks = create_block_mask(rule, batch if per_row else None, None, queries, keys, device=query.device)
    answer = compiled_flex()(
        query, key, value, block_mask=blocks, scale=scale_of(query, terms), score_mod=score_mod,
        enable_gqa=query.shape[1] != key.shape[1], return_lse=lse,
    )  # fmt: skip
    return answer if lse else (answer, None)


@functools.cache
def compiled_flex() -> Callable[..., Any]:
    """FlexAttention, compiled for any length: a fixed length would compile anew for each, and give up after eight."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


def _mask_rule(
    terms: Terms, queries: int, keys: int, also: Callable[[Tensor, Tensor], Tensor] | None = None
) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    shift = keys - queries

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:  # noqa: ARG001
        seen = key >= 0
        if terms.causal:
            seen = seen & (query + shift >= key)
        if terms.window is not None:
            seen = seen & ((query + shift - key).abs() < terms.window)
        if terms.key_mask is not None:
            seen = seen & terms.key_mask[batch if terms.key_mask.shape[0] > 1 else 0, key]
        if terms.segments is not None:
            own, other = terms.segments
            row, column = (batch if ids.shape[0] > 1 else 0 for ids in (own, other))
            seen = seen & (own[row, query] == other[column, key])
        return seen if also is None else seen & also(query, key)

    return visible


@functools.cache
def _probe(device: str, dtype: torch.dtype, head_dim: int) -> str:
    def run(query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> Tensor:
        out: Tensor = compiled_flex()(query, key, value, scale=scale_of(query, terms))
        return out

    return compare_with_math(run, device=device, dtype=dtype, head_dim=head_dim, causal=False)
