"""Run by a launcher: train a small net in several processes, several times in one launch, since starting takes longest.

distributed_case.py OUT [CASE=CHECKPOINT ...]     every case, then those cases again from these checkpoints
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import cases
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from astrozoo.batch import Batch
from astrozoo.module import ZooModel
from astrozoo.registry.family import Family
from astrozoo.registry.spec import Dim, TensorSpec
from astrozoo.training import TrainConfig, state, train

STEPS = 10


class Lines(NamedTuple):
    sum: Tensor
    product: Tensor


class TwoHeads(ZooModel):
    """Two outputs; their targets have gaps in different places, so that no count of samples is the right weight."""

    task = "regression"

    def __init__(self, config: cases.NetConfig, *, device: Any = None, dtype: torch.dtype | None = None) -> None:
        super().__init__(config)
        with torch.device("meta"):
            self.stem = nn.Linear(3, config.width)
            self.norm = nn.LayerNorm(config.width)
            self.head = nn.Linear(config.width, 6)
        self.materialize(device, dtype)

    @classmethod
    def input_specs(cls, config: cases.NetConfig) -> tuple[TensorSpec, ...]:
        return cases.Net.input_specs(config)

    @classmethod
    def output_specs(cls, config: cases.NetConfig) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(name=name, dims=(Dim("batch", 2), Dim("value", 3, fixed=True))) for name in Lines._fields
        )

    def forward(self, x: Tensor) -> Lines:
        self.check_inputs(x=x)
        return Lines(*self.head(self.norm(torch.tanh(self.stem(x)))).split(3, -1))


FAMILY = Family(
    name="heads", domain="test", summary="x", model=TwoHeads, config=cases.NetConfig, miniature={}, blocks=("stem",)
)
VARIANT = FAMILY.variant("nano", "For tests.")


class GappySamples:
    def __init__(self, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(count, 3, generator=generator, dtype=torch.float64)
        noise = torch.randn(2, count, 3, generator=generator, dtype=torch.float64)
        # Later samples have more gaps: processes, which get runs of a shuffled batch, differ in what they know.
        share = torch.rand(2, count, 1, generator=generator)
        gaps = torch.rand(2, count, 3, generator=generator) < share
        self.sum = (self.x.cumsum(1) + 0.3 * noise[0]).masked_fill(gaps[0], torch.nan)
        self.product = (self.x.cumprod(1) + 0.3 * noise[1]).masked_fill(gaps[1], torch.nan)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Batch:
        return Batch({"x": self.x[index]}, {"sum": self.sum[index], "product": self.product[index]})


class GappyData:
    """54 samples in batches of 13: the last batch of an epoch has two, which are not enough for four processes."""

    def __init__(self) -> None:
        self.train, self.val = GappySamples(54, 0), GappySamples(11, 1)


CASES: dict[str, tuple[Any, ...]] = {
    f"{strategy}-{accumulate}": (strategy, accumulate) for strategy in ("ddp", "fsdp2") for accumulate in (1, 3)
}
CASES["samples"] = ("ddp", 2, "samples")


def config_of(out: Path, strategy: str = "auto", accumulate: int = 1, steps: int = STEPS) -> TrainConfig:
    return TrainConfig(
        out=str(out), batch_size=13, accumulate=accumulate, max_steps=steps, device="cpu", seed=3, ema={"decay": 0.9},
        optim={"lr": 0.1, "clip": 0.2}, schedule={"name": "constant"}, checkpoint={"every": 4, "keep": 9},
        evaluation={"every": 3}, log={"every": 1}, distributed={"strategy": strategy},
    )  # fmt: skip


def task_of(name: str) -> tuple[ZooModel, Any]:
    """The model and data whose loss is a mean over known values, or (`samples`) over samples."""
    if name == "samples":
        return cases.net(torch.float64, dropout=0.0), cases.Line(54, dtype=torch.float64)
    torch.manual_seed(1)
    return VARIANT.build(VARIANT.config(), dtype=torch.float64), GappyData()


class Watch:
    """A callback that notes, after each step, what this process holds of the weights."""

    def __init__(self) -> None:
        self.facts: dict[str, Any] = {"whole": 0}

    def __call__(self, trainer: Any) -> None:
        parameters = list(trainer.loss.parameters())
        self.facts["whole"] += sum(not isinstance(item, DTensor) for item in parameters)
        self.facts["total"] = sum(item.numel() for item in parameters)
        self.facts["held"] = sum(getattr(item, "_local_tensor", item).numel() for item in parameters)
        if trainer.step == 1:
            groups = state.capture(trainer).tensors
            for group in ("model", "ema", "optimizer"):
                sizes = [item.numel() for item in groups[group].values() if not item.is_meta and item.ndim]
                self.facts[f"gathered {group}"] = sum(sizes)
        modules = trainer.loss.named_modules()
        self.facts["wrapped"] = [name for name, module in modules if isinstance(module, FSDPModule)]


def run(out: Path, strategy: str = "auto", accumulate: int = 1, task: str = "gaps", resume: Any = "auto") -> None:
    watch = Watch()
    model, data = task_of(task)
    result = train(model, data, config_of(out, strategy, accumulate), resume=resume, callbacks=[watch])
    watch.facts["whole after evaluation"] = sum(not isinstance(item, DTensor) for item in result.model.parameters())
    (out / f"facts-{os.environ.get('RANK', '0')}.json").write_text(json.dumps(watch.facts))


def main(out: str, *resumed: str) -> None:
    torch.set_num_threads(1)
    for name, how in CASES.items():
        run(Path(out) / name, *how)
    for item in resumed:
        name, _, checkpoint = item.partition("=")
        run(Path(out) / f"{name}-resumed", *CASES[name], resume=checkpoint)


if __name__ == "__main__":
    main(*sys.argv[1:])
