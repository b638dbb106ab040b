"""Attention within each of several sequences that lie one after the other, without padding in the caller's tensors.

On CUDA PyTorch's variable-length FlashAttention runs; elsewhere the sequences are padded to the longest for the kernel.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from astrozoo.attention.backends.base import expand_heads, scale_of
from astrozoo.attention.backends.probe import compare_with_math
from astrozoo.attention.choice import BackendName, overridden
from astrozoo.attention.core import attend
from astrozoo.attention.terms import Terms
from astrozoo.errors import InputError

__all__ = ["attend_packed"]


def attend_packed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    cu_seqlens_q: Tensor,
    max_q: int,
    cu_seqlens_k: Tensor | None = None,
    max_k: int | None = None,
    causal: bool = False,
    window: int | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    backend: BackendName = "auto",
) -> Tensor:
    """Attention within each of several sequences that lie one after the other.

    Where they must be padded, memory follows the longest sequence, not the sum of all lengths squared.

    Args:
        query: (token, head, dim), all sequences one after the other.
        key: (token, key head, dim).
        value: (token, key head, value dim).
        cu_seqlens_q: int (sequence + 1), where each sequence starts and the last ends; starts with 0.
        max_q: Length of the longest sequence, or more.
        cu_seqlens_k: The same for keys; as for queries by default.
        max_k: Longest sequence of keys, or more.
        causal: As for `attend`; the ends of each pair of sequences are aligned.
        window: As for `attend`.
        scale: As for `attend`.
        dropout_p: As for `attend`.
        backend: As for `attend`.

    Returns:
        (token, head, value dim).

    Raises:
        InputError: A shape does not fit.
    """
    cu_seqlens_k = cu_seqlens_q if cu_seqlens_k is None else cu_seqlens_k
    max_k = max_q if max_k is None else max_k
    for name, offsets in (("cu_seqlens_q", cu_seqlens_q), ("cu_seqlens_k", cu_seqlens_k)):
        if offsets.dim() != 1 or offsets.is_floating_point() or offsets.shape[0] != cu_seqlens_q.shape[0]:
            raise InputError(f"{name} is {offsets.dtype} {tuple(offsets.shape)}; expected int (sequence + 1,).")
    if query.dim() != 3 or key.dim() != 3 or value.dim() != 3:
        raise InputError("Packed queries, keys and values have three dimensions (token, head, dim).")
    terms = Terms(causal=causal, window=window, scale=scale, dropout=dropout_p)
    if overridden(backend) == "auto" and not _refuse_varlen(query, key, value, terms):
        return _varlen(query, key, value, terms, (cu_seqlens_q, cu_seqlens_k), (max_q, max_k))
    query_slots, query_real = _slots(cu_seqlens_q, max_q)
    key_slots, key_real = _slots(cu_seqlens_k, max_k)
    sequences = query_slots.shape[0]

    def padded(packed: Tensor, slots: Tensor, real: Tensor) -> Tensor:
        if packed.shape[0] == 0:
            return packed.new_zeros(sequences, packed.shape[1], slots.shape[1], packed.shape[2])
        rows = packed[slots.clamp(max=packed.shape[0] - 1)].masked_fill(~real[..., None, None], 0)
        return rows.transpose(1, 2)  # (sequence, head, slot, dim)

    # Positions count from the end of each sequence, so that causal aligns the ends whatever the padding.
    index = torch.arange(max(max_q, max_k), device=query.device)
    ends_q, ends_k = cu_seqlens_q.diff()[:, None], cu_seqlens_k.diff()[:, None]
    positions = (index[None, :max_q] - ends_q, index[None, :max_k] - ends_k)
    out = attend(
        padded(query, query_slots, query_real), padded(key, key_slots, key_real), padded(value, key_slots, key_real),
        key_mask=key_real, causal=causal, window=window, scale=scale, dropout_p=dropout_p, backend=backend,
        positions=positions if causal or window is not None else None,
    ).out  # fmt: skip
    packed = query.new_zeros(query.shape[0] + 1, query.shape[1], value.shape[2])  # the last row takes the padding
    target = query_slots.masked_fill(~query_real, query.shape[0]).flatten()
    return packed.index_copy(0, target, out.transpose(1, 2).flatten(0, 1).to(packed.dtype))[:-1]


def _slots(offsets: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    """Row of every slot of the padded form, and whether it is a real token: (sequence, slot) both."""
    index = torch.arange(longest, device=offsets.device)[None]
    return offsets[:-1, None].long() + index, index < offsets.diff()[:, None]


def _refuse_varlen(query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> str:
    """Why PyTorch's variable-length kernel cannot serve the call, or an empty string."""
    if query.device.type != "cuda":
        return f"it needs a CUDA GPU, not {query.device.type}"
    if query.dtype not in (torch.float16, torch.bfloat16):
        return f"it takes no {query.dtype}"
    if terms.dropout > 0:
        return "it drops no weights"
    if query.shape[2] != value.shape[2] or query.shape[2] > 256:
        return f"head_dim {query.shape[2]} and v_head_dim {value.shape[2]} must agree, up to 256"
    if torch.are_deterministic_algorithms_enabled():
        return "its backward is not deterministic"
    if query.shape[0] == 0 or key.shape[0] == 0:
        return "there are no tokens"
    if torch.compiler.is_compiling():
        return "it is not tried under torch.compile"
    return _probe_varlen(str(query.device), query.dtype, query.shape[2], terms.causal, terms.window is not None)


def _varlen(
    query: Tensor, key: Tensor, value: Tensor, terms: Terms, offsets: tuple[Tensor, Tensor], longest: tuple[int, int]
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    wide_key, wide_value = (
        heads[0].transpose(0, 1).contiguous()
        for heads in expand_heads(*(packed.transpose(0, 1)[None] for packed in (query, key, value)))
    )
    reach = -1 if terms.window is None else terms.window - 1
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION]):
        out = varlen_attn(
            query.contiguous(), wide_key, wide_value, offsets[0].int(), offsets[1].int(), *longest,
            scale=scale_of(query, terms), window_size=(reach, 0 if terms.causal else reach),
        )  # fmt: skip
    assert isinstance(out, Tensor)  # nothing else was asked for
    return out


@functools.cache
def _probe_varlen(device: str, dtype: torch.dtype, head_dim: int, causal: bool, window: bool) -> str:
    def run(query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> Tensor:
        count = query.shape[2]
        offsets = torch.tensor([0, count], device=device)
        q, k, v = (heads[0].transpose(0, 1) for heads in (query, key, value))
        return _varlen(q, k, v, terms, (offsets, offsets), (count, count)).transpose(0, 1)[None]

    return compare_with_math(
        run, device=device, dtype=dtype, head_dim=head_dim, causal=causal, window=16 if window else None
    )
