"""The recurrences as their formulas say, token by token or as one dense matrix: what the chunked kernels must equal.

Nothing here is shared with the kernels. All is computed in float32 at least and stays there; gradients flow.
"""

from __future__ import annotations

import torch
from torch import Tensor

from astrozoo.attention.recurrent.linear import LinearState

__all__ = [
    "gated_delta_recurrent",
    "linear_attention_quadratic",
    "linear_attention_recurrent",
    "state_space_dense",
    "state_space_recurrent",
]


def linear_attention_recurrent(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    key_mask: Tensor | None = None,
    state: LinearState | None = None,
    normalise: bool = True,
) -> tuple[Tensor, LinearState]:
    """Causal `linear_attention` one token at a time; as many queries as keys."""
    q, k, v = _wide(q), _wide(k), _wide(v)
    real = _real(key_mask, k)
    group = q.shape[1] // k.shape[1]
    kv = k.new_zeros(*k.shape[:2], k.shape[-1], v.shape[-1]) if state is None else state.kv
    z = k.new_zeros(*k.shape[:2], k.shape[-1]) if state is None else state.z
    outs = [v.new_zeros(q.shape[0], q.shape[1], 0, v.shape[-1])]
    for t in range(k.shape[2]):
        write = real[:, t, None, None]
        key, value = torch.where(write, k[:, :, t], 0), torch.where(write, v[:, :, t], 0)
        kv = kv + torch.einsum("bhd,bhe->bhde", key, value)
        z = z + key
        out = torch.einsum("bhd,bhde->bhe", q[:, :, t], kv.repeat_interleave(group, 1))
        if normalise:
            weight = torch.einsum("bhd,bhd->bh", q[:, :, t], z.repeat_interleave(group, 1)).unsqueeze(-1)
            out = torch.where(weight > 0, out / torch.where(weight > 0, weight, 1), 0)
        outs.append(out.unsqueeze(2))
    return torch.cat(outs, dim=2), LinearState(kv, z)


def linear_attention_quadratic(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool, key_mask: Tensor | None = None, normalise: bool = True
) -> Tensor:
    """`linear_attention` as a matrix over all pairs: (phi(q) phi(k)' masked, each row divided by its sum) v."""
    q, k, v = _wide(q), _wide(k), _wide(v)
    real = _real(key_mask, k)
    group = q.shape[1] // k.shape[1]
    k = torch.where(real[:, None, :, None], k, 0).repeat_interleave(group, 1)
    v = torch.where(real[:, None, :, None], v, 0).repeat_interleave(group, 1)
    weights = q @ k.transpose(-1, -2)
    if causal:
        weights = weights.tril(k.shape[2] - q.shape[2])
    if normalise:
        total = weights.sum(-1, keepdim=True)
        weights = torch.where(total > 0, weights / torch.where(total > 0, total, 1), 0)
    return weights @ v


def gated_delta_recurrent(
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
) -> tuple[Tensor, Tensor]:
    """`gated_delta` one token at a time."""
    q, k, v = _wide(q), _wide(k), _wide(v)
    batch, heads, length = k.shape[:3]
    group = q.shape[1] // heads
    decay = (k.new_zeros(1, 1, 1) if log_decay is None else _wide(log_decay)).expand(batch, heads, length).exp()
    strength = (k.new_ones(1, 1, 1) if beta is None else _wide(beta)).expand(batch, heads, length)
    real, fresh = _real(key_mask, k), _fresh(segments, key_mask, batch, length)
    S = k.new_zeros(batch, heads, k.shape[-1], v.shape[-1]) if state is None else state
    outs = [v.new_zeros(batch, q.shape[1], 0, v.shape[-1])]
    for t in range(length):
        here = real[:, t, None, None, None]
        S = torch.where(fresh[:, t, None, None, None].to(S.device), 0, S)
        kept = decay[:, :, t, None, None] * S
        key, value = k[:, :, t], v[:, :, t]
        if erase:
            value = value - torch.einsum("bhd,bhde->bhe", key, kept)
        written = torch.einsum("bh,bhd,bhe->bhde", strength[:, :, t], key, value)
        S = torch.where(here, kept + written, S)
        out = torch.einsum("bhd,bhde->bhe", q[:, :, t], S.repeat_interleave(group, 1))
        outs.append(torch.where(here[..., 0], out, 0).unsqueeze(2))
    return torch.cat(outs, dim=2), S


def state_space_recurrent(
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
) -> tuple[Tensor, Tensor]:
    """`state_space` one token at a time."""
    x, dt, b, c = _wide(x), _wide(dt), _wide(b), _wide(c)
    batch, heads, length = x.shape[:3]
    b, c = b.repeat_interleave(heads // b.shape[1], 1), c.repeat_interleave(heads // c.shape[1], 1)
    real, fresh = _real(key_mask, x), _fresh(segments, key_mask, batch, length)
    h = x.new_zeros(batch, heads, b.shape[-1], x.shape[-1]) if state is None else state
    outs = [x.new_zeros(batch, heads, 0, x.shape[-1])]
    for t in range(length):
        here = real[:, t, None, None, None]
        h = torch.where(fresh[:, t, None, None, None].to(h.device), 0, h)
        kept = torch.exp(dt[:, :, t] * a)[..., None, None] * h
        h = torch.where(here, kept + torch.einsum("bh,bhn,bhp->bhnp", dt[:, :, t], b[:, :, t], x[:, :, t]), h)
        out = torch.einsum("bhn,bhnp->bhp", c[:, :, t], h)
        if d is not None:
            out = out + d[:, None] * x[:, :, t]
        outs.append(torch.where(here[..., 0], out, 0).unsqueeze(2))
    return torch.cat(outs, dim=2), h


def state_space_dense(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor | None = None) -> Tensor:
    """`state_space` as a matrix over all pairs of tokens: y = (L * c b') (dt x) + d x (arXiv:2405.21060, section 3)."""
    x, dt, b, c = _wide(x), _wide(dt), _wide(b), _wide(c)
    heads, length = x.shape[1:3]
    b, c = b.repeat_interleave(heads // b.shape[1], 1), c.repeat_interleave(heads // c.shape[1], 1)
    total = (dt * a[:, None]).cumsum(-1)
    earlier = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
    decay = torch.where(earlier, total.unsqueeze(-1) - total.unsqueeze(-2), -torch.inf).exp()
    out = (decay * (c @ b.transpose(-1, -2))) @ (dt.unsqueeze(-1) * x)
    return out if d is None else out + d[:, None, None] * x


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _real(key_mask: Tensor | None, tokens: Tensor) -> Tensor:
    if key_mask is None:
        return torch.ones(tokens.shape[0], tokens.shape[2], dtype=torch.bool, device=tokens.device)
    return (key_mask != 0).expand(tokens.shape[0], -1)


def _fresh(segments: Tensor | None, key_mask: Tensor | None, batch: int, length: int) -> Tensor:
    """Where the state is emptied before a token: bool (batch, token), found by walking along every row."""
    fresh = torch.zeros(batch, length, dtype=torch.bool)
    if segments is None:
        return fresh
    for row in range(batch):
        latest = None
        for t in range(length):
            if key_mask is not None and not key_mask.expand(batch, -1)[row, t]:
                continue
            here = int(segments.expand(batch, -1)[row, t])
            fresh[row, t] = latest is not None and here != latest
            latest = here
    return fresh
