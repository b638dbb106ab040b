"""Key and value heads shared by groups of query heads: the cache of a decoder shrinks by the size of a group.

Ainslie et al. 2023 (arXiv:2305.13245); one head for all queries is the multi-query attention of Shazeer 2019
(arXiv:1911.02150). `flash` takes `num_kv_heads` too: what is here is a default that groups, and the conversion of
multi-head weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from astrozoo.attention.module import Attention, AttentionConfig, implement
from astrozoo.errors import InputError
from astrozoo.nn.checks import at_least
from astrozoo.registry.spec import Paper

__all__ = ["GroupedQuery", "GroupedQueryConfig", "grouped_query"]


@dataclass(frozen=True, kw_only=True)
class GroupedQueryConfig(AttentionConfig):
    """As `AttentionConfig`, with another default.

    Attributes:
        num_kv_heads: Number of key and value heads; by default the largest divisor of `num_heads` that is at most a
            quarter of it (8 of 32, 2 of 8), at least 1.
    """

    def __post_init__(self) -> None:
        if self.num_kv_heads is None:
            at_least(self, 1, "num_heads")
            fitting = [count for count in range(1, self.num_heads // 4 + 1) if self.num_heads % count == 0]
            self._set("num_kv_heads", max(fitting, default=1))
        super().__post_init__()


class GroupedQuery(Attention):
    """softmax(q k' / sqrt(dim) + bias) v for each query head, with the key and value head of its group."""

    def load_multi_head(self, state: Mapping[str, Tensor]) -> None:
        """Take over the weights of multi-head attention; the heads of a group become their mean (section 2.1).

        Args:
            state: `state_dict` of an attention of the same widths with as many key heads as queries, or a multiple of
                the key heads here.

        Raises:
            InputError: The number of its key heads is no multiple of ours.
        """
        widths = {"key": self.config.key_dim, "value": self.config.value_dim}
        kv_heads, pooled = self.config.kv_heads, dict(state)
        for name, tensor in state.items():
            width = widths.get(name.partition(".")[0])
            if width is None:
                continue
            heads = tensor.shape[0] // width
            if heads == 0 or heads % kv_heads:
                raise InputError(
                    f"{name} of shape {tuple(tensor.shape)} holds {heads} heads of {width}; expected a multiple of "
                    f"num_kv_heads={kv_heads}."
                )
            pooled[name] = tensor.unflatten(0, (kv_heads, heads // kv_heads, width)).mean(dim=1).flatten(0, 1)
        self.load_state_dict(pooled)


grouped_query = implement(
    GroupedQuery,
    GroupedQueryConfig,
    name="grouped_query",
    summary="key/value heads shared by groups of query heads; num_kv_heads=1 is multi-query",
    exactness="exact: equals flash with repeat-interleaved heads",
    cost="N^2 d, cache 2 N Hkv d",
    causal=True,
    cross=True,
    masks=("mask", "key_mask", "bias", "segments"),
    grouped_query=True,
    cache="kv",
    paper=Paper(
        authors="Ainslie, Lee-Thorp, de Jong, Zemlyanskiy, Lebrón, Sanghai",
        year=2023,
        title="GQA: Training Generalized Multi-Query Transformer Models from Multi-Head Checkpoints",
        arxiv="2305.13245",
    ),
    aliases={"multi_query": {"num_kv_heads": 1}},
)
