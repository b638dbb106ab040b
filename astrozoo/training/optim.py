"""Optimisers, learning-rate schedules, gradient norms and the moving average of the weights."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from astrozoo.errors import ConfigError
from astrozoo.registry.names import suggest
from astrozoo.training.config import OptimConfig, ScheduleConfig

__all__ = ["Ema", "build_optimizer", "clip_gradients", "learning_rate", "local"]

_FUSED = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """The optimiser over the trainable parameters; those with fewer than two dimensions are not decayed.

    A model may name more parameters to exempt in a method `no_weight_decay()`, as in timm.

    Raises:
        ConfigError: The name is unknown (the nearest are offered), or the optimiser refuses an option.
    """
    named: Any = getattr(model, "no_weight_decay", None)
    exempt = set(named()) if named is not None else set()
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (free if parameter.ndim < 2 or name in exempt else decayed).append(parameter)
    if not decayed and not free:
        raise ConfigError(f"{type(model).__name__} has no trainable parameter; set requires_grad on what to train.")
    groups = [
        {"params": parameters, "weight_decay": decay}
        for parameters, decay in ((decayed, config.weight_decay), (free, 0.0))
        if parameters
    ]
    name = config.name.lower()
    arguments: dict[str, Any] = {"lr": config.lr}
    arguments |= {key: value for key in ("betas", "momentum") if (value := getattr(config, key)) is not None}
    arguments |= config.options
    kind: Any
    if name in _FUSED:
        kind = _FUSED[name]
        sharded = any(hasattr(parameter, "full_tensor") for parameter in decayed + free)
        arguments.setdefault("fused", not (sharded and decayed[:1] and decayed[0].device.type == "cpu"))
        if arguments["fused"] and any(parameter.device.type not in ("cpu", "cuda") for parameter in decayed + free):
            arguments["fused"] = False
    else:
        kind = _timm_optimizer(config.name)
    momentum = inspect.signature(kind).parameters.get("momentum")
    if momentum is not None and momentum.default == 0:
        arguments.setdefault("momentum", 0.9)
    try:
        return kind(groups, **arguments)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"optimiser {config.name!r} refuses its settings {arguments}: {error}") from error


def _timm_optimizer(name: str) -> Any:
    import timm.optim

    known = [str(item) for item in timm.optim.list_optimizers()]
    if name.lower() not in known:
        raise ConfigError(
            f"optim.name is {name!r}, which no library offers.{suggest(name, known)} "
            f"Often used: adamw, lion, muon, sgd; all names: timm.optim.list_optimizers()."
        )
    try:
        return timm.optim.get_optimizer_class(name.lower(), bind_defaults=True)
    except (AssertionError, ImportError) as error:  # timm asserts that what an optimiser needs is there
        raise ConfigError(f"optimiser {name!r} cannot run here: {error}.") from error


def learning_rate(config: ScheduleConfig, step: int, steps: int) -> float:
    """Factor of the peak learning rate in step `step` (from 0) of `steps`."""
    warmup = config.warmup * steps if config.warmup < 1 else config.warmup
    if step < warmup:
        return (step + 1) / (math.floor(warmup) + 1)
    if config.name == "constant":
        return 1.0
    begin = max(warmup, (1 - config.decay) * steps) if config.name == "wsd" else warmup
    progress = min(max((step - begin) / max(steps - 1 - begin, 1), 0.0), 1.0)
    falling = 0.5 * (1 + math.cos(math.pi * progress)) if config.name == "cosine" else 1 - progress
    return config.final + (1 - config.final) * falling


def clip_gradients(gradients: Sequence[Tensor], largest: float | None) -> Tensor:
    """Total norm of the gradients, which are scaled in place to at most `largest`. Never waits for a GPU."""
    if not gradients:
        raise ConfigError("no parameter received a gradient; check that the loss depends on trainable parameters.")
    if hasattr(gradients[0], "full_tensor"):
        whole: Any = nn.utils.get_total_norm(gradients)
        norm = whole.full_tensor()
    else:
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(gradients))))
    if largest is not None and (norm.device.type != "cpu" or norm.item() > largest):
        # Where reading the norm costs nothing, the common case "nothing to clip" costs nothing either.
        scale = (largest / (norm + 1e-6)).clamp_(max=1.0)
        torch._foreach_mul_([local(gradient) for gradient in gradients], scale)
    return norm


def local(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor; any other tensor as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


class Ema:
    """Exponential moving average of trainable parameters, on their device and sharded as they are.

    The decay in step t is at most (1 + t) / (10 + t), so that the average forgets the initial weights.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.named = {name: item for name, item in model.named_parameters() if item.requires_grad}
        with torch.no_grad():
            self.averages = {name: item.detach().clone() for name, item in self.named.items()}
            self._ours = [local(item) for item in self.averages.values()]
            self._theirs = [local(item.detach()) for item in self.named.values()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the averages towards the weights after step `step` (from 0)."""
        torch._foreach_lerp_(self._ours, self._theirs, 1 - min(self.decay, (1 + step) / (10 + step)))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the averaged weights inside the block, and its own again after it, bit for bit."""
        with torch.no_grad():
            kept = [item.clone() for item in self._theirs]
            torch._foreach_copy_(self._theirs, self._ours)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self._theirs, kept)
