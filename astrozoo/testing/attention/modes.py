"""Checks of gradients and dropout, and that a call leaves nothing behind and is repeatable."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from astrozoo.attention import Attention, Graph, Points
from astrozoo.testing.attention.cases import Case, agree, distance
from astrozoo.testing.attention.subject import AttentionSubject
from astrozoo.testing.report import NotApplicable, require

__all__: list[str] = []


def gradients(subject: AttentionSubject) -> None:
    """Gradients of inputs and of every parameter equal the reference's and finite differences; none is missing."""
    for options in ({}, {"bias": True, "qk_norm": True}):
        attention = subject.build_or_refusal(**options)
        if attention is None:
            continue
        names = [name for name, _ in attention.named_parameters()]
        for case in subject.cases():
            for order in subject.orders():
                terms = {**order, **subject.terms(case, *subject.declared())}
                own = case.leaves()
                leaves = [own.x] + ([] if own.context is None else [own.context])
                labels = ["x", "context"][: len(leaves)] + names
                found = [
                    _gradients(compute(attention, **terms), [*leaves, *attention.parameters()])
                    for compute in (own.__call__, own.reference)
                ]
                for label, got, expected in zip(labels, *found, strict=True):
                    what = f"{case.label} {order} {options}: gradient of {label}"
                    require(got is not None, f"{what} is missing")
                    require(bool(got.any()), f"{what} is zero")
                    require(expected is not None, f"{what} is missing in the reference")
                    _agree_absolutely(got, expected, what)
                _finite_difference(attention, own, terms, found[0], f"{case.label} {order} {options}")


def _gradients(y: Tensor, leaves: list[Tensor]) -> tuple[Tensor | None, ...]:
    probe = torch.randn(y.shape, generator=torch.Generator().manual_seed(11), dtype=torch.float64)
    return torch.autograd.grad((y.double() * probe).sum(), leaves, allow_unused=True)


def _agree_absolutely(got: Tensor, expected: Tensor, what: str) -> None:
    """As `agree`, but rounding does not count where the true gradient is 0, as that of a bias of keys is."""
    if max(got.abs().max().item(), expected.abs().max().item()) > 1e-9:
        agree(got, expected, what, 1e-8)


def _finite_difference(
    attention: Attention, case: Case, terms: dict[str, Any], gradient: tuple[Tensor | None, ...], what: str
) -> None:
    """The slope of the fast path itself along a random direction of all inputs and parameters."""
    generator = torch.Generator().manual_seed(12)
    leaves = [case.x] + ([] if case.context is None else [case.context])
    with torch.no_grad():
        moving = [*leaves, *attention.parameters()]
        directions = [torch.randn(leaf.shape, generator=generator, dtype=torch.float64) for leaf in moving]
        probe = torch.randn(case.x.shape, generator=torch.Generator().manual_seed(11), dtype=torch.float64)
        step, values = 1e-6, []
        for sign in (1, -2):  # forward, then back to the other side
            for leaf, direction in zip(moving, directions, strict=True):
                leaf.add_(direction, alpha=sign * step)
            values.append((case(attention, **terms).double() * probe).sum().item())
        for leaf, direction in zip(moving, directions, strict=True):
            leaf.add_(direction, alpha=step)
    slope = (values[0] - values[1]) / (2 * step)
    expected = sum(
        (part * way).sum().item() for part, way in zip(gradient, directions, strict=True) if part is not None
    )
    scale = max(abs(slope), abs(expected), 1.0)
    require(abs(slope - expected) < 1e-5 * scale, f"{what}: slope {slope:.6g}, but the gradient says {expected:.6g}")


def dropout(subject: AttentionSubject) -> None:
    """Dropout acts in training only; draws differ, equal seeds do not, and their mean is the result without it."""
    attention = subject.build_or_refusal(dropout=0.5)
    if attention is None:
        raise NotApplicable("it refuses dropout")
    case = subject.own_case(8)
    without = case(subject.build())
    agree(case(attention), without, "evaluation with dropout, and an instance without", 0)
    attention.train()
    torch.manual_seed(1)
    first, second = case(attention), case(attention)
    torch.manual_seed(1)
    agree(case(attention), first, "equal seeds in training", 0)
    require(distance(second, first) > 1e-3, "two calls in training drop the same weights, or none")
    agree(case(attention.eval()), without, "evaluation after training", 0)
    if subject.spec.exact:
        rows = 512
        many = subject.own_case(8, batch=1)
        spread = many.replace(
            x=many.x.expand(rows, -1, -1),
            context=None if many.context is None else many.context.expand(rows, -1, -1),
            geometry=subject.geometry(8, rows),
        )
        mean = spread.looking(attention.train(), "heads")[1].double().mean(dim=0)
        expected = many.looking(attention.eval(), "heads")[1][0]
        error = distance(mean, expected)
        require(error < 0.25, f"the mean of {rows} draws is off by {error:.0%}: kept weights must be divided by 1 - p")


