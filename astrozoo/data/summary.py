"""What fields hold at a glance: counts, gaps, moments and quantiles of each variable.

print(describe(open_fields("t2m.nc")))
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from astrozoo.accel import nan_stats, quantiles
from astrozoo.errors import DataError

__all__ = ["FieldSummary", "VariableSummary", "describe"]

QUANTILES = (0.01, 0.25, 0.5, 0.75, 0.99)


@dataclass(frozen=True, slots=True)
class VariableSummary:
    """One variable; all numbers but the first two are in its unit, and NaN where nothing is known.

    Attributes:
        name: As in the file.
        units: The attribute `units`; empty where there is none.
        count: Known values.
        missing: Share of the values that is NaN.
        mean, std: Not weighted by area; population standard deviation.
        min, max: The extremes.
        quantiles: At 1, 25, 50, 75 and 99 %.
    """

    name: str
    units: str
    count: int
    missing: float
    mean: float
    std: float
    min: float
    quantiles: tuple[float, ...]
    max: float


@dataclass(frozen=True, slots=True)
class FieldSummary(Sequence[VariableSummary]):
    """A row for each variable; prints as a table."""

    rows: tuple[VariableSummary, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # as Sequence has it
        return self.rows[index]

    def __iter__(self) -> Iterator[VariableSummary]:
        return iter(self.rows)

    def __str__(self) -> str:
        names = [f"{q:.0%}" for q in QUANTILES]
        cells = [["variable", "units", "known", "missing", "mean", "std", "min", *names, "max"]]
        for row in self.rows:
            numbers = (row.mean, row.std, row.min, *row.quantiles, row.max)
            cells.append([row.name, row.units, f"{row.count:,}", f"{row.missing:.1%}", *(f"{x:.5g}" for x in numbers)])
        widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
        places = [*["<"] * 2, *[">"] * (len(widths) - 2)]
        layout = "  ".join(f"{{:{place}{width}}}" for place, width in zip(places, widths, strict=True))
        return "\n".join(layout.format(*line) for line in cells)


def describe(fields: xr.Dataset, *, threads: int | None = None) -> FieldSummary:
    """Statistics of each variable with numbers, over all of its dimensions; one variable is in memory at a time.

    Args:
        fields: Fields, as `open_fields` gives them, or any Dataset.
        threads: See `astrozoo.accel.threads.workers`.

    Raises:
        DataError: No variable holds real numbers.
    """
    numeric = [name for name, variable in fields.data_vars.items() if variable.dtype.kind in "fiub"]
    if not numeric:
        raise DataError(f"nothing to describe: none of the variables {list(fields.data_vars)} holds real numbers.")
    return FieldSummary(tuple(_summary(fields[name], threads) for name in numeric))


def _summary(variable: xr.DataArray, threads: int | None) -> VariableSummary:
    values = np.asarray(variable.values).reshape(1, -1)
    stats = nan_stats(values, threads=threads)
    count, mean, std, low, high = (part[0].item() for part in stats)
    wanted = tuple(float(value) for value in quantiles(values, QUANTILES, threads=threads)[:, 0])
    missing = 1.0 - count / values.size if values.size else 0.0
    units = str(variable.attrs.get("units", ""))
    return VariableSummary(str(variable.name), units, count, missing, mean, std, low, wanted, high)
