"""The gated delta rule in chunks: the core of `delta`.

S_t = a_t (I - b_t k_t k_t') S_{t-1} + b_t k_t v_t'. A chunk applies a product of generalised Householder matrices,
which the UT transform turns into one triangular system (Yang et al. 2024, arXiv:2406.06484; with decay, 2412.06464).
With G_i the product of the decays up to token i of the chunk, and P_ij = G_i / G_j:

    S_i = G_i S_0 + sum_{j <= i} P_ij k_j u_j',    (I + tril(b_i P_ij k_i'k_j, -1)) U = diag(b) (V - diag(G) K S_0)

so U = U_v - U_k S_0 with both parts known before S_0 is; the states between chunks follow from a scan over matrices.
"""

from __future__ import annotations

import torch
from torch import Tensor

from astrozoo.attention.recurrent.chunks import fold, unfold
from astrozoo.attention.recurrent.decay import chunk_decay
from astrozoo.attention.recurrent.scan import states_between

__all__ = ["delta_sums"]


def delta_sums(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    beta: Tensor,
    *,
    runs: Tensor | None = None,
    state: Tensor | None = None,
    chunk: int = 64,
) -> tuple[Tensor, Tensor]:
    """o_t = S_t' q_t of the gated delta rule.

    Args:
        q: (batch, group, member, token, key).
        k: (batch, group, 1, token, key).
        v: (batch, group, 1, token, value).
        log_decay: (batch, group, 1, token), or None for no decay.
        beta: (batch, group, 1, token).
        runs: int (batch, 1, 1, token): the state is emptied where the number changes.
        state: (batch, group, 1, key, value).
        chunk: Tokens that are computed at once.

    Returns:
        o (batch, group, member, token, value), and the last state. All in the dtype of the arguments.
    """
    length = q.shape[-2]
    size = 1 if length == 1 else chunk
    decay = chunk_decay(q.new_zeros(1, 1, 1, length) if log_decay is None else log_decay, runs, size)
    q, k, v = fold(q, size, -2), fold(k, size, -2), fold(v, size, -2)
    strength = fold(beta, size, -1).unsqueeze(-1)
    keys = k.transpose(-1, -2)

    # Only what lies below the diagonal of the system is read; its diagonal is one.
    system = strength * decay.pairs * (k @ keys)
    sides = torch.cat((strength * v, strength * decay.entry.unsqueeze(-1) * k), dim=-1)
    solved = torch.linalg.solve_triangular(system, sides, upper=False, unitriangular=True)
    own, erased = solved.split((v.shape[-1], k.shape[-1]), dim=-1)

    leaving = keys * decay.exit.unsqueeze(-2)
    unit = torch.eye(k.shape[-1], dtype=k.dtype, device=k.device)
    transition = decay.through[..., None, None] * unit - leaving @ erased
    update = leaving @ own
    if state is None:
        state = torch.zeros_like(update[..., 0, :, :])
    before, last = states_between(transition, update, state)

    scores = (q @ keys) * decay.pairs
    out = scores @ (own - erased @ before) + (q * decay.entry.unsqueeze(-1)) @ before
    return unfold(out, length), last
