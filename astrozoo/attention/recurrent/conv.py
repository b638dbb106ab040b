"""The short causal depthwise convolution in front of a recurrence; its state is what it needs of earlier tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from astrozoo.attention.recurrent.chunks import real_tokens, segment_runs, sum_dtype
from astrozoo.errors import InputError
from astrozoo.nn.precision import full_precision

__all__ = ["causal_conv"]


def causal_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    tail: Tensor | None = None,
    key_mask: Tensor | None = None,
    segments: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Every channel weighs its last K real tokens: y_t = sum_j weight[K - 1 - j] x_{t-j} + bias.

    Padding is as good as absent, wherever it is: a real token finds the real tokens before it, at the same taps as if
    there were no padding. So any way to cut and pad a sequence gives what one pass gives.

    Args:
        x: (batch, token, channel).
        weight: (channel, K), the last tap for the token itself.
        bias: (channel,).
        tail: The last K - 1 real tokens of earlier calls (batch, K - 1, channel), zeros for what never was; None for
            the start of a sequence.
        key_mask: bool or integer (batch, token), true for a real token. Others are never read, and their output is 0.
        segments: int (batch, token); taps do not reach over a change of id. The first real token continues `tail`.

    Returns:
        (batch, token, channel) in the dtype of `x`, and the new tail in that dtype: the last K - 1 real tokens, zero
        where they belong to another segment than the last one.

    Raises:
        InputError: If the shapes do not fit.
    """
    _check(x, weight, bias, tail)
    batch, length, _ = x.shape
    kept = weight.shape[1] - 1
    real = real_tokens(key_mask, batch, length)
    runs = None if segments is None else segment_runs(segments, real).expand(batch, -1)
    if tail is None:
        tail = x.new_zeros(batch, kept, x.shape[2])
    if real is None:
        rank, order = None, None
        tokens = x
        count = x.new_full((batch,), length, dtype=torch.int64)
    else:
        real = real.expand(batch, -1)
        order = (~real).to(torch.uint8).argsort(dim=1, stable=True)  # real tokens first, in their order
        rank = (real.cumsum(1) - 1).clamp(min=0)
        count = real.sum(1)
        tokens = _pick(x.masked_fill(~real.unsqueeze(-1), 0), order)
        runs = None if runs is None else runs.gather(1, order)
    known = torch.cat((tail.to(x.dtype), tokens), dim=1)
    known_runs = None if runs is None else F.pad(runs, (kept, 0))  # what came before belongs to run 0

    dtype = sum_dtype(x, weight)
    with full_precision(x):
        taps = weight.to(dtype)
        out = torch.zeros_like(tokens, dtype=dtype)
        for tap in range(kept + 1):
            part = known[:, tap : tap + length].to(dtype)
            if known_runs is not None and runs is not None:
                part = part.masked_fill((known_runs[:, tap : tap + length] != runs).unsqueeze(-1), 0)
            out = out + part * taps[:, tap]
        if bias is not None:
            out = out + bias.to(dtype)
    out = out.to(x.dtype)

    last = count.unsqueeze(1) + torch.arange(kept, device=x.device)
    new_tail = _pick(known, last)
    if known_runs is not None:
        final = known_runs.gather(1, count.unsqueeze(1) + kept - 1) if kept else known_runs[:, :0]
        new_tail = new_tail.masked_fill((known_runs.gather(1, last) != final).unsqueeze(-1), 0)
    if real is not None and rank is not None:
        out = _pick(out, rank).masked_fill(~real.unsqueeze(-1), 0)
    return out, new_tail


def _pick(tokens: Tensor, index: Tensor) -> Tensor:
    """Tokens (batch, token, channel) at `index` (batch, chosen)."""
    return tokens.gather(1, index.unsqueeze(-1).expand(-1, -1, tokens.shape[2]))


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, tail: Tensor | None) -> None:
    if x.ndim != 3:
        raise InputError(f"x is {tuple(x.shape)}; expected (batch, token, channel).")
    if weight.ndim != 2 or weight.shape[0] != x.shape[2] or weight.shape[1] < 1:
        raise InputError(f"weight is {tuple(weight.shape)}; expected ({x.shape[2]} channels, taps).")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise InputError(f"bias is {tuple(bias.shape)}; expected {tuple(weight.shape[:1])}.")
    if tail is not None and tail.shape != (x.shape[0], weight.shape[1] - 1, x.shape[2]):
        raise InputError(
            f"tail is {tuple(tail.shape)}; expected {(x.shape[0], weight.shape[1] - 1, x.shape[2])}: the tokens that "
            f"{weight.shape[1]} taps need."
        )
