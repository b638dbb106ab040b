"""Run by torchrun: train the test net in several processes, once per strategy. Arguments: OUT STRATEGY..."""

from __future__ import annotations

import sys
from pathlib import Path

import cases
import torch

from astrozoo.training import TrainConfig, train


def run(out: Path, strategy: str, steps: int = 10) -> None:
    """22 samples in batches of 6: the last batch of an epoch has 4, split over 2 processes x 2 micro-batches."""
    config = TrainConfig(
        out=str(out), batch_size=6, accumulate=2, max_steps=steps, device="cpu", seed=3, ema={"decay": 0.9},
        checkpoint={"every": 4}, distributed={"strategy": strategy, "wrap": ("stem",)},
    )  # fmt: skip
    train(cases.net(torch.float64, dropout=0.0), cases.Line(22, dtype=torch.float64), config)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for strategy in sys.argv[2:]:
        run(Path(sys.argv[1]) / strategy, strategy)
