"""Softmax attention on the best kernel there is: the function under every softmax attention of the library."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from astrozoo.attention.choice import BackendChoice, BackendName, note, overridden, resolve
from astrozoo.attention.request import AttentionRequest, describe
from astrozoo.attention.terms import Terms, make_terms
from astrozoo.errors import InputError

__all__ = ["Attended", "attend", "attend_terms", "check_heads", "hide_unseen", "is_planning", "planning"]


class Attended(NamedTuple):
    """Output (batch, head, query, value dim), log-sum-exp (batch, head, query) or None, and what computed them."""

    out: Tensor
    lse: Tensor | None
    choice: BackendChoice


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Tensor | None = None,
    key_mask: Tensor | None = None,
    bias: Tensor | None = None,
    causal: bool = False,
    window: int | None = None,
    segments: Tensor | tuple[Tensor, Tensor] | None = None,
    positions: tuple[Tensor, Tensor] | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    backend: BackendName = "auto",
    lse: bool = False,
) -> Attended:
    """softmax(scale q k' + bias) v over the keys that each query may see.

    All masks combine by "and". A query that sees no key gives 0, and a log-sum-exp of -inf. Keys that no query may see
    by `mask`, `key_mask` or `bias` are not read: NaN in them does not reach outputs or gradients.

    Args:
        query: float (batch, head, query, dim).
        key: float (batch, key head, key, dim); the number of key heads divides that of query heads, and each serves a
            group of adjacent query heads.
        value: float (batch, key head, key, value dim).
        mask: bool or integer (query, key) or (batch | 1, head | 1, query, key), true where a query may attend.
        key_mask: bool or integer (batch, key), true for a real token.
        bias: float, shaped as `mask`, added to the scaled logits; -inf hides. Has a gradient.
        causal: A query sees no later key; the last query is aligned with the last key.
        window: A query sees keys less than this many positions away, itself included.
        segments: int (batch, token), or a pair for queries and keys; a query sees its own segment only.
        positions: (query,) or (batch | 1, query), and the same of keys: what `causal` and `window` compare.
        scale: Factor of the logits; dim ** -0.5 by default.
        dropout_p: Probability that a weight is dropped, whatever the mode of the module.
        backend: `auto`, the name of a backend, or a tuple of names to be tried in order.
        lse: Whether to return the log-sum-exp of the logits too.

    Raises:
        InputError: A shape or dtype does not fit.
        BackendRefused: No backend that was asked for can serve the call.
        ConfigError: There is no backend of that name.
    """
    check_heads(query, key, value)
    terms = make_terms(
        batch=query.shape[0], heads=query.shape[1], queries=query.shape[2], keys=key.shape[2], causal=causal, mask=mask,
        key_mask=key_mask, bias=bias, segments=segments, window=window, positions=positions, scale=scale,
        dropout=dropout_p,
    )  # fmt: skip
    return attend_terms(query, key, value, terms, backend=backend, lse=lse)


def attend_terms(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    terms: Terms,
    *,
    backend: BackendName = "auto",
    lse: bool = False,
    hidden: bool = False,
) -> Attended:
    """`attend` for terms that were checked already; with `hidden`, of keys whose unseen ones are known to be finite."""
    if not hidden:
        key, value = hide_unseen(key, value, terms)
    request = describe(query, key, value, terms, lse=lse)
    if _planning:
        return _planned(query, value, request, overridden(backend))
    server, choice = resolve(request, overridden(backend))
    out, total = server.run(query, key, value, terms, request, choice.kernel)
    if not torch.compiler.is_compiling():
        note(choice)
    return Attended(out, total, choice)


_planning = False


@contextlib.contextmanager
def planning(active: bool = True) -> Iterator[None]:
    """Within the block attention is only planned: the backend is chosen and noted, the output is uninitialised.

    Args:
        active: False within such a block for what must run all the same.
    """
    global _planning
    before, _planning = _planning, active
    try:
        yield
    finally:
        _planning = before


def is_planning() -> bool:
    """Whether the call is within a block of `planning`."""
    return _planning


def _planned(query: Tensor, value: Tensor, request: AttentionRequest, backend: BackendName) -> Attended:
    choice = resolve(request, backend)[1]
    note(choice)
    lse = query.new_empty(query.shape[:3]) if request.lse else None
    return Attended(query.new_empty(*query.shape[:3], value.shape[3]), lse, choice)


def hide_unseen(key: Tensor, value: Tensor, terms: Terms) -> tuple[Tensor, Tensor]:
    """Key and value with 0 for keys that no query may see, so that what is in them cannot matter."""
    seen = terms.seen_keys()
    if seen is None:
        return key, value
    hidden = ~seen[:, None, :, None]
    return key.masked_fill(hidden, 0), value.masked_fill(hidden, 0)


def check_heads(query: Tensor, key: Tensor, value: Tensor) -> None:
    """Raise an `InputError` unless query, key and value have four dimensions, one dtype and sizes that fit."""
    shapes = f"query {tuple(query.shape)}, key {tuple(key.shape)}, value {tuple(value.shape)}"
    if query.dim() != 4 or key.dim() != 4 or value.dim() != 4:
        raise InputError(f"Got {shapes}; expected four dimensions (batch, head, token, dim) each.")
    if query.shape[3] != key.shape[3] or key.shape[:3] != value.shape[:3] or query.shape[0] != key.shape[0]:
        raise InputError(f"Got {shapes}; expected one batch, one dim of queries and keys, as many values as keys.")
    if key.shape[1] == 0 or query.shape[1] % key.shape[1]:
        raise InputError(f"Got {shapes}; the number of key heads must divide that of query heads.")
    if not (query.dtype == key.dtype == value.dtype and query.is_floating_point()):
        raise InputError(
            f"Got query {query.dtype}, key {key.dtype}, value {value.dtype}; expected one floating dtype for all."
        )
