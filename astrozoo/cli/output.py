"""What a command prints: a table for people, aligned text for pipes, or one JSON document for programs.

Results go to the standard output the command was started with, and nothing else does: while a command runs, `print` of
libraries and plugins reaches the error stream (see `astrozoo.cli.app`).
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TextIO

__all__ = ["Output", "plain"]


class Output:
    """Where a command's result goes.

    Args:
        stream: The standard output.
        as_json: Whether the result is one JSON document; then tables and lines must not be printed.
    """

    def __init__(self, stream: TextIO, *, as_json: bool = False) -> None:
        self.stream = stream
        self.as_json = as_json
        # rich is an extra; and a pipe wants neither frames nor a table cut at 80 columns.
        self._rich = stream.isatty() and find_spec("rich") is not None

    def document(self, value: Any) -> None:
        """Print `value` as the JSON document of this command."""
        json.dump(plain(value), self.stream, indent=2, allow_nan=False)
        self.stream.write("\n")

    def line(self, text: str = "", *, style: str = "") -> None:
        """Print one line; `style` (such as `bold red`) applies on a terminal."""
        if self._rich:
            from rich.console import Console

            Console(file=self.stream, highlight=False).print(text, style=style or None, markup=False, soft_wrap=True)
        else:
            self.stream.write(text + "\n")
        self.stream.flush()

    def table(self, headers: Sequence[str], rows: Sequence[Sequence[object]], *, title: str = "") -> None:
        """Print rows under headers: framed and wrapped where a terminal has room, aligned elsewhere, never cut."""
        cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
        every = [list(headers), *cells]
        if self._rich and self._framed(every, title):
            return
        if title:
            self.stream.write(f"{title}\n")
        widths = [max(len(row[column]) for row in every) for column in range(len(headers))]
        for row in every:
            text = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            self.stream.write(text.rstrip() + "\n")

    def _framed(self, every: Sequence[Sequence[str]], title: str) -> bool:
        """Print a table with rich, or nothing if the terminal has no room for every word."""
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        console = Console(file=self.stream)
        columns = list(zip(*every, strict=True))
        words = [max(len(word) for cell in column for word in (cell.split() or [""])) for column in columns]
        if sum(words) + 3 * len(words) + 1 > console.width:  # a frame, and a space at either side of each cell
            return False
        headers, *rows = every
        table = Table(title=title or None, title_justify="left", title_style="bold")
        for header, column in zip(headers, columns, strict=True):
            # rich cuts long words while others may still give way: names are to be copied, so they keep their line.
            one_word = all(len(cell.split()) <= 1 for cell in column)
            table.add_column(header, no_wrap=one_word, overflow="fold")
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        console.print(table)
        return True


def plain(value: Any) -> Any:
    """`value` as JSON-able values: dataclasses become objects, tuples and sets lists, NaN and infinities null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain(value.to_dict() if hasattr(value, "to_dict") else dataclasses.asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(plain(item) for item in value)
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if hasattr(value, "item"):  # a numpy scalar or a tensor of one element
        return plain(value.item())
    raise TypeError(f"{type(value).__name__} {value!r} cannot be written as JSON.")
