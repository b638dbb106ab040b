"""Names: which are near an unknown one, and how to say so."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["nearest", "suggest"]


def nearest(name: str, known: Iterable[str], *, count: int = 3) -> list[str]:
    """Up to `count` known names close to `name`, best first."""
    import difflib  # only needed on the way to an error; keeps `import astrozoo` cheap

    return difflib.get_close_matches(name, list(known), n=count, cutoff=0.6)


def suggest(name: str, known: Iterable[str]) -> str:
    """` Did you mean 'a', 'b'?` with a leading blank, or an empty string when nothing is near."""
    close = nearest(name, known)
    return f" Did you mean {', '.join(repr(item) for item in close)}?" if close else ""
