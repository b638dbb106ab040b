"""The figures: what became of the faults of each kind."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from astrozoo.bench.faults.campaign import EVERY, Outcome
from astrozoo.bench.harness import Comparison

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Reliability", "reliability"]


@dataclass
class Reliability(Comparison):
    """Faults and what became of them; a comparison with the run that none struck.

    Attributes:
        outcomes: One per fault.
    """

    outcomes: list[Outcome] = field(default_factory=list)

    def rows(self) -> list[tuple[str, int, int, int, int, str, str]]:
        """By kind, then all: injected, finished without help, stopped clearly and resumed, wrong, steps lost."""
        kinds = list(dict.fromkeys(outcome.kind for outcome in self.outcomes))
        groups = [(kind, [item for item in self.outcomes if item.kind == kind]) for kind in sorted(kinds)]
        rows = []
        for name, items in [*groups, ("all", self.outcomes)]:
            ends = [item.end for item in items]
            lost = [item.lost for item in items if item.lost is not None]
            mean, most = (f"{statistics.mean(lost):.1f}", str(max(lost))) if lost else ("", "")
            counts = (len(items), ends.count("finished"), ends.count("stopped"), ends.count("wrong"))
            rows.append((name, *counts, mean, most))
        return rows

    def table(self) -> Table:
        """One row per kind of fault."""
        from rich.table import Table

        table = Table(title=self.title, title_justify="left")
        table.add_column("fault", no_wrap=True)
        headers = ("injected", "finished without help", "stopped clearly, resumed", "wrong", "steps lost, mean", "most")
        for header in headers:
            table.add_column(header, justify="right")
        for row in self.rows():
            table.add_row(*map(str, row))
        return table

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-able values, every fault included."""
        return {**super().to_dict(), "faults": [asdict(outcome) for outcome in self.outcomes]}


def reliability(title: str, outcomes: Sequence[Outcome], notes: Sequence[str]) -> Reliability:
    """The outcomes, held to what the trainer promises."""
    result = Reliability(title, {}, outcomes=list(outcomes), notes=list(notes))
    wrong = [item for item in outcomes if item.end == "wrong"]
    result.target("number of faults that ended wrong", len(wrong), at_most=0, unit="")
    result.notes += [f"WRONG after {item.kind}, {item.what} ({item.setting}): {item.message}" for item in wrong]
    lost = [item.lost for item in outcomes if item.lost is not None and item.kind != "damaged checkpoint"]
    result.target("most steps lost, but for damaged checkpoints,", max(lost, default=0), at_most=EVERY, unit="")
    return result
