"""Sphinx extension: docstrings are written to be read in an editor, with Markdown's habits; this gives Sphinx its own.

`code` becomes literal text instead of a guess at a cross-reference, and an indented block after a line that ends with a
colon becomes a code block.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx

_CODE = re.compile(r"(?<![`:])`([^`\n]+)`(?!`)")


def setup(app: Sphinx) -> dict[str, Any]:
    """Entry point of Sphinx."""
    app.connect("autodoc-process-docstring", rewrite, priority=100)  # before napoleon reads the sections
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def rewrite(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:  # noqa: ARG001
    """Change the docstring in place, as the event asks."""
    for index, line in enumerate(lines):
        blank, block = [*lines[index + 1 : index + 3], "", ""][:2]
        if line.endswith(":") and not blank.strip() and _indent(block) > _indent(line):
            line += ":"
        lines[index] = _CODE.sub(r"``\1``", line)


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip()) if line.strip() else 0
