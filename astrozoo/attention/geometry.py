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

    Attributes:
        edge_index: int64 (2, edge): source (key) and target (query) of every edge, by node number. For a batch, the
            nodes of element b are numbered from b * nodes.
        edge_bias: float (edge, head) or (edge,), added to the logit of the edge; or None.
        node_graph: int64 (batch, node), ids of the graph a node belongs to; edges between graphs are ignored. Or None.
    """

    kind: ClassVar[str] = "graph"
    edge_index: Tensor
    edge_bias: Tensor | None = None
    node_graph: Tensor | None = None

    def __post_init__(self) -> None:
        index = self.edge_index
        if index.dim() != 2 or index.shape[0] != 2 or index.dtype != torch.int64:
            raise InputError(f"Graph.edge_index is {index.dtype} {tuple(index.shape)}; expected int64 (2, edge).")
        if self.edge_bias is not None and (
            self.edge_bias.dim() not in (1, 2) or self.edge_bias.shape[0] != index.shape[1]
        ):
            raise InputError(
                f"Graph.edge_bias has shape {tuple(self.edge_bias.shape)}; expected (edge={index.shape[1]}, head)."
            )


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
        if self.weights is not None and self.weights.shape[-1] != self.coords.shape[1]:
            raise InputError(
                f"Points.weights has shape {tuple(self.weights.shape)}; expected (batch, token={self.coords.shape[1]})."
            )


def check_geometry(geometry: Any, kind: str, name: str) -> None:
    """Raise an `InputError` unless `geometry` is of `kind` (`grid`, `graph`, `points`), as `name` takes it."""
    if getattr(geometry, "kind", None) != kind:
        wanted = {"grid": "Grid", "graph": "Graph", "points": "Points"}[kind]
        raise InputError(
            f"{name} got a geometry of type {type(geometry).__name__}; expected astrozoo.attention.{wanted}."
        )
