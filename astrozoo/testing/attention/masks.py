"""Checks of masks: what is hidden cannot matter, what is not hidden must, and a query that sees nothing gives zero."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from astrozoo.attention import Attention
from astrozoo.errors import InputError
from astrozoo.testing.attention.cases import Case, agree, distance, equals_reference, influence
from astrozoo.testing.attention.subject import AttentionSubject
from astrozoo.testing.report import ConformanceError, NotApplicable, require

__all__: list[str] = []


def key_mask_content(subject: AttentionSubject) -> None:
    """What stands in masked keys cannot matter, every real key matters, and padding equals a shorter sequence."""
    subject.needs_mask("key_mask")
    attention = subject.build()
    for case in subject.cases():
        key_mask = subject.terms(case, "key_mask")["key_mask"]
        for order in subject.orders():
            terms = {**order, "key_mask": key_mask}
            y = case(attention, **terms)
            noise = torch.randn_like(case.source) * 30
            other = case.with_source(torch.where(key_mask[..., None], case.source, noise))
            rows = key_mask if case.context is None else torch.ones(case.sizes[:2], dtype=torch.bool)
            agree(
                other(attention, **terms)[rows], y[rows], f"{case.label} {order}: other content under key_mask", 1e-12
            )
            moved, free = (
                influence(attention, case, {**order, **term}).amax(dim=1) for term in ({"key_mask": key_mask}, {})
            )
            require(bool((moved[~key_mask] == 0).all()), f"{case.label} {order}: a masked key has a gradient")
            lost = (moved == 0) & key_mask & (free > 0)
            require(not bool(lost.any()), f"{case.label} {order}: a real key has no influence once others are masked")
            every = torch.ones_like(key_mask)
            agree(case(attention, **order, key_mask=every), case(attention, **order), f"{case.label}: all keys real")
            if case.geometry is None and (case.context is None or subject.movable):
                _padding_is_nothing(attention, case, order)


def _padding_is_nothing(attention: Attention, case: Case, order: dict[str, bool]) -> None:
    keys = case.sizes[2]
    real = keys - 4
    key_mask = (torch.arange(keys) < real).expand(case.sizes[0], -1)
    shorter = case.with_source(case.source[:, :real])
    if case.context is not None and order["causal"]:
        return  # the last query is aligned with the last key, padding or not
    rows = slice(real) if case.context is None else slice(None)
    y = case(attention, **order, key_mask=key_mask)[:, rows]
    agree(y, shorter(attention, **order), f"{case.label} {order}: padding on the right, and none")


def mask_one_key(subject: AttentionSubject) -> None:
    """A query that sees one key gives what that token alone would give."""
    names = subject.declared("mask", "key_mask")
    if not names:
        subject.needs_mask("mask")
    if not subject.spec.exact:
        names = subject.declared("key_mask")
    if not names:
        raise NotApplicable("it is no weighted mean of values, and declares no key_mask")
    attention = subject.build()
    for case in subject.cases():
        rows, queries, keys = case.sizes
        for order in subject.orders():
            for name in names:
                for key in (0, 3, keys - 1):
                    seen = torch.zeros(rows, keys, dtype=torch.bool)
                    seen[:, key] = True
                    mask = seen if name == "key_mask" else seen[:, None, None].expand(-1, 1, queries, -1)
                    what = f"{case.label} {order}: {name} that leaves one key"
                    equals_reference(attention, case, what, **order, **{name: mask})
                    if subject.spec.exact:
                        _is_that_token(subject, attention, case, key, what, **order, **{name: mask})


def _is_that_token(
    subject: AttentionSubject, attention: Attention, case: Case, key: int, what: str, **terms: Any
) -> None:
    y = case(attention, **terms)
    token = case.source[:, key : key + 1]
    alone = Case("one token", token, None if case.context is None else token, subject.geometry(1, len(token)))
    expected = alone(attention).expand(y.shape)
    alive = y.abs().amax(dim=-1) > 0  # a pattern or causality may hide the key from some queries
    require(bool(alive.any()), f"{what}: no query sees it")
    if case.context is None:
        require(bool(alive[:, key].all()), f"{what}: the token does not see itself")
    agree(y[alive], expected[alive], what)


def dead_rows(subject: AttentionSubject) -> None:
    """A query that sees no key gives 0, with finite gradients: by any mask, by causality, and with no keys at all."""
    attention, biased = subject.build(), subject.build_or_refusal(bias=True)
    attentions = [attention] if biased is None else [attention, biased]
    found = 0
    for case in subject.cases():
        for terms, dead, what in _deadly(subject, case):
            found += 1
            for built in attentions:
                _is_zero(built, case, dead, f"{case.label}: {what}", terms)
    if subject.spec.cross and not subject.spec.needs_geometry:
        found += 1
        empty = subject.case(5, 0).replace(geometry=None)
        _is_zero(attention, empty, torch.ones(2, 5, dtype=torch.bool), "no keys", {})
        if subject.spec.causal:
            early = subject.case(8, 5).replace(geometry=None)
            dead = (torch.arange(8) < 3).expand(2, -1)
            _is_zero(attention, early, dead, "more queries than keys, causal", {"causal": True})
        none = subject.case(5, 5).replace(x=empty.x[:, :0], geometry=None)
        require(none(attention).shape == none.x.shape, "no queries")
    if not subject.spec.needs_context and not subject.spec.needs_geometry:
        none = subject.case(0)
        require(none(attention).shape == none.x.shape, "no tokens")
    if not found:
        raise NotApplicable("it takes no mask and no context, so every query sees itself")


def _deadly(subject: AttentionSubject, case: Case) -> list[tuple[dict[str, Any], Tensor, str]]:
    """Terms that leave queries without keys, those queries (batch, query), and words for them."""
    rows, queries, keys = case.sizes
    dead = torch.zeros(rows, queries, dtype=torch.bool)
    dead[0, 2] = dead[1, 5] = True
    whole = torch.zeros(rows, queries, dtype=torch.bool)
    whole[1] = True
    terms: dict[str, tuple[dict[str, Any], Tensor]] = {}
    for name in subject.declared("mask", "bias"):
        hidden = dead[:, None, :, None].expand(-1, 1, -1, keys)
        additive = torch.zeros(hidden.shape, dtype=torch.float64).masked_fill(hidden, -torch.inf)
        terms[f"a row of {name}"] = {name: ~hidden if name == "mask" else additive}, dead
    if "key_mask" in subject.spec.masks:
        key_mask = torch.ones(rows, keys, dtype=torch.bool)
        key_mask[1] = False
        terms["a key_mask of nothing"] = {"key_mask": key_mask}, whole
    if "segments" in subject.spec.masks and case.context is not None:
        own = torch.where(dead, 9, 1)
        terms["a segment without keys"] = {"segments": (own, torch.ones(rows, keys, dtype=torch.int64))}, dead
    return [
        ({**order, **given}, which, f"{what} {order}")
        for what, (given, which) in terms.items()
        for order in subject.orders()
        if case.context is None or not order["causal"] or keys >= queries
    ]


def _is_zero(attention: Attention, case: Case, dead: Tensor, what: str, terms: dict[str, Any]) -> None:
    case = case.leaves()
    leaves = [case.x] if case.context is None else [case.x, case.context]
    if "bias" in terms:
        terms = {**terms, "bias": terms["bias"].clone().requires_grad_()}
        leaves.append(terms["bias"])
    y, heads = case.looking(attention, "heads", **terms)
    rows = heads.transpose(1, 2).flatten(2)[dead]  # before the output projection, whose bias remains
    require(bool((rows == 0).all()), f"{what}: a query that sees no key gives {rows.abs().max():.3g}, not 0")
    require(attention.config.bias or bool((y[dead] == 0).all()), f"{what}: the output of a query without keys is not 0")
    require(bool(torch.isfinite(y).all()), f"{what}: other queries are not finite")
    if case.sizes[2] and not bool(dead.all()):
        require(bool((y[~dead].abs().amax(dim=-1) > 0).all()), f"{what}: queries that see keys give 0 too")
    if not y.requires_grad:
        return
    gradients = torch.autograd.grad(y.square().sum(), [*leaves, *attention.parameters()], allow_unused=True)
    for gradient in gradients:
        require(gradient is None or bool(torch.isfinite(gradient).all()), f"{what}: a gradient is not finite")


def nan_safe(subject: AttentionSubject) -> None:
    """NaN and infinity in keys that no query may see reach neither outputs nor gradients."""
    names = subject.declared("key_mask", "mask", "bias")
    if not names:
        subject.needs_mask("key_mask")
    attention = subject.build()
    tried = 0
    for case in subject.cases():
        hidden = ~subject.terms(case, "key_mask")["key_mask"]
        for name in names:
            if case.context is None and name != "key_mask":
                continue  # a token that no query sees is still a query itself
            tried += 1
            for junk in (torch.nan, torch.inf, -torch.inf):
                for order in subject.orders():
                    terms = {**order, name: _hiding(name, hidden, case)}
                    what = f"{case.label} {order}: {junk} under {name}"
                    clean, dirty = (
                        _with_gradients(
                            attention, case.with_source(case.source.masked_fill(hidden[..., None], fill)), hidden, terms
                        )
                        for fill in (0.0, junk)
                    )
                    for got, expected in zip(dirty, clean, strict=True):
                        require(bool(torch.isfinite(got).all()), f"{what} leaks")
                        agree(got, expected, what, 1e-12)
    if not tried:
        raise NotApplicable("every token that it takes is a query, and it declares no key_mask")


def _hiding(name: str, hidden: Tensor, case: Case) -> Tensor:
    if name == "key_mask":
        return ~hidden
    full = hidden[:, None, None].expand(-1, 1, case.sizes[1], -1)
    return ~full if name == "mask" else torch.zeros(full.shape, dtype=torch.float64).masked_fill(full, -torch.inf)


def _with_gradients(attention: Attention, case: Case, hidden: Tensor, terms: dict[str, Any]) -> list[Tensor]:
    case = case.leaves()
    y = case(attention, **terms)
    rows = ~hidden if case.context is None else torch.ones(y.shape[:2], dtype=torch.bool)
    leaves = [case.source, *attention.parameters()]
    gradients = torch.autograd.grad(y[rows].square().sum(), leaves, allow_unused=True, materialize_grads=True)
    return [y[rows].detach(), *gradients]


def mask_dtypes(subject: AttentionSubject) -> None:
    """Masks may be bool or any integer; a floating mask, a mask of three dimensions and an integer bias are refused."""
    names = subject.declared("mask", "key_mask", "bias")
    if not names:
        subject.needs_mask("mask")
    case = subject.own_case()
    order = subject.orders()[0]
    terms = subject.terms(case, *names)
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        attention = subject.build(dtype=dtype)
        own = case.to(dtype)
        for name in subject.declared("mask", "key_mask"):
            expected = own(attention, **order, **{name: terms[name]})
            for kind in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64):
                got = own(attention, **order, **{name: terms[name].to(kind) * 2})  # anything but 0 is true
                agree(got, expected, f"{name} of {kind} for {dtype}", 0)
        if "bias" in names:
            bias = terms["bias"].to(torch.bfloat16).to(torch.float16)  # a value that every dtype holds
            expected = own(attention, **order, bias=bias)
            for kind in (torch.float64, torch.float32, torch.bfloat16):
                agree(own(attention, **order, bias=bias.to(kind)), expected, f"bias of {kind} for {dtype}", 1e-3)
    attention = subject.build()
    for name in subject.declared("mask", "key_mask"):
        full = terms[name]
        _is_refused(attention, case, f"a floating {name}", **{name: full.double()})
        _is_refused(attention, case, f"a {name} for other keys", **{name: full[..., 1:]})
    if "bias" in names:
        _is_refused(attention, case, "an integer bias", bias=terms["bias"].long())
        _is_refused(attention, case, "a boolean bias", bias=terms["bias"] > 0)
    for name in subject.declared("mask", "bias"):
        _is_refused(attention, case, f"a {name} of three dimensions", **{name: terms[name][:, 0]})
        _is_refused(attention, case, f"a {name} of three heads", **{name: terms[name][:, :3]})


def _is_refused(attention: Attention, case: Case, what: str, **terms: Any) -> None:
    try:
        case(attention, **terms)
    except InputError:
        return
    except Exception as error:
        raise ConformanceError(f"{what} raises {type(error).__name__}, expected InputError") from error
    raise ConformanceError(f"{what} is accepted")


def segments(subject: AttentionSubject) -> None:
    """Sequences packed one after the other with ids equal each alone, and equal the same padded to one length."""
    subject.needs_mask("segments")
    attention = subject.build()
    for case in subject.cases():
        equals_reference(attention, case, f"{case.label} with segments", **subject.terms(case, "segments"))
    sizes = (5, 1, 6)
    case = subject.own_case(12, batch=1)
    ids = torch.tensor([7, 2, 5]).repeat_interleave(torch.tensor(sizes))[None]
    if case.geometry is not None:
        return
    for order in subject.orders():
        given = ids if case.context is None else (ids, ids)
        packed = case(attention, **order, segments=given)
        parts = list(zip(case.x.split(sizes, dim=1), case.source.split(sizes, dim=1), strict=True))
        alone = [Case("one", x, None if case.context is None else source)(attention, **order) for x, source in parts]
        agree(packed, torch.cat(alone, dim=1), f"{order}: packed sequences, and each alone")
        if "key_mask" in subject.spec.masks and case.context is None:
            real = torch.arange(6) < torch.tensor(sizes)[:, None]
            x = torch.zeros(3, 6, case.x.shape[2], dtype=torch.float64)
            x[real] = case.x[0]
            padded = attention(x, **order, key_mask=real)[real][None]
            agree(packed, padded, f"{order}: packed sequences, and padded ones")
        require(distance(packed, case(attention, **order)) > 1e-6, f"{order}: segments change nothing")
