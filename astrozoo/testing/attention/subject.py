"""The attention under test: a small instance of it, tokens for it, and what it must refuse."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from astrozoo.attention import Attention, Graph, Grid, Points
from astrozoo.errors import ConfigError, UnsupportedArgument
from astrozoo.registry.family import AttentionImplementation
from astrozoo.registry.spec import AttentionSpec
from astrozoo.testing.report import ConformanceError, NotApplicable, require

__all__ = ["DIM", "HEADS", "AttentionSubject", "Case", "agree", "distance", "equals_reference", "influence", "one_line"]

DIM, HEADS = 32, 4  # of the small instance
MASKS = ("mask", "key_mask", "bias", "segments")


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
        return self.replace(x=self.x.to(target), context=context, geometry=_moved(self.geometry, target))

    def _terms(self, terms: Mapping[str, Any]) -> dict[str, Any]:
        return {**({} if self.geometry is None else {"geometry": self.geometry}), **terms}


class AttentionSubject:
    """A registered name or alias, or an `AttentionImplementation` that no distribution offers (yet)."""

    def __init__(self, attention: str | AttentionImplementation) -> None:
        self.preset: Mapping[str, Any] = {}
        if isinstance(attention, AttentionImplementation):
            self.name, self.implementation, self.registered = attention.spec.name, attention, False
        else:
            from astrozoo import registry

            self.name, self.implementation, self.registered = attention, registry.load_attention(attention), True
            self.preset = self.implementation.aliases.get(attention, {})

    @property
    def spec(self) -> AttentionSpec:
        """What it says of itself."""
        return self.implementation.spec

    def build(self, *, seed: int = 0, **options: Any) -> Attention:
        """A small instance in float64 and in evaluation; every weight is moved a little, so that none hides as 0 or 1.

        Args:
            seed: Of its weights.
            options: Beside `dim`, `num_heads` and the implementation's example options, which they replace.
        """
        torch.manual_seed(seed)
        attention = self.implementation.build(**self.options(**options))
        with torch.no_grad():
            for parameter in attention.parameters():
                if not parameter.is_meta:
                    parameter.add_(torch.randn_like(parameter), alpha=0.1)
        return attention.eval()

    def options(self, **options: Any) -> dict[str, Any]:
        """Options of the small instance."""
        common = {"dim": DIM, "num_heads": HEADS, "dtype": torch.float64}
        return {**common, **self.preset, **self.implementation.example, **options}

    def build_or_refusal(self, **options: Any) -> Attention | None:
        """A small instance, or None where it refuses an option by name: what is neither refused nor honoured fails."""
        try:
            return self.build(**options)
        except (ConfigError, UnsupportedArgument) as error:
            named = any(name in str(error) for name in options)
            require(named, f"{options} is refused without naming what it is that cannot be: {error}")
            return None

    # -- tokens --------------------------------------------------------------------------------------------------------

    def case(
        self,
        queries: int = 12,
        keys: int | None = None,
        *,
        batch: int = 2,
        seed: int = 1,
        dtype: torch.dtype = torch.float64,
    ) -> Case:
        """Random tokens; with `keys` they attend to a sequence of that many."""
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(batch, queries, DIM, generator=generator, dtype=torch.float64).to(dtype)
        context = None
        if keys is not None:
            context = torch.randn(batch, keys, DIM, generator=generator, dtype=torch.float64).to(dtype)
        label = "self-attention" if keys is None else f"{queries} queries on {keys} keys"
        geometry = self.geometry(queries, batch, dtype)
        if keys is not None and isinstance(geometry, Points):
            geometry = (geometry, self.geometry(keys, batch, dtype))
        elif keys is not None and isinstance(geometry, Grid):
            geometry = self.geometry(keys, batch, dtype)  # keys lie on a grid, queries anywhere
        return Case(label, x, context, geometry)

    def own_case(self, length: int = 12, **options: Any) -> Case:
        """Tokens that attend to themselves, or to as many others where it needs a context."""
        return self.case(length, length if self.spec.needs_context else None, **options)

    def cases(self, **options: Any) -> Iterator[Case]:
        """Self-attention and attention to a longer sequence, as far as it has them."""
        if not self.spec.needs_context:
            yield self.case(12, **options)
        if self.spec.cross:
            # A graph of the example has as many nodes for queries as for keys.
            yield self.case(12, 12 if self.spec.geometry == "graph" else 17, **options)

    def geometry(self, tokens: int, batch: int, dtype: torch.dtype = torch.float64) -> Any:
        """Where `tokens` tokens lie in each of `batch` rows; None where it takes no geometry."""
        make = self.implementation.example_geometry
        if make is None or tokens == 0:
            return None
        return _moved(_in_batch(make(tokens), tokens, batch), dtype)

    def terms(self, case: Case, *names: str, seed: int = 5) -> dict[str, Any]:
        """Random masks of the kinds that are named. No row is left without a key, and the first key is always real."""
        batch, queries, keys = case.sizes
        generator = torch.Generator().manual_seed(seed)
        terms: dict[str, Any] = {}
        if "mask" in names:
            mask = torch.rand(batch, HEADS, queries, keys, generator=generator) < 0.6
            mask[..., 0] = True
            terms["mask"] = mask
        if "key_mask" in names:
            key_mask = torch.rand(batch, keys, generator=generator) < 0.7
            key_mask[:, 0] = True
            terms["key_mask"] = key_mask
        if "bias" in names:
            terms["bias"] = torch.randn(batch, HEADS, queries, keys, generator=generator, dtype=torch.float64)
        if "segments" in names:
            ids = [torch.arange(count) * 3 // max(count, 1) for count in (queries, keys)]
            pair = [part.expand(batch, -1).contiguous() for part in ids]
            terms["segments"] = pair[0] if case.context is None else (pair[0], pair[1])
        return terms

    def declared(self, *names: str) -> tuple[str, ...]:
        """Those of `names`, of all masks by default, that it declares."""
        return tuple(name for name in (names or MASKS) if name in self.spec.masks)

    @property
    def movable(self) -> bool:
        """Whether tokens may be taken in any number and order: no grid or graph holds them."""
        return self.spec.geometry in (None, "points")

    def orders(self) -> list[dict[str, bool]]:
        """The values of `causal` to be tried."""
        return [{"causal": causal} for causal in (False, True) if self.allows(causal)]

    def allows(self, causal: bool) -> bool:
        """Whether the spec says that this value of `causal` is honoured."""
        return self.spec.causal if causal else not self.spec.causal_only

    # -- what it cannot do ---------------------------------------------------------------------------------------------

    def must_refuse(self, argument: str, call: Callable[[], Any]) -> None:
        """Fail unless `call` raises an `UnsupportedArgument` that names `argument`."""
        try:
            call()
        except UnsupportedArgument as error:
            require(argument in str(error), f"the refusal of {argument} does not name it: {error}")
        except Exception as error:
            raise ConformanceError(
                f"{argument} raised {type(error).__name__}, expected UnsupportedArgument: {one_line(error)}"
            ) from error
        else:
            raise ConformanceError(f"the spec declares no {argument}, but the call was accepted")

    def needs_mask(self, name: str) -> None:
        """Not applicable where mask `name` is not declared, and really refused."""
        if name in self.spec.masks:
            return
        case = self.own_case()
        self.must_refuse(name, lambda: case(self.build(), **self.terms(case, name)))
        raise NotApplicable(f"it declares no {name}, and refuses it")

    def needs_causal(self) -> None:
        """Not applicable where `causal` is not declared, and really refused."""
        if self.spec.causal:
            return
        case = self.own_case()
        self.must_refuse("causal", lambda: case(self.build(), causal=True))
        self.must_refuse("causal", lambda: self.build(causal=True))
        raise NotApplicable("it declares no causal attention, and refuses it")

    def needs_cross(self) -> None:
        """Not applicable where a context is not declared, and really refused."""
        if self.spec.cross:
            return
        case = self.case(6, 6)
        self.must_refuse("context", lambda: case(self.build()))
        raise NotApplicable("it declares no context, and refuses it")


def _points_at(geometry: Any, index: Tensor) -> Any:
    if geometry is None:
        return None
    weights = geometry.weights
    return dataclasses.replace(
        geometry, coords=geometry.coords[:, index], weights=None if weights is None else weights[:, index]
    )


def _moved(geometry: Any, target: torch.device | torch.dtype | str) -> Any:
    if isinstance(geometry, tuple):
        return tuple(_moved(part, target) for part in geometry)
    if not isinstance(geometry, Graph | Points):
        return geometry
    tensors = {name: item for name, item in vars(geometry).items() if isinstance(item, Tensor)}
    moved = {
        name: item.to(target)
        for name, item in tensors.items()
        if item.is_floating_point() or not isinstance(target, torch.dtype)
    }
    return dataclasses.replace(geometry, **moved)  # type: ignore[arg-type]  # fields of either


def _in_batch(geometry: Any, tokens: int, batch: int) -> Any:
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
