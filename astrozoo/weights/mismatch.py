"""What in a file does not fit a model: found from headers alone, told as one folded table.

Names that differ only in running numbers become one row: `blocks.{0..11}.norm.weight` instead of twelve.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

__all__ = ["Mismatch", "fold"]

_ROWS = 20


@dataclass(slots=True)
class Mismatch:
    """Differences between the tensors of a file and those of a model, by tensor name.

    Attributes:
        missing: Tensors the model needs and the file lacks, with their shapes.
        unexpected: Tensors of the file that the model has no place for, with their shapes.
        shapes: Shape in the file, shape in the model.
        dtypes: Dtype in the file, dtype expected.
    """

    missing: dict[str, tuple[int, ...]] = field(default_factory=dict)
    unexpected: dict[str, tuple[int, ...]] = field(default_factory=dict)
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    dtypes: dict[str, tuple[str, str]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.shapes or self.dtypes)

    def names(self) -> set[str]:
        """All tensors concerned."""
        return {*self.missing, *self.unexpected, *self.shapes, *self.dtypes}

    def table(self) -> str:
        """The differences as indented text, one row per folded name."""
        sections = (
            ("missing from the file", {name: _shape(shape) for name, shape in self.missing.items()}),
            ("unexpected in the file", {name: _shape(shape) for name, shape in self.unexpected.items()}),
            (
                "wrong shape",
                {name: f"file {_shape(got)}, model {_shape(own)}" for name, (got, own) in self.shapes.items()},
            ),
            ("wrong dtype", {name: f"file {got}, expected {own}" for name, (got, own) in self.dtypes.items()}),
        )
        lines = []
        for title, entries in sections:
            if entries:
                lines.append(f"  {title} ({len(entries)}):")
                lines += _rows(entries)
        return "\n".join(lines)


def fold(names: Iterable[str]) -> list[str]:
    """Names with running numbers folded: `["a.0.w", "a.1.w", "b"]` becomes `["a.{0..1}.w", "b"]`."""
    groups: dict[tuple[str, ...], list[tuple[int, ...]]] = {}
    for name in names:
        parts = re.split(r"(?<![^.])(\d+)(?![^.])", name)  # numbers that are whole components
        groups.setdefault(tuple(parts[::2]), []).append(tuple(int(part) for part in parts[1::2]))
    return [name for texts, numbers in groups.items() for name in _fold_group(texts, numbers)]


def _fold_group(texts: tuple[str, ...], numbers: list[tuple[int, ...]]) -> list[str]:
    columns = [sorted(set(column)) for column in zip(*numbers, strict=True)]
    if math.prod(len(column) for column in columns) == len(set(numbers)):
        return [_join(texts, [_numbers(column) for column in columns])]
    by_first: dict[tuple[int, ...], list[int]] = {}
    for first, *rest in numbers:
        by_first.setdefault(tuple(rest), []).append(first)
    return [_join(texts, [_numbers(sorted(firsts)), *map(str, rest)]) for rest, firsts in sorted(by_first.items())]


def _join(texts: tuple[str, ...], numbers: list[str]) -> str:
    return "".join(itertools.chain.from_iterable(itertools.zip_longest(texts, numbers, fillvalue="")))


def _numbers(values: list[int]) -> str:
    if len(values) == 1:
        return str(values[0])
    if values == list(range(values[0], values[-1] + 1)):
        return f"{{{values[0]}..{values[-1]}}}"
    return "{" + ",".join(map(str, values)) + "}"


def _rows(entries: dict[str, str]) -> list[str]:
    by_detail: dict[str, list[str]] = {}
    for name, detail in entries.items():
        by_detail.setdefault(detail, []).append(name)
    rows = [(name, detail) for detail, names in by_detail.items() for name in fold(names)]
    width = max(len(name) for name, _ in rows[:_ROWS])
    lines = [f"    {name:<{width}}  {detail}" for name, detail in rows[:_ROWS]]
    if len(rows) > _ROWS:
        lines.append(f"    ... and {len(rows) - _ROWS} more rows")
    return lines


def _shape(shape: Iterable[int]) -> str:
    return str(list(shape))
