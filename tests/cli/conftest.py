"""Run the command as a user does: in this process, or in a fresh one."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass

import pytest

from astrozoo.cli import main


@dataclass
class Result:
    status: int
    out: str
    err: str

    @property
    def json(self):
        """The only thing on standard output is one JSON document."""
        return json.loads(self.out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


@pytest.fixture
def astrozoo(capsys):
    """`astrozoo("list", "--json")` in this process."""

    def call(*argv):
        capsys.readouterr()
        status = main([str(word) for word in argv])
        captured = capsys.readouterr()
        return Result(status, captured.out, captured.err)

    return call


@pytest.fixture
def fresh():
    """`fresh("list", "--json")` in a process of its own; `path` folders are importable there."""

    def call(*argv, path=(), env=None):
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path)), **(env or {})}
        result = subprocess.run(
            [sys.executable, "-m", "astrozoo", *map(str, argv)],
            capture_output=True,
            text=True,
            env=environment,
            timeout=120,
        )
        return Result(result.returncode, result.stdout, result.stderr)

    return call


@pytest.fixture
def distribution(tmp_path):
    """`distribution("name", code, {group: {entry: value}})` puts an installed distribution into a folder."""

    def make(name, code, entry_points, version="1.2.3"):
        module = name.replace("-", "_")
        (tmp_path / f"{module}.py").write_text(code)
        folder = tmp_path / f"{module}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        lines = []
        for group, entries in entry_points.items():
            lines += [f"[{group}]", *(f"{entry} = {value}" for entry, value in entries.items())]
        (folder / "entry_points.txt").write_text("\n".join(lines) + "\n")
        return tmp_path

    return make
