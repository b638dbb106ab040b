"""Importing what an entry point names, so that nothing in it can break or corrupt the host."""

from __future__ import annotations

import contextlib
import importlib
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from astrozoo.registry.discovery import Entry

__all__ = ["describe", "import_object", "output_to_stderr"]

_redirection = threading.Lock()
_inside = 0  # blocks that redirect at the moment, in all threads
_stdout: Any = None  # what the first of them found


def import_object(entry: Entry) -> tuple[Any, float]:
    """The object behind `entry`, and the seconds its import took.

    Raises:
        BaseException: Whatever the import raises. Ctrl-C stays KeyboardInterrupt for everyone above.
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
    """Send what foreign code prints to stderr: stdout may be a JSON document that somebody parses.

    Threads may overlap here, so the first that enters redirects and the last that leaves restores; saving and restoring
    in each of them, as `contextlib.redirect_stdout` does, would leave stdout redirected for good.
    """
    global _inside, _stdout
    with _redirection:
        if _inside == 0:
            _stdout, sys.stdout = sys.stdout, sys.stderr
        _inside += 1
    try:
        yield
    finally:
        with _redirection:
            _inside -= 1
            if _inside == 0:
                sys.stdout, _stdout = _stdout, None


def describe(error: BaseException) -> str:
    """An error in one line, such as `ImportError: No module named 'x'`."""
    try:
        lines = str(error).strip().splitlines()
    except Exception:  # the class of the error is foreign code too
        lines = []
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
