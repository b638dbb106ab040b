"""Checks of configuration fields: one line per field in `__post_init__`, one wording for all families.

Each check raises `ConfigError` with the class, the field, the value it got and what is allowed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from astrozoo.errors import ConfigError
from astrozoo.registry.names import suggest

__all__ = ["at_least", "between", "each_at_least", "fail", "one_of", "same_length"]


def fail(config: Any, name: str, allowed: str) -> ConfigError:
    """The error for field `name` of `config`, to be raised by the caller."""
    return ConfigError(f"{type(config).__name__}.{name} is {getattr(config, name)!r}; allowed: {allowed}.")


def at_least(config: Any, minimum: int, *names: str) -> None:
    """Every named field is an integer of at least `minimum`."""
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
            raise fail(config, name, f"an integer of at least {minimum}")


def between(config: Any, low: float, high: float, *names: str) -> None:
    """Every named field is a number with `low <= value < high`."""
    for name in names:
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value < high:
            raise fail(config, name, f"a number from {low} to below {high}")


def one_of(config: Any, allowed: Sequence[str], *names: str) -> None:
    """Every named field is one of the words `allowed`."""
    for name in names:
        value = getattr(config, name)
        if value not in allowed:
            hint = suggest(value, [word for word in allowed if isinstance(word, str)]) if isinstance(value, str) else ""
            raise ConfigError(f"{fail(config, name, ', '.join(repr(word) for word in allowed))}{hint}")


def each_at_least(config: Any, minimum: int, *names: str) -> None:
    """Every named field is a tuple of integers of at least `minimum`; lists (YAML, JSON) become tuples."""
    for name in names:
        value = getattr(config, name)
        if isinstance(value, list):
            value = tuple(value)
            object.__setattr__(config, name, value)  # the dataclass is frozen; this is still its construction
        integers = isinstance(value, tuple) and all(
            isinstance(item, int) and not isinstance(item, bool) and item >= minimum for item in value
        )
        if not integers:
            raise fail(config, name, f"a tuple of integers of at least {minimum}")


def same_length(config: Any, name: str, length: int, meaning: str) -> None:
    """The tuple `name` has `length` entries, `meaning` says one for what."""
    if len(getattr(config, name)) != length:
        raise fail(config, name, f"{length} entries, {meaning}")
