"""How two ways to compute the same thing are compared, and padded batches whose real tokens are known."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import pytest
import torch
from torch import Tensor

Outputs = Sequence[Tensor]


def leaves(outputs: object) -> Iterator[Tensor]:
    if isinstance(outputs, Tensor):
        yield outputs
    elif outputs is not None:
        for part in outputs:
            yield from leaves(part)


@pytest.fixture
def agree() -> Callable[..., None]:
    """`agree(fast, slow, tensors)`: the same outputs, states and gradients of all floating tensors, to 1e-10."""

    def run(function: Callable[..., object], tensors: Mapping[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        inputs = {name: tensor.detach().clone().requires_grad_() for name, tensor in tensors.items()}
        outputs = list(leaves(function(**inputs)))
        generator = torch.Generator().manual_seed(1)
        weights = [torch.randn(out.shape, generator=generator, dtype=torch.float64) for out in outputs]
        loss = sum((out * weight).sum() for out, weight in zip(outputs, weights, strict=True))
        grads = torch.autograd.grad(loss, list(inputs.values()), allow_unused=True)
        return outputs, [
            torch.zeros_like(given) if grad is None else grad
            for given, grad in zip(inputs.values(), grads, strict=True)
        ]

    def check(fast: Callable[..., object], slow: Callable[..., object], tensors: Mapping[str, Tensor]) -> None:
        (got, got_grads), (want, want_grads) = run(fast, tensors), run(slow, tensors)
        names = [*(f"output {index}" for index in range(len(got))), *(f"gradient of {name}" for name in tensors)]
        pairs = zip([*got, *got_grads], [*want, *want_grads], strict=True)
        for name, (mine, theirs) in zip(names, pairs, strict=True):
            assert mine.shape == theirs.shape, name
            assert torch.isfinite(mine).all(), name
            assert (mine - theirs).norm() <= 1e-10 * max(1, theirs.norm()), name

    return check


@pytest.fixture(params=["left", "right", "middle", "scattered", "nothing real in one row"])
def padded(request: pytest.FixtureRequest) -> Tensor:
    """Masks (2, 75) of two rows with different padding."""
    mask = torch.ones(2, 75, dtype=torch.bool)
    if request.param == "left":
        mask[0, :9], mask[1, :70] = False, False
    elif request.param == "right":
        mask[0, -3:], mask[1, 20:] = False, False
    elif request.param == "middle":
        mask[0, 30:60], mask[1, 63:66] = False, False
    elif request.param == "scattered":
        mask = torch.rand(2, 75, generator=torch.Generator().manual_seed(3)) < 0.5
    else:
        mask[1] = False
    return mask
