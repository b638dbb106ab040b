"""Linear attention: a positive feature map in the place of the exponential, so that sums over keys are shared.

Katharopoulos et al. 2020 (arXiv:2006.16236), phi(x) = elu(x) + 1. Its own kernel, not an approximation of softmax. The
cache is the running sum over keys, of one size for any length.
"""

from __future__ import annotations

import torch
from torch import Tensor

from astrozoo.attention.module import implement
from astrozoo.attention.recurrent.chunks import sum_dtype
from astrozoo.attention.recurrent.features import elu_features
from astrozoo.attention.recurrent.linear import LinearState, linear_attention
from astrozoo.attention.recurrent.module import RecurrentAttention, RecurrentConfig
from astrozoo.attention.recurrent.reference import linear_attention_quadratic, linear_attention_recurrent
from astrozoo.attention.terms import Terms
from astrozoo.registry.spec import Paper

__all__ = ["FeatureAttention", "Linear", "linear"]


class FeatureAttention(RecurrentAttention):
    """Attention by features of queries and keys; a subclass says which."""

    def query_features(self, query: Tensor, terms: Terms) -> Tensor:
        """(batch, head, query, feature), positive."""
        raise NotImplementedError

    def key_features(self, key: Tensor, terms: Terms) -> Tensor:
        """(batch, key head, key, feature), positive."""
        raise NotImplementedError

    def attend(self, query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> Tensor:
        """phi(q) (sum of phi(k) v') / phi(q) (sum of phi(k)), sums running over keys where causal."""
        query, key = self.query_features(query, terms), self.key_features(key, terms)
        out, state = linear_attention(
            query, key, value, causal=terms.causal, key_mask=terms.key_mask, state=self._state(terms),
            backend=self.config.backend,
        )  # fmt: skip
        self.remember(terms, key.shape[2], kv=state.kv, z=state.z)
        return self.dropped(out, terms)

    def reference(self, query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> Tensor:
        """All pairs of queries and keys, in float64; token by token where there is a state."""
        query, key = self.reference_features(query.double(), key.double(), terms)
        value = value.double()
        if terms.cache is None:
            return linear_attention_quadratic(query, key, value, causal=terms.causal, key_mask=terms.key_mask)
        out, state = linear_attention_recurrent(query, key, value, key_mask=terms.key_mask, state=self._state(terms))
        self.remember(terms, key.shape[2], kv=state.kv, z=state.z)
        return out

    def reference_features(self, query: Tensor, key: Tensor, terms: Terms) -> tuple[Tensor, Tensor]:
        """Features as the formula says."""
        raise NotImplementedError

    def _state(self, terms: Terms) -> LinearState | None:
        kv, z = self.remembered(terms, "kv"), self.remembered(terms, "z")
        return None if kv is None or z is None else LinearState(kv, z)


class Linear(FeatureAttention):
    """Linear attention with phi(x) = elu(x) + 1. The logits have no scale: it would turn with the features' shape."""

    def query_features(self, query: Tensor, terms: Terms) -> Tensor:
        """elu(scale q) + 1."""
        wide = query.to(sum_dtype(query))
        return elu_features(wide if terms.scale is None else wide * terms.scale)

    def key_features(self, key: Tensor, terms: Terms) -> Tensor:  # noqa: ARG002
        """elu(k) + 1."""
        return elu_features(key.to(sum_dtype(key)))

    def reference_features(self, query: Tensor, key: Tensor, terms: Terms) -> tuple[Tensor, Tensor]:
        """exp(x) below 0, x + 1 above."""
        query = query * (1 if terms.scale is None else terms.scale)
        features = [torch.where(x > 0, x + 1, x.clamp(max=0).exp()) for x in (query, key)]
        return features[0], features[1]


linear = implement(
    Linear,
    RecurrentConfig,
    name="linear",
    summary="kernel feature map elu+1, associativity",
    exactness="own kernel: quadratic, chunked and recurrent forms agree; not an approximation of softmax",
    cost="N d^2",
    causal=True,
    cross=True,
    masks=("key_mask",),
    grouped_query=True,
    cache="state",
    paper=Paper(
        authors="Katharopoulos, Vyas, Pappas, Fleuret",
        year=2020,
        title="Transformers are RNNs: Fast Autoregressive Transformers with Linear Attention",
        arxiv="2006.16236",
    ),
    exact=False,
    cost_exponent=1.0,
    softmax=False,
)
