"""A short training of a registered model on learnable data, as a job of a pool, and what it left behind."""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from astrozoo.bench.families import chosen_variants
from astrozoo.bench.pool import Done, run_jobs
from astrozoo.errors import ConfigError, TrainingError

if TYPE_CHECKING:
    from torch import Tensor

    from astrozoo.training.trainer import Trainer

__all__ = ["Job", "Outcome", "add_common_arguments", "chosen_families", "run_all", "train_once"]


@dataclass(frozen=True)
class Job:
    """A training that is to be done.

    Attributes:
        family, variant: Of what.
        precision: `fp32`, `bf16` or `fp16`.
        seed: Of initialisation, order of data and dropout; the data are the same for all.
        steps, batch: Optimiser steps, and samples in each.
        deterministic: Whether operations without reproducible results are refused.
        copy: Tells apart trainings that are alike in everything else.
    """

    family: str
    variant: str
    precision: str
    seed: int
    steps: int
    batch: int
    deterministic: bool = False
    copy: int = 0

    def __str__(self) -> str:
        return f"{self.variant}, {self.precision}, seed {self.seed}{', again' if self.copy else ''}"


@dataclass(frozen=True)
class Outcome:
    """What came of a training.

    Attributes:
        losses: Of each step.
        digests: SHA-256 by tensor of the last checkpoint (weights, optimiser, random numbers).
        scale: Of the loss at the end; None where it was not scaled.
        skipped: Steps that were left out because the scaled gradients were not finite.
        operation: What has no reproducible implementation and ended the training; None if nothing did.
    """

    losses: list[float] = field(default_factory=list)
    digests: dict[str, str] = field(default_factory=dict)
    scale: float | None = None
    skipped: int = 0
    operation: str | None = None


def add_common_arguments(parser: argparse.ArgumentParser, *, steps: int) -> None:
    """Who takes part, how long each training is, and where they run."""
    parser.add_argument("--families", nargs="+", metavar="NAME", help="families that take part (all)")
    parser.add_argument("--steps", type=int, default=steps, help=f"optimiser steps of each training ({steps})")
    parser.add_argument("--batch", type=int, default=4, help="samples in a step (4)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda (all GPUs, shared out by the jobs) or cuda:1 (cpu)")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time, each in a process of its own (1)")
    parser.add_argument("--minutes", type=float, help="start no further training after this time")


def chosen_families(args: argparse.Namespace) -> dict[str, str]:
    """The variant of each family asked for.

    Raises:
        ConfigError: There is no such family, or `--steps` or `--batch` is below 1.
    """
    for name in ("steps", "batch"):
        if getattr(args, name) < 1:
            raise ConfigError(f"--{name} is {getattr(args, name)}, expected 1 or more.")
    return chosen_variants(args.families)


def run_all(jobs: Sequence[Job], args: argparse.Namespace) -> Iterator[Done]:
    """Do the trainings as the common arguments say; each is told of on the standard error as it ends."""
    ended = run_jobs(train_once, jobs, processes=args.jobs, device=args.device, minutes=args.minutes)
    for count, done in enumerate(ended, 1):
        sys.stderr.write(f"[{count}/{len(jobs)}] {done.job}: {done.error or _told(done.result)}\n")
        sys.stderr.flush()
        yield done


def _told(outcome: Outcome) -> str:
    if outcome.operation is not None:
        return f"{outcome.operation} is not deterministic"
    return f"loss {outcome.losses[0]:.4g} to {outcome.losses[-1]:.4g}"


def train_once(job: Job, device: str) -> Outcome:
    """Train in a folder that is gone afterwards.

    Raises:
        TrainingError: The loss is not finite, memory ran out, and the like.
    """
    import torch

    from astrozoo import registry
    from astrozoo.bench.faults.reference import events
    from astrozoo.bench.learnable import LearnableData
    from astrozoo.training import TrainConfig, train
    from astrozoo.training.checkpoint import latest_checkpoint
    from astrozoo.training.config import CheckpointConfig, LogConfig
    from astrozoo.training.determinism import operation_without_determinism
    from astrozoo.training.trainer import FIRST_SCALE

    if device.startswith("cuda:"):
        torch.cuda.set_device(device)  # else the first GPU holds a context of every process
    scales: list[float] = []

    def watch(trainer: Trainer) -> None:
        if trainer.scaler is not None and trainer.scaler.is_enabled():
            scales.append(trainer.scaler.get_scale())

    data = LearnableData(registry.load_variant(job.variant).spec())
    with tempfile.TemporaryDirectory() as out:
        config = TrainConfig(
            max_steps=job.steps,
            batch_size=job.batch,
            precision=job.precision,  # type: ignore[arg-type]
            seed=job.seed,
            deterministic=job.deterministic,
            device=device,
            out=out,
            checkpoint=CheckpointConfig(every=None),
            log=LogConfig(every=1, progress=False),
        )
        try:
            train(job.variant, data, config, callbacks=[watch])
        except TrainingError as error:
            operation = operation_without_determinism(error.__cause__)
            if operation is None:
                raise
            return Outcome(operation=operation)
        checkpoint = latest_checkpoint(Path(out) / "checkpoints")
        assert checkpoint is not None
        digests = {
            f"{group}: {name}": _digest(tensor)
            for group, tensors in checkpoint.tensors.items()
            for name, tensor in tensors.items()
        }
        losses = [row["loss"] for row in events(Path(out), "train")]
    # A scale that fell tells of a step that overflowed: it grows only after 2000 steps.
    before = [FIRST_SCALE, *scales[:-1]]
    return Outcome(
        losses=losses,
        digests=digests,
        scale=scales[-1] if scales else None,
        skipped=sum(now < then for then, now in zip(before, scales, strict=False)),
    )


def _digest(tensor: Tensor) -> str:
    import torch

    values: Any = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(values.numpy().tobytes()).hexdigest()
