"""What is timed: one attention call on given tensors, forward and with its gradients; and how far off it is.

An attention of the registry is called where its projections end, at `attend`, on the tensors that its own projections
made. Kernels are called on the same tensors, so that a difference is the interface's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from astrozoo.attention import Attention
from astrozoo.attention.terms import make_terms
from astrozoo.bench.attention.cases import case_of
from astrozoo.bench.attention.setting import Setting
from astrozoo.factory import create_attention

__all__ = ["Contestant", "build", "relative_errors", "seam"]


@dataclass
class Contestant:
    """A call to be timed.

    Attributes:
        name: For the table.
        run: From `inputs` to the output.
        inputs: Tensors that require gradients.
        reference: The same from float64 inputs, slow and right; None where there is nothing to compare with.
        module: The attention of the registry whose inputs these are.
        ours: Whether it is that attention.
        peer: Whom the table compares it with.
    """

    name: str
    run: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]
    reference: Callable[..., Tensor] | None = None
    module: Any = None
    ours: bool = False
    peer: str = ""

    def __post_init__(self) -> None:
        self._weight: Tensor | None = None

    @property
    def moved_bytes(self) -> tuple[int, int]:
        """Bytes that must be read or written at least: forward, and with gradients. Known once `train` has run."""
        read = sum(tensor.nbytes for tensor in self.inputs)
        written = 0 if self._weight is None else self._weight.nbytes
        return read + written, 3 * read + 2 * written  # then inputs, their gradients and the output's once more

    def forward(self) -> Tensor:
        """The output, without keeping anything for gradients."""
        with torch.no_grad():
            return self.run(*self.inputs)

    def train(self) -> tuple[Tensor | None, ...]:
        """The output, and from it the gradients of all inputs."""
        out = self.run(*self.inputs)
        if self._weight is None:
            self._weight = torch.randn_like(out)
        return torch.autograd.grad(out, self.inputs, self._weight, allow_unused=True)


def build(name: str, setting: Setting) -> Attention:
    """The attention `name` at a size, with the options of its case."""
    torch.manual_seed(0)
    options = case_of(name).options(setting)
    module = create_attention(
        name, dim=setting.width, num_heads=setting.heads, device=setting.device, dtype=setting.dtype, **options
    )
    if not isinstance(module, Attention):
        raise TypeError(f"{name} is a {type(module).__name__}, which has no seam to be timed at.")
    return module


def seam(name: str, setting: Setting) -> Contestant:
    """The attention `name` between its projections and its output."""
    module = build(name, setting)
    shape = (setting.batch, setting.tokens, setting.width)
    x = torch.randn(shape, device=setting.device, dtype=setting.dtype)
    context = torch.randn_like(x) if module.spec.needs_context else None
    terms = make_terms(
        batch=setting.batch, heads=setting.heads, queries=setting.tokens, keys=setting.tokens, causal=setting.causal,
        geometry=case_of(name).geometry(setting), scale=module.config.scale,
    )  # fmt: skip
    with torch.no_grad():
        parts, terms = module.place(module.project(x, context), terms, None, (None, None))
    learnt = [index for index, part in enumerate(parts) if part.is_floating_point()]

    def call(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(*inputs: Tensor) -> Tensor:
            given = list(parts)
            for index, tensor in zip(learnt, inputs, strict=True):
                given[index] = tensor
            return function(*given, terms)

        return run

    def reference(*inputs: Tensor) -> Tensor:
        return call(copy.deepcopy(module).double().reference)(*inputs)

    inputs = tuple(parts[index].detach().requires_grad_() for index in learnt)
    return Contestant(name, call(module.attend), inputs, reference, module, ours=True)


def relative_errors(contestant: Contestant) -> tuple[float, float] | None:
    """Error of the output and the largest of the gradients, as norms over the norms of what is right in float64."""
    if contestant.reference is None:
        return None
    exact = tuple(tensor.detach().double().requires_grad_() for tensor in contestant.inputs)
    want = contestant.reference(*exact)
    weight = torch.randn_like(want)
    got = contestant.run(*contestant.inputs)
    wanted = torch.autograd.grad(want, exact, weight, allow_unused=True)
    gained = torch.autograd.grad(got, contestant.inputs, weight.to(got.dtype), allow_unused=True)
    gradients = [_distance(a, b) for a, b in zip(gained, wanted, strict=True) if a is not None and b is not None]
    return _distance(got, want), max(gradients)


def _distance(got: Tensor, want: Tensor) -> float:
    return float((got.detach().double() - want.detach()).norm() / want.detach().norm().clamp(min=1e-300))
