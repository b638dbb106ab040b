"""Real distributions, put on the path for one test."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from distributions import write_distribution

from astrozoo import registry

Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """`install(name, {group: {entry: value}}, {path: text})` makes a distribution importable until the test ends."""
    modules = set(sys.modules)

    def add(name: str, entries: Mapping[str, Mapping[str, str]], files: Mapping[str, str] | None = None) -> Path:
        folder = write_distribution(tmp_path / name, name, entries, files or {})
        monkeypatch.syspath_prepend(folder)
        registry.refresh()
        return folder

    registry.refresh()
    yield add
    registry.refresh()
    for name in set(sys.modules) - modules:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
