"""Run by torchrun: two processes find a batch, of which the second has less room. Argument: OUT."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import cases
import torch
from torch._subclasses.fake_tensor import FakeTensor

from astrozoo.errors import ConfigError
from astrozoo.training import TrainConfig, train


def run(out: Path, strategy: str) -> None:
    """The search of one strategy, then a few steps."""
    config = TrainConfig(
        out=str(out), batch_size="auto", accumulate=2, max_steps=4, device="cpu", distributed={"strategy": strategy}
    )
    train(cases.net(torch.float64, dropout=0.0), cases.Line(22, dtype=torch.float64), config)


def limited(samples: int) -> Any:
    """A forward pass that runs out of memory with more samples than this, as on an accelerator."""
    forward = cases.Net.forward

    def run_out(self: cases.Net, x: torch.Tensor) -> torch.Tensor:
        if len(x) > samples and not isinstance(x, FakeTensor):  # an estimate takes no memory
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(self, x)

    return run_out


if __name__ == "__main__":
    torch.set_num_threads(1)
    if os.environ["RANK"] == "1":
        cases.Net.forward = limited(3)
    folder = Path(sys.argv[1])
    run(folder / "ddp", "ddp")
    try:
        run(folder / "fsdp2", "fsdp2")
    except ConfigError as error:
        (folder / "fsdp2.txt").write_text(str(error))
