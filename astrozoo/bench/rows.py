"""A comparison with columns of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from astrozoo.bench.harness import Comparison

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Rows"]

Row = Mapping[str, Any]


def _texts(row: Row) -> dict[str, str]:
    return {name: str(value) for name, value in row.items()}


@dataclass
class Rows(Comparison):
    """A comparison that is more than times.

    Attributes:
        rows: JSON-able values, one mapping for each row.
        cells: Texts of a row by column; the first column is its name.
    """

    rows: Sequence[Row] = field(default_factory=list)
    cells: Callable[[Row], dict[str, str]] = _texts

    def table(self) -> Table:
        """A rich table of `rows`."""
        from rich.table import Table

        table = Table(title=self.title, title_justify="left")
        texts = [self.cells(row) for row in self.rows]
        headers = list(dict.fromkeys(header for row in texts for header in row))
        for index, header in enumerate(headers):
            table.add_column(header, justify="right" if index else "left", no_wrap=not index)
        for row in texts:
            table.add_row(*(row.get(header, "") for header in headers))
        return table

    def to_dict(self) -> dict[str, Any]:
        """As `Comparison.to_dict`, with `rows`."""
        return {**super().to_dict(), "rows": list(self.rows)}
