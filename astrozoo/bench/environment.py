"""Where a measurement was taken: machine, versions, date. A number without this says nothing."""

from __future__ import annotations

import datetime as dt
import os
import platform
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

__all__ = ["describe_environment"]


def describe_environment(packages: Iterable[str] = ()) -> dict[str, str | int]:
    """Processor, cores, device, versions and date.

    Args:
        packages: Distributions whose version is recorded besides Python's, astrozoo's and torch's.
    """
    environment: dict[str, str | int] = {
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "device": _device(),
        "platform": platform.platform(),
        "python": platform.python_version(),
    }
    for package in dict.fromkeys(["astrozoo", "torch", *packages]):
        try:
            environment[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            environment[package] = "not installed"
    # An unset thread count means one thread per core, which a reader of the numbers has to know.
    environment["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", "unset")
    if hasattr(os, "getloadavg"):
        environment["load average"] = " ".join(f"{load:.2f}" for load in os.getloadavg())
    return environment


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _device() -> str:
    # A benchmark that used a GPU has imported torch by now; one that has not must not start to.
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    return "cpu"
