"""Where tokens lie: on a grid, on the nodes of a graph, or at points in space."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from astrozoo.errors import InputError
from astrozoo.registry.names import suggest

__all__ = ["METRICS", "Graph", "Grid", "Points"]

METRICS = ("great_circle", "euclidean", "periodic", "wavelength", "time")


@dataclass(frozen=True)
class Grid:
    """Tokens on a regular grid of one to three axes, in row-major order.

    Attributes:
        shape: Cells per axis, such as (level, lat, lon); their product is the number of tokens.
        periodic: Whether each axis wraps, as longitude does; False for all by default.
    """

    kind: ClassVar[str] = "grid"
    shape: tuple[int, ...]
    periodic: tuple[bool, ...] = ()

    def __post_init__(self) -> None:
        shape = tuple(self.shape)
        if not 1 <= len(shape) <= 3 or any(size < 1 for size in shape):
            raise InputError(f"Grid.shape is {self.shape}; expected one to three sizes of at least 1.")
        periodic = tuple(bool(wraps) for wraps in self.periodic) or (False,) * len(shape)
        if len(periodic) != len(shape):
            raise InputError(f"Grid.periodic has {len(periodic)} entries; expected one for each of {len(shape)} axes.")
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "periodic", periodic)

    def __len__(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, eq=False)
class Graph:
    """Tokens on the nodes of a graph, or of several in one batch element.

    An edge with a negative node is padding and is ignored, as are edges between graphs and between batch elements.

    Attributes:
        edge_index: int64 (2, edge): source (key) and target (query) of every edge, by node number. For a batch, the
            nodes of element b are numbered from b * nodes; for keys of another sequence, sources from b * keys.
        edge_bias: float (edge, head) or (edge,), added to the logit of the edge; -inf hides it. Or None.
        node_graph: int64 (batch | 1, node), ids of the graph a node belongs to; edges between graphs are ignored. A
            pair, of queries and of keys, where keys are another sequence. Or None.
        shared: Whether all elements of the batch have the same edges, numbered within one element, as on a mesh.
        edge_features: float (edge, feature), what an attention may learn a bias from; or None.
        edge_distance: int64 (edge,), hops of the shortest path from source to target, negative if there is none; an
            attention may learn a bias for each distance. Or None.
        node_degree: int64 (batch | 1, key), degree of each node that is a key; or None.
    """

    kind: ClassVar[str] = "graph"
    edge_index: Tensor
    edge_bias: Tensor | None = None
    node_graph: Tensor | tuple[Tensor, Tensor] | None = None
    shared: bool = False
    edge_features: Tensor | None = None
    edge_distance: Tensor | None = None
    node_degree: Tensor | None = None

    def __post_init__(self) -> None:
        index = self.edge_index
        if index.dim() != 2 or index.shape[0] != 2 or index.dtype != torch.int64:
            raise InputError(f"Graph.edge_index is {index.dtype} {tuple(index.shape)}; expected int64 (2, edge).")
        for name, wanted, dims in (
            ("edge_bias", "(edge={}, head)", (1, 2)),
            ("edge_features", "(edge={}, feature)", (2,)),
            ("edge_distance", "(edge={},)", (1,)),
        ):
            tensor = getattr(self, name)
            if tensor is not None and (tensor.dim() not in dims or tensor.shape[0] != index.shape[1]):
                raise InputError(
                    f"Graph.{name} has shape {tuple(tensor.shape)}; expected {wanted.format(index.shape[1])}."
                )
        for name in ("edge_distance", "node_degree"):
            tensor = getattr(self, name)
            if tensor is not None and tensor.dtype != torch.int64:
                raise InputError(f"Graph.{name} has dtype {tensor.dtype}; expected int64.")


@dataclass(frozen=True, eq=False)
class Points:
    """Tokens at points, for distances between them.

    Attributes:
        coords: float (batch | 1, token, coordinate). Great circle: latitude and longitude in degrees. Wavelength:
            one coordinate above 0. Others: any unit.
        metric: One of `METRICS`.
        weights: float (batch | 1, token), quadrature weight of each token as a key (cell area); None for equal ones.
        period: Period of each coordinate under the metric `periodic`, in the unit of the coordinates.
    """

    kind: ClassVar[str] = "points"
    coords: Tensor
    metric: str = "euclidean"
    weights: Tensor | None = None
    period: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise InputError(
                f"Points.metric is {self.metric!r}; expected one of {', '.join(METRICS)}."
                f"{suggest(self.metric, METRICS)}"
            )
        if self.coords.dim() != 3 or not self.coords.is_floating_point():
            raise InputError(
                f"Points.coords is {self.coords.dtype} {tuple(self.coords.shape)}; "
                "expected float (batch, token, coordinate)."
            )
        axes = self.coords.shape[-1]
        wanted = {"great_circle": 2, "wavelength": 1, "time": 1}.get(self.metric, axes)
        if axes != wanted:
            raise InputError(f"Points.coords has {axes} coordinates; the metric {self.metric!r} takes {wanted}.")
        if self.metric == "periodic" and len(self.period) != axes:
            raise InputError(f"Points.period is {self.period}; expected a period for each of {axes} coordinates.")
        if self.weights is not None and (self.weights.dim() != 2 or self.weights.shape[1] != self.coords.shape[1]):
            raise InputError(
                f"Points.weights has shape {tuple(self.weights.shape)}; expected (batch, token={self.coords.shape[1]})."
            )


def check_geometry(geometry: Any, kind: str, name: str) -> None:
    """Raise an `InputError` unless `geometry` is of `kind` (`grid`, `graph`, `points`), as `name` takes it.

    Points may come as a pair, those of the queries and those of the keys.
    """
    pair = kind == "points" and isinstance(geometry, tuple) and len(geometry) == 2
    if not all(getattr(part, "kind", None) == kind for part in (geometry if pair else (geometry,))):
        wanted = {"grid": "Grid", "graph": "Graph", "points": "Points"}[kind]
        raise InputError(
            f"{name} got a geometry of type {type(geometry).__name__}; expected astrozoo.attention.{wanted}."
        )
