"""What the trainer adds to a step of a bare PyTorch loop, and what Accelerate, Lightning and transformers add.

All train the same tiny network on the CPU with the same DataLoader, fused AdamW and gradient clipping, and with the log
that each writes by default. Timed are steps in the middle of a run, so that start and end of a run do not count.
Targets: at most 100 microseconds per step over the bare loop, and below each of the others.

Examples:
  astrozoo bench trainer
  astrozoo bench trainer --rounds 30 --steps 1000 --json trainer.json
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import random
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from astrozoo.batch import Batch
from astrozoo.bench.environment import describe_environment
from astrozoo.bench.harness import Comparison, Samples
from astrozoo.module import ZooModel
from astrozoo.registry.family import Family
from astrozoo.registry.spec import Dim, TensorSpec

__all__ = ["add_arguments", "run"]

BATCH, FEATURES, LR, CLIP = 32, 16, 1e-3, 1.0
WARMUP = 50  # untimed steps at the start of each run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How long to measure."""
    parser.add_argument("--rounds", type=int, default=15, help="runs of each contestant (15)")
    parser.add_argument("--steps", type=int, default=400, help="timed steps per run (400)")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch (1)")


def run(args: argparse.Namespace) -> list[Comparison]:
    """Measure all contestants in interleaved runs."""
    contestants: dict[str, Callable[[int], float]] = {"astrozoo": _astrozoo, "bare loop": _bare}
    peers = {"Accelerate": ("accelerate", _accelerate), "Lightning": ("lightning", _lightning)}
    peers["transformers"] = ("transformers", _transformers)
    contestants |= {name: function for name, (module, function) in peers.items() if find_spec(module)}
    threads, order = torch.get_num_threads(), random.Random(0)
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    torch.set_num_threads(args.threads)
    try:
        for index in range(args.rounds + 1):
            names = list(contestants)
            order.shuffle(names)
            for name in names:
                with _quiet():
                    taken = contestants[name](args.steps)
                if index:  # the first round imports and warms up
                    seconds[name].append(taken)
    finally:
        torch.set_num_threads(threads)
    comparison = Comparison(
        "one training step of a tiny network on the CPU",
        {name: Samples(tuple(values)) for name, values in seconds.items()},
        describe_environment(["accelerate", "lightning", "transformers"]),
    )
    comparison.target_difference("astrozoo", "bare loop", at_most=100.0)
    for name in list(contestants)[2:]:
        comparison.target_ratio("astrozoo", name, at_most=1.0)
    missing = sorted(set(peers) - set(contestants))
    if missing:
        comparison.notes.append(f"not installed: {', '.join(missing)}; pip install 'astrozoo[bench]'")
    comparison.notes.append(
        f"{args.steps} steps per run after {WARMUP} untimed ones, batch {BATCH}, fused AdamW, clipping"
    )
    return [comparison]


# -- what is trained ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class _Config:
    width: int = 32


class _TinyNetwork(ZooModel):
    task = "benchmark"

    def __init__(self, config: _Config, *, device: Any = None, dtype: torch.dtype | None = None) -> None:
        super().__init__(config)
        with torch.device("meta"):
            self.layers = nn.Sequential(nn.Linear(FEATURES, config.width), nn.ReLU(), nn.Linear(config.width, 1))
        self.materialize(device, dtype)

    @classmethod
    def input_specs(cls, config: _Config) -> tuple[TensorSpec, ...]:  # noqa: ARG003
        return (TensorSpec(name="x", dims=(Dim("batch", 2), Dim("feature", FEATURES, fixed=True))),)

    @classmethod
    def output_specs(cls, config: _Config) -> tuple[TensorSpec, ...]:  # noqa: ARG003
        return (TensorSpec(name="y", dims=(Dim("batch", 2), Dim("value", 1, fixed=True))),)

    def forward(self, x: Tensor) -> Tensor:
        self.check_inputs(x=x)
        return self.layers(x)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        return {"loss": F.mse_loss(self(**batch.inputs), batch.targets["y"])}


class _Data:
    """Samples that come as whole batches, so that the loader takes little of the step."""

    def __init__(self) -> None:
        self.x = torch.randn(BATCH * 64, FEATURES, generator=torch.Generator().manual_seed(0))
        self.train = self

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> Batch:
        x = self.x[torch.as_tensor(indices)]
        return Batch({"x": x}, {"y": x.sum(1, keepdim=True)})

    @staticmethod
    def collate(batch: Any) -> Batch:
        return batch


