"""Attention along the edges of a graph: edge lists in one form, a softmax over the edges of each node, dense biases.

Nodes come first, (node, row, head, feature): a graph that all rows of a batch share has a row for each of them, graphs
of their own are laid one after the other as the nodes of one large graph with one row. One node more is appended to
keys and to queries; hidden edges lead from the one to the other, so that nothing they touch can matter and the number
of edges never depends on values.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F

from astrozoo.attention.geometry import Graph
from astrozoo.errors import InputError

__all__ = [
    "Edges",
    "dense_bias",
    "edge_softmax",
    "find_edges",
    "from_nodes",
    "key_visible",
    "node_degrees",
    "to_nodes",
]


class Edges(NamedTuple):
    """Where edges lead.

    Attributes:
        source: int64 (edge,), node of the key; the number of keys where the edge is hidden.
        target: int64 (edge,), node of the query; the number of queries where the edge is hidden.
        hidden: bool (edge,).
        batch: Elements of the batch.
        sources, targets: Keys and queries of one element.
        shared: Whether all elements have these edges.
    """

    source: Tensor
    target: Tensor
    hidden: Tensor
    batch: int
    sources: int
    targets: int
    shared: bool

    @property
    def source_nodes(self) -> int:
        """Nodes that give keys, over all elements unless they share the graph."""
        return self.sources if self.shared else self.batch * self.sources

    @property
    def target_nodes(self) -> int:
        """Nodes that ask, over all elements unless they share the graph."""
        return self.targets if self.shared else self.batch * self.targets


def find_edges(graph: Graph, *, batch: int, targets: int, sources: int, loops: bool = False) -> Edges:
    """The edges of `graph`, with what is to be ignored hidden.

    Args:
        graph: Of the tokens.
        batch: Elements of the batch.
        targets: Queries of one element.
        sources: Keys of one element.
        loops: Whether to append an edge from every node to itself, hidden where the graph has one already.

    Raises:
        InputError: A node does not exist (told on CPU only, where looking costs no wait), or shapes do not fit.
    """
    source, target = graph.edge_index[0], graph.edge_index[1]
    hidden = (source < 0) | (target < 0)
    edges = Edges(source, target, hidden, batch, sources, targets, graph.shared)
    _check_range(graph.edge_index, edges)
    if not graph.shared:
        hidden = hidden | (source // max(sources, 1) != target // max(targets, 1))
    if graph.node_graph is not None:
        queries, keys = graph.node_graph if isinstance(graph.node_graph, tuple) else (graph.node_graph,) * 2
        ids = _by_node(queries, "node_graph", edges, targets), _by_node(keys, "node_graph", edges, sources)
        hidden = hidden | (ids[1][source.clamp(min=0)] != ids[0][target.clamp(min=0)])
    if graph.edge_bias is not None:
        never = graph.edge_bias.detach() == -torch.inf
        hidden = hidden | (never if never.dim() == 1 else never.all(dim=1))
    if loops:
        nodes = torch.arange(edges.source_nodes, device=source.device)
        found = ((source == target) & ~hidden).long()
        has_loop = torch.zeros_like(nodes).index_add(0, source.clamp(min=0), found) > 0
        source, target = torch.cat((source, nodes)), torch.cat((target, nodes))
        hidden = torch.cat((hidden, has_loop))
    return edges._replace(
        source=source.masked_fill(hidden, edges.source_nodes),
        target=target.masked_fill(hidden, edges.target_nodes),
        hidden=hidden,
    )


def node_degrees(graph: Graph, edges: Edges) -> Tensor:
    """Degree of each key (node + 1,): as the graph says, or else the number of visible edges that leave it.

    Raises:
        InputError: The graph says it of another number of nodes.
    """
    if graph.node_degree is not None:
        return F.pad(_by_node(graph.node_degree, "node_degree", edges, edges.sources), (0, 1))
    counts = torch.zeros(edges.source_nodes + 1, dtype=torch.int64, device=edges.source.device)
    return counts.index_add(0, edges.source, torch.ones_like(edges.source))


def to_nodes(heads: Tensor, edges: Edges) -> Tensor:
    """(node + 1, row, head, feature) from (batch, head, node, feature); the last node is zero."""
    nodes = heads.permute(2, 0, 1, 3) if edges.shared else heads.transpose(1, 2).flatten(0, 1)[:, None]
    return F.pad(nodes, (0, 0, 0, 0, 0, 0, 0, 1))


def from_nodes(nodes: Tensor, edges: Edges) -> Tensor:
    """(batch, head, query, feature) from (query node + 1, row, head, feature): the inverse of `to_nodes`."""
    nodes = nodes[:-1]
    if edges.shared:
        return nodes.permute(1, 2, 0, 3)
    return nodes.reshape(edges.batch, edges.targets, *nodes.shape[2:]).transpose(1, 2)


def key_visible(key_mask: Tensor, edges: Edges) -> Tensor:
    """Whether the key of each edge is real: bool (edge, row | 1, 1) from (batch | 1, key)."""
    nodes = key_mask.transpose(0, 1) if edges.shared else key_mask.expand(edges.batch, -1).reshape(-1, 1)
    return F.pad(nodes, (0, 0, 0, 1)).index_select(0, edges.source)[..., None]


def edge_softmax(logits: Tensor, edges: Edges) -> Tensor:
    """Weights (edge, row, head) that sum to one over the edges of each query; 0 where all its logits are -inf."""
    target = edges.target
    size = (edges.target_nodes + 1, *logits.shape[1:])
    index = target[:, None, None].expand(logits.shape)
    top = logits.new_full(size, -torch.inf).scatter_reduce(0, index, logits.detach(), "amax")
    top = top.masked_fill(top == -torch.inf, 0)  # -inf less -inf would be NaN
    powers = (logits - top.index_select(0, target)).exp()
    total = logits.new_zeros(size).index_add(0, target, powers)
    return powers / total.masked_fill(total == 0, 1).index_select(0, target)


def dense_bias(bias: Tensor | None, edges: Edges, dtype: torch.dtype) -> Tensor:
    """The edges as a bias (batch | 1, head | 1, query, key): -inf where there is none, parallel edges added up.

    Args:
        bias: (edge, head | 1), added to the logit of each edge; None for 0.
        edges: Of the graph.
        dtype: Of the result.
    """
    elements = 1 if edges.shared else edges.batch
    pairs = elements * edges.targets * edges.sources
    first = 0 if edges.shared else edges.target // max(edges.targets, 1) * edges.sources
    pair = edges.target * edges.sources + edges.source - first
    pair = pair.masked_fill(edges.hidden, pairs)
    if bias is None:
        counts = torch.zeros(pairs + 1, dtype=dtype, device=pair.device)
        dense = counts.index_add(0, pair, torch.ones_like(pair, dtype=dtype)).log()[:, None]
    else:
        bias = bias.to(dtype)
        top = bias.new_full((pairs + 1, bias.shape[1]), -torch.inf)
        top = top.scatter_reduce(0, pair[:, None].expand(bias.shape), bias.detach(), "amax")
        top = top.masked_fill(top == -torch.inf, 0)
        total = torch.zeros_like(top).index_add(0, pair, (bias - top.index_select(0, pair)).exp())
        none = total == 0
        dense = (total.masked_fill(none, 1).log() + top).masked_fill(none, -torch.inf)
    return dense[:-1].reshape(elements, edges.targets, edges.sources, -1).permute(0, 3, 1, 2)


def _by_node(term: Tensor, name: str, edges: Edges, count: int) -> Tensor:
    """(node,) from (batch | 1, node of one element)."""
    allowed = (1,) if edges.shared else (1, edges.batch)
    if term.dim() != 2 or term.shape[1] != count or term.shape[0] not in allowed:
        wanted = "1, as the graph is shared" if edges.shared else f"batch={edges.batch} | 1"
        raise InputError(f"Graph.{name} has shape {tuple(term.shape)}; expected ({wanted}, node={count}).")
    return term[0] if edges.shared else term.expand(edges.batch, -1).reshape(-1)


def _check_range(edge_index: Tensor, edges: Edges) -> None:
    if torch.compiler.is_compiling() or edge_index.device.type != "cpu" or isinstance(edge_index, FakeTensor):
        return
    if edge_index.shape[1] == 0:
        return
    for what, last, nodes in (
        ("source", int(edge_index[0].max()), edges.source_nodes),
        ("target", int(edge_index[1].max()), edges.target_nodes),
    ):
        if last >= nodes:
            count = f"{nodes} nodes" if edges.shared else f"{nodes} nodes in all elements of the batch"
            raise InputError(f"Graph.edge_index has {what} {last}; expected numbers below {nodes}: there are {count}.")
