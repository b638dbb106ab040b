"""Nineteen attentions behind one interface, by name through `astrozoo.create_attention`.

module     the base class: projections, terms, positions and caches around what differs
terms      what a call may see: masks, biases, segments, causality
geometry   where tokens lie: Grid, Graph, Points
rotary     rotary positions
cache      what earlier tokens left behind, owned by the caller
core       softmax attention on the best kernel there is
packed     the same for several sequences one after the other
choice     which backend that is, and why not another
explain    the same without running anything
backends   the kernels
reference  softmax attention in float64, dense
"""

from astrozoo.attention.cache import ContextCache, KVCache, LatentCache, StateCache, StaticKVCache, WindowKVCache
from astrozoo.attention.choice import BackendChoice, record_attention, use_backend
from astrozoo.attention.core import attend
from astrozoo.attention.explain import explain_attention
from astrozoo.attention.geometry import Graph, Grid, Points
from astrozoo.attention.module import Attention, AttentionConfig, implement
from astrozoo.attention.packed import attend_packed
from astrozoo.attention.rotary import Rotary
from astrozoo.attention.terms import Terms

__all__ = [
    "Attention",
    "AttentionConfig",
    "BackendChoice",
    "ContextCache",
    "Graph",
    "Grid",
    "KVCache",
    "LatentCache",
    "Points",
    "Rotary",
    "StateCache",
    "StaticKVCache",
    "Terms",
    "WindowKVCache",
    "attend",
    "attend_packed",
    "explain_attention",
    "implement",
    "record_attention",
    "use_backend",
]
