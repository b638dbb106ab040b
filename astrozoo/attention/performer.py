"""Performer: softmax attention estimated by positive orthogonal random features, FAVOR+.

Choromanski et al. 2020 (arXiv:2009.14794). The estimate is good for small logits only: at a standard deviation of
queries and keys of 0.5 the error falls with the root of the number of features, at 1 it is useless at any number.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from astrozoo.attention.linear import FeatureAttention
from astrozoo.attention.module import implement
from astrozoo.attention.recurrent.features import orthogonal_projection, softmax_features
from astrozoo.attention.recurrent.module import RecurrentConfig
from astrozoo.attention.terms import Terms
from astrozoo.nn.checks import at_least
from astrozoo.registry.spec import Paper

__all__ = ["Performer", "PerformerConfig", "performer"]


@dataclass(frozen=True, kw_only=True)
class PerformerConfig(RecurrentConfig):
    """As `RecurrentConfig`, and more.

    Attributes:
        num_features: Number of random features; the error falls with its root.
        seed: Of the features, which are drawn once and saved with the weights; `redraw` draws others.
    """

    num_features: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        RecurrentConfig.__post_init__(self)
        at_least(self, 1, "num_features")
        at_least(self, 0, "seed")


class Performer(FeatureAttention):
    """Attention by random features whose products estimate exp(scale q'k).

    Attributes:
        projection: Directions of the features (feature, head_dim), shared by all heads; a buffer.
    """

    projection: Tensor

    def make_projections(
        self, config: PerformerConfig, *, device: torch.device | str | None, dtype: torch.dtype | None
    ) -> None:
        """Projections, and room for the directions."""
        super().make_projections(config, device=device, dtype=dtype)
        empty = torch.empty(config.num_features, config.key_dim, device=device, dtype=dtype)
        self.register_buffer("projection", empty)

    def reset_parameters(self) -> None:
        """As `Attention.reset_parameters`; the features are those of the configuration's seed."""
        super().reset_parameters()
        self.redraw(torch.Generator().manual_seed(self.config.seed))

    @torch.no_grad()
    def redraw(self, generator: torch.Generator | None = None) -> None:
        """Draw other features, as the paper does every few steps of training to keep the estimate unbiased.

        Args:
            generator: Where the draws come from, a generator on the CPU.
        """
        drawn = orthogonal_projection(*self.projection.shape, generator=generator)
        self.projection.copy_(drawn.to(self.projection.device, self.projection.dtype))

    def query_features(self, query: Tensor, terms: Terms) -> Tensor:
        """(batch, head, query, feature)."""
        return softmax_features(query, self.projection, query=True, scale=terms.scale)

    def key_features(self, key: Tensor, terms: Terms) -> Tensor:
        """(batch, key head, key, feature)."""
        return softmax_features(key, self.projection, query=False, scale=terms.scale)

    def reference_features(self, query: Tensor, key: Tensor, terms: Terms) -> tuple[Tensor, Tensor]:
        """exp(w'x - |x|^2 / 2) for x times the root of the scale."""
        scale = query.shape[-1] ** -0.5 if terms.scale is None else terms.scale
        features = []
        for tokens in (query, key):
            scaled = tokens * scale**0.5
            length = scaled.square().sum(-1, keepdim=True) / 2
            features.append((scaled @ self.projection.to(scaled.dtype).T - length).exp())
        return features[0], features[1]


performer = implement(
    Performer,
    PerformerConfig,
    name="performer",
    summary="positive orthogonal random features (FAVOR+)",
    exactness="approximate: error falls as m^-1/2 for small logits; its own kernel is exact for fixed features",
    cost="N m d",
    causal=True,
    cross=True,
    masks=("key_mask",),
    grouped_query=True,
    cache="state",
    paper=Paper(
        authors="Choromanski, Likhosherstov, Dohan, et al.",
        year=2020,
        title="Rethinking Attention with Performers",
        arxiv="2009.14794",
    ),
    example={"num_features": 16},
    exact=False,
    cost_exponent=1.0,
    softmax=False,
)
