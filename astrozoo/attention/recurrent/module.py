"""What attentions share that carry a state instead of a cache of keys."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from astrozoo.attention.cache import Cache, StateCache
from astrozoo.attention.module import Attention, AttentionConfig, unsupported
from astrozoo.attention.recurrent.conv import causal_conv
from astrozoo.attention.terms import Terms
from astrozoo.errors import ConfigError, InputError
from astrozoo.nn.checks import one_of

__all__ = ["RecurrentAttention", "RecurrentConfig", "ShortConv"]

Parts = tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class RecurrentConfig(AttentionConfig):
    """What every attention takes, with two restrictions.

    Attributes:
        backend: `torch`, `fla` (flash-linear-attention, on CUDA), or `auto` for `fla` where it can.
        dropout: Probability that an output of a head is dropped in training: there are no weights to drop.
    """

    def __post_init__(self) -> None:
        AttentionConfig.__post_init__(self)  # a dataclass made anew, as frozen ones are, has no super() of its own
        if self.rope is not None:
            raise ConfigError(
                f"{type(self).__name__}.rope is {self.rope}; it turns no features of a recurrence. Leave it out."
            )
        one_of(self, ("auto", "torch", "fla"), "backend")


class RecurrentAttention(Attention):
    """An attention whose cache is a `StateCache`; `attend` finds it in `terms.cache`."""

    def new_cache(
        self,
        batch: int,
        max_len: int | None = None,  # noqa: ARG002  # a state has one size for any length
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Any:
        """An empty state for `batch` rows; `max_len` and `dtype` do not matter to it."""
        return StateCache(batch, device=self.placement(device, dtype)[0])

    def place(
        self,
        parts: Parts,
        terms: Terms,
        cache: Cache | None,
        positions: tuple[Tensor | None, Tensor | None],
    ) -> tuple[Parts, Terms]:
        """Hand the state to `attend`; only the order of tokens counts, so positions are refused."""
        if positions != (None, None):
            raise unsupported("positions", self.spec.name, causal=True, softmax=True)
        if cache is not None and not terms.causal:
            raise InputError("A state holds what came before: with a cache the call must be causal.")
        return parts, terms.replace(cache=cache)

    def dropped(self, heads: Tensor, terms: Terms) -> Tensor:
        """Outputs of heads, some of them zero in training."""
        return F.dropout(heads, terms.dropout) if terms.dropout > 0 else heads

    def remember(self, terms: Terms, count: int, **state: Tensor) -> None:
        """Leave the state behind after `count` tokens, if there is a cache."""
        if terms.cache is not None:
            terms.cache.update(count, terms.key_mask, **state)

    def remembered(self, terms: Terms, name: str) -> Tensor | None:
        """The state of that name that earlier tokens left, if any."""
        return None if terms.cache is None else terms.cache.get(name)


class ShortConv(nn.Module):
    """A causal depthwise convolution over a few tokens, then SiLU.

    Args:
        channels: Number of channels.
        size: Tokens it reaches over, itself included.
        bias: Whether it has a bias.
        device: Of the parameters.
        dtype: Of the parameters.
    """

    def __init__(
        self,
        channels: int,
        size: int,
        *,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, size, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(channels, device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform within the inverse root of the size, as PyTorch's convolutions; zero bias."""
        bound = self.weight.shape[1] ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, tokens: Tensor, tail: Tensor | None, terms: Terms) -> tuple[Tensor, Tensor]:
        """(batch, token, channel) after the convolution, and the tail (batch, size - 1, channel) for later tokens."""
        segments = None if terms.segments is None else terms.segments[0]
        out, tail = causal_conv(tokens, self.weight, self.bias, tail=tail, key_mask=terms.key_mask, segments=segments)
        return F.silu(out), tail


def gated_norm(norm: Callable[[Tensor], Tensor], heads: Tensor, gate: Tensor) -> Tensor:
    """`norm` of the heads (batch, head, token, dim), let through by SiLU of the gate of the same shape."""
    return norm(heads).to(gate.dtype) * F.silu(gate)
