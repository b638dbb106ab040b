"""Attention along the edges of a graph.

A node attends to the nodes that have an edge to it: scaled dot products as everywhere, the additive scores of graph
attention networks (Veličković et al. 2017, arXiv:1710.10903) or their dynamic form (Brody et al. 2021,
arXiv:2105.14491), with biases from the caller, from features of edges, from the distance along the graph and from the
degree of a node (Ying et al. 2021, arXiv:2106.05234). Parallel edges count as often as they are given.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from astrozoo.attention.choice import names_of
from astrozoo.attention.edge_products import edge_products, edge_sums
from astrozoo.attention.edges import (
    Edges,
    dense_bias,
    edge_softmax,
    find_edges,
    from_nodes,
    key_visible,
    node_degrees,
    to_nodes,
)
from astrozoo.attention.geometry import Graph
from astrozoo.attention.graph_reference import NodeRule, attend_by_node
from astrozoo.attention.module import Attention, AttentionConfig, Parts, implement
from astrozoo.attention.terms import Terms
from astrozoo.errors import BackendRefused, InputError
from astrozoo.nn.checks import at_least, between, one_of
from astrozoo.nn.precision import full_precision
from astrozoo.registry.spec import Paper

__all__ = ["GraphAttention", "GraphConfig", "graph"]

SCORES = ("dot", "additive", "dynamic")
PATHS = ("auto", "sparse", "dense")
SMALL = 2048  # tokens of an element up to which `auto` may make the N^2 bias
SPARSE = 20  # pairs for each edge from which the path along the edges is faster than kernels on all pairs (on CPU)


@dataclass(frozen=True, kw_only=True)
class GraphConfig(AttentionConfig):
    """What `graph` takes beside the options of all.

    Attributes:
        score: `dot`, scaled q k; `additive`, leaky_relu(a q + b k); `dynamic`, a leaky_relu(q + k). `scale` is 1 by
            default for the last two.
        negative_slope: Of the leaky rectifier of the last two.
        self_loops: Whether every node sees itself too, with bias 0, where the graph has no such edge.
        edge_dim: Number of `Graph.edge_features`, from which a bias for each head is learned; None for no features.
        max_hops: Learn a bias for each `Graph.edge_distance` of 0 to this many hops, more count as this many; and one
            for pairs without a path. None for no such bias.
        max_degree: Learn a bias for each degree of the key from 0 to this, more count as this. None for no such bias.
        path: `sparse`, time and memory O(edge); `dense`, a kernel on all pairs; `auto`, what is faster.
    """

    score: str = "dot"
    negative_slope: float = 0.2
    self_loops: bool = False
    edge_dim: int | None = None
    max_hops: int | None = None
    max_degree: int | None = None
    path: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self, SCORES, "score")
        one_of(self, PATHS if self.score == "dot" else PATHS[:2], "path")
        between(self, 0, 1, "negative_slope")
        at_least(self, 1, *(name for name in ("edge_dim", "max_hops", "max_degree") if getattr(self, name) is not None))


class GraphAttention(Attention):
    """softmax over the edges that lead to a node, each with a score and a bias; a node without edges gives 0."""

    LEARNED: ClassVar = {"edge_features": "edge_dim", "edge_distance": "max_hops", "node_degree": "max_degree"}

    def make_projections(self, config: Any, *, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        """As `Attention.make_projections`; and vectors of the score and tables of biases, as the options say."""
        super().make_projections(config, device=device, dtype=dtype)
        made: dict[str, Any] = {"device": device, "dtype": dtype}

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(*shape, **made))

        if config.score != "dot":
            self.query_vector = parameter(config.num_heads, config.key_dim)
        if config.score == "additive":
            self.key_vector = parameter(config.kv_heads, config.key_dim)
        if config.edge_dim is not None:
            self.edge_weight = nn.Linear(config.edge_dim, config.num_heads, bias=False, **made)
        if config.max_hops is not None:
            self.hop_bias = parameter(config.max_hops + 2, config.num_heads)  # the last row: no path
        if config.max_degree is not None:
            self.degree_bias = parameter(config.max_degree + 1, config.num_heads)

    def reset_parameters(self) -> None:
        """As `Attention.reset_parameters`; Xavier-uniform vectors, and tables of zeros."""
        super().reset_parameters()
        for name, parameter in self.named_parameters(recurse=False):
            if name.endswith("vector"):
                nn.init.xavier_uniform_(parameter)
            else:
                nn.init.zeros_(parameter)

    def project(self, x: Tensor, context: Tensor | None = None) -> Parts:
        """As `Attention.project`.

        Raises:
            InputError: A context with `self_loops`: a node is not among the nodes of another sequence.
        """
        if context is not None and self.config.self_loops:
            raise InputError("self_loops with a context: a query is not among the keys. Add edges to the Graph.")
        return super().project(x, context)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> Tensor:
        """As `Attention.attend`, on all pairs or along the edges."""
        edges = self._edges(query, key, terms)
        inner = torch.promote_types(query.dtype, torch.float32)
        bias = self._biases(terms.geometry, edges, inner)
        if self._dense(edges):
            terms = terms.replace(bias=dense_bias(bias, edges, inner), geometry=None)
            return self.served(query, key, value, terms)
        self._check_unforced()
        self.last_choice = None
        with full_precision(query):
            out = self._sparse(query.to(inner), key.to(inner), value.to(inner), bias, edges, terms)
        return out.to(query.dtype)

    def _edges(self, query: Tensor, key: Tensor, terms: Terms) -> Edges:
        return find_edges(
            terms.geometry, batch=query.shape[0], targets=query.shape[2], sources=key.shape[2],
            loops=self.config.self_loops,
        )  # fmt: skip

    def _check_unforced(self) -> None:
        """A forced backend is a kernel on all pairs: along the edges it cannot run.

        Raises:
            BackendRefused: One is forced.
        """
        if self.config.backend != "auto":
            names = ", ".join(names_of(self.config.backend))
            raise BackendRefused(
                f"No attention backend of those asked for ({names}) works along the edges of a graph. Leave backend at "
                "'auto', or choose path='dense' with the score 'dot'."
            )

    def _dense(self, edges: Edges) -> bool:
        if self.config.backend != "auto" and self.config.path == "auto" and self.config.score == "dot":
            return True  # a forced backend is a kernel on all pairs
        if self.config.path != "auto" or self.config.score != "dot":
            return bool(self.config.path == "dense")
        pairs = edges.targets * edges.sources * (1 if edges.shared else edges.batch)
        small = max(edges.targets, edges.sources) <= SMALL
        return small and edges.source.shape[0] * SPARSE >= pairs

    def _biases(self, graph: Graph, edges: Edges, dtype: torch.dtype) -> Tensor | None:
        """All biases of the edges (edge, head | 1), those of hidden ones finite; None if there are none."""
        self._check_learned(graph)
        given = edges.hidden[: graph.edge_index.shape[1], None]  # loops come after them
        found: list[Tensor] = []
        if graph.edge_bias is not None:
            bias = graph.edge_bias if graph.edge_bias.dim() == 2 else graph.edge_bias[:, None]
            if bias.shape[1] not in (1, self.config.num_heads):
                raise InputError(
                    f"Graph.edge_bias has {bias.shape[1]} heads; expected {self.config.num_heads}, or 1 for all."
                )
            found.append(bias.masked_fill(given, 0).to(dtype))
        if graph.edge_features is not None:
            features = graph.edge_features.masked_fill(given, 0).to(self.edge_weight.weight.dtype)
            found.append(self.edge_weight(features).to(dtype))
        loops = edges.hidden.shape[0] - given.shape[0]
        found = [F.pad(bias, (0, 0, 0, loops)) for bias in found]
        if graph.edge_distance is not None:
            most = self.config.max_hops
            hops = torch.where(graph.edge_distance < 0, most + 1, graph.edge_distance.clamp(max=most))
            found.append(self.hop_bias.index_select(0, F.pad(hops, (0, loops))).to(dtype))
        if self.config.max_degree is not None:
            degree = node_degrees(graph, edges).clamp(0, self.config.max_degree)
            found.append(self.degree_bias.index_select(0, degree.index_select(0, edges.source)).to(dtype))
        total = None
        for bias in found:
            total = bias if total is None else total + bias
        return total

    def _check_learned(self, graph: Graph) -> None:
        for name, option in self.LEARNED.items():
            given, wanted = getattr(graph, name), getattr(self.config, option)
            if given is not None and wanted is None:
                raise InputError(f"Graph.{name} is given, but graph was made without {option}, so nothing reads it.")
            if given is None and wanted is not None and name != "node_degree":
                raise InputError(f"Graph.{name} is missing; graph was made with {option}={wanted}, which reads it.")
        features = graph.edge_features
        if features is not None and features.shape[1] != self.config.edge_dim:
            raise InputError(f"Graph.edge_features has {features.shape[1]} features; expected {self.config.edge_dim}.")

    def _sparse(
        self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, edges: Edges, terms: Terms
    ) -> Tensor:
        kv_heads = key.shape[1]
        own = to_nodes(query, edges).unflatten(2, (kv_heads, -1))  # (node + 1, row, key head, group, dim)
        other, content = (to_nodes(part, edges)[:, :, :, None] for part in (key, value))
        logits = self._scores(own, other, edges, terms).flatten(2)  # (edge, row, head)
        if bias is not None:
            logits = logits + bias[:, None]
        if terms.key_mask is not None:
            logits = logits.masked_fill(~key_visible(terms.key_mask, edges), -torch.inf)
        weights = edge_softmax(logits, edges)
        if terms.dropout > 0:
            weights = F.dropout(weights, terms.dropout)
        weights = weights.unflatten(2, (kv_heads, -1))
        out = edge_sums(weights, content, edges.target, edges.source, edges.target_nodes + 1)
        return from_nodes(out.flatten(2, 3), edges)

    def _scores(self, own: Tensor, other: Tensor, edges: Edges, terms: Terms) -> Tensor:
        """(edge, row, key head, group) from queries and keys by node."""
        source, target, slope = edges.source, edges.target, self.config.negative_slope
        scale = self._scale(terms)
        if self.config.score == "dot":
            return edge_products(own * scale, other, target, source)
        vector = self.query_vector.unflatten(0, own.shape[2:4]).to(own.dtype)
        if self.config.score == "additive":
            ask, answer = (own * vector).sum(dim=-1), (other * self.key_vector[:, None].to(own.dtype)).sum(dim=-1)
            return scale * F.leaky_relu(ask.index_select(0, target) + answer.index_select(0, source), slope)
        both = own.index_select(0, target) + other.index_select(0, source)
        return scale * (F.leaky_relu(both, slope) * vector).sum(dim=-1)

    def _scale(self, terms: Terms) -> float:
        if terms.scale is not None:
            return terms.scale
        return float(self.config.key_dim**-0.5) if self.config.score == "dot" else 1.0

    def reference(self, query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> Tensor:
        """As `Attention.reference`, one node after the other."""
        return attend_by_node(query, key, value, terms, self._rule()).out

    def weights(self, query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> tuple[Tensor, Tensor]:
        """As `Attention.weights`; parallel edges are one entry."""
        dense = attend_by_node(query, key, value, terms, self._rule())
        return dense.weights, dense.lse

    def _rule(self) -> NodeRule:
        config = self.config
        parameters = {name: parameter.double() for name, parameter in self.named_parameters()}
        return NodeRule(
            score=config.score, negative_slope=config.negative_slope, self_loops=config.self_loops,
            query_vector=parameters.get("query_vector"), key_vector=parameters.get("key_vector"),
            edge_weight=parameters.get("edge_weight.weight"), hop_bias=parameters.get("hop_bias"),
            degree_bias=parameters.get("degree_bias"),
        )  # fmt: skip


def _ring(tokens: int) -> Graph:
    """Every node sees itself, its two neighbours on a ring and one far node, with a bias for each edge."""
    node = torch.arange(tokens)
    sources = [node] + [(node + step) % tokens for step in (1, -1, 3 * tokens // 7)[: max(tokens - 1, 0)]]
    edge_index = torch.stack((torch.cat(sources), node.repeat(len(sources))))
    return Graph(edge_index, torch.linspace(-1, 1, edge_index.shape[1]))


graph = implement(
    GraphAttention,
    GraphConfig,
    name="graph",
    summary="softmax along the edges of a graph, with biases from edges, distances and degrees",
    exactness="exact: equals dense attention masked to the edges; on a complete graph equals flash",
    cost="E d",
    causal=False,
    cross=True,
    masks=("key_mask",),
    grouped_query=True,
    cache=None,
    paper=Paper(
        authors="Veličković, Cucurull, Casanova, Romero, Liò, Bengio",
        year=2017,
        title="Graph Attention Networks",
        arxiv="1710.10903",
    ),
    geometry="graph",
    needs_geometry=True,
    cost_exponent=1.0,
    example_geometry=_ring,
)
