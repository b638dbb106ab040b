"""Checks of precision: dtypes, autocast, and logits too large for half precision."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from astrozoo.attention import Attention, use_backend
from astrozoo.testing.attention.subject import AttentionSubject, Case, agree, distance
from astrozoo.testing.report import require

__all__: list[str] = []

# Largest relative error allowed whatever plain attention's own is; of outputs, then of gradients.
FLOORS = {torch.float32: (2e-6, 1e-5), torch.bfloat16: (2e-2, 6e-2), torch.float16: (3e-3, 9e-3)}


def dtypes(subject: AttentionSubject) -> None:
    """float32, bfloat16 and float16: the output has the dtype of x, and the error of plain attention at most twice."""
    for dtype, (floor, gradient_floor) in FLOORS.items():
        attention = subject.build(dtype=dtype)
        exact = copy.deepcopy(attention).double()
        for case in subject.cases(dtype=dtype):
            double = _cast(subject, case, torch.float64)
            for order in subject.orders():
                expected = _with_gradients(exact, double, order, reference=True)
                got = _with_gradients(attention, case, order)
                with use_backend("math"):
                    plain = _with_gradients(attention, case, order)
                require(got[0].dtype == dtype, f"{case.label}: the output of {dtype} inputs is {got[0].dtype}")
                for label, index, least, factor in (("output", 0, floor, 2), ("gradient", 1, gradient_floor, 3)):
                    error = distance(got[index], expected[index])
                    allowed = max(least, factor * distance(plain[index], expected[index]))
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
    attention = subject.build(dtype=torch.float32)
    for case in subject.cases(dtype=torch.float32):
        for order in subject.orders():
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
    """Logits above 65504, the largest float16, leave outputs and gradients finite in half precision."""
    gain = 200.0 if subject.spec.softmax else 8.0  # where values are not averaged, they grow with a power of the gain
    for dtype in (torch.float16, torch.bfloat16):
        attention = subject.build(dtype=dtype)
        for case in subject.cases(dtype=dtype):
            loud = case.replace(x=case.x * gain, context=None if case.context is None else case.context * gain)
            for order in subject.orders():
                own = loud.leaves()
                y = own(attention, **order)
                what = f"{case.label} {order}: large logits in {dtype}"
                require(bool(torch.isfinite(y).all()), f"{what} give outputs that are not finite")
                leaves = [own.source, *attention.parameters()]
                gradients = torch.autograd.grad(y.float().mean(), leaves, allow_unused=True, materialize_grads=True)
                require(
                    all(bool(torch.isfinite(g).all()) for g in gradients), f"{what} give gradients that are not finite"
                )


def _cast(subject: AttentionSubject, case: Case, dtype: torch.dtype) -> Case:
    return case.replace(
        x=case.x.to(dtype),
        context=None if case.context is None else case.context.to(dtype),
        geometry=subject.geometry(case.sizes[1], case.sizes[0], dtype),
    )
