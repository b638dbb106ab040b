"""How many threads a kernel may use."""

from __future__ import annotations

import os
import sys

from astrozoo.errors import ConfigError

__all__ = ["workers"]

_VARIABLE = "ASTROZOO_NUM_THREADS"


def workers(threads: int | None) -> int:
    """Threads for one call: as many as asked for, else `ASTROZOO_NUM_THREADS`, else one for each core of the process.

    Within a worker of a DataLoader the default is 1: the loader's own processes use the cores already.

    Args:
        threads: What the caller asked for; None leaves the choice here.

    Raises:
        ConfigError: The number, or the variable, is not a whole number of at least 1.
    """
    if threads is not None:
        return _checked(threads, "threads")
    if text := os.environ.get(_VARIABLE, "").strip():
        return _checked(int(text) if text.isascii() and text.isdigit() else text, _VARIABLE)
    return 1 if _in_loader() else _cores()


def _checked(threads: object, name: str) -> int:
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise ConfigError(f"{name} is {threads!r}; expected a whole number of at least 1.")
    return threads


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _in_loader() -> bool:
    data = sys.modules.get("torch.utils.data")  # a worker has it imported; nobody else needs it for this
    return data is not None and data.get_worker_info() is not None
