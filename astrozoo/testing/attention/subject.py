"""The attention under test: a small instance of it, tokens for it, and what it must refuse."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from astrozoo.attention import Attention, Grid, Points
from astrozoo.errors import ConfigError, InputError, UnsupportedArgument
from astrozoo.registry.family import AttentionImplementation
from astrozoo.registry.spec import AttentionSpec
from astrozoo.testing.attention.cases import Case, in_batch, moved, one_line
from astrozoo.testing.report import ConformanceError, NotApplicable, require

__all__ = ["DIM", "HEADS", "MASKS", "AttentionSubject"]

DIM, HEADS = 32, 4  # of the small instance
MASKS = ("mask", "key_mask", "bias", "segments")


class AttentionSubject:
    """A registered name or alias, or an `AttentionImplementation` that no distribution offers (yet).

    Args:
        attention: Which.
        options: Of the small instance, in the place of those of the example.
    """

    def __init__(self, attention: str | AttentionImplementation, options: Mapping[str, Any] | None = None) -> None:
        self.preset: Mapping[str, Any] = {}
        if isinstance(attention, AttentionImplementation):
            self.name, self.implementation, self.registered = attention.spec.name, attention, False
        else:
            from astrozoo import registry

            self.name, self.implementation, self.registered = attention, registry.load_attention(attention), True
            self.preset = self.implementation.aliases.get(attention, {})
        self.preset = {**self.implementation.example, **self.preset, **(options or {})}

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
        return {**common, **self.preset, **options}

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
        if make is None or tokens == 0 or not self.placed:
            return None
        return moved(in_batch(make(tokens), tokens, batch), dtype)

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
        """Whether tokens may be taken in any number and order: no grid, graph or position holds them."""
        free = self.spec.geometry is None or (self.spec.geometry == "points" and self.placed)
        return free and not self.preset.get("rope")

    @functools.cached_property
    def placed(self) -> bool:
        """Whether it takes the geometry of the example: some options (`alibi`) do without one that others take."""
        make = self.implementation.example_geometry
        if make is None or self.spec.needs_geometry:
            return make is not None
        case = Case("geometry", torch.zeros(1, 6, DIM, dtype=torch.float64), geometry=moved(make(6), torch.float64))
        case = case.replace(context=case.x) if self.spec.needs_context else case
        try:
            case(self.build())
        except InputError:
            return False
        return True

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
