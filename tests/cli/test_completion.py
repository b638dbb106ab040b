import os
import subprocess
import sys
from shutil import which

import pytest

import astrozoo as zoo
from astrozoo.cli.app import COMMANDS


def complete(line, tmp_path):
    """What the shell is offered after `line`, through argcomplete's protocol."""
    answers = tmp_path / "answers"
    env = {
        **os.environ,
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(answers),
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
    }
    subprocess.run([sys.executable, "-m", "astrozoo"], env=env, check=True, timeout=60)
    return {word.strip() for word in answers.read_text().split("\n")}


def test_commands_are_completed(tmp_path):
    assert complete("astrozoo ", tmp_path) >= set(COMMANDS)
    assert complete("astrozoo doc", tmp_path) == {"doctor"}


def test_options_are_completed(tmp_path):
    assert {"--domain", "--max-params", "--json"} <= complete("astrozoo list --", tmp_path)


def test_model_names_are_completed(tmp_path):
    offered = complete("astrozoo info cube_unet_", tmp_path)
    assert offered == {name for name in zoo.list_models() if name.startswith("cube_unet_")}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_code_for_the_command(astrozoo, shell):
    code = astrozoo("completion", shell).out
    assert "astrozoo" in code
    assert "_ARGCOMPLETE" in code
    if which(shell):
        assert subprocess.run([shell, "-n"], input=code, text=True, check=False).returncode == 0
