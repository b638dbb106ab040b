"""Differentiable architecture search on two levels: weights on one half of the data, architecture on the other.

Paper: Liu, Simonyan, Yang (2018), "DARTS: Differentiable Architecture Search", arXiv:1806.09055.

    step = BilevelStep(model)
    for train, validation in zip(batches_of_one_half, batches_of_the_other):
        losses = step(train, validation)
    discrete = model.derive()

The architecture should be the best for the weights that training would reach, not for those of the moment. The paper
looks one step of training ahead (`unrolled=True`, its equation 6) and approximates the second derivatives that this
brings by a difference of two gradients (its equation 8); with `unrolled=False` the weights of the moment are taken,
which costs half as much and finds slightly worse architectures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from astrozoo.errors import ConfigError

__all__ = ["BilevelStep", "architecture_gradient"]


class Searchable(Protocol):
    """What can be searched: a model whose parameters are weights or architecture, and that has a loss."""

    def architecture_parameters(self) -> list[nn.Parameter]:
        """Parameters that choose among operations."""

    def weight_parameters(self) -> list[nn.Parameter]:
        """All others."""

    def loss(self, batch: Any) -> dict[str, Tensor]:
        """Scalar `"loss"` of a batch."""


class BilevelStep:
    """One step of the search: the architecture from the validation batch, then the weights from the training batch.

    Called in a bare loop, with the model where it computes; inside `torch.autocast(..., torch.bfloat16)` for mixed
    precision. Noise (dropout) is the same in all gradients of the architecture: their differences shall mean something.
    """

    def __init__(
        self,
        model: Searchable,
        *,
        weights: torch.optim.Optimizer | None = None,
        architecture: torch.optim.Optimizer | None = None,
        unrolled: bool = True,
        rate: float | None = None,
        clip: float = 5.0,
    ) -> None:
        """Make a step.

        Args:
            model: A model that can be searched, such as `cube_nas_small`.
            weights: Optimises `model.weight_parameters()`; AdamW at 1e-3 by default.
            architecture: Optimises `model.architecture_parameters()`; by default Adam as in the paper.
            unrolled: Look one step of training ahead.
            rate: Length of that step; by default the present learning rate of `weights`.
            clip: Largest norm of the gradient of the weights.

        Raises:
            ConfigError: The model has no architecture parameters: it is discrete already.
        """
        if not model.architecture_parameters():
            raise ConfigError(
                f"{type(model).__name__} has no architecture parameters to search: its genotype is chosen. "
                "Train it like any other model, or create it without a genotype."
            )
        self.model = model
        self.weights = weights or torch.optim.AdamW(model.weight_parameters(), lr=1e-3)
        self.architecture = architecture or torch.optim.Adam(
            model.architecture_parameters(), lr=3e-4, betas=(0.5, 0.999), weight_decay=1e-3
        )
        self.unrolled = unrolled
        self.rate = rate
        self.clip = clip

    def __call__(self, train: Any, validation: Any) -> dict[str, Tensor]:
        """Update architecture and weights.

        Args:
            train: Batch that the weights are trained on.
            validation: Batch that the architecture is judged by.

        Returns:
            The scalars `loss` (training) and `validation`, without gradients.
        """
        rate = self.rate
        if rate is None:
            rate = float(self.weights.param_groups[0]["lr"])
        validation_loss, gradient = architecture_gradient(
            self.model, train, validation, rate=rate if self.unrolled else 0.0
        )
        for parameter, value in zip(self.model.architecture_parameters(), gradient, strict=True):
            parameter.grad = value
        self.architecture.step()

        weights = self.model.weight_parameters()
        loss = self.model.loss(train)["loss"]
        for parameter, value in zip(weights, _gradient(loss, weights), strict=True):
            parameter.grad = (
                value.contiguous()  # that of a sum is one number in many places; no clip scales it
            )  # a sum's gradient is one number in many places, which no clip can scale
        nn.utils.clip_grad_norm_(weights, self.clip)
        self.weights.step()
        for parameter in (*weights, *self.model.architecture_parameters()):
            parameter.grad = None
        return {"loss": loss.detach(), "validation": validation_loss}


def architecture_gradient(
    model: Searchable, train: Any, validation: Any, *, rate: float, difference: float = 0.01
) -> tuple[Tensor, list[Tensor]]:
    """Gradient in the architecture `a` of the validation loss after a step of training from the weights `w`.

    With `w' = w - rate * dL_train(w, a)/dw` it is, by the chain rule, `dL_validation(w', a)/da` minus `rate` times the
    mixed second derivative of `L_train` applied to `v = dL_validation(w', a)/dw'`. The latter is approximated by
    `(dL_train(w + e v, a)/da - dL_train(w - e v, a)/da) / (2 e)` with `e = difference / |v|`.

    Args:
        model: A model that can be searched; its weights are as before when this returns, and no `.grad` is touched.
        train: Batch that the weights are trained on.
        validation: Batch that the architecture is judged by.
        rate: Length of the step; 0 leaves it out (first order), and the training batch is not looked at.
        difference: Length of the step for the second derivative.

    Returns:
        The validation loss (after the step), and one gradient per architecture parameter.
    """
    architecture, weights = model.architecture_parameters(), model.weight_parameters()
    if rate == 0:
        loss = model.loss(validation)["loss"]
        return loss.detach(), _gradient(loss, architecture)

    noise = _Noise(weights[0].device)
    before = [weight.detach().clone() for weight in weights]
    try:
        with noise.again():
            step = _gradient(model.loss(train)["loss"], weights)
        _move(weights, before, step, -rate)
        with noise.again():
            loss = model.loss(validation)["loss"]
            both = _gradient(loss, [*architecture, *weights])
        direct, direction = both[: len(architecture)], both[len(architecture) :]
        norm = torch.stack(torch._foreach_norm(direction)).norm().clamp_min(1e-12)
        epsilon = difference / norm
        sides = []
        for sign in (1, -1):
            _move(weights, before, direction, sign * epsilon)
            with noise.again():
                sides.append(_gradient(model.loss(train)["loss"], architecture))
    finally:
        with torch.no_grad():
            torch._foreach_copy_(list(weights), before)
    gradient = [
        value - rate * (plus - minus) / (2 * epsilon) for value, plus, minus in zip(direct, *sides, strict=True)
    ]
    return loss.detach(), gradient


def _gradient(loss: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Gradient of `loss` by parameter; zeros for what it does not depend on."""
    return list(torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True))


@torch.no_grad()
def _move(weights: Sequence[Tensor], start: Sequence[Tensor], direction: Sequence[Tensor], length: Any) -> None:
    """`weights = start + length * direction`, in place."""
    for weight, origin, value in zip(weights, start, direction, strict=True):
        weight.copy_(origin + length * value)


class _Noise:
    """The same random numbers in every `again()`, which leaves the stream of random numbers outside as it was."""

    def __init__(self, device: torch.device) -> None:
        self.devices = [device] if device.type == "cuda" else []
        self.seed = int(torch.randint(2**62, ()).item())

    @contextmanager
    def again(self) -> Iterator[None]:
        with torch.random.fork_rng(self.devices):
            torch.manual_seed(self.seed)
            yield
