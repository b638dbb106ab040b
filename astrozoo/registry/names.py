"""Names: how they sort, which are near an unknown one, and which official distribution has those not installed."""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["SIZES", "matching", "nearest", "sort_key", "suggest"]

SIZES = ("nano", "tiny", "small", "base", "large", "huge")  # the order of sizes, everywhere
_SCALES = {"m": 10**6, "b": 10**9}


def nearest(name: str, known: Iterable[str], *, count: int = 3, cutoff: float = 0.6) -> list[str]:
    """Up to `count` known names that are like `name` by at least `cutoff` (1 is equal), best first."""
    import difflib  # only needed on the way to an error; keeps `import astrozoo` cheap

    return difflib.get_close_matches(name, list(known), n=count, cutoff=cutoff)


def suggest(name: str, known: Iterable[str]) -> str:
    """` Did you mean 'a', 'b'?` with a leading blank, or an empty string when nothing is near."""
    close = nearest(name, known)
    return f" Did you mean {', '.join(repr(item) for item in close)}?" if close else ""


def sort_key(name: str) -> tuple[object, ...]:
    """Orders names by family, then size: `x_nano` before `x_tiny`, `x_3m` before `x_1b`, `x_9` before `x_10`.

    Names alone decide, so that a list needs no catalogue. A qualified `dist/name` sorts beside its plain name.
    """
    distribution, _, plain = name.rpartition("/")
    family, _, size = plain.rpartition("_")
    if size in SIZES:
        rank = (0, SIZES.index(size), "")
    elif match := re.fullmatch(r"(\d+)([mb])", size):
        rank = (1, int(match[1]) * _SCALES[match[2]], "")
    else:
        family, rank = plain, (2, 0, "")
    parts = tuple((int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", family))
    return parts, rank, plain, distribution


def matching(names: Iterable[str], pattern: str | Iterable[str] | None) -> list[str]:
    """The names that match the shell pattern, or any of several; None matches all."""
    if pattern is None:
        return list(names)
    import fnmatch

    patterns = [pattern] if isinstance(pattern, str) else list(pattern)
    return [name for name in names if any(fnmatch.fnmatchcase(name, item) for item in patterns)]
