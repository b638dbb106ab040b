"""Encodings of batches of small graphs as inputs of a model: of nodes, and of pairs of nodes for a biased attention.

    found = encode_graphs(edges, sizes, steps=16, eigenvectors=8)
    x = torch.cat((features, found["random_walk"], found["laplacian"]), dim=1)  # (node, feature)
    geometry = distance_graph(found["shortest_path"], sizes)  # for the attention "graph" with max_hops

A batch is laid out as in PyTorch Geometric: nodes numbered through all graphs, the nodes of a graph one after the
other. `torch.nn.utils.rnn.pad_sequence(x.split(sizes.tolist()), batch_first=True)` gives each graph its own row.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from astrozoo.accel import laplacian_pe, random_walk_pe, shortest_paths
from astrozoo.attention import Graph
from astrozoo.errors import ConfigError, InputError
from astrozoo.registry.names import suggest

__all__ = ["ENCODINGS", "distance_graph", "encode_graphs"]

ENCODINGS = ("random_walk", "laplacian", "shortest_path")


def encode_graphs(
    edges: Tensor | ArrayLike,
    sizes: Tensor | ArrayLike,
    encodings: Sequence[str] = ENCODINGS,
    *,
    steps: int = 16,
    eigenvectors: int = 8,
    max_hops: int | None = None,
    directed: bool = False,
    flip: torch.Generator | None = None,
    threads: int | None = None,
) -> dict[str, Tensor]:
    """Encodings by name, on the CPU.

    `random_walk`: float32 (node, steps), see `astrozoo.accel.random_walk_pe`.
    `laplacian`: float32 (node, eigenvectors), see `astrozoo.accel.laplacian_pe`.
    `shortest_path`: int64 (graph, source, target), hops; -1 where there is no path, and in the padding; see
    `astrozoo.accel.shortest_paths`, and `distance_graph` for an attention that reads it.

    Args:
        edges: Whole numbers (2, edge): source and target. An undirected graph has every edge in both directions.
        sizes: Whole numbers (graph,): nodes of each.
        encodings: Which of them.
        steps: Steps of the random walk.
        eigenvectors: Number of eigenvectors.
        max_hops: Longer paths count as none; None for no limit.
        directed: Whether shortest paths follow the direction of the edges.
        flip: Turns the sign of each eigenvector of each graph with probability 1/2, as is done in training because
            signs are arbitrary; None leaves them as `laplacian_pe` makes them.
        threads: See `astrozoo.accel.threads.workers`.

    Raises:
        ConfigError: An encoding that does not exist.
        InputError: As the kernels.
    """
    for name in encodings:
        if name not in ENCODINGS:
            raise ConfigError(
                f"encodings has {name!r}; expected any of {', '.join(ENCODINGS)}.{suggest(name, ENCODINGS)}"
            )
    links, counts = _numpy(edges), _numpy(sizes)
    found: dict[str, Tensor] = {}
    for name in encodings:
        if name == "random_walk":
            found[name] = torch.from_numpy(random_walk_pe(links, counts, steps, threads=threads))
        elif name == "laplacian":
            vectors = torch.from_numpy(laplacian_pe(links, counts, eigenvectors, threads=threads).vectors)
            found[name] = vectors if flip is None else _flipped(vectors, counts, flip)
        else:
            hops = shortest_paths(links, counts, max_distance=max_hops, directed=directed, threads=threads)
            found[name] = torch.from_numpy(hops).long()
    return found


def distance_graph(hops: Tensor, sizes: Tensor | ArrayLike) -> Graph:
    """The geometry of an attention between all nodes of each graph that reads their hops (`graph` with `max_hops`).

    Args:
        hops: int64 (graph, source, target), the encoding `shortest_path`.
        sizes: Whole numbers (graph,): nodes of each.

    Returns:
        Edges between all pairs of nodes that are no padding, numbered for rows (graph, node) that are padded to the
        largest graph, with `edge_distance`.

    Raises:
        InputError: Hops of another shape or dtype than those of graphs of these sizes.
    """
    counts = torch.from_numpy(np.asarray(_numpy(sizes), np.int64))
    most = int(counts.max()) if counts.numel() else 0
    if hops.dtype != torch.int64 or hops.shape != (len(counts), most, most):
        raise InputError(
            f"hops is {hops.dtype} {tuple(hops.shape)}; expected int64 (graph, source, target) = "
            f"({len(counts)}, {most}, {most}) for these sizes."
        )
    real = torch.arange(most) < counts[:, None]
    graph, source, target = (real[:, :, None] & real[:, None, :]).nonzero().unbind(dim=1)
    edge_index = torch.stack((graph * most + source, graph * most + target)).to(hops.device)
    return Graph(edge_index, edge_distance=hops[graph, source, target])


def _flipped(vectors: Tensor, sizes: np.ndarray, generator: torch.Generator) -> Tensor:
    graphs = torch.from_numpy(np.repeat(np.arange(len(sizes)), sizes))
    signs = torch.randint(2, (len(sizes), vectors.shape[1]), generator=generator, device=generator.device) * 2 - 1
    return vectors * signs.to("cpu", vectors.dtype)[graphs]


def _numpy(values: Tensor | ArrayLike) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
