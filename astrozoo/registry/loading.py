"""Importing what an entry point names, so that nothing in it can break or corrupt the host."""

from __future__ import annotations

import contextlib
import importlib
import sys
import time
from collections.abc import Iterator
from typing import Any

from astrozoo.registry.discovery import Entry

__all__ = ["describe", "import_object", "output_to_stderr"]


def import_object(entry: Entry) -> tuple[Any, float]:
    """The object behind `entry`, and the seconds its import took.

    Raises:
        Exception, SystemExit: Whatever the import raises. Ctrl-C stays KeyboardInterrupt for everyone above.
    """
    module_name, _, attributes = entry.value.partition(":")
    started = time.perf_counter()
    with output_to_stderr():
        found: Any = importlib.import_module(module_name)
        for attribute in filter(None, attributes.split(".")):
            found = getattr(found, attribute)
    return found, time.perf_counter() - started


@contextlib.contextmanager
def output_to_stderr() -> Iterator[None]:
    """Send what foreign code prints to stderr: stdout may be a JSON document that somebody parses."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def describe(error: BaseException) -> str:
    """An error in one line, such as `ImportError: No module named 'x'`."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
