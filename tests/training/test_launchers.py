"""The SLURM example: one launcher on each of two machines (here both this one), and the command line under them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import launching
import pytest

SCRIPT = launching.ROOT / "examples" / "slurm_train.sh"
DATA = sorted((launching.ROOT / "examples" / "data").glob("TREFHT*.nc"))
TRAIN = ["cube_unet_nano", "--data", *DATA, "--set", "max_steps=1", "--set", "batch_size=4", "--set", "device=cpu",
         "--set", "data.lead=1", "--set", "checkpoint.every=null", "--set", "evaluation.batch_size=32"]  # fmt: skip

# What the script finds on a cluster: `scontrol` names the machines, `srun` runs the command once on each of them.
SCONTROL = """#!/bin/bash
[[ "$*" == "show hostnames node[1-2]" ]] || exit 1
printf 'localhost\\nlocalhost\\n'
"""
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
status=0
for ((node = 0; node < SLURM_NNODES; node++)); do "$@" & started+=($!); done
for process in "${started[@]}"; do wait "$process" || status=1; done
exit $status
"""


def slurm(folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the script as a job on two machines with one process each."""
    for name, text in (("scontrol", SCONTROL), ("srun", SRUN)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    paths = [str(folder), str(Path(sys.executable).parent), os.environ["PATH"]]
    port = launching.free_port(range(20000, 40000))  # the script's are these
    job = {"SLURM_JOB_ID": str(port - 20000), "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NNODES": "2",
           "SLURM_GPUS_ON_NODE": "1", "SLURM_CPUS_PER_TASK": "2", "PATH": os.pathsep.join(paths)}  # fmt: skip
    return subprocess.run(
        ["bash", SCRIPT, *arguments], env={**launching.ENVIRONMENT, **job}, capture_output=True, text=True, timeout=120,
        cwd=launching.ROOT,
    )  # fmt: skip


def test_slurm_script_trains_on_two_machines(tmp_path):
    done = slurm(tmp_path, *TRAIN, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("best model:") == 1  # the first process speaks for all
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert lines[0]["event"] == "start"
    assert lines[0]["processes"] == 2
    assert lines[-1]["event"] == "end"
    assert lines[-1]["step"] == 1


def test_slurm_script_without_arguments_says_how_to_use_it(tmp_path):
    done = slurm(tmp_path)
    assert done.returncode == 2
    assert "sbatch" in done.stderr
    assert "--data FILE" in done.stderr


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing_in_the_slurm_script():
    done = subprocess.run(["shellcheck", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
