"""What the trainer's tests train: a small network with dropout on a noisy line. Also run as a script, to be killed.

python cases.py OUT STEP key=value...
"""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from astrozoo.batch import Batch
from astrozoo.module import ZooModel
from astrozoo.objectives import register_task_loss
from astrozoo.registry.family import Family
from astrozoo.registry.spec import Dim, TensorSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class NetConfig:
    width: int = 8
    dropout: float = 0.2


class Net(ZooModel):
    task = "test_regression"

    def __init__(self, config: NetConfig, *, device: Any = None, dtype: torch.dtype | None = None) -> None:
        super().__init__(config)
        with torch.device("meta"):
            self.stem = nn.Linear(3, config.width)
            self.drop = nn.Dropout(config.dropout)
            self.norm = nn.LayerNorm(config.width)
            self.head = nn.Linear(config.width, 1)
        self.materialize(device, dtype)

    @classmethod
    def input_specs(cls, config: NetConfig) -> tuple[TensorSpec, ...]:
        return (TensorSpec(name="x", dims=(Dim("batch", 2), Dim("feature", 3, fixed=True))),)

    @classmethod
    def output_specs(cls, config: NetConfig) -> tuple[TensorSpec, ...]:
        return (TensorSpec(name="y", dims=(Dim("batch", 2), Dim("value", 1, fixed=True))),)

    def forward(self, x: Tensor) -> Tensor:
        self.check_inputs(x=x)
        return self.head(self.norm(torch.tanh(self.drop(self.stem(x)))))


@register_task_loss("test_regression")
def mse(y: Tensor, batch: Batch) -> dict[str, Tensor]:
    return {"loss": (y.float() if y.dtype == torch.bfloat16 else y).sub(batch.targets["y"]).square().mean()}


FAMILY = Family(
    name="net", domain="test", summary="A net.", model=Net, config=NetConfig, miniature={}, blocks=("stem",)
)
VARIANT = FAMILY.variant("nano", "For tests.")


def net(dtype: torch.dtype = torch.float32, **overrides: Any) -> Net:
    torch.manual_seed(1)
    return VARIANT.build(VARIANT.config(**overrides), dtype=dtype)


class Samples:
    """Noisy lines; with `augment`, every access draws new noise."""

    def __init__(self, count: int, seed: int, augment: bool = False, dtype: torch.dtype = torch.float32) -> None:
        self.x = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed), dtype=dtype)
        self.augment = augment

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Batch:
        x = self.x[index]
        noise = 0.1 * torch.randn(3) if self.augment else 0.0
        return Batch(inputs={"x": x + noise}, targets={"y": x.sum(0, keepdim=True) + 0.5})


class RootMeanSquare:
    headline = "rmse"

    def __init__(self) -> None:
        self.squares, self.count = 0.0, 0

    def update(self, outputs: Tensor, batch: Batch) -> None:
        self.squares += (outputs - batch.targets["y"]).square().sum().item()
        self.count += len(outputs)

    def compute(self) -> dict[str, float]:
        return {"rmse": (self.squares / self.count) ** 0.5}


class Line:
    """Training data with everything optional left out but `val`."""

    def __init__(self, count: int = 22, augment: bool = False, dtype: torch.dtype = torch.float32) -> None:
        self.train = Samples(count, 0, augment, dtype)
        self.val = Samples(7, 1, dtype=dtype)


class FullLine(Line):
    """The same with metrics, baselines, a schema and a test split."""

    def __init__(self, count: int = 22) -> None:
        super().__init__(count)
        self.test = Samples(5, 2)

    def new_metrics(self) -> RootMeanSquare:
        return RootMeanSquare()

    def baselines(self) -> dict[str, Any]:
        return {"zero": lambda batch: torch.zeros_like(batch.targets["y"])}

    def schema(self) -> dict[str, Any]:
        return {"variables": ["x"]}


EXACT = ["epochs=4", "batch_size=4", "accumulate=2", "ema.decay=0.9", "checkpoint.every=3", "evaluation.every=4",
         "device=cpu", "optim.lr=0.01"]  # fmt: skip


def exact(out: Path, *flags: str) -> Any:
    """The run that the tests of resuming disturb; dropout, random transforms, averaging and accumulation included."""
    from astrozoo.training import TrainConfig

    return TrainConfig(out=str(out)).with_overrides([*EXACT, *flags])


def main(out: str, step: str, *flags: str) -> None:
    """Train, and die by SIGKILL after `step`."""
    from astrozoo.training import train

    torch.set_num_threads(1)
    kill = [lambda trainer: os.kill(os.getpid(), signal.SIGKILL) if trainer.step == int(step) else None]
    train(net(), Line(augment=True), exact(Path(out), *flags), callbacks=kill)


if __name__ == "__main__":
    main(*sys.argv[1:])
