"""Sharded training: where a model is cut, and how its weights come together and apart.

PyTorch's `fully_shard` (FSDP2) keeps a part of every parameter on each process. A module that it is applied to gathers
its weights before it runs and drops them after; the module around all of them does so with what is left. Which modules
these are, the model's spec says in `blocks`, and `distributed.wrap` may say otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
from torch import nn

from astrozoo.errors import ConfigError
from astrozoo.module import ZooModel

__all__ = ["reshard", "shard", "wrap_points"]


def wrap_points(model: ZooModel, patterns: Sequence[str] = ()) -> list[str]:
    """Names of the modules that are sharded one by one, the outermost last.

    Args:
        model: The model, on any device.
        patterns: In which `*` stands for anything between two dots, such as `blocks.*`; by default those of the spec.

    Raises:
        ConfigError: A pattern of `distributed.wrap` fits no module with parameters that is called as one.
    """
    ours = model.spec.blocks if model.spec is not None else ()
    found = {
        pattern: [name for name, module in model.named_modules() if _fits(name, pattern) and _can_be_cut(module)]
        for pattern in patterns or ours
    }
    if unused := [pattern for pattern, names in found.items() if patterns and not names]:
        raise ConfigError(
            f"distributed.wrap has {unused}, expected names of modules of {type(model).__name__} such as those that "
            f"its spec gives: {list(ours)}."
        )
    names = dict.fromkeys(name for matches in found.values() for name in matches)
    # A module that others share has one name here; those inside another must be cut before it is.
    return sorted(names, key=lambda name: -name.count("."))


def shard(loss: nn.Module, model: ZooModel, device: torch.device, processes: int, patterns: Sequence[str] = ()) -> None:
    """Cut the parameters of `model`, a part of `loss`, in place, over all processes; their values are the first's.

    Raises:
        ConfigError: As `wrap_points`.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    names = wrap_points(model, patterns)
    mesh = init_device_mesh(device.type, (processes,))
    with torch.no_grad():
        for tensor in [*loss.parameters(), *loss.buffers()]:
            torch.distributed.broadcast(tensor, 0)
    for name in names:
        fully_shard(model.get_submodule(name), mesh=mesh)
    fully_shard(loss, mesh=mesh)


def reshard(loss: nn.Module) -> None:
    """Drop gathered weights.

    A forward pass without backward leaves those of the outermost module. They take memory, and the next forward pass
    would use them although the parameters may have changed since.
    """
    from torch.distributed.fsdp import FSDPModule

    for module in loss.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _fits(name: str, pattern: str) -> bool:
    parts, wanted = name.split("."), pattern.split(".")
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))


def _can_be_cut(module: nn.Module) -> bool:
    """Lists and dictionaries of modules are never called, so nothing would gather their weights."""
    called = not isinstance(module, (nn.ModuleList, nn.ModuleDict))
    return called and next(module.parameters(), None) is not None
