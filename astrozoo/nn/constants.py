"""Tables that depend on sizes alone: made once, in double precision, kept per device and dtype, constants to compilers.

A model that takes any grid cannot hold the tables of each as buffers; making them in every call would be slow, and
tracing how they are made would fill a graph with thousands of nodes. Neither are they ever saved.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

__all__ = ["constant", "fixed"]

Make = Callable[..., NDArray[np.float64]]
Key = tuple[Make, tuple[Hashable, ...], torch.device, torch.dtype]


def constant(make: Make, *arguments: Hashable, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """`make(*arguments)` as a tensor on the device of `like`, in its dtype but at least in float32, or in `dtype`.

    Made once and then shared: never write to it. `torch.compile` and `torch.export` see a constant. On the meta device,
    and for fake tensors, it has a shape and no values.

    Args:
        make: A function at the top of its module that returns a float64 array.
        arguments: What it is called with: numbers, words, tuples of them. Sizes of a tensor that a compiler may take
            for dynamic belong into `fixed` first.
        like: Names the device, and the dtype where `dtype` does not.
        dtype: Of the table.
    """
    dtype = torch.promote_types(like.dtype, torch.float32) if dtype is None else dtype
    if not torch.compiler.is_compiling() and (like.is_meta or isinstance(like, FakeTensor)):
        return like.new_empty(_array(make, arguments).shape, dtype=dtype)
    key = make, arguments, like.device, dtype
    return _READERS[_name(key)](*key)


def fixed(size: int) -> int:
    """The size as a plain number, also where a compiler would leave it open: tables have one."""
    return len(range(size))


# PyTorch 2.11 takes constants for one where the functions that made them have one name: a reader for each table.
_SLOTS = 256
_names: dict[Key, str] = {}


@torch.compiler.assume_constant_result
def _name(key: Key) -> str:
    """Of the reader that gives this table: another table's only after `_SLOTS` others."""
    return _names.setdefault(key, f"table{len(_names) % _SLOTS}")


def _reader(name: str) -> Callable[..., Tensor]:
    def read(make: Make, arguments: tuple[Any, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
        return _tensor(make, arguments, device, dtype)

    read.__code__ = read.__code__.replace(co_name=name)
    return torch.compiler.assume_constant_result(read)


_READERS = {name: _reader(name) for name in map("table{}".format, range(_SLOTS))}


@lru_cache(maxsize=64)
def _tensor(make: Make, arguments: tuple[Any, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    array = _array(make, arguments)
    return _apart(lambda: torch.from_numpy(array.copy()).to(device, dtype))


@lru_cache(maxsize=64)
def _array(make: Make, arguments: tuple[Any, ...]) -> NDArray[np.float64]:
    return _apart(lambda: make(*arguments))


def _apart(make: Callable[[], Any]) -> Any:
    """In a thread of its own, where no mode of the caller (inference, autocast, fake tensors, tracing) holds."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(make).result()
