"""Softmax attention to a fixed number of learned mixtures of the keys and values, at a cost linear in their number.

Wang et al. 2020 (arXiv:2006.04768): softmax(q (E k)' / sqrt(dim)) F v, with E and F (rank, token) learned. Tokens are
mixed by where they stand, so there is no causal form and no mask by query, and a fixed greatest length. It is a learned
low-rank attention, not an approximation of softmax attention over the tokens: it equals that only where rank is the
length and E and F are identities. `forward_with` shows the weights of the mixtures, (batch, head, query, rank).

A sequence shorter than `max_len` uses the first columns of E and F; what `key_mask` hides enters no mixture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from astrozoo.attention.core import hide_unseen
from astrozoo.attention.module import Attention, AttentionConfig, implement
from astrozoo.attention.reference import Dense, dense_attention
from astrozoo.attention.terms import Terms
from astrozoo.errors import InputError
from astrozoo.nn.checks import at_least
from astrozoo.registry.spec import Paper

__all__ = ["Linformer", "LinformerConfig", "linformer"]


@dataclass(frozen=True, kw_only=True)
class LinformerConfig(AttentionConfig):
    """Options of attention to mixtures.

    Attributes:
        rank: Number of mixtures of keys and of values, k in the paper.
        max_len: Greatest number of keys.
        shared: Whether all heads share E and F; else each key head has its own.
    """

    rank: int = 128
    max_len: int = 4096
    shared: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "rank", "max_len")


class Linformer(Attention):
    """softmax(q (E k)' / sqrt(dim)) F v for each head."""

    def make_projections(self, config: Any, *, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        """As `Attention.make_projections`, with E and F (1 | key head, rank, max_len)."""
        super().make_projections(config, device=device, dtype=dtype)
        shape = (1 if config.shared else config.kv_heads, config.rank, config.max_len)
        self.key_mixing = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.value_mixing = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """As `Attention.reset_parameters`; a mixture of `max_len` independent tokens is as large as one of them."""
        super().reset_parameters()
        for mixing in (self.key_mixing, self.value_mixing):
            nn.init.normal_(mixing, std=self.config.max_len**-0.5)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> Tensor:
        """The fast path: (batch, head, query, v_head_dim)."""
        self._check_length(key)
        key, value = hide_unseen(key, value, terms)
        return self.served(
            query, self._mix(self.key_mixing, key), self._mix(self.value_mixing, value), _of_mixtures(terms)
        )

    def _mix(self, mixing: Tensor, heads: Tensor) -> Tensor:
        """(batch, key head, rank, dim): one product for all rows and, if they share it, heads, without copies of E."""
        columns = mixing[..., : heads.shape[2]]
        if self.config.shared:
            return torch.einsum("rn,bhnd->bhrd", columns[0], heads)
        return torch.einsum("hrn,bhnd->bhrd", columns, heads)

    def _check_length(self, key: Tensor) -> None:
        if key.shape[2] > self.config.max_len:
            raise InputError(
                f"linformer got {key.shape[2]} keys; it mixes at most max_len={self.config.max_len}. Make it longer."
            )

    def reference(self, query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> Tensor:
        """What `attend` must equal: real tokens added to the mixtures one by one, then dense attention; float64."""
        return self._dense(query, key, value, terms).out

    def weights(self, query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> tuple[Tensor, Tensor]:
        """As `Attention.weights`, of the mixtures: (batch, head, query, rank); of none in a row without real tokens."""
        dense = self._dense(query, key, value, terms)
        real = key.new_ones(1, key.shape[2], dtype=torch.bool) if terms.key_mask is None else terms.key_mask
        empty = ~real.any(dim=1)[:, None, None]
        return dense.weights.masked_fill(empty[..., None], 0), dense.lse.masked_fill(empty, -torch.inf)

    def _dense(self, query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> Dense:
        self._check_length(key)
        mixtures = []
        for mixing, heads in ((self.key_mixing.double(), key.double()), (self.value_mixing.double(), value.double())):
            total = heads.new_zeros(*heads.shape[:2], self.config.rank, heads.shape[3])
            for token in range(heads.shape[2]):
                added = mixing[None, :, :, token, None] * heads[:, :, None, token]
                if terms.key_mask is not None:
                    added = torch.where(terms.key_mask[:, token, None, None, None], added, 0.0)
                total = total + added
            mixtures.append(total)
        return dense_attention(query, mixtures[0], mixtures[1], _of_mixtures(terms))


def _of_mixtures(terms: Terms) -> Terms:
    """What is left of the terms once tokens are mixed."""
    return Terms(scale=terms.scale, dropout=terms.dropout)


linformer = implement(
    Linformer,
    LinformerConfig,
    name="linformer",
    summary="learned low-rank projection of keys and values",
    exactness="identity projection equals flash; otherwise learned low-rank, no approximation of softmax attention",
    cost="N k d",
    causal=False,
    cross=True,
    masks=("key_mask",),
    grouped_query=True,
    cache=None,
    exact=False,
    cost_exponent=1.0,
    paper=Paper(
        authors="Wang, Li, Khabsa, Fang, Ma",
        year=2020,
        title="Linformer: Self-Attention with Linear Complexity",
        arxiv="2006.04768",
    ),
    example={"rank": 8, "max_len": 16384},
)
