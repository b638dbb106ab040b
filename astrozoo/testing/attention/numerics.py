"""Checks of precision: dtypes, autocast, and logits too large for half precision."""

from __future__ import annotations

import copy
import itertools

import torch
from torch import Tensor

from astrozoo.attention import Attention, use_backend
from astrozoo.testing.attention.cases import Case, agree, distance
from astrozoo.testing.attention.subject import AttentionSubject
from astrozoo.testing.report import require

__all__: list[str] = []

# Relative error that is always allowed, of outputs and of gradients. Where plain attention on `math` is as far off,
# twice its own error is allowed for outputs and three times for gradients, up to ten times these.
FLOORS = {torch.float32: (2e-6, 1e-5), torch.bfloat16: (2e-2, 6e-2), torch.float16: (3e-3, 9e-3)}


def dtypes(subject: AttentionSubject) -> None:
    """float32, bfloat16 and float16: the output has the dtype of x, and the error of plain attention at most twice."""
    for dtype, (floor, gradient_floor) in FLOORS.items():
        attention = subject.build(dtype=dtype)
        exact = copy.deepcopy(attention).double()
        for case in subject.cases(dtype=dtype):
            double = case.to(torch.float64)
            for order in subject.orders():
                expected = _with_gradients(exact, double, order, reference=True)
                got = _with_gradients(attention, case, order)
                with use_backend("math"):
                    plain = _with_gradients(attention, case, order)
                require(got[0].dtype == dtype, f"{case.label}: the output of {dtype} inputs is {got[0].dtype}")
                for label, index, least, factor in (("output", 0, floor, 2), ("gradient", 1, gradient_floor, 3)):
                    error = distance(got[index], expected[index])
                    own = factor * distance(plain[index], expected[index])
                    allowed = min(max(least, own), 10 * least)
                    what = f"{case.label} {order}: {label} in {dtype}"
                    require(error <= allowed, f"{what} has relative error {error:.1e}, allowed {allowed:.1e}")


def _with_gradients(
    attention: Attention, case: Case, order: dict[str, bool], *, reference: bool = False
) -> tuple[Tensor, Tensor]:
    """The output, and the gradients of inputs and parameters as one vector."""
    own = case.leaves()
    leaves = [own.x] + ([] if own.context is None else [own.context])
    y = own.reference(attention, **order) if reference else own(attention, **order)
    probe = torch.randn(y.shape, generator=torch.Generator().manual_seed(3)).to(y.dtype)
    gradients = torch.autograd.grad(
        y, [*leaves, *attention.parameters()], probe, allow_unused=True, materialize_grads=True
    )
    return y.detach(), torch.cat([gradient.double().flatten() for gradient in gradients])


def autocast(subject: AttentionSubject) -> None:
    """Under autocast the output keeps the dtype of x, is close to float32's, but really computed in half precision."""
    normed = subject.build_or_refusal(dtype=torch.float32, qk_norm=True)
    plain = [subject.build(dtype=torch.float32)]
    for attention, case, order in itertools.product(
        plain if normed is None else [*plain, normed], subject.cases(dtype=torch.float32), subject.orders()
    ):
        full = case(attention, **order)
        for dtype in (torch.bfloat16, torch.float16):
            with torch.autocast("cpu", dtype=dtype):
                y, gradient = _with_gradients(attention, case, order)
            what = f"{case.label} {order}: under autocast to {dtype}"
            require(y.dtype == torch.float32, f"{what} the output of float32 inputs is {y.dtype}")
            agree(y, full, what, 3e-2)
            require(distance(y, full) > 1e-6, f"{what} everything is float32: autocast is ignored")
            require(bool(torch.isfinite(gradient).all()), f"{what} a gradient is not finite")


def large_logits(subject: AttentionSubject) -> None:
    """Logits above 65504, the largest float16, leave outputs and gradients finite in half precision.

    Where values are not averaged they grow with a power of the input; then the largest input counts whose true result
    fits float16.
    """
    for dtype in (torch.float16, torch.bfloat16):
        attention = subject.build(dtype=dtype)
        exact = copy.deepcopy(attention).double()
        for case in subject.cases(dtype=dtype):
            for order in subject.orders():
                loud = next(
                    loud
                    for loud in (_louder(case, gain) for gain in (200, 64, 16, 4, 1))
                    if _largest(exact, loud.to(torch.float64), order) < 2e4
                )
                largest = _largest(attention, loud, order)
                what = f"{case.label} {order}: tokens up to {loud.x.abs().max():.0f} in {dtype}"
                require(largest < float("inf"), f"{what} give outputs or gradients that are not finite")


def _louder(case: Case, gain: float) -> Case:
    return case.replace(x=case.x * gain, context=None if case.context is None else case.context * gain)


def _largest(attention: Attention, case: Case, order: dict[str, bool]) -> float:
    """The largest number in heads, outputs and gradients; infinite where any is not finite."""
    own = case.leaves()
    y, heads = own.looking(attention, "heads", **order)
    leaves = [own.source, *attention.parameters()]
    gradients = torch.autograd.grad(y.double().mean(), leaves, allow_unused=True, materialize_grads=True)
    found = [tensor.detach().double().abs() for tensor in (y, heads, *gradients)]
    return max(tensor.nan_to_num(torch.inf, torch.inf).max().item() for tensor in found)
