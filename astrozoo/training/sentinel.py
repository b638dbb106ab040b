"""The sentinel: finds a non-finite loss or gradient in time, and the module it came from.

On the CPU every step is checked before the optimiser uses its gradients. On a GPU, asking would stall the queue in
every step; there, what step n computed is read after step n + 2 has been submitted.
"""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from astrozoo.batch import Batch

__all__ = ["LAG", "LaggedCheck", "diagnose", "first_non_finite"]

LAG = 2  # steps between a step and the look at what it gave
_ABSURD = 1e12  # of a value that a model sees, in whatever unit


class LaggedCheck:
    """Reads (loss, gradient norm) of earlier steps from a GPU without waiting for the current one."""

    def __init__(self) -> None:
        self._pending: deque[tuple[int, list[Batch], Tensor, Any]] = deque()

    def submit(self, step: int, batches: list[Batch], loss: Tensor, norm: Tensor) -> None:
        """Queue the values of `step`; their transfer runs behind the computation."""
        values = torch.stack([loss.detach().float(), norm.detach().float()]).to("cpu", non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._pending.append((step, batches, values, event))

    def failed(self, *, wait: bool = False) -> tuple[int, list[Batch], float, float] | None:
        """The first bad step among those that are due (with `wait`: all), with its batches, loss and norm."""
        while len(self._pending) > (0 if wait else LAG):
            step, batches, values, event = self._pending.popleft()
            event.synchronize()
            loss, norm = values.tolist()
            if not (math.isfinite(loss) and math.isfinite(norm)):
                return step, batches, loss, norm
        return None


def first_non_finite(tensors: dict[str, Tensor]) -> str | None:
    """The first tensor that holds NaN or infinity, in words, or None."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            bad = int((~torch.isfinite(tensor)).sum())
            if bad:
                kind = "NaN" if bool(torch.isnan(tensor).any()) else "infinity"
                return f"{name!r} holds {kind} ({bad:,} of {tensor.numel():,} values)"
    return None


def diagnose(model: nn.Module, loss: Callable[[Batch], dict[str, Tensor]], batches: Sequence[Batch]) -> str:
    """Why `loss` or its gradient is not finite for one of `batches`, in one sentence.

    The batches run again with hooks on every module. Gradients are discarded.

    Args:
        model: The module whose parts are named.
        loss: Computes the loss of `model`, with autocast and the like as in training.
        batches: The micro-batches of the step, on the model's device.
    """
    found = first_non_finite({name: item.detach() for name, item in model.named_parameters()})
    if found:
        return f"the weight {found} before this step"
    inputs = None
    for batch in batches:
        inputs = inputs or first_non_finite(batch.inputs)
        sentence = _watch(model, loss, batch)
        if sentence:
            if inputs:
                return f"the input {inputs}; clean the data or mark gaps as the model expects"
            return sentence + (_absurd("input", batch.inputs) or _absurd("target", batch.targets))
        infinite = {name: item[torch.isinf(item)] for name, item in batch.targets.items() if item.is_floating_point()}
        for name, values in infinite.items():
            if values.numel():
                return f"the target {name!r} holds {values.numel():,} infinite values (NaN marks a missing one)"
    if inputs:
        return f"the input {inputs}; clean the data or mark gaps as the model expects"
    return "a second run of the same batch was finite, so it depends on random numbers (dropout) or on the loss scale"


def _absurd(kind: str, tensors: dict[str, Tensor]) -> str:
    """What to add about values that no model was made for, such as a fill value that a file does not declare."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and (largest := float(tensor.nan_to_num().abs().max())) > _ABSURD:
            return f"; the {kind} {name!r} reaches {largest:.3g}, which looks like a fill value: clean the data"
    return ""


def _watch(model: nn.Module, loss: Callable[[Batch], dict[str, Tensor]], batch: Batch) -> str | None:
    suspects: list[str] = []
    names = {module: name or "the model itself" for name, module in model.named_modules()}

    def forward_hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if not suspects and _bad(output):
            source = "bad" if _bad((args, kwargs)) else "finite"
            suspects.append(
                f"the first bad module is {names[module]!r} ({type(module).__name__}): "
                f"non-finite output from {source} inputs"
            )

    def backward_hook(module: nn.Module, grad_input: Any, grad_output: Any) -> None:
        if not suspects and _bad(grad_input) and not _bad(grad_output):
            suspects.append(
                f"the first bad module is {names[module]!r} ({type(module).__name__}): "
                f"non-finite gradient of its inputs from finite gradients of its outputs"
            )

    handles = [module.register_forward_hook(forward_hook, with_kwargs=True) for module in names]
    # Leaves only: full backward hooks on containers wrap their tensors, which in-place operations refuse.
    leaves = [module for module in names if not any(True for _ in module.children())]
    kept = [(parameter, parameter.grad) for parameter in model.parameters()]
    for parameter, _ in kept:
        parameter.grad = None
    try:
        with torch.enable_grad(), warnings.catch_warnings():
            # Hooks also fire on first layers, whose inputs need no gradient; that is no news here.
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            value = loss(batch)["loss"]
            if suspects:
                return suspects[0]
            if not bool(torch.isfinite(value)):
                return f"every module is finite, but the objective made of their outputs is {value.item()}"
            handles += [module.register_full_backward_hook(backward_hook) for module in leaves]
            loss(batch)["loss"].backward()
        if suspects:
            return suspects[0]
        gradients = {name: item.grad for name, item in model.named_parameters() if item.grad is not None}
        found = first_non_finite(gradients)
        owner = found.split("'")[1].rpartition(".")[0] if found else ""
        return f"the gradient of {found}; the first bad module is {owner or 'the model itself'!r}" if found else None
    finally:
        for handle in handles:
            handle.remove()
        for parameter, gradient in kept:
            parameter.grad = gradient


def _bad(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.is_floating_point() and not bool(torch.isfinite(value.detach()).all())
    if isinstance(value, dict):
        return any(_bad(item) for item in value.values())
    return isinstance(value, (tuple, list)) and any(_bad(item) for item in value)
