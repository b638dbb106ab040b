"""Memory of one call on the CPU, where no allocator keeps a peak: the tensors that are alive at the worst moment."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["free_bytes", "peak_bytes"]


def peak_bytes(function: Callable[[], object]) -> int:
    """Most bytes that tensors made by `function` hold at once. What a kernel allocates within itself is not seen."""
    with _Alive() as alive:
        function()
    return alive.peak


class _Alive(TorchDispatchMode):
    """Sums up the storages that operations made and that still exist; views of what was there before count nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._made: dict[StorageWeakRef, int] = {}
        self._given: set[StorageWeakRef] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._given |= {storage for storage in _storages((args, kwargs)) if storage not in self._made}
        out = function(*args, **(kwargs or {}))
        self._made.update((storage, size) for storage, size in _storages(out).items() if storage not in self._given)
        for storage in [storage for storage in self._made if storage.expired()]:
            del self._made[storage]
        self.peak = max(self.peak, sum(self._made.values()))
        return out


def _storages(values: Any) -> dict[StorageWeakRef, int]:
    tensors = (value for value in tree_leaves(values) if isinstance(value, Tensor))
    return {StorageWeakRef(storage): storage.nbytes() for storage in (tensor.untyped_storage() for tensor in tensors)}


def free_bytes(device: str) -> int:
    """Memory that is free now."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info()[0])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
