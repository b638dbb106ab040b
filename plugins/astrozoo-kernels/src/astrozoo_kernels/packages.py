"""Whether a kernel package is there: installed, importable, and of which version."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
from types import ModuleType

__all__ = ["load", "version_of"]


@functools.cache
def load(module: str) -> tuple[ModuleType | None, str]:
    """The module, or None and why it cannot be imported."""
    try:
        return importlib.import_module(module), ""
    except ModuleNotFoundError as error:
        missing = error.name or module
        if module == missing or module.startswith(f"{missing}."):
            return None, "package not installed"
        return None, f"its import lacks {missing}"
    except Exception as error:  # binaries built for another torch or CUDA raise anything
        reason = str(error).strip().splitlines()
        return None, f"its import fails: {type(error).__name__}{': ' + reason[0] if reason else ''}"


def version_of(distribution: str) -> str:
    """The installed version of a distribution, or an empty string."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""
