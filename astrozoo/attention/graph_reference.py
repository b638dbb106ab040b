"""Attention on a graph as the formula says: for each node the edges that lead to it are found and weighed, in float64.

The measure of `graph`; it shares no code with it and takes no thought to speed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from astrozoo.attention.geometry import Graph
from astrozoo.attention.reference import Dense
from astrozoo.attention.terms import Terms

__all__ = ["NodeRule", "attend_by_node"]


@dataclass(frozen=True, kw_only=True)
class NodeRule:
    """How an edge is weighed: options of `GraphConfig`, and the parameters (float64) of the module or None."""

    score: str
    negative_slope: float
    self_loops: bool
    query_vector: Tensor | None
    key_vector: Tensor | None
    edge_weight: Tensor | None
    hop_bias: Tensor | None
    degree_bias: Tensor | None


class _Edge(NamedTuple):
    """An edge of one element: nodes within it, and the column of `edge_index`, -1 for an added loop."""

    source: int
    target: int
    column: int


def attend_by_node(query: Tensor, key: Tensor, value: Tensor, terms: Terms, rule: NodeRule) -> Dense:
    """Output, log-sum-exp and weights of every node in float64; tensors as for `Attention.attend`."""
    graph: Graph = terms.geometry
    groups = query.shape[1] // key.shape[1]
    query = query.double()
    key, value = (part.double().repeat_interleave(groups, dim=1) for part in (key, value))
    outs, sums, shares = [], [], []
    for element in range(query.shape[0]):
        edges = _edges(graph, element, query.shape[2], key.shape[2], rule.self_loops)
        real = None if terms.key_mask is None else terms.key_mask[element % len(terms.key_mask)].tolist()
        degrees = _degrees(graph, edges, element, key)
        seen: list[list[_Edge]] = [[] for _ in range(query.shape[2])]
        for edge in edges:
            if real is None or real[edge.source]:
                seen[edge.target].append(edge)
        for node, incoming in enumerate(seen):
            sources = torch.tensor([edge.source for edge in incoming], dtype=torch.int64, device=query.device)
            columns = torch.tensor([edge.column for edge in incoming], dtype=torch.int64, device=query.device)
            logits = _score(query[element, :, node], key[element][:, sources], groups, terms, rule)
            logits = logits + _bias(graph, columns, degrees[sources], rule, logits)
            if incoming:
                total = logits.logsumexp(dim=1)
                weights = (logits - total[:, None]).exp().masked_fill(total[:, None] == -torch.inf, 0)
            else:
                total, weights = logits.new_full(logits.shape[:1], -torch.inf), logits
            outs.append((weights[..., None] * value[element][:, sources]).sum(dim=1))
            shares.append(weights.new_zeros(len(weights), key.shape[2]).index_add(1, sources, weights))
            sums.append(total)
    batch, heads, queries, _ = query.shape

    def gathered(rows: list[Tensor], *shape: int) -> Tensor:
        found = torch.stack(rows) if rows else query.new_zeros(0)
        return found.view(batch, queries, heads, *shape).transpose(1, 2)

    return Dense(gathered(outs, value.shape[3]), gathered(sums), gathered(shares, key.shape[2]))


def _edges(graph: Graph, element: int, queries: int, keys: int, self_loops: bool) -> list[_Edge]:
    """What is visible in one element of the batch."""
    first_key, first_query = (0, 0) if graph.shared else (element * keys, element * queries)
    ids: list[list[int]] | None = None
    if graph.node_graph is not None:
        pair = graph.node_graph if isinstance(graph.node_graph, tuple) else (graph.node_graph, graph.node_graph)
        ids = [part[element % len(part)].tolist() for part in pair]
    found = []
    for column, (source, target) in enumerate(graph.edge_index.T.tolist()):
        if source < 0 or target < 0:
            continue
        source, target = source - first_key, target - first_query
        if not (0 <= source < keys and 0 <= target < queries):
            continue
        if ids is not None and ids[0][target] != ids[1][source]:
            continue
        if graph.edge_bias is not None and bool((graph.edge_bias[column] == -torch.inf).all()):
            continue
        found.append(_Edge(source, target, column))
    if self_loops:
        have = {edge.source for edge in found if edge.source == edge.target}
        found += [_Edge(node, node, -1) for node in range(keys) if node not in have]
    return found


def _degrees(graph: Graph, edges: list[_Edge], element: int, key: Tensor) -> Tensor:
    if graph.node_degree is not None:
        return graph.node_degree[element % len(graph.node_degree)]
    counts = [0] * key.shape[2]
    for edge in edges:
        counts[edge.source] += 1
    return torch.tensor(counts, dtype=torch.int64, device=key.device)


def _score(query: Tensor, keys: Tensor, groups: int, terms: Terms, rule: NodeRule) -> Tensor:
    """(head, edge) from the query (head, dim) of a node and the keys (head, edge, dim) it sees."""
    if rule.score == "dot":
        scale = query.shape[-1] ** -0.5 if terms.scale is None else terms.scale
        return scale * torch.einsum("hd,hed->he", query, keys)
    scale = 1.0 if terms.scale is None else terms.scale
    assert rule.query_vector is not None
    if rule.score == "dynamic":
        return scale * torch.einsum("hd,hed->he", rule.query_vector, _leaky(query[:, None] + keys, rule))
    assert rule.key_vector is not None
    vector = rule.key_vector.repeat_interleave(groups, dim=0)
    asked = torch.einsum("hd,hd->h", rule.query_vector, query)
    return scale * _leaky(asked[:, None] + torch.einsum("hd,hed->he", vector, keys), rule)


def _leaky(score: Tensor, rule: NodeRule) -> Tensor:
    return torch.where(score > 0, score, rule.negative_slope * score)


def _bias(graph: Graph, columns: Tensor, degrees: Tensor, rule: NodeRule, like: Tensor) -> Tensor:
    """(head, edge) of the edges of one node; column -1, an added loop, is the row that is appended to each table."""
    total = torch.zeros_like(like)
    if graph.edge_bias is not None:
        bias = graph.edge_bias.double().reshape(len(graph.edge_bias), -1)
        total = total + F.pad(bias, (0, 0, 0, 1))[columns].T
    if rule.edge_weight is not None and graph.edge_features is not None:
        total = total + rule.edge_weight @ F.pad(graph.edge_features.double(), (0, 0, 0, 1))[columns].T
    if rule.hop_bias is not None and graph.edge_distance is not None:
        far = len(rule.hop_bias) - 1
        hops = [far if hop < 0 else min(hop, far - 1) for hop in F.pad(graph.edge_distance, (0, 1))[columns].tolist()]
        total = total + rule.hop_bias[hops].T
    if rule.degree_bias is not None:
        most = len(rule.degree_bias) - 1
        total = total + rule.degree_bias[[min(degree, most) for degree in degrees.tolist()]].T
    return total
