"""What one measurement of a kernel consists of: our call, the peers' calls that do the same work, and the targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

__all__ = ["OURS", "Case", "Floor", "Peer", "Setup"]

OURS = "astrozoo"


@dataclass(frozen=True, slots=True)
class Floor:
    """What no implementation can go below: memory that must be moved once, or arithmetic that must be done.

    Attributes:
        read: Bytes that are read from memory at least once.
        written: Bytes that are written.
        flops: Additions and multiplications in the precision of the data.
    """

    read: int = 0
    written: int = 0
    flops: int = 0


@dataclass(frozen=True, slots=True)
class Peer:
    """A library that one would use instead.

    Attributes:
        call: Does the same work on the same input.
        package: Distribution whose version is reported.
        target: How many times as long as ours it is to take at least; None where nothing was promised.
        error: Largest difference between its result and ours that still counts as the same work; `difference` is
            compared with it before anything is timed.
        difference: Takes our result and the peer's, gives the difference. None where they cannot be
            compared; `why` says why.
        why: Why the results are not compared, or what the peer leaves out; printed with the numbers.
    """

    call: Callable[[], Any]
    package: str
    target: float | None = None
    difference: Callable[[Any, Any], float] | None = None
    error: float = 1e-6
    why: str = ""


@dataclass(frozen=True, slots=True)
class Setup:
    """One case, ready to run: made anew for each measurement, so that only one holds memory at a time."""

    ours: Callable[[], Any]
    peers: Mapping[str, Peer]
    floor: Floor
    notes: Sequence[str] = ()
    calls: int = 1


@dataclass(frozen=True, slots=True)
class Case:
    """A kernel at one size.

    Attributes:
        kernel: Name in `astrozoo.accel`.
        size: What it works on, in words: `5 variables, 126 MB, float32`.
        prepare: Makes the input and the calls; gets the number of threads of our call.
        needs: Modules of the peers; a peer whose module is not installed is left out, and a note says so.
        rounds: Timed rounds by default; slow peers get fewer.
    """

    kernel: str
    size: str
    prepare: Callable[[int], Setup]
    needs: Mapping[str, str] = field(default_factory=dict)
    rounds: int = 15

    def missing(self) -> list[str]:
        """Peers whose module is not installed."""
        return [peer for peer, module in self.needs.items() if find_spec(module) is None]
