"""Softmax attention as the formula says, in float64, without a thought to speed: the measure of every fast path."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from astrozoo.attention.terms import Terms

__all__ = ["Dense", "dense_attention"]


class Dense(NamedTuple):
    """Output (batch, head, query, value), log-sum-exp (batch, head, query), weights (batch, head, query, key)."""

    out: Tensor
    lse: Tensor
    weights: Tensor


def dense_attention(query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> Dense:
    """softmax(scale q k' + bias) v over the visible keys; a query that sees none gives 0 and a log-sum-exp of -inf.

    Args:
        query: (batch, head, query, dim), any floating dtype; computed in float64.
        key: (batch, key head, key, dim); key heads are repeated for their group of query heads.
        value: (batch, key head, key, value dim).
        terms: Masks, biases and scale; `dropout` is ignored.

    Returns:
        All in float64.
    """
    query, key, value = query.double(), key.double(), value.double()
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    visible = terms.visible(query.shape[2], key.shape[2], query.device)
    if visible is None:
        visible = torch.ones((), dtype=torch.bool, device=query.device)
    if terms.bias is not None:
        visible = visible & (terms.bias != -torch.inf)
    seen = terms.seen_keys()
    if seen is not None:
        hidden = ~seen[:, None, :, None]
        key, value = key.masked_fill(hidden, 0), value.masked_fill(hidden, 0)
    scale = query.shape[-1] ** -0.5 if terms.scale is None else terms.scale
    logits = scale * query @ key.transpose(-1, -2)
    if terms.bias is not None:
        logits = logits + terms.bias.double().masked_fill(terms.bias == -torch.inf, 0)
    visible = visible.expand(logits.shape)
    logits = logits.masked_fill(~visible, -torch.inf)
    alive = visible.any(dim=-1, keepdim=True)
    safe = logits.masked_fill(~alive, 0)
    weights = torch.softmax(safe, dim=-1).masked_fill(~alive, 0)
    lse = torch.logsumexp(safe, dim=-1).masked_fill(~alive[..., 0], -torch.inf)
    return Dense(weights @ value, lse, weights)
