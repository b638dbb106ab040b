"""How tests start several processes: the environment, free ports, the launchers."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent
ROOT = TESTS.parents[1]
_PATHS = [str(TESTS), str(ROOT), os.environ.get("PYTHONPATH", "")]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, _PATHS))}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
ACCELERATE = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]


def free_port(among: range = range(1)) -> int:
    """A port that nobody listens at, among these (0: any)."""
    for port in random.sample(among, len(among)):
        with contextlib.suppress(OSError), socket.socket() as server:
            server.bind(("127.0.0.1", port))
            chosen: int = server.getsockname()[1]
            return chosen
    raise OSError(f"no free port in {among}")


def torchrun(processes: int) -> list[str]:
    """The command that starts so many processes on this machine."""
    return [
        *TORCHRUN,
        f"--nproc-per-node={processes}",
        "--master-addr=127.0.0.1",
        f"--master-port={free_port()}",
    ]


def accelerate(processes: int) -> list[str]:
    """The same by `accelerate launch`; without a GPU too, `--multi_gpu` is what makes it start several."""
    return [*ACCELERATE, "--multi_gpu", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no",
            f"--num_processes={processes}", f"--main_process_port={free_port()}"]  # fmt: skip


def run(*command: str | Path, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Run to the end; raises TimeoutExpired after `timeout` s."""
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=timeout, cwd=ROOT)


def start(*command: str | Path, **environment: str | int) -> subprocess.Popen[str]:
    """Start with additional variables; output and errors go into one pipe."""
    variables = {**ENVIRONMENT, **{name: str(value) for name, value in environment.items()}}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=variables, cwd=ROOT
    )


def start_alone(processes: int, *command: str | Path) -> list[subprocess.Popen[str]]:
    """Start processes as `srun` does: each knows its rank, and nobody looks after them."""
    port = free_port()
    return [
        start(*command, RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=processes, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        for rank in range(processes)
    ]


def ends(process: subprocess.Popen[str], timeout: float = 60) -> tuple[int, str]:
    """Status and output; a process that does not end in time is killed, and the test fails."""
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, output
