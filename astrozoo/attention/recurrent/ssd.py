"""State space duality: the core of Mamba-2, a state that decays by a step size which the token chooses.

h_t = exp(dt_t a) h_{t-1} + dt_t b_t x_t', y_t = c_t' h_t + d x_t (Dao and Gu 2024, arXiv:2405.21060). It is linear
attention with queries c, keys b, values dt x and a scalar decay; with a = 0 and dt = 1 it is linear attention itself.
"""

from __future__ import annotations

from torch import Tensor

from astrozoo.attention.recurrent.chunks import grouped, hide, real_tokens, segment_runs, sum_dtype
from astrozoo.attention.recurrent.decay import decayed_sums
from astrozoo.attention.recurrent.fla import Backend, fla_decayed_sums, takes_fla
from astrozoo.errors import InputError
from astrozoo.nn.precision import full_precision

__all__ = ["state_space"]


def state_space(
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor | None = None,
    *,
    key_mask: Tensor | None = None,
    segments: Tensor | None = None,
    state: Tensor | None = None,
    chunk: int = 64,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """The recurrence above in O(N (chunk + state) value) time.

    Args:
        x: (batch, head, token, value).
        dt: Step sizes (batch, head, token), at least 0.
        a: Rates (head,), below 0 for a state that forgets.
        b: Where tokens write (batch, group, token, state); a group of heads shares it.
        c: Where tokens read (batch, group, token, state).
        d: Weight of the token itself (head,), or None for 0.
        key_mask: bool or integer (batch, token), true for a real token. Others are never read: their step is 0, which
            leaves the state as it is, and their own output is 0.
        segments: int (batch, token); the state is emptied where the id changes from one real token to the next.
        state: (batch, head, state, value) after earlier tokens, which the first real token continues.
        chunk: Tokens that are computed at once.
        backend: `torch`, `fla` (flash-linear-attention, on CUDA), or `auto` for `fla` where it can.

    Returns:
        (batch, head, token, value) in the dtype of `x`, and the state after the last token in float32 at least. Decays
        and sums are computed in the dtype of the state.

    Raises:
        InputError: If the shapes do not fit.
        BackendRefused: If `backend` is `fla` and that cannot serve the call.
    """
    _check(x, dt, a, b, c, d)
    dtype = sum_dtype(x, dt, a, b, c)
    groups = b.shape[1]
    real = real_tokens(key_mask, x.shape[0], x.shape[2])
    runs = None if segments is None else segment_runs(segments, real)[:, None, None, :]
    x, b, c = hide(x, real, 1), hide(b, real, 1), hide(c, real, 1)
    key, query = grouped(b, groups, "b"), grouped(c, groups, "c")
    with full_precision(x):
        step = hide(dt.to(dtype), real, 0)
        log_decay = grouped(step * a.to(dtype).unsqueeze(-1), groups, "x")
        value = grouped((step.unsqueeze(-1) * x).to(dtype), groups, "x")
        before = None if state is None else grouped(state.to(dtype), groups, "state")
        narrow = value.to(x.dtype)
        if takes_fla(backend, "gated", query, key, narrow, log_decay, before, segments=runs is not None):
            out, last = fla_decayed_sums(query, key, narrow, log_decay, state=before)
        else:
            query, key = query.to(dtype), key.to(dtype)
            out, last = decayed_sums(query, key, value, log_decay, runs=runs, state=before, chunk=chunk)
        out, last = out.flatten(1, 2), last.flatten(1, 2).to(dtype)
        if d is not None:
            out = out + d.to(dtype)[:, None, None] * x
    return out.to(x.dtype), last


def _check(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor | None) -> None:
    if x.ndim != 4 or b.ndim != 4:
        raise InputError(f"Expected (batch, head, token, dim) for x and b; got {tuple(x.shape)} and {tuple(b.shape)}.")
    if dt.shape != x.shape[:3]:
        raise InputError(f"dt is {tuple(dt.shape)}; expected (batch, head, token) {tuple(x.shape[:3])}.")
    if b.shape != c.shape or (b.shape[0], b.shape[2]) != (x.shape[0], x.shape[2]):
        raise InputError(
            f"b {tuple(b.shape)} and c {tuple(c.shape)} must be alike, with the batch and tokens of x {tuple(x.shape)}."
        )
    for name, weight in (("a", a), ("d", d)):
        if weight is not None and weight.shape != x.shape[1:2]:
            raise InputError(f"{name} is {tuple(weight.shape)}; expected one number for each of {x.shape[1]} heads.")
