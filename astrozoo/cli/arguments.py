"""Options that several commands share, and the values they take."""

from __future__ import annotations

import argparse
import ast
from collections.abc import Sequence
from typing import Any

from astrozoo.errors import ConfigError

__all__ = ["add_model_argument", "amount", "count", "overrides", "positive", "sizes"]

_SCALES = {"k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}
_BYTES = {"": 1, **{f"{unit}b": 1000**n for n, unit in enumerate(("", "k", "m", "g", "t"))}}
_BYTES |= {f"{unit}ib": 1024**n for n, unit in enumerate(("k", "m", "g", "t"), 1)}


def count(text: str) -> int:
    """A number such as `700k`, `5M`, `1.3B` or `2e6`."""
    scale = _SCALES.get(text[-1:].lower(), 1.0)
    digits = text[:-1] if scale != 1.0 else text
    try:
        return int(float(digits) * scale)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"{text!r} is no number such as 700k, 5M, 1.3B or 2e6") from None


def amount(text: str) -> int:
    """Bytes such as `80GiB`, `16 GB` or `1.5e10`."""
    digits = text.rstrip("BbIiKkMmGgTt ")
    scale = _BYTES.get(text[len(digits) :].strip().lower())
    try:
        found = int(float(digits) * scale) if scale else 0
    except (ValueError, OverflowError):
        found = 0
    if found < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no amount of memory such as 80GiB, 16 GB or 1.5e10")
    return found


def positive(text: str) -> int:
    """An integer of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive integer")
    return int(text)


def sizes(pairs: Sequence[str]) -> dict[str, int]:
    """`["lat=64", "lon=128"]` as a dictionary.

    Raises:
        ConfigError: A pair is not `dimension=positive integer`.
    """
    result = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        if not name or not value.isdecimal() or int(value) < 1:
            raise ConfigError(f"size {pair!r} is not of the form dimension=size, such as lat=64.")
        result[name] = int(value)
    return result


def overrides(pairs: Sequence[str]) -> dict[str, Any]:
    """`["in_vars=5", "widths=(8, 16)"]` as a dictionary; what is no Python literal stays a string.

    Raises:
        ConfigError: A pair has no `=`.
    """
    result: dict[str, Any] = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not name or not separator:
            raise ConfigError(f"override {pair!r} is not of the form field=value, such as in_vars=5.")
        try:
            result[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            result[name] = value
    return result


def add_model_argument(parser: argparse.ArgumentParser, dest: str = "name", **options: Any) -> None:
    """An argument that takes a model name, which the shell can complete."""
    options = {"metavar": "NAME", "help": "a name that `astrozoo list` shows"} | options
    # argcomplete reads the attribute; argparse ignores it.
    parser.add_argument(dest, **options).completer = complete_model  # type: ignore[attr-defined]


def complete_model(prefix: str, **_: Any) -> list[str]:
    """Model names for the shell."""
    from astrozoo.registry import list_models

    return [name for name in list_models() if name.startswith(prefix)]
