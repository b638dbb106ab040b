"""Run by torchrun: train the test net in several processes and leave its weights. Arguments: OUT STRATEGY STEPS."""

from __future__ import annotations

import sys
import warnings

import cases
import torch

from astrozoo.training import TrainConfig, train

if __name__ == "__main__":
    warnings.simplefilter("default")
    out, strategy, steps = sys.argv[1:]
    torch.set_num_threads(1)
    config = TrainConfig(
        out=out, batch_size=6, accumulate=2, max_steps=int(steps), device="cpu", seed=3,
        ema={"decay": 0.9}, checkpoint={"every": 4}, distributed={"strategy": strategy},
        schedule={"name": "constant"},
    )  # fmt: skip
    train(cases.net(torch.float64, dropout=0.0), cases.Line(22, dtype=torch.float64), config)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
