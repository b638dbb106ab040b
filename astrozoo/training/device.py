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


def available_memory(device: torch.device, held: int = 0) -> int | None:
    """Bytes that the tensors of this process can have on `device`; None if unknown.

    Args:
        device: Where.
        held: Bytes of tensors that are there already and count among them.
    """
    if device.type == "cuda":
        unused, total = torch.cuda.mem_get_info(device)
        allocated = torch.cuda.memory_allocated(device)
        allowed = int(torch.cuda.get_per_process_memory_fraction(device) * total) - allocated
        return max(min(unused + torch.cuda.memory_reserved(device) - allocated, allowed), 0) + held
    if device.type != "cpu":
        return None
    import psutil  # accelerate needs it, too

    own = psutil.Process().memory_info()
    free = [psutil.virtual_memory().available]
    group = Path("/sys/fs/cgroup/memory.max")  # the limit of a container
    if group.exists() and (limit := group.read_text(encoding="ascii").strip()) != "max":
        free.append(int(limit) - own.rss)
    # Processes of one machine share what is free; the limit of each is its own.
    each = [max(count, 0) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) for count in free]
    allowed = resource.getrlimit(resource.RLIMIT_AS)[0]
    if allowed != resource.RLIM_INFINITY:  # ulimit -v counts addresses, of which some hold no memory
        each.append(allowed - own.vms)
    return max(min(each), 0) + held
