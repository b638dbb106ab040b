"""Checks of causality: no look ahead, every token sees itself, and the last query stands at the last key."""

from __future__ import annotations

import torch

from astrozoo.attention import Grid
from astrozoo.errors import UnsupportedArgument
from astrozoo.testing.attention.cases import Case, agree, distance, equals_reference, influence
from astrozoo.testing.attention.subject import AttentionSubject
from astrozoo.testing.report import NotApplicable, require

__all__: list[str] = []


def causal(subject: AttentionSubject) -> None:
    """A later token changes nothing earlier, a token changes its own row, and the first gives what it would alone."""
    subject.needs_causal()
    if subject.spec.needs_context:
        raise NotApplicable("its queries and keys are never the same tokens; causal_alignment looks at those")
    by_call, by_config = subject.build(), subject.build(causal=True)
    case = subject.own_case()
    y = case(by_call, causal=True)
    agree(case(by_config), y, "causal=True of the configuration", 0)
    if subject.allows(causal=False):
        agree(case(by_config, causal=False), case(by_call, causal=False), "causal=False of the call", 0)
        require(distance(y, case(by_call, causal=False)) > 1e-6, "causal=True changes nothing")
    width = _slice_width(case)
    for start in range(width, 12, width):
        noise = torch.randn_like(case.x[:, start:]) * 10
        later = case.replace(x=torch.cat((case.x[:, :start], noise), dim=1))
        changed = later(by_call, causal=True)
        agree(changed[:, :start], y[:, :start], f"rows before a change of the tokens from {start} on", 1e-12)
    moved = influence(by_call, case, {"causal": True})
    require(bool((moved.diagonal(dim1=1, dim2=2) > 0).all()), "a token does not change its own row")
    if case.geometry is None:
        agree(y[:, :1], case.replace(x=case.x[:, :1])(by_call, causal=True), "the first token, and one token alone")
        _sees_itself(subject, case)
    reach = (moved > 0).flatten(1).sum(dim=1)
    require(bool((reach > moved.shape[1]).all()), "no token sees an earlier one")


def _slice_width(case: Case) -> int:
    """Tokens that share one place on the axis of order: one, or a slice of the first axis of a grid."""
    return case.sizes[1] // case.geometry.shape[0] if isinstance(case.geometry, Grid) else 1


def _sees_itself(subject: AttentionSubject, case: Case) -> None:
    """With all tokens but one masked, that one still gives what it gives alone."""
    if "key_mask" not in subject.spec.masks:
        return
    attention = subject.build()
    for token in (0, 5, 11):
        key_mask = torch.zeros(2, 12, dtype=torch.bool)
        key_mask[:, token] = True
        row = case(attention, causal=True, key_mask=key_mask)[:, token : token + 1]
        alone = case.replace(x=case.x[:, token : token + 1])(attention, causal=True)
        agree(row, alone, f"token {token}, with all others masked and alone")


def causal_alignment(subject: AttentionSubject) -> None:
    """The last query stands at the last key, however many of each; explicit positions say otherwise."""
    subject.needs_causal()
    subject.needs_cross()
    attention = subject.build()
    if subject.spec.needs_geometry:
        raise NotApplicable("its geometry says where tokens stand, not their number")
    for options in ({}, {"rope": True}):
        built = subject.build_or_refusal(**options)
        if built is None:
            continue
        for queries, keys in ((3, 8), (1, 8), (8, 8), (8, 3)):
            case = subject.case(queries, keys).replace(geometry=None)
            equals_reference(built, case, f"causal, {queries} queries on {keys} keys {options}", causal=True)
    case = subject.case(3, 8).replace(geometry=None)
    seen = influence(attention, case, {"causal": True}) > 0
    expected = torch.ones(3, 8, dtype=torch.bool).tril(5)
    require(
        bool((seen <= expected).all()),
        "3 queries on 8 keys look ahead; query i sees keys up to i + 5, for the last query stands at the last key",
    )
    require(bool(seen[:, -1, -1].all()) and bool(seen[:, 0, 5].all()), "a query does not see the key at its own place")
    _heeds_positions(subject, case)
    if not subject.spec.needs_context:
        whole = subject.case(8).replace(geometry=None)
        last = whole.replace(x=whole.x[:, 5:], context=whole.x)
        agree(last(attention, causal=True), whole(attention, causal=True)[:, 5:], "the last 3 of 8 tokens, apart")


def _heeds_positions(subject: AttentionSubject, case: Case) -> None:
    """Positions of the caller decide what is later, or are refused."""
    attention = subject.build()
    first = {"positions": torch.arange(3), "context_positions": torch.arange(8)}
    try:
        equals_reference(attention, case, "positions from the first key on", causal=True, **first)
    except UnsupportedArgument as error:
        require("positions" in str(error), f"positions are refused without being named: {error}")
        return
    seen = influence(attention, case, {"causal": True, **first}) > 0
    require(
        bool((seen <= torch.ones(3, 8, dtype=torch.bool).tril()).all()),
        "positions of the caller are neither heeded nor refused: a query sees keys at later positions",
    )
