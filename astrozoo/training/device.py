"""The device that trains, and the memory there is on it."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import torch

from astrozoo.weights.load import usable_device as _named

__all__ = ["available_memory", "usable_device"]


def usable_device(name: str) -> torch.device:
    """The device of that name; `auto` is this machine's accelerator, or the CPU where it has none.

    Raises:
        ConfigError: This machine, or this build of torch, has no such device.
    """
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return torch.device("cpu") if accelerator is None else accelerator
    return _named(name)


def available_memory(device: torch.device) -> int | None:
    """Bytes that a process of this run can have on `device`, with those it holds already; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    if device.type != "cpu":
        return None
    import psutil  # accelerate needs it, too

    own = psutil.Process().memory_info()
    limits = [psutil.virtual_memory().available + own.rss]
    allowed = resource.getrlimit(resource.RLIMIT_AS)[0]
    if allowed != resource.RLIM_INFINITY:  # ulimit -v counts addresses, of which some hold no memory
        limits.append(allowed - own.vms + own.rss)
    group = Path("/sys/fs/cgroup/memory.max")  # the limit of a container
    if group.exists() and (limit := group.read_text(encoding="ascii").strip()) != "max":
        limits.append(int(limit))
    return max(min(limits), 0) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
