import os
import subprocess
import sys

import pytest

from astrozoo import __version__
from astrozoo.cli import app
from astrozoo.errors import DataError

COMMAND_PLUGIN = """
import astrozoo

class Orbit:
    name = "orbit"
    help = "Say the period of an orbit."

    def add_arguments(self, parser):
        parser.add_argument("au", type=float)

    def run(self, args):
        print(f"{args.au ** 1.5:.2f} years")
        return 3

class Shadow(Orbit):
    name = "list"

@astrozoo.hookimpl
def astrozoo_cli_commands():
    print("noise of a plugin")
    return [Orbit(), Shadow()]
"""


@pytest.fixture
def failing(monkeypatch):
    """Make `astrozoo list` raise what a test asks for."""

    def install(error):
        def run(args, out):
            raise error

        monkeypatch.setattr("astrozoo.cli.commands.list.run", run)

    return install


def test_help_names_every_command_and_the_exit_status(astrozoo):
    result = astrozoo("--help")
    assert result.status == 0
    for name in app.COMMANDS:
        assert f"    {name} " in result.out or f"    {name}\n" in result.out
    assert "130 Ctrl-C" in result.out


@pytest.mark.parametrize("command", app.COMMANDS)
def test_every_command_explains_itself(astrozoo, command):
    result = astrozoo(command, "--help")
    assert result.status == 0
    assert result.out.startswith(f"usage: astrozoo {command}")
    assert result.err == ""


def test_version(astrozoo):
    assert astrozoo("--version").out.strip() == f"astrozoo {__version__}"


@pytest.mark.parametrize("argv", [(), ("info",), ("list", "--no-such-option"), ("completion", "basic")])
def test_wrong_usage_is_status_2_and_said_on_stderr(astrozoo, argv):
    result = astrozoo(*argv)
    assert result.status == 2
    assert result.out == ""
    assert "usage: astrozoo" in result.err


def test_unknown_command_suggests_the_nearest(astrozoo):
    result = astrozoo("dotcor")
    assert result.status == 2
    assert "Did you mean 'doctor'?" in result.err


def test_an_error_of_astrozoo_is_one_message_without_traceback(astrozoo, failing):
    failing(DataError("no variable 'tas'"))
    result = astrozoo("list")
    assert (result.status, result.out, result.err) == (1, "", "astrozoo: no variable 'tas'\n")


def test_an_error_under_json_is_a_document_too(astrozoo, failing):
    failing(DataError("no variable 'tas'"))
    result = astrozoo("list", "--json")
    assert result.status == 1
    assert result.json == {"error": {"type": "DataError", "message": "no variable 'tas'"}}


def test_the_traceback_is_shown_when_asked_for(astrozoo, failing, monkeypatch):
    failing(DataError("no variable 'tas'"))
    with pytest.raises(DataError):
        astrozoo("list", "--traceback")
    monkeypatch.setenv("ASTROZOO_DEBUG", "1")
    with pytest.raises(DataError):
        astrozoo("list")


def test_a_bug_is_not_dressed_up_as_a_user_error(astrozoo, failing):
    failing(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        astrozoo("list")


def test_a_file_error_is_one_message(astrozoo, failing):
    failing(OSError(28, "No space left on device", "y.nc"))
    result = astrozoo("list")
    assert result.status == 1
    assert result.err == "astrozoo: [Errno 28] No space left on device: 'y.nc'\n"


def test_a_missing_optional_dependency_names_its_extra(astrozoo, failing):
    failing(ModuleNotFoundError("No module named 'xarray.core'", name="xarray.core"))
    result = astrozoo("list")
    assert result.status == 1
    assert "pip install 'astrozoo[data]'" in result.err


def test_a_missing_module_that_is_no_optional_dependency_is_a_bug(astrozoo, failing):
    failing(ModuleNotFoundError("No module named 'astrozoo.lost'", name="astrozoo.lost"))
    with pytest.raises(ModuleNotFoundError):
        astrozoo("list")


def test_ctrl_c_is_status_130_without_traceback(astrozoo, failing):
    failing(KeyboardInterrupt())
    result = astrozoo("list")
    assert (result.status, result.err) == (130, "astrozoo: interrupted.\n")


def test_a_warning_is_one_line(fresh, distribution):
    folder = distribution("broken-one", "raise ImportError('no libstar')", {"astrozoo.plugins": {"x": "broken_one"}})
    result = fresh("plugins", "--load", "--json", path=[folder])
    lines = [line for line in result.err.splitlines() if "broken-one" in line]
    assert len(lines) == 1
    assert lines[0].startswith("warning: Plugin broken-one 1.2.3:")


def test_broken_pipe_ends_quietly():
    script = f"{sys.executable} -m astrozoo completion bash | head -n 1; exit ${{PIPESTATUS[0]}}"
    # Unbuffered output meets the closed pipe while the command runs, not only at exit.
    env = {**os.environ, "PYTHONUNBUFFERED": "1"}
    reader = subprocess.run(
        ["bash", "-c", script.replace("head -n 1", "true")], capture_output=True, text=True, env=env
    )
    assert reader.returncode == 141
    assert reader.stderr == ""


def test_a_plugin_adds_a_command(fresh, distribution):
    folder = distribution("orbits", COMMAND_PLUGIN, {"astrozoo.plugins": {"orbits": "orbits"}})
    result = fresh("orbit", "4", path=[folder])
    assert (result.status, result.out) == (3, "8.00 years\n")
    assert "noise of a plugin" in result.err
    assert "warning: Plugin orbits 1.2.3: command 'list' is left out: it belongs to astrozoo" in result.err
    assert "Say the period of an orbit." in fresh("orbit", "--help", path=[folder]).out
    assert fresh("plugins", "--load", "--json", path=[folder]).json["commands"] == {
        "orbit": "Say the period of an orbit."
    }


def test_a_plugin_that_prints_does_not_corrupt_json(fresh, distribution):
    folder = distribution(
        "loud",
        "import os\nprint('hello from a plugin')\nraise ImportError('quiet please')",
        {"astrozoo.models": {"loud_model": "loud:loud_model"}},
    )
    result = fresh("plugins", "--load", "--json", path=[folder])
    assert result.status == 1
    states = {plugin["name"]: plugin["state"] for plugin in result.json["plugins"]}
    assert states["loud"] == "failed"
    assert "hello from a plugin" in result.err
