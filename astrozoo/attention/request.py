"""What a backend is asked before it runs: shapes, dtypes and terms of a call as plain values, without any tensor."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from astrozoo.attention.terms import Terms

__all__ = ["AttentionRequest", "describe"]


class AttentionRequest(NamedTuple):
    """One attention call, hashable, so that what serves it is decided once.

    Attributes:
        device: Such as `cuda:0`.
        dtype: Of queries, keys and values.
        queries, keys: Lengths, rounded up to a power of two; None under torch.compile, where they may vary.
        square: Whether there are as many queries as keys.
        single: Whether there is one query.
        one_key: Whether there is one key.
        empty: Whether any length is zero.
        head_dim, v_head_dim: Width of a head of queries and keys, and of values.
        heads, kv_heads: Numbers of heads; None under torch.compile, where folding may leave them symbols.
        causal, window: As in `Terms`.
        mask: `Terms.kind()`: `none`, `key`, `segments`, `blocks`, `positions`, `dense` or `bias`.
        bias_grad: Whether the bias needs a gradient.
        dropout: Whether weights are dropped.
        grad: Whether gradients will be asked for.
        lse: Whether the log-sum-exp is wanted.
        deterministic: Whether PyTorch is set to deterministic algorithms.
        compiling: Whether torch.compile is tracing.
    """

    device: str
    dtype: torch.dtype
    queries: int | None
    keys: int | None
    square: bool
    single: bool
    one_key: bool
    empty: bool
    head_dim: int
    v_head_dim: int
    heads: int | None
    kv_heads: int | None
    causal: bool
    window: int | None
    mask: str
    bias_grad: bool
    dropout: bool
    grad: bool
    lse: bool
    deterministic: bool
    compiling: bool

    @property
    def device_type(self) -> str:
        """`cpu`, `cuda`, ..."""
        return self.device.partition(":")[0]

    @property
    def masked(self) -> bool:
        """Whether a kernel without masks of its own needs a mask tensor."""
        shifted = self.causal and not self.square and not self.single
        return self.mask != "none" or self.window is not None or shifted


def describe(query: Tensor, key: Tensor, value: Tensor, terms: Terms, *, lse: bool) -> AttentionRequest:
    """The request of a call; tensors as for `attend`."""
    compiling = torch.compiler.is_compiling()
    grad = torch.is_grad_enabled() and (
        query.requires_grad
        or key.requires_grad
        or value.requires_grad
        or (terms.bias is not None and terms.bias.requires_grad)
    )
    queries, keys = query.shape[2], key.shape[2]
    return AttentionRequest(
        device=str(query.device),
        dtype=query.dtype,
        queries=None if compiling else _bucket(queries),
        keys=None if compiling else _bucket(keys),
        square=_decided(queries == keys),
        single=_decided(queries == 1),
        one_key=_decided(keys == 1),
        empty=_decided(queries == 0 or keys == 0 or query.shape[0] == 0),
        head_dim=query.shape[3],
        v_head_dim=value.shape[3],
        heads=None if compiling else query.shape[1],
        kv_heads=None if compiling else key.shape[1],
        causal=terms.causal,
        window=terms.window,
        mask=terms.kind(),
        bias_grad=terms.bias is not None and terms.bias.requires_grad and torch.is_grad_enabled(),
        dropout=terms.dropout > 0,
        grad=grad,
        lse=lse,
        deterministic=torch.are_deterministic_algorithms_enabled(),
        compiling=compiling,
    )


def _bucket(length: int) -> int:
    return 1 << max(length - 1, 0).bit_length()


def _decided(condition: bool) -> bool:
    """`condition` as a constant: a comparison of lengths that are traced is a symbol until a branch asks."""
    return True if condition else False  # noqa: SIM210
