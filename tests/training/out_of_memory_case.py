"""Run as a process of its own: `astrozoo` with a limit of memory that is set amid the training.

python out_of_memory_case.py STEP BYTES train NAME ...
"""

from __future__ import annotations

import resource
import sys

import psutil
import torch

from astrozoo.cli import main
from astrozoo.training.trainer import Trainer


def limit_after(step: int, room: int) -> None:
    """From the end of that step on (0: from the first look at the data on) the process may have so many bytes more."""
    after, wrapped = Trainer._after_step, Trainer.__init__

    def limit() -> None:
        most = psutil.Process().memory_info().vms + room
        resource.setrlimit(resource.RLIMIT_AS, (most, most))

    def after_step(self: Trainer, *arguments: object) -> str | None:
        ended = after(self, *arguments)
        if self.step == step:
            limit()
        return ended

    def begin(self: Trainer, *arguments: object) -> None:
        wrapped(self, *arguments)
        if step == 0:
            limit()

    Trainer._after_step, Trainer.__init__ = after_step, begin


if __name__ == "__main__":
    torch.set_num_threads(1)
    limit_after(int(sys.argv[1]), int(sys.argv[2]))
    sys.exit(main(sys.argv[3:]))
