"""`deterministic=True`: only operations that give the same bits again, or the name of the one that cannot."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator

import torch

__all__ = ["explain_no_determinism", "only_deterministic", "operation_without_determinism"]

_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
_WORKSPACES = (":4096:8", ":16:8")  # what cuBLAS is reproducible with
_NAMED = re.compile(r"^(?:\w*Error: )?(?P<operation>\S.*?) does not have a deterministic implementation", re.MULTILINE)
_INSTEAD = {  # what to do instead, by what the operation's name contains
    "attention": "take another attention or backend (attention=...)",
    "cumsum": "take an attention without running sums, such as flash, or a newer PyTorch",
    "max_pool": "leave max3 out of the model's operations",
    "upsample": "interpolate with mode nearest, or before training",
}


@contextlib.contextmanager
def only_deterministic(enabled: bool = True) -> Iterator[None]:
    """While it lasts, operations without reproducible results raise; afterwards every setting is as it was before.

    cuBLAS needs a workspace of its own for each stream, asked for in `CUBLAS_WORKSPACE_CONFIG`; a value that is there
    already counts. The variable is read once in a process, with the first matrix product on a GPU: after one, setting
    it here comes too late. Versions of PyTorch that depend on it then refuse to multiply, and `explain_no_determinism`
    says to set it before Python starts.

    Args:
        enabled: False changes nothing.
    """
    if not enabled:
        yield
        return
    variable = os.environ.get(_CUBLAS)
    mode = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    os.environ.setdefault(_CUBLAS, _WORKSPACES[0])
    try:
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
        yield
    finally:
        torch.use_deterministic_algorithms(mode[0], warn_only=mode[1])
        torch.backends.cudnn.benchmark = benchmark
        if variable is None:
            os.environ.pop(_CUBLAS, None)


def operation_without_determinism(error: BaseException | None) -> str | None:
    """The operation that has no reproducible implementation, as PyTorch calls it, if `error` is about one."""
    found = _NAMED.search(str(error)) if isinstance(error, RuntimeError) else None
    return found["operation"] if found else None


def explain_no_determinism(error: BaseException) -> str | None:
    """Which operation cannot be reproducible, and what to do, if `error` is about that; None for any other."""
    if (operation := operation_without_determinism(error)) is not None:
        instead = next((f", or {text}" for part, text in _INSTEAD.items() if part in operation.lower()), "")
        return (
            f"deterministic=True allows only operations that give the same bits again, and {operation!r} has no such "
            f"implementation on this device. Set deterministic=False{instead}."
        )
    if isinstance(error, RuntimeError) and _CUBLAS in str(error):
        return (
            f"deterministic=True needs matrix products that give the same bits again, and cuBLAS started without: "
            f"set {_CUBLAS} to {' or '.join(_WORKSPACES)} before Python starts "
            f"(here it is {os.environ.get(_CUBLAS)!r}), or set deterministic=False."
        )
    return None
