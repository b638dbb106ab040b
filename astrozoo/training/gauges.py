"""What the machine does while a run trains: memory of the process and of its GPU, and how busy the GPU is.

Utilisation comes from the driver's own library (NVML, which `nvidia-smi` reads, too): the share of time in which the
GPU ran a kernel. A thread asks it a few times a second. That takes some microseconds each and waits for nothing, and
whatever goes wrong in it ends the measurement, never the run.
"""

from __future__ import annotations

import ctypes
import logging
import resource
import sys
import threading
from typing import Any

import torch

__all__ = ["Gauges", "Utilization"]

log = logging.getLogger("astrozoo.training")
_PERIOD = 0.25  # seconds between samples; the driver averages over up to a second


class Gauges:
    """Reads memory and utilisation of a run; close it at the end.

    Args:
        device: Where the run trains.
        watch: Whether to measure utilisation; one process per device does.

    Attributes:
        peak: Most bytes allocated on a GPU since training began; elsewhere, of the process since it began.
    """

    def __init__(self, device: torch.device, *, watch: bool = True) -> None:
        import psutil  # accelerate needs it, too

        self.device = device
        self._process = psutil.Process()
        self._peak = 0
        self._utilization = Utilization(device) if watch and device.type == "cuda" else None

    @property
    def peak(self) -> int:
        """Bytes."""
        if self.device.type == "cuda":
            self._peak = max(self._peak, torch.cuda.max_memory_allocated(self.device))
            return self._peak
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024

    def read(self) -> dict[str, float | None]:
        """Memory now, and on a GPU its peak and utilisation since the last call, by the names they have in the log."""
        values: dict[str, float | None] = {"host_bytes": self._process.memory_info().rss}
        if self.device.type != "cuda":
            return values
        values["gpu_bytes"] = torch.cuda.memory_allocated(self.device)
        values["gpu_reserved_bytes"] = torch.cuda.memory_reserved(self.device)
        recent = torch.cuda.max_memory_allocated(self.device)
        self._peak = max(self._peak, recent)
        torch.cuda.reset_peak_memory_stats(self.device)
        values["gpu_peak_bytes"] = recent
        values["gpu_utilization"] = self._utilization.mean() if self._utilization is not None else None
        return values

    def close(self) -> None:
        """End the measurement."""
        if self._utilization is not None:
            self._utilization.close()


class Utilization:
    """The mean share of time in which a GPU was busy, sampled in a thread.

    Args:
        device: The GPU.
        library: Stands in for the driver's library.

    Attributes:
        problem: Why nothing is measured; empty while it is.
    """

    def __init__(self, device: torch.device, library: Any = None) -> None:
        self.problem = ""
        self._samples: list[int] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        try:
            self._library = library or ctypes.CDLL("libnvidia-ml.so.1")
            self._handle = ctypes.c_void_p()
            self._call("nvmlInit_v2")
            self._call("nvmlDeviceGetHandleByUUID", _uuid(device).encode(), ctypes.byref(self._handle))
            self._sample()
        except (OSError, AttributeError, RuntimeError) as error:
            self.problem = str(error)
            log.info("GPU utilisation is not measured: %s", error)
            return
        self._thread = threading.Thread(target=self._watch, name="astrozoo-utilization", daemon=True)
        self._thread.start()

    def mean(self) -> float | None:
        """Between 0 and 1, since the last call; None if there was no sample."""
        with self._lock:
            samples, self._samples = self._samples, []
        return sum(samples) / len(samples) / 100 if samples else None

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self) -> None:
        try:
            while not self._stop.wait(_PERIOD):
                self._sample()
        except Exception as error:  # a gauge that fails must not end what it measures
            self.problem = str(error) or type(error).__name__
            log.info("GPU utilisation is no longer measured: %s", self.problem)

    def _sample(self) -> None:
        rates = _Rates()
        self._call("nvmlDeviceGetUtilizationRates", self._handle, ctypes.byref(rates))
        with self._lock:
            self._samples.append(int(rates.gpu))

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            known = {3: ", which this GPU or its partition (MIG) does not support", 4: ": no permission"}
            raise RuntimeError(f"{name} answers {status}{known.get(status, '')}")


class _Rates(ctypes.Structure):
    """nvmlUtilization_t: per cent of the time in which a kernel ran, and in which memory was read or written."""

    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


def _uuid(device: torch.device) -> str:
    uuid = str(torch.cuda.get_device_properties(device).uuid)  # numbers of devices differ under CUDA_VISIBLE_DEVICES
    return uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"
