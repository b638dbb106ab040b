"""Sums with a scalar decay in chunks: the core of linear attention, gated linear attention, RetNet and Mamba-2.

S_t = a_t S_{t-1} + k_t v_t', o_t = S_t' q_t (Dao and Gu 2024, arXiv:2405.21060, section 6). Within a chunk this is a
masked matrix product, between chunks a short scan: O(N (chunk + d) d) work.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from astrozoo.attention.recurrent.chunks import fold, leading, unfold
from astrozoo.attention.recurrent.scan import states_between

__all__ = ["ChunkDecay", "chunk_decay", "decayed_sums"]


class ChunkDecay(NamedTuple):
    """Products of decays within chunks, 0 where a segment ends in between.

    Attributes:
        pairs: (..., chunk, query, key): from a key to a query of the same chunk, 0 for later keys.
        entry: (..., chunk, token): from the start of the chunk to a token, its own decay included.
        exit: (..., chunk, token): from a token to the end of the chunk.
        through: (..., chunk): over the whole chunk.
    """

    pairs: Tensor
    entry: Tensor
    exit: Tensor
    through: Tensor


def chunk_decay(log_decay: Tensor, runs: Tensor | None, size: int) -> ChunkDecay:
    """Decays of chunks of `size` tokens, from logarithms summed in their own dtype, which is float32 at least.

    Args:
        log_decay: (..., token); -inf forgets all.
        runs: Numbers of the segments (..., token), broadcasting against `log_decay`, or None.
        size: Tokens of a chunk.
    """
    # Below the smallest number of the dtype a decay is 0 whatever its logarithm; a finite one has no inf - inf.
    floor = 1.2 * math.log(torch.finfo(log_decay.dtype).tiny)
    total = fold(log_decay.clamp(min=floor), size, -1).cumsum(-1)
    between = total.unsqueeze(-1) - total.unsqueeze(-2)
    before, after = total, total[..., -1:] - total
    through = total[..., -1]
    seen = torch.ones(size, size, dtype=torch.bool, device=log_decay.device).tril()
    if runs is not None:
        folded = fold(runs, size, -1).cummax(-1).values  # padding behind the tokens belongs to the last run
        # A chunk is entered in the run of the token before it; what the state holds belongs to run 0.
        left = folded[..., -1]
        entered = leading(torch.cat((torch.zeros_like(left[..., :1]), left), dim=-1), left.shape[-1], -1)
        seen = seen & (folded.unsqueeze(-1) == folded.unsqueeze(-2))
        before = before.masked_fill(folded != entered.unsqueeze(-1), -torch.inf)
        after = after.masked_fill(folded != left.unsqueeze(-1), -torch.inf)
        through = through.masked_fill(left != entered, -torch.inf)
    # Hidden pairs are set before the exponential: that of a later key may overflow, and inf * 0 is NaN.
    return ChunkDecay(between.masked_fill(~seen, -torch.inf).exp(), before.exp(), after.exp(), through.exp())


def decayed_sums(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    *,
    runs: Tensor | None = None,
    state: Tensor | None = None,
    chunk: int = 64,
) -> tuple[Tensor, Tensor]:
    """o_t = S_t' q_t of S_t = exp(log_decay_t) S_{t-1} + k_t v_t'.

    Args:
        q: (batch, group, member, token, key); all leading dims broadcast.
        k: (batch, group, member, token, key).
        v: (batch, group, member, token, value).
        log_decay: (batch, group, member, token), or None for no decay.
        runs: int (batch, 1, 1, token): the state is emptied where the number changes.
        state: (batch, group, member, key, value), with the members of `k`, `v` and `log_decay` together.
        chunk: Tokens that are computed at once.

    Returns:
        o (batch, group, member, token, value), and the last state. All in the dtype of the arguments.
    """
    length = q.shape[-2]
    size = 1 if length == 1 else chunk
    decay = chunk_decay(q.new_zeros(1, 1, 1, length) if log_decay is None else log_decay, runs, size)
    q, k, v = fold(q, size, -2), fold(k, size, -2), fold(v, size, -2)
    update = (k * decay.exit.unsqueeze(-1)).transpose(-1, -2) @ v
    if state is None:
        state = torch.zeros_like(update[..., 0, :, :])
    before, last = states_between(decay.through[..., None, None], update, state)
    scores = (q @ k.transpose(-1, -2)) * decay.pairs
    out = scores @ v + (q * decay.entry.unsqueeze(-1)) @ before
    return unfold(out, length), last
