"""Initial values for a few tensors of a model on the meta device, at the cost of those few."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from astrozoo.module import ZooModel

__all__ = ["SkipMetaInit", "initialise_only"]

# A mode sees some initialisers as a whole and nothing of what they do; others it sees as the fills they consist of.
_FILLS = frozenset(
    (
        *(Tensor.normal_, Tensor.uniform_, Tensor.fill_, Tensor.zero_, Tensor.mul_, Tensor.erfinv_),
        *(nn.init.normal_, nn.init.uniform_, nn.init.constant_, nn.init.kaiming_uniform_),
    )
)


class SkipMetaInit(TorchFunctionMode):
    """Leave out operations that fill tensors on the meta device: they do nothing, but take long to do it."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call `func`, unless it would write values into a tensor that has none."""
        if func in _FILLS:
            tensor = args[0] if args else (kwargs or {})["tensor"]
            if tensor.is_meta:
                return tensor
        return func(*args, **(kwargs or {}))


def initialise_only(
    model: ZooModel, names: set[str], device: torch.device, build: Callable[[str], ZooModel]
) -> dict[str, Tensor]:
    """Give memory and initial values to `names` and to buffers that no file holds; all else stays on the meta device.

    `reset_parameters` runs over the whole model: on the meta device it costs nothing and draws no random numbers, and
    the tensors that have memory get exactly what they would get in a model built directly.

    Args:
        model: On the meta device; its non-persistent buffers are filled in place.
        names: Persistent tensors to initialise.
        device: Where they go.
        build: Builds the same model on a device.

    Returns:
        The tensors of `names`.
    """
    if device.type == "meta":
        return {}
    wanted = names | _not_saved(model)
    if not wanted:
        return {}
    for name, owner, leaf, tensor in _slots(model):
        if name in wanted:
            empty = torch.empty_like(tensor, device=device)
            if isinstance(tensor, nn.Parameter):
                owner._parameters[leaf] = nn.Parameter(empty, requires_grad=tensor.requires_grad)
            else:
                owner._buffers[leaf] = empty
    try:
        with torch.no_grad(), SkipMetaInit():
            model.reset_parameters()
    except (NotImplementedError, RuntimeError):
        # This initialisation reads values of other weights, which the meta device does not have: build it all once.
        values = {name: tensor for name, _, _, tensor in _slots(build("cpu"))}
        for name, owner, leaf, _ in _slots(model):
            if name in wanted:
                setattr(owner, leaf, _moved(values[name], device))
    return {name: tensor.detach() for name, _, _, tensor in _slots(model) if name in names}


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    moved = tensor.detach().to(device)
    return nn.Parameter(moved, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else moved


def _not_saved(model: nn.Module) -> set[str]:
    return {name for name, owner, leaf, _ in _slots(model) if leaf in owner._non_persistent_buffers_set}


def _slots(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, Tensor]]:
    """Every parameter and buffer: full name, module that owns it, name there, tensor."""
    for prefix, owner in model.named_modules():
        for leaf, tensor in (*owner._parameters.items(), *owner._buffers.items()):
            if tensor is not None:
                yield f"{prefix}.{leaf}" if prefix else leaf, owner, leaf, tensor
