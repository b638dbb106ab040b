"""Multi-head softmax attention on the fastest kernel there is.

Vaswani et al. 2017 (arXiv:1706.03762); exact, in linear memory, after Dao et al. 2022 (arXiv:2205.14135), Dao 2023
(arXiv:2307.08691), Shah et al. 2024 (arXiv:2407.08608) and Rabe and Staats 2021 (arXiv:2112.05682). The backend chain
decides for each kind of call which kernel runs.
"""

from __future__ import annotations

from astrozoo.attention.module import Attention, AttentionConfig, implement
from astrozoo.registry.spec import Paper

__all__ = ["Flash", "flash"]


class Flash(Attention):
    """softmax(q k' / sqrt(dim) + bias) v for each head, on the backend chain."""


flash = implement(
    Flash,
    AttentionConfig,
    name="flash",
    summary="multi-head softmax attention on the backend chain (flash-attn, xFormers, SDPA, math)",
    exactness="exact: equals dense softmax attention",
    cost="N^2 d time, O(N) memory",
    causal=True,
    cross=True,
    masks=("mask", "key_mask", "bias", "segments"),
    grouped_query=True,
    cache="kv",
    paper=Paper(
        authors="Dao, Fu, Ermon, Rudra, Ré",
        year=2022,
        title="FlashAttention: Fast and Memory-Efficient Exact Attention with IO-Awareness",
        arxiv="2205.14135",
    ),
    aliases={"mha": {}, "memory_efficient": {}},
)
