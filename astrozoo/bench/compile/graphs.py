"""How many graphs torch.compile makes of a step while the size of the batch changes, and where it breaks them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

__all__ = ["Graphs", "count_graphs"]

Input = TypeVar("Input")


@dataclass(frozen=True)
class Graphs:
    """What was compiled.

    Attributes:
        compiled: Graphs that each step compiled, in the order of the steps: 0 where an earlier one fitted.
        breaks: Why a graph ended before the step did, each reason once with how often.
    """

    compiled: tuple[int, ...]
    breaks: dict[str, int]

    @property
    def recompilations(self) -> int:
        """Steps beyond the first that compiled something."""
        return sum(count > 0 for count in self.compiled[1:])


def count_graphs(step: Callable[[Input], object], inputs: Iterable[Input]) -> Graphs:
    """Take a step with each of the inputs, and read from the compiler's own counters what it compiled.

    Nothing is put between PyTorch and its backend, so that the step is compiled as it is without being counted. A graph
    of a backward pass is made with that of its forward pass and is not counted again.

    Args:
        step: Forward and backward, through a function that `torch.compile` returned. What was compiled before in this
            process is forgotten.
        inputs: One for each step.

    Raises:
        RuntimeError: Nothing was compiled at all: the step does not go through torch.compile.
    """
    import torch
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    compiled = []
    for item in inputs:
        before = counters["stats"]["unique_graphs"]
        step(item)
        compiled.append(counters["stats"]["unique_graphs"] - before)
    breaks = {" ".join(str(reason).split()): count for reason, count in counters["graph_break"].items()}
    if not any(compiled) and not breaks:
        raise RuntimeError("nothing was compiled; expected a step through torch.compile.")
    return Graphs(tuple(compiled), breaks)