def _network() -> ZooModel:
    family = Family(name="tiny", domain="benchmark", summary="", model=_TinyNetwork, config=_Config, miniature={})
    torch.manual_seed(0)
    return family.variant("nano", "").build().train()


def _loader() -> DataLoader[Batch]:
    return DataLoader(_Data(), BATCH, shuffle=True, collate_fn=_Data.collate)  # type: ignore[arg-type]


def _optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.01, fused=True)


class _Clock:
    """Seconds per step between step `WARMUP` and step `WARMUP + steps`; `total` leaves steps after that."""

    def __init__(self, steps: int) -> None:
        self.steps, self.total = steps, WARMUP + steps + 10
        self.times: dict[int, float] = {}

    def __call__(self, step: int) -> None:
        if step in (WARMUP, WARMUP + self.steps):
            self.times[step] = time.perf_counter()

    @property
    def seconds(self) -> float:
        return (self.times[WARMUP + self.steps] - self.times[WARMUP]) / self.steps


# -- who trains it -----------------------------------------------------------------------------------------------------


def _astrozoo(steps: int) -> float:
    from astrozoo.training import TrainConfig, train
    from astrozoo.training.config import OptimConfig

    clock = _Clock(steps)
    with tempfile.TemporaryDirectory() as out:
        config = TrainConfig(
            out=out, max_steps=clock.total, batch_size=BATCH, device="cpu", optim=OptimConfig(lr=LR, clip=CLIP)
        )
        # The returned model maps its file; nothing of it outlives the folder.
        train(_network(), _Data(), config, callbacks=[lambda trainer: clock(trainer.step)])
    return clock.seconds


def _bare(steps: int) -> float:
    clock, model, loader, step = _Clock(steps), _network(), _loader(), 0
    optimizer = _optimizer(model)
    while step < clock.total:
        for batch in loader:
            model.loss(batch)["loss"].backward()
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            clock(step)
    return clock.seconds


def _accelerate(steps: int) -> float:
    from accelerate import Accelerator

    clock, step = _Clock(steps), 0
    accelerator = Accelerator(cpu=True)
    network = _network()
    model, optimizer, loader = accelerator.prepare(network, _optimizer(network), _loader())
    while step < clock.total:
        for batch in loader:
            with accelerator.accumulate(model):
                accelerator.backward(model.loss(batch)["loss"])
                accelerator.clip_grad_norm_(model.parameters(), CLIP)
                optimizer.step()
                optimizer.zero_grad()
            step += 1
            clock(step)
    accelerator.free_memory()
    return clock.seconds


def _lightning(steps: int) -> float:
    import lightning

    clock, network = _Clock(steps), _network()

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def transfer_batch_to_device(self, batch: Batch, device: Any, dataloader_idx: int) -> Batch:  # noqa: ARG002
            return batch

        def training_step(self, batch: Batch, batch_idx: int) -> Tensor:  # noqa: ARG002
            return self.network.loss(batch)["loss"]

        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
            clock(self.global_step)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return _optimizer(self.network)

    with tempfile.TemporaryDirectory() as out:
        trainer = lightning.Trainer(
            accelerator="cpu", max_steps=clock.total, gradient_clip_val=CLIP, default_root_dir=out,
            enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        )  # fmt: skip
        trainer.fit(Module(), _loader())
    return clock.seconds


def _transformers(steps: int) -> float:
    from transformers import Trainer, TrainerCallback, TrainingArguments

    clock, network = _Clock(steps), _network()

    class Timed(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
            clock(state.global_step)

    class Losses(nn.Module):  # what a transformers model returns: the loss first
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, batch: Batch) -> dict[str, Tensor]:
            return self.network.loss(batch)

    with tempfile.TemporaryDirectory() as out:
        arguments = TrainingArguments(
            output_dir=out, max_steps=clock.total, per_device_train_batch_size=BATCH, max_grad_norm=CLIP, use_cpu=True,
            save_strategy="no", report_to=[], disable_tqdm=True, remove_unused_columns=False,
            dataloader_pin_memory=False, lr_scheduler_type="constant",
        )  # fmt: skip
        Trainer(
            model=Losses(), args=arguments, train_dataset=_Data(), data_collator=lambda batch: {"batch": batch},
            optimizers=(_optimizer(network), None), callbacks=[Timed()],
        ).train()  # fmt: skip
    return clock.seconds


@contextlib.contextmanager
def _quiet() -> Any:
    """Without the advice that peers print at every start."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
