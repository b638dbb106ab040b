"""The template plugin, built as a wheel and installed into a folder of its own: what an author copies must work."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

TEMPLATE = "plugins/astrozoo-template"


@pytest.fixture(scope="module")
def installed(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the template as an installer would leave it. Built without network."""
    source = tmp_path_factory.mktemp("source") / "template"
    shutil.copytree(repository / TEMPLATE, source, ignore=shutil.ignore_patterns("*.egg-info", "build", "__pycache__"))
    target = tmp_path_factory.mktemp("installed")
    extract(build_wheel(source, target), target)
    return target


def build_wheel(source: Path, target: Path) -> Path:
    """Build with the installed setuptools; an isolated build would need the network."""
    script = f"from setuptools import build_meta; build_meta.build_wheel({str(target)!r})"
    subprocess.run([sys.executable, "-c", script], cwd=source, check=True, capture_output=True)
    return next(target.glob("*.whl"))


def extract(wheel: Path, target: Path) -> None:
    """What an installer does with a wheel of pure Python."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)


def python(installed: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(installed)}
    return subprocess.run([sys.executable, *arguments], env=env, capture_output=True, text=True, cwd=installed)


def test_template_is_listed_from_its_catalogue_without_importing_it(installed):
    script = (
        "import sys, json, astrozoo; names = astrozoo.list_models(family='nbeats', max_params=1e9);"
        "state = {p.distribution: p.state for p in astrozoo.list_plugins()}['astrozoo-template'];"
        "print(json.dumps([names, state, 'astrozoo_template' in sys.modules, 'torch' in sys.modules]))"
    )
    done = python(installed, "-W", "error", "-c", script)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [["nbeats_tiny", "nbeats_small"], "not loaded", False, False]


def test_template_creates_through_its_hook_without_warnings(installed):
    script = (
        "import astrozoo; model = astrozoo.create_model('nbeats_tiny');"
        "assert model(**astrozoo.example_batch(model).inputs).shape == (2, 1, 24);"
        "print(model.provenance['plugin'], model.spec.version, model.spec.costs.parameters == model.num_parameters())"
    )
    done = python(installed, "-c", script)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["astrozoo-template", "0.1.0", "True"]
    assert "AstrozooPluginWarning" not in done.stderr


def test_catalogue_of_the_template_is_up_to_date(installed, repository, tmp_path):
    fresh = tmp_path / "catalog.json"
    script = f"from astrozoo.catalogue import write_catalogue; write_catalogue('astrozoo-template', {str(fresh)!r})"
    done = python(installed, "-c", script)
    assert done.returncode == 0, done.stderr
    shipped = repository / TEMPLATE / "src" / "astrozoo_template" / "catalog.json"
    assert shipped.read_text() == fresh.read_text(), "run `astrozoo catalog --plugin astrozoo-template`"


def test_own_tests_of_the_template_pass(installed, repository):
    tests = repository / TEMPLATE / "tests"
    done = python(installed, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tests), str(tests))
    assert done.returncode == 0, done.stdout + done.stderr


def test_copy_with_a_name_of_its_own_is_a_plugin_of_its_own(repository, tmp_path):
    copy, target = tmp_path / "copy", tmp_path / "installed"
    shutil.copytree(repository / TEMPLATE, copy, ignore=shutil.ignore_patterns("*.egg-info", "build", "__pycache__"))
    (copy / "src" / "astrozoo_template").rename(copy / "src" / "astrozoo_sunspots")
    (copy / "src" / "astrozoo_sunspots" / "nbeats.py").rename(copy / "src" / "astrozoo_sunspots" / "sunspots.py")
    (copy / "src" / "astrozoo_sunspots" / "catalog.json").unlink()
    for path in (path for path in copy.rglob("*") if path.is_file()):
        path.write_text(path.read_text().replace("template", "sunspots").replace("nbeats", "sunspots"))
    extract(build_wheel(copy, target), target)
    written = python(target, "-m", "astrozoo", "catalog", "--plugin", "astrozoo-sunspots")
    assert written.returncode == 0, written.stderr
    assert Path(written.stdout.strip()) == target / "astrozoo_sunspots" / "catalog.json"
    listed = python(
        target, "-m", "astrozoo", "list", "--plugin", "astrozoo-sunspots", "--domain", "lightcurve", "--names"
    )
    assert listed.stdout.split() == ["sunspots_tiny", "sunspots_small"]
    script = "import astrozoo; print(astrozoo.create_model('sunspots_tiny').provenance['plugin'])"
    done = python(target, "-W", "error::UserWarning", "-c", script)
    assert done.stdout.split() == ["astrozoo-sunspots"], done.stderr
