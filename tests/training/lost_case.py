"""Run by a launcher: train, while process 1 comes to harm in step 6. Arguments: HOW OUT."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import distributed_case
import torch

from astrozoo.training import TrainConfig, train


def config_of(out: Path) -> TrainConfig:
    return distributed_case.config_of(out, accumulate=3).with_overrides(["distributed.timeout=4"])


def harm(how: str, out: Path) -> None:
    if how == "raise":
        raise ValueError("the disk is on fire.")
    if how == "kill with a child" and os.fork() == 0:
        # It inherits the connections, as a process that loads data does, and outlives its parent.
        until = time.monotonic() + 90
        while time.monotonic() < until and not (out / "over").exists():
            time.sleep(0.1)
        os._exit(0)
    os.kill(os.getpid(), signal.SIGSTOP if how == "stop" else signal.SIGKILL)


def main(how: str, out: str) -> None:
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])

    def callback(trainer: Any) -> None:
        if trainer.step == 6:
            if rank == 1:
                harm(how, Path(out))
            if how == "kill with a child":
                time.sleep(600)  # as if stuck in an operation of a GPU, which does not notice

    model, data = distributed_case.task_of("gaps")
    train(model, data, config_of(Path(out)), callbacks=[callback])


if __name__ == "__main__":
    main(*sys.argv[1:])
