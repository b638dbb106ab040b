"""CUDA graphs of the compiled step: recorded once, then replayed without the host's launching each of its kernels.

A replay writes where the recording wrote: the losses and gradients of one micro-batch are overwritten by the next. What
outlives a micro-batch is copied out of the graph's memory here.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from astrozoo.errors import ConfigError
from astrozoo.training.config import TrainConfig

__all__ = ["Gradients", "copied_out", "graphed"]


def graphed(config: TrainConfig, device: torch.device, processes: int) -> bool:
    """Whether the step is recorded.

    Raises:
        ConfigError: Graphs are asked for in several processes, whose gradients travel while they are computed.
    """
    if not (config.cuda_graphs and config.compile and device.type == "cuda"):
        return False
    if processes > 1:
        raise ConfigError(f"cuda_graphs is True in {processes} processes, expected one process; set cuda_graphs=false.")
    return True


def copied_out(parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """The values of a loss and its parts."""
    return {name: value.detach().clone() for name, value in parts.items()}


class Gradients:
    """Memory of their own for the gradients of parameters: there the backward pass adds to them.

    A parameter without a gradient would be given the graph's tensor itself.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self._owned: dict[nn.Parameter, Tensor] = {}

    def take(self) -> None:
        """After each backward pass: copy out the gradients that it made, where it had none to add to."""
        for parameter in self.parameters:
            gradient = parameter.grad
            if gradient is not None and self._owned.get(parameter) is not gradient:
                self._owned[parameter] = parameter.grad = gradient.clone()

    def clear(self) -> None:
        """Zero them, and keep their memory."""
        if self._owned:
            torch._foreach_zero_(list(self._owned.values()))
