"""The gated delta rule: a state that forgets, and that overwrites what a key held instead of adding to it.

S_t = a_t (I - b_t k_t k_t') S_{t-1} + b_t k_t v_t', o_t = S_t' q_t (Yang et al. 2024, arXiv:2412.06464; a = 1 is the
delta rule, arXiv:2406.06484). Without the erasing term it is linear attention with a scalar gate, and with a constant
gate the retention of Sun et al. 2023 (RetNet, arXiv:2307.08621).
"""

from __future__ import annotations

import torch
from torch import Tensor

from astrozoo.attention.recurrent.chunks import check_heads, grouped, hide, real_tokens, segment_runs, sum_dtype
from astrozoo.attention.recurrent.decay import decayed_sums
from astrozoo.attention.recurrent.fla import Backend, fla_decayed_sums, fla_delta_sums, takes_fla
from astrozoo.attention.recurrent.householder import delta_sums
from astrozoo.errors import InputError
from astrozoo.nn.precision import full_precision

__all__ = ["gated_delta"]


def gated_delta(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None = None,
    beta: Tensor | None = None,
    *,
    erase: bool = True,
    key_mask: Tensor | None = None,
    segments: Tensor | None = None,
    state: Tensor | None = None,
    chunk: int = 64,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """The gated delta rule in O(N (chunk + key) value) time.

    Args:
        q: (batch, head, token, key), scaled by the caller.
        k: (batch, key head, token, key); a group of query heads shares a key head. The state stays bounded where
            b |k|^2 <= 2; keys of length 1 are usual.
        v: (batch, key head, token, value).
        log_decay: log a, broadcasting to (batch, key head, token); None for a = 1. -inf forgets all.
        beta: b, broadcasting to (batch, key head, token); None for b = 1.
        erase: Whether a write erases what its key held: False leaves S_t = a_t S_{t-1} + b_t k_t v_t'.
        key_mask: bool or integer (batch, token), true for a real token. Others are never read: they leave the state as
            it is, and their own output is 0.
        segments: int (batch, token); the state is emptied where the id changes from one real token to the next.
        state: (batch, key head, key, value) after earlier tokens, which the first real token continues.
        chunk: Tokens that are computed at once.
        backend: `torch`, `fla` (flash-linear-attention, on CUDA), or `auto` for `fla` where it can.

    Returns:
        (batch, head, token, value) in the dtype of `v`, and the state after the last token in float32 at least. Decays
        and sums are computed in the dtype of the state.

    Raises:
        InputError: If the shapes do not fit.
        BackendRefused: If `backend` is `fla` and that cannot serve the call.
    """
    check_heads(q, k, v)
    if q.shape[2] != k.shape[2]:
        raise InputError(f"q has {q.shape[2]} tokens and k {k.shape[2]}; a recurrence reads where it writes.")
    dtype = sum_dtype(q, k, v)
    batch, groups, length = k.shape[:3]
    real = real_tokens(key_mask, batch, length)
    runs = None if segments is None else segment_runs(segments, real)[:, None, None, :]
    query, key, value = (
        grouped(hide(tokens, real, 1), groups, name) for name, tokens in (("q", q), ("k", k), ("v", v))
    )
    gate = None if log_decay is None else _gate(log_decay, k, real, dtype, "log_decay")
    strength = _gate(q.new_ones(1, 1, 1) if beta is None else beta, k, real, dtype, "beta")
    fast = takes_fla(
        backend, "delta" if erase else "gated", query, key, value, log_decay, beta, state, segments=runs is not None
    )
    with full_precision(q):
        before = None if state is None else state.to(dtype).unsqueeze(2)
        if not fast:
            query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
        if erase and fast:
            out, last = fla_delta_sums(query, key, value, gate, strength, state=before)
        elif erase:
            out, last = delta_sums(query, key, value, gate, strength, runs=runs, state=before, chunk=chunk)
        else:
            value = (value * strength.unsqueeze(-1)).to(value.dtype)
            if fast:
                out, last = fla_decayed_sums(query, key, value, gate, state=before)
            else:
                out, last = decayed_sums(query, key, value, gate, runs=runs, state=before, chunk=chunk)
    return out.flatten(1, 2).to(v.dtype), last.squeeze(2).to(dtype)


def _gate(gate: Tensor, k: Tensor, real: Tensor | None, dtype: torch.dtype, name: str) -> Tensor:
    """A gate for every token, 0 where it is not real: (batch, group, 1, token)."""
    try:
        gate = gate.expand(k.shape[:3])
    except RuntimeError:
        raise InputError(
            f"{name} {tuple(gate.shape)} does not broadcast to (batch, key head, token) {tuple(k.shape[:3])}."
        ) from None
    return hide(gate.to(dtype), real, 0).unsqueeze(2)
