"""Checks of additive biases, and of the weights and log-sum-exps that `forward_with` shows."""

from __future__ import annotations

import math

import torch

from astrozoo.testing.attention.cases import agree, distance, equals_reference
from astrozoo.testing.attention.subject import HEADS, AttentionSubject
from astrozoo.testing.report import NotApplicable, require

__all__: list[str] = []


def bias_value(subject: AttentionSubject) -> None:
    """A bias is added to the scaled logits: of every shape; -inf hides as a mask does; log 2 counts a key twice."""
    subject.needs_mask("bias")
    attention = subject.build()
    for case in subject.cases():
        bias = subject.terms(case, "bias")["bias"]
        for order in subject.orders():
            for part in (bias, bias[:1], bias[:, :1], bias[0, 0]):
                equals_reference(attention, case, f"{case.label} {order}: bias {tuple(part.shape)}", **order, bias=part)
            require(
                distance(case(attention, **order, bias=bias), case(attention, **order)) > 1e-4,
                f"{case.label}: a bias changes nothing",
            )
            mask = subject.terms(case, "mask")["mask"]
            hiding = torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, -torch.inf)
            hidden = case(attention, **order, bias=bias + hiding)
            equals_reference(attention, case, f"{case.label} {order}: -inf in a bias", **order, bias=bias + hiding)
            if "mask" in subject.spec.masks:
                masked = case(attention, **order, bias=bias, mask=mask)
                agree(hidden, masked, f"{case.label} {order}: -inf in a bias, and a mask")
    if subject.spec.exact and subject.spec.cross and subject.movable:
        case = subject.case(6, 9)
        for scale in (None, 0.8):
            attention = subject.build(scale=scale)
            bias = torch.zeros(6, 9, dtype=torch.float64)
            bias[:, 4] = math.log(2)
            twice = case.keys_at(torch.tensor([*range(9), 4]))
            agree(case(attention, bias=bias), twice(attention), f"a bias of log 2, and the key twice, scale={scale}")


def bias_gradient(subject: AttentionSubject) -> None:
    """The gradient of a bias is that of the reference, for every shape of it, and 0 where it is -inf."""
    subject.needs_mask("bias")
    attention = subject.build()
    for case in subject.cases():
        full = subject.terms(case, "bias")["bias"]
        hidden = torch.zeros_like(full, dtype=torch.bool)
        hidden[..., 1:3] = True
        hidden[0, 0, 4] = True  # a row that sees nothing
        for order in subject.orders():
            for bias in (full, full[:1, :1], full[0, 0], full.masked_fill(hidden, -torch.inf)):
                found = []
                for compute in (case.__call__, case.reference):
                    leaf = bias.clone().requires_grad_()
                    y = compute(attention, **order, bias=leaf)
                    require(y.requires_grad, f"{case.label} {order}: the bias has no gradient")
                    found.append(torch.autograd.grad(y.square().sum(), leaf, allow_unused=True)[0])
                got, expected = found
                what = f"{case.label} {order}: gradient of a bias {tuple(bias.shape)}"
                require(got is not None, f"{what} is missing")
                agree(got, expected, what, 1e-9)
                require(bool((got[bias == -torch.inf] == 0).all()), f"{what} is not 0 where it is -inf")


def weights(subject: AttentionSubject) -> None:
    """`forward_with` never changes the output; weights are 0 where hidden, and doubled keys add log 2 to the lse."""
    attention = subject.build()
    plain = subject.own_case()
    y, heads = plain.looking(attention, "heads")
    agree(y, plain(attention), "the output beside its heads", 0)
    require(tuple(heads.shape[:3]) == (2, HEADS, 12), f"heads have shape {tuple(heads.shape)}")
    if not subject.spec.softmax:
        for want in ("weights", "lse"):
            subject.must_refuse(want, lambda want=want: plain.looking(attention, want))  # type: ignore[misc]
        raise NotApplicable("it has no softmax, so neither weights nor their log-sum-exp")
    for case in subject.cases():
        rows, queries, keys = case.sizes
        for order in subject.orders():
            y, found = case.looking(attention, "weights", **order)
            agree(y, case(attention, **order), f"{case.label} {order}: the output beside its weights", 0)
            shape = (rows, HEADS, queries, found.shape[-1])
            require(tuple(found.shape) == shape, f"weights have shape {tuple(found.shape)}, expected {shape}")
            per_key = found.shape[-1] == keys  # pooled keys are fewer
            if order["causal"] and case.context is None and case.geometry is None and per_key:
                require(bool((found.triu(1) == 0).all()), f"{case.label}: causal weights look ahead")
            for name in subject.declared("mask", "key_mask"):
                term = subject.terms(case, name)[name]
                found = case.looking(attention, "weights", **order, **{name: term})[1]
                seen = term[:, None, None, :] if name == "key_mask" else term
                if per_key:
                    hidden = found.masked_fill(seen.expand(shape), 0)
                    require(bool((hidden == 0).all()), f"{case.label} {order}: weights under {name} are not 0")
    if subject.spec.exact and subject.spec.cross and subject.movable:
        case = subject.case(6, 9)
        lse = case.looking(attention, "lse")[1]
        twice = case.keys_at(torch.arange(9).repeat(2)).looking(attention, "lse")[1]
        agree(twice, lse + math.log(2), "the log-sum-exp of keys twice")
