"""How fast this machine moves memory and multiplies, measured in the same run: the floors beside the kernels."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from astrozoo.bench.accel.case import Floor

__all__ = ["Machine", "measure_machine"]

_BYTES = 1 << 28  # beyond every cache


@dataclass(frozen=True, slots=True)
class Machine:
    """What the machine reaches with `threads` threads.

    Attributes:
        read: Bytes per second that are read and summed up.
        write: Bytes per second that are written.
        flops: Floating-point operations per second of a float32 matrix product.
    """

    threads: int
    read: float
    write: float
    flops: float

    def seconds(self, floor: Floor) -> float:
        """The least time for what `floor` counts: memory or arithmetic, whichever takes longer."""
        return max(floor.read / self.read + floor.written / self.write, floor.flops / self.flops)

    def __str__(self) -> str:
        return (
            f"this machine reads {self.read / 1e9:.3g} GB/s, writes {self.write / 1e9:.3g} GB/s and multiplies float32 "
            f"matrices at {self.flops / 1e9:.3g} GFLOP/s on {self.threads} threads"
        )


def measure_machine(threads: int) -> Machine:
    """Time a sum, a fill and a matrix product, the best of several: floors are what could be, not what is usual."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        memory = torch.ones(_BYTES // 4)
        square = torch.rand(1536, 1536)
        return Machine(
            threads,
            read=_BYTES / _least(memory.sum),
            write=_BYTES / _least(lambda: memory.fill_(2.0)),
            flops=2 * 1536**3 / _least(lambda: square @ square),
        )
    finally:
        torch.set_num_threads(before)


def _least(call: Callable[[], object]) -> float:
    times = []
    for _ in range(7):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)
