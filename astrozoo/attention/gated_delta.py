"""The gated delta rule: a state that forgets, and overwrites what a key held before.

S_t = a_t (I - b_t k_t k_t') S_{t-1} + b_t k_t v_t', o_t = S_t' q_t. Yang et al. 2024 (arXiv:2412.06464), chunked after
Yang et al. 2024 (arXiv:2406.06484). Without the erasing term it is gated linear attention with a scalar gate, with a
constant gate RetNet (Sun et al. 2023, arXiv:2307.08621). Queries, keys and values pass a short convolution; queries and
keys have length 1; the output is normalised for each head and gated, as in the paper's block.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from astrozoo.attention.cache import Cache
from astrozoo.attention.module import implement
from astrozoo.attention.recurrent.chunks import sum_dtype
from astrozoo.attention.recurrent.delta import gated_delta as delta_rule
from astrozoo.attention.recurrent.module import Parts, RecurrentAttention, RecurrentConfig, ShortConv, gated_norm
from astrozoo.attention.recurrent.reference import gated_delta_recurrent
from astrozoo.attention.recurrent.steps import draw_rates, draw_steps
from astrozoo.attention.terms import Terms
from astrozoo.nn.checks import at_least, one_of
from astrozoo.nn.norm import RMSNorm
from astrozoo.registry.spec import Paper

__all__ = ["GatedDelta", "GatedDeltaConfig", "gated_delta"]


@dataclass(frozen=True, kw_only=True)
class GatedDeltaConfig(RecurrentConfig):
    """As `RecurrentConfig`, and more.

    Attributes:
        conv_size: Tokens that the short convolution reaches over; 1 for none but the token itself.
        gate: What the state keeps from token to token: `learned` from the token, `constant` for each head (RetNet's
            1 - 2^(-5 - head)), or `none` for all.
        erase: Whether a write erases what its key held.
    """

    conv_size: int = 4
    gate: str = "learned"
    erase: bool = True

    def __post_init__(self) -> None:
        RecurrentConfig.__post_init__(self)
        at_least(self, 1, "conv_size")
        one_of(self, ("learned", "constant", "none"), "gate")


class GatedDelta(RecurrentAttention):
    """A recurrence over earlier tokens with a matrix for a state, (key, value) for each key head."""

    def make_projections(
        self, config: GatedDeltaConfig, *, device: torch.device | str | None, dtype: torch.dtype | None
    ) -> None:
        """Projections, convolutions, gates and the norm of the output."""
        super().make_projections(config, device=device, dtype=dtype)
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        heads = config.kv_heads
        self.query_conv = ShortConv(config.num_heads * config.key_dim, config.conv_size, **made)
        self.key_conv = ShortConv(heads * config.key_dim, config.conv_size, **made)
        self.value_conv = ShortConv(heads * config.value_dim, config.conv_size, **made)
        self.strength = nn.Linear(config.dim, heads, **made)
        if config.gate == "learned":
            self.decay = nn.Linear(config.dim, heads, **made)
            self.log_rate = nn.Parameter(torch.empty(heads, **made))
        self.output_gate = nn.Linear(config.dim, config.num_heads * config.value_dim, bias=config.bias, **made)
        self.output_norm = RMSNorm(config.value_dim, eps=1e-6, **made)

    def reset_parameters(self) -> None:
        """As `Attention.reset_parameters`; gates start with rates of 1 to 16 and steps of 0.001 to 0.1."""
        super().reset_parameters()
        for conv in (self.query_conv, self.key_conv, self.value_conv):
            conv.reset_parameters()
        if self.config.gate == "learned":
            draw_rates(self.log_rate)
            draw_steps(self.decay.bias)

    def project(self, x: Tensor, context: Tensor | None = None) -> Parts:  # noqa: ARG002  # it has no cross-attention
        """Queries, keys, values (batch, token, channel), logits of strength and decay (batch, token, head), a gate."""
        decay = self.decay(x) if self.config.gate == "learned" else x.new_zeros(*x.shape[:2], self.config.kv_heads)
        return self.query(x), self.key(x), self.value(x), self.strength(x), decay, self.output_gate(x)

    def place(
        self, parts: Parts, terms: Terms, cache: Cache | None, positions: tuple[Tensor | None, Tensor | None]
    ) -> tuple[Parts, Terms]:
        """Convolve, split into heads, and turn logits of gates into a strength and a logarithm of a decay."""
        _, terms = super().place(parts, terms, cache, positions)
        query, key, value, strength, decay, gate = parts
        config = self.config
        mixed, tails = [], {}
        for name, tokens, conv in (
            ("query", query, self.query_conv),
            ("key", key, self.key_conv),
            ("value", value, self.value_conv),
        ):
            out, tails[f"{name}_tail"] = conv(tokens, self.remembered(terms, f"{name}_tail"), terms)
            mixed.append(out)
        query = _unit(self.query_norm(self.split(mixed[0], config.num_heads)))
        key = _unit(self.key_norm(self.split(mixed[1], config.kv_heads)))
        value = self.split(mixed[2], config.kv_heads)
        scale = config.key_dim**-0.5 if terms.scale is None else terms.scale
        strength = strength.to(sum_dtype(strength)).sigmoid().transpose(1, 2)
        if cache is not None:  # the tails join the state that `attend` leaves behind
            cache.state.update(tails)  # type: ignore[attr-defined]  # a StateCache, see new_cache
        log_decay = self._log_decay(decay).transpose(1, 2)
        return (query * scale, key, value, log_decay, strength, self.split(gate, config.num_heads)), terms

    def _log_decay(self, logits: Tensor) -> Tensor:
        """Logarithm of what the state keeps (batch, token, head), at most 0; float32 at least."""
        wide = logits.to(sum_dtype(logits))
        if self.config.gate == "none":
            return torch.zeros_like(wide)
        if self.config.gate == "constant":
            head = torch.arange(self.config.kv_heads, device=wide.device, dtype=wide.dtype)
            return torch.log1p(-torch.exp(-math.log(2) * (5 + head))).expand(wide.shape)
        return -self.log_rate.to(wide.dtype).exp() * F.softplus(wide)

    def attend(  # type: ignore[override]  # takes the parts of its own `project`
        self, query: Tensor, key: Tensor, value: Tensor, log_decay: Tensor, strength: Tensor, gate: Tensor, terms: Terms
    ) -> Tensor:
        """The rule in chunks."""
        segments = None if terms.segments is None else terms.segments[0]
        out, state = delta_rule(
            query, key, value, log_decay, strength, erase=self.config.erase, key_mask=terms.key_mask,
            segments=segments, state=self.remembered(terms, "state"), backend=self.config.backend,
        )  # fmt: skip
        self.remember(terms, key.shape[2], state=state)
        return self.dropped(gated_norm(self.output_norm, out, gate), terms)

    def reference(  # type: ignore[override]  # as `attend`
        self, query: Tensor, key: Tensor, value: Tensor, log_decay: Tensor, strength: Tensor, gate: Tensor, terms: Terms
    ) -> Tensor:
        """The rule token by token."""
        segments = None if terms.segments is None else terms.segments[0]
        out, state = gated_delta_recurrent(
            query.double(), key.double(), value.double(), log_decay.double(), strength.double(),
            erase=self.config.erase, key_mask=terms.key_mask, segments=segments, state=self.remembered(terms, "state"),
        )  # fmt: skip
        self.remember(terms, key.shape[2], state=state)
        return gated_norm(self.output_norm, out, gate)


def _unit(heads: Tensor) -> Tensor:
    """Heads of length 1; of length 0 where they are 0, with a finite gradient."""
    return F.normalize(heads.to(sum_dtype(heads)), dim=-1, eps=1e-6).to(heads.dtype)


gated_delta = implement(
    GatedDelta,
    GatedDeltaConfig,
    name="gated_delta",
    summary="gated delta-rule recurrence, chunked for training; erase term off gives gated linear attention, "
    "constant gate RetNet",
    exactness="chunked equals recurrent, output and state; orthonormal keys are recalled exactly",
    cost="N d^2",
    causal=True,
    cross=False,
    masks=("key_mask", "segments"),
    grouped_query=True,
    cache="state",
    paper=Paper(
        authors="Yang, Kautz, Hatamizadeh",
        year=2024,
        title="Gated Delta Networks: Improving Mamba2 with Delta Rule",
        arxiv="2412.06464",
    ),
    exact=False,
    causal_only=True,
    cost_exponent=1.0,
    softmax=False,
)
