"""Mutants of attentions other than flash: windows, recurrences, grids, graphs, points."""

import dataclasses
from dataclasses import dataclass

import torch

from astrozoo.attention import AttentionConfig, Graph, Grid
from astrozoo.attention.flash import Flash
from astrozoo.attention.gated_delta import GatedDelta, GatedDeltaConfig, gated_delta
from astrozoo.attention.graph import GraphAttention, GraphConfig, graph
from astrozoo.attention.linear import Linear, linear
from astrozoo.attention.mamba2 import Mamba2, Mamba2Config, mamba2
from astrozoo.attention.metric_bias import MetricBias, MetricBiasConfig, metric_bias
from astrozoo.attention.neighborhood import Neighborhood, NeighborhoodConfig, neighborhood
from astrozoo.attention.recurrent.module import RecurrentConfig
from attention_mutants.registry import mutant


@dataclass(frozen=True, kw_only=True)
class WindowConfig(AttentionConfig):
    window: int = 4


@mutant("value", config=WindowConfig)
class SeesOneKeyTooFar(Flash):
    """As mlx-lm issue 390: whether a window counts the query itself."""

    def attend(self, query, key, value, terms):
        return super().attend(query, key, value, terms.replace(window=self.config.window + 1))

    def reference(self, query, key, value, terms):
        return super().reference(query, key, value, terms.replace(window=self.config.window))


@mutant("cost_exponent", config=WindowConfig, cost_exponent=1.0)
class MasksAWindowButComputesAll(Flash):
    """Sparse by name only."""

    def attend(self, query, key, value, terms):
        return super().attend(query, key, value, terms.replace(window=self.config.window))

    def reference(self, query, key, value, terms):
        return super().reference(query, key, value, terms.replace(window=self.config.window))


class WithoutPadding:
    """As mamba issue 66 and transformers issue 48256: padding goes through the recurrence like tokens."""

    def place(self, parts, terms, cache, positions):
        return super().place(parts, terms.replace(key_mask=None), cache, positions)


@mutant("key_mask_content", original=linear, config=RecurrentConfig)
class SumsPaddingIntoItsState(WithoutPadding, Linear):
    pass


@mutant("cache_padding", original=gated_delta, config=GatedDeltaConfig)
class DecaysOverPadding(WithoutPadding, GatedDelta):
    pass


@mutant("cache_padding", original=mamba2, config=Mamba2Config)
class ConvolvesOverPadding(WithoutPadding, Mamba2):
    pass


@mutant("cache", original=linear, config=RecurrentConfig)
class ForgetsItsState(Linear):
    def remember(self, terms, count, **state):
        super().remember(terms, count)


@mutant("cache", original=gated_delta, config=GatedDeltaConfig)
class ForgetsTheTailOfItsConvolution(GatedDelta):
    def remembered(self, terms, name):
        found = super().remembered(terms, name)
        return found if name == "state" or found is None else torch.zeros_like(found)


@mutant("segments", original=mamba2, config=Mamba2Config)
class CarriesItsStateAcrossSegments(Mamba2):
    def place(self, parts, terms, cache, positions):
        return super().place(parts, terms.replace(segments=None), cache, positions)


@mutant("weights", original=linear, config=RecurrentConfig)
class ShowsWeightsThatItDenies(Linear):
    """Those of a softmax, which it does not compute."""

    def forward_with(self, x, context=None, *, want=("weights",), **terms):
        y, found = super().forward_with(x, context, want=("heads",), **terms)
        return y, dict.fromkeys(want, found["heads"])


@mutant("value", original=neighborhood, config=NeighborhoodConfig)
class WrapsEveryAxis(Neighborhood):
    def attend(self, query, key, value, terms):
        shape = terms.geometry.shape
        periodic = Grid(shape, (not terms.causal,) * len(shape))
        return super().attend(query, key, value, terms.replace(geometry=periodic))


@mutant("value", original=neighborhood, config=NeighborhoodConfig)
class ReadsColumnsAsRows(Neighborhood):
    def attend(self, query, key, value, terms):
        turned = Grid(terms.geometry.shape[::-1])
        return super().attend(query, key, value, terms.replace(geometry=turned))


def edges_of(terms, **changes):
    return terms.replace(geometry=dataclasses.replace(terms.geometry, **changes))


@mutant("value", original=graph, config=GraphConfig)
class TurnsEdgesAround(GraphAttention):
    """Messages go from target to source."""

    def attend(self, query, key, value, terms):
        if query.shape[2] != key.shape[2]:
            return super().attend(query, key, value, terms)
        return super().attend(query, key, value, edges_of(terms, edge_index=terms.geometry.edge_index.flip(0)))


@mutant("value", original=graph, config=GraphConfig)
class DropsTheBiasOfEdges(GraphAttention):
    def attend(self, query, key, value, terms):
        return super().attend(query, key, value, edges_of(terms, edge_bias=None))


@mutant("value", original=graph, config=GraphConfig)
class GivesEveryRowTheEdgesOfTheFirst(GraphAttention):
    def attend(self, query, key, value, terms):
        index = terms.geometry.edge_index
        mine = (index[1] < query.shape[2]).nonzero()[:, 0]
        first = Graph(index[:, mine], None if terms.geometry.edge_bias is None else terms.geometry.edge_bias[mine])
        return super().attend(query, key, value, terms.replace(geometry=first))


@mutant("value", original=metric_bias, config=MetricBiasConfig)
class IgnoresTheWeightsOfPoints(MetricBias):
    """As attention on a latitude-longitude grid that counts polar cells like any others."""

    def attend(self, query, key, value, terms):
        return super().attend(query, key, value, terms.replace(geometry=unweighted(terms.geometry)))


def unweighted(geometry):
    if isinstance(geometry, tuple):
        return tuple(unweighted(points) for points in geometry)
    return dataclasses.replace(geometry, weights=None)
