"""Mamba-2: a selective state space with a scalar decay for each head, in its dual form as masked attention.

h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t', y_t = C_t' h_t + D x_t. Dao and Gu 2024 (arXiv:2405.21060). In the terms of
this interface C are the queries, B the keys and x the values: `head_dim` is the size of the state, `v_head_dim` that of
a head, and `num_kv_heads` the number of groups that share B and C.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from astrozoo.attention.cache import Cache
from astrozoo.attention.module import implement
from astrozoo.attention.recurrent.chunks import sum_dtype
from astrozoo.attention.recurrent.module import Parts, RecurrentAttention, RecurrentConfig, ShortConv
from astrozoo.attention.recurrent.reference import state_space_recurrent
from astrozoo.attention.recurrent.ssd import state_space
from astrozoo.attention.recurrent.steps import draw_rates, draw_steps
from astrozoo.attention.terms import Terms
from astrozoo.nn.checks import at_least
from astrozoo.nn.norm import RMSNorm
from astrozoo.registry.spec import Paper

__all__ = ["Mamba2", "Mamba2Config", "mamba2"]


@dataclass(frozen=True, kw_only=True)
class Mamba2Config(RecurrentConfig):
    """As `RecurrentConfig`, with other defaults, and more.

    Attributes:
        num_kv_heads: Number of groups that share B and C; 1 by default.
        head_dim: Size of the state; 64 by default.
        v_head_dim: Width of a head; 2 dim / num_heads by default.
        conv_size: Tokens that the short convolution reaches over; 1 for none but the token itself.
    """

    num_kv_heads: int | None = 1
    head_dim: int | None = 64
    conv_size: int = 4

    def __post_init__(self) -> None:
        if self.v_head_dim is None and isinstance(self.dim, int) and isinstance(self.num_heads, int):
            self._set("v_head_dim", max(2 * self.dim // max(self.num_heads, 1), 1))
        RecurrentConfig.__post_init__(self)
        at_least(self, 1, "conv_size")


class Mamba2(RecurrentAttention):
    """A recurrence over earlier tokens with a state (head_dim, v_head_dim) for each head."""

    def make_projections(
        self, config: Mamba2Config, *, device: torch.device | str | None, dtype: torch.dtype | None
    ) -> None:
        """Projections of the tokens, the convolution, steps, rates and the norm of the output."""
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        width, state = config.num_heads * config.value_dim, config.kv_heads * config.key_dim
        self.query = nn.Linear(config.dim, state, bias=config.bias, **made)
        self.key = nn.Linear(config.dim, state, bias=config.bias, **made)
        self.value = nn.Linear(config.dim, width, bias=config.bias, **made)
        self.gate = nn.Linear(config.dim, width, bias=config.bias, **made)
        self.step = nn.Linear(config.dim, config.num_heads, **made)
        self.conv = ShortConv(width + 2 * state, config.conv_size, bias=True, **made)
        self.log_rate = nn.Parameter(torch.empty(config.num_heads, **made))
        self.skip = nn.Parameter(torch.empty(config.num_heads, **made))
        self.query_norm: nn.Module = RMSNorm(config.key_dim, eps=1e-6, **made) if config.qk_norm else nn.Identity()
        self.key_norm: nn.Module = RMSNorm(config.key_dim, eps=1e-6, **made) if config.qk_norm else nn.Identity()
        self.output_norm = RMSNorm(width, eps=1e-6, **made)
        self.output = nn.Linear(width, config.dim, bias=config.bias, **made)

    def reset_parameters(self) -> None:
        """As `Attention.reset_parameters`; rates of 1 to 16, steps of 0.001 to 0.1, each token passed on as it is."""
        super().reset_parameters()
        self.conv.reset_parameters()
        draw_rates(self.log_rate)
        draw_steps(self.step.bias)
        nn.init.ones_(self.skip)

    def project(self, x: Tensor, context: Tensor | None = None) -> Parts:  # noqa: ARG002  # it has no cross-attention
        """C, B, x (batch, token, channel) before the convolution, logits of steps (batch, token, head), the gate."""
        return self.query(x), self.key(x), self.value(x), self.step(x), self.gate(x)

    def place(
        self, parts: Parts, terms: Terms, cache: Cache | None, positions: tuple[Tensor | None, Tensor | None]
    ) -> tuple[Parts, Terms]:
        """Convolve C, B and x together, split into heads, and make steps positive."""
        _, terms = super().place(parts, terms, cache, positions)
        query, key, value, step, gate = parts
        config = self.config
        mixed, tail = self.conv(torch.cat((query, key, value), dim=-1), self.remembered(terms, "tail"), terms)
        if cache is not None:  # the tail joins the state that `attend` leaves behind
            cache.state.update(tail=tail)  # type: ignore[attr-defined]  # a StateCache, see new_cache
        query, key, value = mixed.split((query.shape[-1], key.shape[-1], value.shape[-1]), dim=-1)
        query = self.query_norm(self.split(query, config.kv_heads))
        key = self.key_norm(self.split(key, config.kv_heads))
        if terms.scale is not None:
            query = query * terms.scale
        step = F.softplus(step.to(sum_dtype(step))).transpose(1, 2)
        return (query, key, self.split(value, config.num_heads), step, self.split(gate, config.num_heads)), terms

    def attend(  # type: ignore[override]  # takes the parts of its own `project`
        self, query: Tensor, key: Tensor, value: Tensor, step: Tensor, gate: Tensor, terms: Terms
    ) -> Tensor:
        """The recurrence in chunks."""
        segments = None if terms.segments is None else terms.segments[0]
        rate, skip = -self.log_rate.to(step.dtype).exp(), self.skip.to(step.dtype)
        out, state = state_space(
            value.to(step.dtype), step, rate, key, query, skip, key_mask=terms.key_mask, segments=segments,
            state=self.remembered(terms, "state"), backend=self.config.backend,
        )  # fmt: skip
        self.remember(terms, value.shape[2], state=state)
        return self.dropped(self._gated(out, gate), terms)

    def reference(  # type: ignore[override]  # as `attend`
        self, query: Tensor, key: Tensor, value: Tensor, step: Tensor, gate: Tensor, terms: Terms
    ) -> Tensor:
        """The recurrence token by token."""
        segments = None if terms.segments is None else terms.segments[0]
        out, state = state_space_recurrent(
            value.double(), step.double(), -self.log_rate.double().exp(), key.double(), query.double(),
            self.skip.double(), key_mask=terms.key_mask, segments=segments, state=self.remembered(terms, "state"),
        )  # fmt: skip
        self.remember(terms, value.shape[2], state=state)
        return self._gated(out, gate)

    def _gated(self, heads: Tensor, gate: Tensor) -> Tensor:
        """The gated norm over all heads together, as in the paper: (batch, head, token, v_head_dim)."""
        gated = heads * F.silu(
            gate.to(heads.dtype)
        )  # in the dtype of sums: before the norm half precision may overflow
        normed = self.output_norm(gated.transpose(1, 2).flatten(2))
        return self.split(normed, self.config.num_heads).to(gate.dtype)


mamba2 = implement(
    Mamba2,
    Mamba2Config,
    name="mamba2",
    summary="selective state space duality",
    exactness="chunked equals recurrent; A=0 equals unnormalised linear",
    cost="N p n",
    causal=True,
    cross=False,
    masks=("key_mask", "segments"),
    grouped_query=True,
    cache="state",
    paper=Paper(
        authors="Dao, Gu",
        year=2024,
        title="Transformers are SSMs: Generalized Models and Efficient Algorithms Through Structured State Space "
        "Duality",
        arxiv="2405.21060",
    ),
    exact=False,
    causal_only=True,
    cost_exponent=1.0,
    softmax=False,
    example={"head_dim": 8},
)
