"""Tokens to attend with, where they lie, and how results are compared."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from astrozoo.attention import Attention, Graph, Points
from astrozoo.testing.report import require

__all__ = ["Case", "agree", "distance", "equals_reference", "in_batch", "influence", "moved", "one_line"]


@dataclass(frozen=True)
class Case:
    """Tokens to attend with.

    Attributes:
        label: Words for messages.
        x: float (batch, query, dim).
        context: float (batch, key, dim), or None where the tokens attend to themselves.
        geometry: What the attention needs to know of where they lie.
    """

    label: str
    x: Tensor
    context: Tensor | None = None
    geometry: Any = None

    @property
    def source(self) -> Tensor:
        """The tokens that give keys and values."""
        return self.x if self.context is None else self.context

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Numbers of rows, queries and keys."""
        return self.x.shape[0], self.x.shape[1], self.source.shape[1]

    def __call__(self, attention: Callable[..., Tensor], **terms: Any) -> Tensor:
        """(batch, query, dim) from the fast path."""
        return attention(self.x, self.context, **self._terms(terms))

    def reference(self, attention: Attention, **terms: Any) -> Tensor:
        """(batch, query, dim) from the readable path."""
        return attention.forward_reference(self.x, self.context, **self._terms(terms))

    def looking(self, attention: Attention, want: str, **terms: Any) -> tuple[Tensor, Tensor]:
        """The output, and one of `weights`, `lse`, `heads`."""
        y, found = attention.forward_with(self.x, self.context, want=(want,), **self._terms(terms))
        return y, found[want]

    def with_source(self, source: Tensor) -> Case:
        """The same with other tokens to attend to."""
        return self.replace(x=source) if self.context is None else self.replace(context=source)

    def replace(self, **changes: Any) -> Case:
        """A copy with some attributes changed."""
        return dataclasses.replace(self, **changes)

    def rows(self, chosen: slice) -> Case:
        """Some rows of the batch, all of which lie alike; not for graphs, whose nodes are numbered through it."""
        return self.replace(x=self.x[chosen], context=None if self.context is None else self.context[chosen])

    def keys_at(self, index: Tensor) -> Case:
        """Some of the tokens attended to, in the order of `index`, with the points where they lie."""
        if self.context is None:
            return self.replace(x=self.x[:, index], geometry=_points_at(self.geometry, index))
        pair = self.geometry and (self.geometry[0], _points_at(self.geometry[1], index))
        return self.replace(context=self.context[:, index], geometry=pair)

    def queries_at(self, index: Tensor) -> Case:
        """Some of the tokens as queries, with all as their context."""
        own = self.geometry[0] if isinstance(self.geometry, tuple) else self.geometry
        other = self.geometry[1] if isinstance(self.geometry, tuple) else self.geometry
        pair = own and (_points_at(own, index), other)
        return self.replace(x=self.x[:, index], context=self.source, geometry=pair)

    def leaves(self) -> Case:
        """A copy whose tokens collect gradients."""
        context = None if self.context is None else self.context.detach().clone().requires_grad_()
        return self.replace(x=self.x.detach().clone().requires_grad_(), context=context)

    def to(self, target: torch.device | torch.dtype | str) -> Case:
        """On another device, or with floating tensors of another dtype; the geometry too."""
        context = None if self.context is None else self.context.to(target)
        return self.replace(x=self.x.to(target), context=context, geometry=moved(self.geometry, target))

    def _terms(self, terms: Mapping[str, Any]) -> dict[str, Any]:
        return {**({} if self.geometry is None else {"geometry": self.geometry}), **terms}


def _points_at(geometry: Any, index: Tensor) -> Any:
    if geometry is None:
        return None
    weights = geometry.weights
    return dataclasses.replace(
        geometry, coords=geometry.coords[:, index], weights=None if weights is None else weights[:, index]
    )


def moved(geometry: Any, target: torch.device | torch.dtype | str) -> Any:
    """A geometry on another device, or with floating tensors of another dtype."""
    if isinstance(geometry, tuple):
        return tuple(moved(part, target) for part in geometry)
    if not isinstance(geometry, Graph | Points):
        return geometry
    tensors = {name: item for name, item in vars(geometry).items() if isinstance(item, Tensor)}
    changed = {
        name: item.to(target)
        for name, item in tensors.items()
        if item.is_floating_point() or not isinstance(target, torch.dtype)
    }
    return dataclasses.replace(geometry, **changed)  # type: ignore[arg-type]  # fields of either


def in_batch(geometry: Any, tokens: int, batch: int) -> Any:
    """The geometry of one row, for a batch of rows alike: a graph has nodes of its own in each."""
    if not isinstance(geometry, Graph) or geometry.shared:
        return geometry
    first = torch.arange(batch).repeat_interleave(geometry.edge_index.shape[1]) * tokens
    changes: dict[str, Any] = {"edge_index": geometry.edge_index.repeat(1, batch) + first}
    for name in ("edge_bias", "edge_features", "edge_distance"):
        item = getattr(geometry, name)
        changes[name] = None if item is None else item.repeat(batch, *[1] * (item.dim() - 1))
    return dataclasses.replace(geometry, **changes)


def distance(got: Tensor, expected: Tensor) -> float:
    """Norm of the difference relative to the norm of what is expected; infinite where anything is not finite."""
    difference = (got.double() - expected.double()).norm()
    error = (difference / expected.double().norm().clamp_min(1e-12)).item()
    return error if error == error else float("inf")


def agree(got: Tensor, expected: Tensor, what: str, tolerance: float = 1e-10) -> None:
    """Fail with `what` unless two tensors have one shape and differ by less than `tolerance` relative to their norm."""
    require(got.shape == expected.shape, f"{what}: shape {tuple(got.shape)}, expected {tuple(expected.shape)}")
    error = distance(got, expected)
    require(error <= tolerance, f"{what}: relative error {error:.1e}, allowed {tolerance:.0e}")


def equals_reference(attention: Attention, case: Case, what: str, **terms: Any) -> None:
    """Fail with `what` unless the fast path gives what the readable one gives."""
    with torch.no_grad():
        expected = case.reference(attention, **terms)
        require(bool(torch.isfinite(expected).all()), f"{what}: the reference is not finite")
        agree(case(attention, **terms), expected, what)


def influence(
    attention: Attention, case: Case, terms: Mapping[str, Any] | None = None, *, through: str = "source"
) -> Tensor:
    """How strongly each token moves each output: (batch, query, token), norms of a random projection's gradients.

    Args:
        attention: In float64.
        case: Few tokens: one backward pass is taken for each query.
        terms: Of the call.
        through: `source`, the tokens attended to, or `x`.
    """
    case = case.leaves()
    y = case(attention, **(terms or {}))
    probe = torch.randn(y.shape[-1], generator=torch.Generator().manual_seed(7), dtype=y.dtype)
    leaf = case.source if through == "source" else case.x
    rows = [
        torch.autograd.grad((y[:, query] @ probe).sum(), leaf, retain_graph=True)[0].norm(dim=-1)
        for query in range(y.shape[1])
    ]
    return torch.stack(rows, dim=1)


def one_line(error: BaseException) -> str:
    """The first line of an error's message."""
    return next(iter(str(error).strip().splitlines()), "")