def inputs_unmodified(subject: AttentionSubject) -> None:
    """No argument is written to, in the forward or in the backward pass."""
    attention = subject.build()
    for case in subject.cases():
        for order in subject.orders():
            terms = subject.terms(case, *subject.declared())
            own = case.leaves()
            given = [own.x, own.source, *_tensors(terms.values()), *_tensors([case.geometry])]
            before = [(tensor.detach().clone(), tensor._version) for tensor in given]
            own(attention, **order, **terms).square().sum().backward()
            for tensor, (content, version) in zip(given, before, strict=True):
                same = tensor._version == version and torch.equal(tensor.detach(), content)
                require(same, f"{case.label} {order}: an input of shape {tuple(tensor.shape)} was modified")


def _tensors(values: Any) -> list[Tensor]:
    """All tensors in tuples and geometries of tensors."""
    found: list[Tensor] = []
    for item in values:
        if isinstance(item, Tensor):
            found.append(item)
        elif isinstance(item, tuple):
            found.extend(_tensors(item))
        elif isinstance(item, Graph | Points):
            found.extend(_tensors(vars(item).values()))
    return found


def stateless(subject: AttentionSubject) -> None:
    """A call gives the same whatever was called before, bit by bit, and leaves no tensor in the module."""
    attention = subject.build()
    case = subject.own_case()
    order = subject.orders()[-1]
    first = case(attention, **order)
    state = copy.deepcopy(attention.state_dict())
    for length in (5, 16):
        other = subject.own_case(length, batch=3, seed=8)
        other(attention, **order, **subject.terms(other, *subject.declared()))
    other(attention.train(), **order).sum().backward()
    agree(case(attention.eval(), **order), first, "the same call after others", 0)
    for name, tensor in attention.state_dict().items():
        require(torch.equal(tensor, state[name]), f"calls change {name}")
    for module in attention.modules():
        for name, item in vars(module).items():
            require(not isinstance(item, Tensor), f"the module keeps a tensor {name!r} between calls")


def deterministic(subject: AttentionSubject) -> None:
    """Under `use_deterministic_algorithms` outputs and gradients repeat bit by bit, or the call says that it cannot."""
    attention = subject.build(dtype=torch.float32)
    case = subject.own_case(70, dtype=torch.float32)
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        found = [_with_all_gradients(attention, case, subject.orders()[-1]) for _ in range(3)]
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        raise NotApplicable("it refuses deterministic algorithms") from None
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
    for again in found[1:]:
        for got, expected in zip(again, found[0], strict=True):
            agree(got, expected, "the same call twice", 0)


def checkpointing(subject: AttentionSubject) -> None:
    """Activation checkpointing gives the same gradients, with dropout too."""
    attention = subject.build_or_refusal(dropout=0.3) or subject.build()
    attention.train()
    order = subject.orders()[-1]
    for case in subject.cases():
        found = []
        for recompute in (False, True):
            torch.manual_seed(4)
            found.append(_with_all_gradients(attention, case, order, recompute=recompute))
        for got, expected in zip(found[1], found[0], strict=True):
            agree(got, expected, f"{case.label}: with checkpointing", 1e-12)


def _with_all_gradients(
    attention: Attention, case: Case, terms: dict[str, Any], *, recompute: bool = False
) -> list[Tensor]:
    own = case.leaves()
    leaves = [own.x] + ([] if own.context is None else [own.context])
    y = checkpoint(own, attention, use_reentrant=False, **terms) if recompute else own(attention, **terms)
    gradients = torch.autograd.grad(
        y.square().sum(), [*leaves, *attention.parameters()], allow_unused=True, materialize_grads=True
    )
    return [y.detach(), *gradients]
