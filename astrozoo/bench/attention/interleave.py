"""Interleaved timing of contestants that may fail: one that raises is left out of the rest, and told."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from astrozoo.bench.attention.contestants import Contestant
from astrozoo.bench.attention.memory import peak_bytes
from astrozoo.bench.harness import Samples, measure

__all__ = ["WAYS", "Effort", "interleave", "reason_of", "release"]

WAYS = ("forward", "forward+backward")
_SAMPLE = 1e-3  # seconds of GPU time of a sample at least; events resolve half a microsecond
_MOST_CALLS = 50


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    Attributes:
        rounds: At least.
        most: At most.
        seconds: More rounds than `rounds` are made as long as all of them take no longer than this.
    """

    rounds: int
    most: int
    seconds: float

    def rounds_of(self, seconds: float) -> int:
        """Number of rounds, where one takes this long."""
        return max(self.rounds, min(self.most, int(self.seconds / seconds)))


def interleave(
    contestants: Iterable[Contestant], device: str, effort: Effort
) -> tuple[dict[str, Samples], dict[str, str]]:
    """Time and peak memory of all contestants, both ways, in the same rounds.

    Args:
        contestants: What to time.
        device: `cpu` or `cuda`.
        effort: How long.

    Returns:
        Samples by "name, way", and what was raised by those that have none.
    """
    calls = {
        f"{contestant.name}, {way}": _Guarded(function)
        for contestant in contestants
        for way, function in zip(WAYS, (contestant.forward, contestant.train), strict=True)
    }
    seconds, host, peaks = {}, {}, {}
    for label, call in calls.items():
        call()  # compiles, tunes and probes, which is neither the time nor the memory of a call
        peaks[label] = call.peak_bytes() if device == "cpu" else 0
        host[label], seconds[label] = _once(call, device)
    alive = {label: call for label, call in calls.items() if not call.error}
    samples: dict[str, Samples] = {}
    if alive:
        repeat = 1
        if device != "cpu":
            repeat = min(max(math.ceil(_SAMPLE / min(seconds[label] for label in alive)), 1), _MOST_CALLS)
        lead = 2 * repeat * max(host[label] for label in alive) if device != "cpu" else 0.0
        samples = measure(
            alive,
            rounds=effort.rounds_of(repeat * sum(seconds[label] for label in alive)),
            warmup=1 if device != "cpu" else 0,
            calls=repeat,
            device=device,
            memory=device != "cpu",
            lead=min(lead, 0.1),
        ).samples
    if device == "cpu":
        samples = {label: Samples(taken.seconds, (peaks[label],)) for label, taken in samples.items()}
    failures = {label: call.error for label, call in calls.items() if call.error}
    return {label: taken for label, taken in samples.items() if label not in failures}, failures


class _Guarded:
    """A call that is not made again once it has failed."""

    def __init__(self, function: Callable[[], object]) -> None:
        self.function = function
        self.error = ""

    def __call__(self) -> None:
        self._guard(self.function)

    def peak_bytes(self) -> int:
        """Peak memory of a call on the CPU."""
        return self._guard(lambda: peak_bytes(self.function)) or 0

    def _guard(self, function: Callable[[], Any]) -> Any:
        if self.error:
            return None
        try:
            return function()
        except Exception as error:  # a peer may fail in any way, and the others are still to be measured
            self.error = reason_of(error)
            release()
        return None


def reason_of(error: Exception) -> str:
    """What an error is and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}{': ' + lines[0] if lines else ''}"


def release() -> None:
    """Give the memory of a GPU back that nothing holds any more."""
    if torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()


def _once(call: Callable[[], object], device: str) -> tuple[float, float]:
    """Seconds until a call has returned, and until its work is done."""
    if device != "cpu":
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    returned = time.perf_counter() - start
    if device != "cpu":
        torch.cuda.synchronize()
    return returned, time.perf_counter() - start
