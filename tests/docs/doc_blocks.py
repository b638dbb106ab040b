"""Fenced code blocks of Markdown pages, with language, caption and position."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(r"^(?P<fence>`{3,})(?P<info>[^`\n]*)\n(?P<body>.*?)^(?P=fence)\s*$", re.MULTILINE | re.DOTALL)
_DIRECTIVE = re.compile(r"^\{code-block\}\s*(\w+)$")
_OPTION = re.compile(r"^:(\w+):[ \t]*(.*)\n", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """One block.

    Attributes:
        language: First word after the fence, or the argument of a `code-block` directive.
        caption: The directive's caption, or an empty string.
        text: The code.
        line: Line of the page on which the code starts, counted from 1.
    """

    language: str
    caption: str
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    """All blocks of `page`, in order."""
    source = page.read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(source):
        info, body, start = match["info"].strip(), match["body"], match.start("body")
        options: dict[str, str] = {}
        if directive := _DIRECTIVE.match(info):
            info = directive[1]
            while option := _OPTION.match(body):
                options[option[1]] = option[2]
                body, start = body[option.end() :], start + option.end()
            start += len(body) - len(body.lstrip("\n"))
            body = body.lstrip("\n")
        found.append(Block(info, options.get("caption", ""), body, source.count("\n", 0, start) + 1))
    return found
