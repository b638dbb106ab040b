"""Data sets by name, from the hook `astrozoo_datasets` of installed plugins."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from astrozoo import registry
from astrozoo.errors import DataError
from astrozoo.registry.names import suggest

__all__ = ["open_dataset"]


def open_dataset(name: str, **options: Any) -> Any:
    """Training data that a plugin offers, ready for `astrozoo.train`.

    Args:
        name: As the plugin calls it; of two plugins, the first by name keeps a name.
        options: What the data set takes; its plugin documents them.

    Raises:
        DataError: No installed plugin offers the name.
    """
    offered: dict[str, Callable[..., Any]] = {}
    answers: Iterable[Mapping[str, Callable[..., Any]]] = registry.plugin_manager().hook.astrozoo_datasets()
    for answer in answers:
        offered = {**answer, **offered}
    if name not in offered:
        there = f"There are {', '.join(sorted(offered))}." if offered else "None of them offers any."
        raise DataError(f"No installed plugin offers a data set {name!r}.{suggest(str(name), offered)} {there}")
    return offered[name](**options)
