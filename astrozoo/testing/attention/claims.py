"""Checks of what an attention says of itself: its spec, its names, its options."""

from __future__ import annotations

import dataclasses
import re

import torch

from astrozoo.attention import Graph, Grid, KVCache, Points
from astrozoo.errors import InputError, UnknownOptionError
from astrozoo.registry.family import AttentionImplementation
from astrozoo.registry.spec import AttentionSpec
from astrozoo.testing.attention.cases import distance
from astrozoo.testing.attention.subject import DIM, HEADS, MASKS, AttentionSubject
from astrozoo.testing.report import ConformanceError, require

__all__: list[str] = []


def spec_is_true(subject: AttentionSubject) -> None:
    """What the spec declares works and has an effect; what it does not declare raises `UnsupportedArgument`."""
    spec = subject.spec
    require(
        AttentionSpec.from_dict(spec.to_dict()) == spec, "the spec changes on its way through to_dict and from_dict"
    )
    require(set(spec.masks) <= set(MASKS), f"masks are {spec.masks}; expected some of {MASKS}")
    attention = subject.build()
    case = subject.own_case()
    plain = case(attention)
    for name in MASKS:
        term = subject.terms(case, name)
        if name in spec.masks:
            require(distance(case(attention, **term), plain) > 1e-6, f"{name} is declared, but changes nothing")
        else:
            subject.must_refuse(name, lambda term=term: case(attention, **term))  # type: ignore[misc]
    if spec.causal_only:
        require(spec.causal, "it is causal_only, but not causal")
        _raises(lambda: case(attention, causal=False), "causal=False, although it is causal_only")
    elif spec.causal:
        require(distance(case(attention, causal=True), plain) > 1e-6, "causal is declared, but changes nothing")
    else:
        subject.must_refuse("causal", lambda: case(attention, causal=True))
    if spec.cross:
        require(subject.case(6, 6)(attention).shape == (2, 6, DIM), "a context gives another shape")
    else:
        subject.must_refuse("context", lambda: subject.case(6, 6)(attention))
    if spec.needs_context:
        require(spec.cross, "it needs a context, but takes none")
        _raises(lambda: attention(case.x), "no context, although it needs one")
    if spec.grouped_query:
        subject.build(num_kv_heads=1)
    else:
        subject.must_refuse("num_kv_heads", lambda: subject.build(num_kv_heads=1))
    if spec.cache is None:
        require(attention.new_cache(2) is None, "it declares no cache, but new_cache gives one")
        subject.must_refuse("cache", lambda: case(attention, cache=KVCache(2)))
    else:
        require(
            attention.new_cache(2) is not None, f"a cache of kind {spec.cache} is declared, but new_cache gives none"
        )
    _geometry_is_true(subject)


def _geometry_is_true(subject: AttentionSubject) -> None:
    spec, attention, case = subject.spec, subject.build(), subject.own_case()
    known = {
        "grid": Grid((case.sizes[1],)),
        "graph": Graph(torch.zeros(2, 1, dtype=torch.int64)),
        "points": Points(torch.zeros(1, case.sizes[1], 2, dtype=torch.float64)),
    }
    require(spec.geometry in (None, *known), f"geometry is {spec.geometry!r}; expected one of {', '.join(known)}")
    if spec.geometry is None:
        require(not spec.needs_geometry, "it needs a geometry, but takes none")
        for geometry in known.values():
            bare = case.replace(geometry=geometry)
            subject.must_refuse("geometry", lambda bare=bare: bare(attention))  # type: ignore[misc]
        return
    if not subject.placed and subject.implementation.example_geometry is not None and not spec.needs_geometry:
        return  # with these options it takes none; the call with the example's was refused
    require(case.geometry is not None, f"it takes a {spec.geometry}, but example_geometry makes none")
    require(
        case.geometry.kind == spec.geometry, f"example_geometry makes a {case.geometry.kind}, not a {spec.geometry}"
    )
    for kind, geometry in known.items():
        if kind != spec.geometry:
            other = case.replace(geometry=geometry)
            _raises(lambda other=other: other(attention), f"a {kind}, although it takes a {spec.geometry}")
    if spec.needs_geometry:
        _raises(lambda: case.replace(geometry=None)(attention), "no geometry, although it needs one")


def _raises(call: object, what: str) -> None:
    try:
        call()  # type: ignore[operator]
    except InputError:
        return
    raise ConformanceError(f"it accepts {what}")


def names(subject: AttentionSubject) -> None:
    """Name and aliases can be written in a call; every alias builds; a misspelt option offers the right one."""
    spec, implementation = subject.spec, subject.implementation
    require(re.fullmatch(r"[a-z][a-z0-9_]*", spec.name) is not None, f"{spec.name!r} is no lower-case identifier")
    require(bool(spec.summary and spec.exactness and spec.cost), "summary, exactness or cost is empty")
    aliases = tuple(implementation.aliases)
    require(
        set(spec.aliases) == set(aliases), f"the spec lists aliases {spec.aliases}, the implementation has {aliases}"
    )
    for alias, preset in implementation.aliases.items():
        require(re.fullmatch(r"[a-z][a-z0-9_]*", alias) is not None, f"{alias!r} is no lower-case identifier")
        built = implementation.build(**subject.options(**preset))
        for name, item in preset.items():
            require(hasattr(built.config, name), f"alias {alias!r} presets {name!r}, which is no field of config")
            require(item is None or getattr(built.config, name) is not None, f"alias {alias!r} ignores {name}")
    try:
        subject.build(num_head_=3)
    except UnknownOptionError as error:
        require(
            "num_head_" in str(error) and "'num_heads'" in str(error), f"the error does not offer 'num_heads': {error}"
        )
    else:
        raise ConformanceError("the unknown option 'num_head_' is accepted")
    attention = implementation.build(dim=DIM, num_heads=HEADS, **subject.preset)
    require(attention.spec == spec, "an instance has another spec than the implementation")
    require(f"num_heads={HEADS}" in repr(attention), "its repr does not show its configuration")
    if subject.registered:
        _registered_names(subject, implementation)


def _registered_names(subject: AttentionSubject, implementation: AttentionImplementation) -> None:
    from astrozoo import create_attention, registry

    for name in (subject.spec.name, *subject.spec.aliases):
        made = create_attention(name, dim=DIM, num_heads=HEADS, **implementation.example)
        require(type(made) is type(subject.build()), f"create_attention({name!r}) makes a {type(made).__name__}")
        listed = registry.attention_info(name)
        same = dataclasses.replace(listed, distribution="", version="") == subject.spec
        require(same, f"the catalogue says something else of {name!r} than its spec; make the catalogue anew")
