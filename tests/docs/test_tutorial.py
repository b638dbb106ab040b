"""The plugin tutorial, carried out: its files written, its distribution installed, its commands run."""

from __future__ import annotations

import os
import shlex
import site
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from doc_blocks import blocks


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """A fresh virtual environment that sees what this one has, so that nothing is downloaded."""
    folder = tmp_path / "environment"
    venv.create(folder, with_pip=False)
    (packages,) = (folder / "lib").glob("python*/site-packages")
    own = [path for path in site.getsitepackages() if Path(path).is_dir()]
    lines = "".join(f"import site; site.addsitedir({path!r})\n" for path in own)
    (packages / "parent.pth").write_text(lines, encoding="utf-8")
    # Console scripts of the parent start the parent's interpreter; these start the new one.
    for name, module in (("astrozoo", "astrozoo"), ("pytest", "pytest")):
        script = folder / "bin" / name
        script.write_text(f'#!/bin/sh\nexec "{folder}/bin/python" -m {module} "$@"\n', encoding="utf-8")
        script.chmod(0o755)
    return folder


def test_tutorial_works_as_written(repository: Path, environment: Path, tmp_path: Path) -> None:
    project = tmp_path / "astrozoo-linepool"
    project.mkdir()
    outputs: list[str] = []
    for block in blocks(repository / "docs" / "plugins" / "tutorial.md"):
        if block.caption:
            path = project / block.caption
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")
        elif block.language == "console":
            outputs.append(run_console(block.text, environment, project))
    assert (project / "src" / "astrozoo_linepool" / "catalog.json").is_file()
    assert len(outputs) >= 5


def run_console(text: str, environment: Path, project: Path) -> str:
    """Run the `$` lines; every other line must appear in the output of the command above it."""
    output = ""
    for line in text.splitlines():
        if line.startswith("$ "):
            output = run_command(line.removeprefix("$ "), environment, project)
        elif line.strip():
            assert line in output, f"expected {line!r} in:\n{output}"
    return output


def run_command(command: str, environment: Path, project: Path) -> str:
    """One command in the new environment; pip may use neither the network nor an isolated build."""
    words = shlex.split(command)
    if words[0] == "pip":
        offline = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--disable-pip-version-check"]
        words = [sys.executable, "-m", "pip", "--python", str(environment / "bin" / "python"), *words[1:], *offline]
    done = subprocess.run(
        words,
        cwd=project,
        env={
            **os.environ,
            "PATH": f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "VIRTUAL_ENV": str(environment),
            "COLUMNS": "200",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}\n{done.stderr}"
    return done.stdout
