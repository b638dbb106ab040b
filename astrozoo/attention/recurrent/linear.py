"""Linear attention: softmax replaced by a product of positive features, so that keys and values sum up to one state.

o_i = phi(q_i)' S_i / phi(q_i)' z_i with S = sum phi(k) v' and z = sum phi(k) (Katharopoulos et al. 2020,
arXiv:2006.16236). The features come from `features`; everything here is the same for all of them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from astrozoo.attention.recurrent.chunks import (
    check_heads,
    fold,
    grouped,
    hide,
    leading,
    real_tokens,
    sum_dtype,
    unfold,
)
from astrozoo.attention.recurrent.decay import decayed_sums
from astrozoo.attention.recurrent.fla import Backend, fla_decayed_sums, takes_fla
from astrozoo.nn.precision import full_precision

__all__ = ["LinearState", "linear_attention"]


class LinearState(NamedTuple):
    """What earlier keys left behind; the states of two sequences add up to that of both.

    Attributes:
        kv: Sum of phi(k) v', (batch, key head, feature, value), float32 at least.
        z: Sum of phi(k), (batch, key head, feature).
    """

    kv: Tensor
    z: Tensor


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool,
    key_mask: Tensor | None = None,
    state: LinearState | None = None,
    chunk: int = 64,
    normalise: bool = True,
    backend: Backend = "auto",
) -> tuple[Tensor, LinearState]:
    """Linear attention in O(N feature value) time.

    Args:
        q: Features of the queries (batch, head, query, feature), positive where `normalise`.
        k: Features of the keys (batch, key head, key, feature); a group of query heads shares a key head.
        v: (batch, key head, key, value).
        causal: Whether query i sees keys up to i + keys - queries only (the last query sees all).
        key_mask: bool or integer (batch, key), true for a real token; others are never read.
        state: What came before; seen by every query.
        chunk: Tokens that are computed at once where causal.
        normalise: Whether to divide by the sum of the weights; a query that sees nothing gives zeros either way.
        backend: `torch`, `fla` (flash-linear-attention, on CUDA), or `auto` for `fla` where it can.

    Returns:
        (batch, head, query, value) in the dtype of `v`, and the state after the last key. Sums are in float32 at least.

    Raises:
        InputError: If the shapes do not fit.
        BackendRefused: If `backend` is `fla` and that cannot serve the call.
    """
    check_heads(q, k, v)
    dtype = sum_dtype(q, k, v)
    groups, queries, keys = k.shape[1], q.shape[2], k.shape[2]
    real = real_tokens(key_mask, k.shape[0], keys)
    k, v = hide(k, real, 1), hide(v, real, 1)
    query, key, value = grouped(q, groups, "q"), grouped(k, groups, "k"), grouped(v, groups, "v")
    fast = takes_fla(backend, "linear", query, key, value, causal=causal and queries == keys)
    with full_precision(q):
        wide_q, wide_k, wide_v = query.to(dtype), key.to(dtype), value.to(dtype)
        if state is None:
            kv = wide_q.new_zeros(k.shape[0], groups, 1, k.shape[-1], v.shape[-1])
            z = wide_q.new_zeros(k.shape[0], groups, 1, k.shape[-1])
        else:
            kv, z = state.kv.to(dtype).unsqueeze(2), state.z.to(dtype).unsqueeze(2)
        if not causal:
            kv = kv + wide_k.transpose(-1, -2) @ wide_v
            z = z + wide_k.sum(-2)
            out, weight = wide_q @ kv, (wide_q @ z.unsqueeze(-1)).squeeze(-1)
        else:
            early = max(keys - queries, 0)  # keys that every query sees
            if early:
                kv = kv + wide_k[..., :early, :].transpose(-1, -2) @ wide_v[..., :early, :]
                z = z + wide_k[..., :early, :].sum(-2)
                wide_k, wide_v = wide_k[..., early:, :], wide_v[..., early:, :]
            late = max(queries - keys, 0)  # queries before the first key
            if late:
                wide_k, wide_v = (torch.nn.functional.pad(tokens, (0, 0, late, 0)) for tokens in (wide_k, wide_v))
            if fast:
                out, kv = fla_decayed_sums(query, key, value, None, state=kv)
            else:
                out, kv = decayed_sums(wide_q, wide_k, wide_v, None, state=kv, chunk=chunk)
            weight, z = _running_weights(wide_q, wide_k, z, chunk)
        if normalise:
            # A weight below the smallest normal number is that of a query that sees nothing; 0 / 1 has a gradient.
            seen = weight > torch.finfo(dtype).tiny
            out = (out / weight.masked_fill(~seen, 1).unsqueeze(-1)).masked_fill(~seen.unsqueeze(-1), 0)
    return out.flatten(1, 2).to(v.dtype), LinearState(kv.squeeze(2), z.squeeze(2))


def _running_weights(q: Tensor, k: Tensor, z: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """q_t'(z + k_1 + ... + k_t) (batch, group, member, token), and the last sum.

    Summed within chunks and then over chunks: one long sum would leave a GPU idle.
    """
    length = q.shape[-2]
    within = fold(k, chunk, -2).cumsum(-2)
    over = torch.cat((z.unsqueeze(-2), within[..., -1, :]), dim=-2).cumsum(-2)
    sums = within + leading(over, within.shape[-3], -2).unsqueeze(-2)
    return (q * unfold(sums, length)).sum(-1), over[..., -1, :]
