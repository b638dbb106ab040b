"""`TrainConfig`: every setting of the trainer, the same from Python, YAML and `astrozoo train --set`.

Imports no torch. Sections are dataclasses of their own, so `TrainConfig(optim={"lr": 3e-4})`, a YAML file with a
section `optim:` and the flag `optim.lr=3e-4` mean the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from astrozoo import settings
from astrozoo.errors import ConfigError
from astrozoo.settings import require

__all__ = [
    "CheckpointConfig",
    "DistributedConfig",
    "EmaConfig",
    "EvaluationConfig",
    "LogConfig",
    "OptimConfig",
    "ProfileConfig",
    "ScheduleConfig",
    "TrainConfig",
]


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimiser.

    Attributes:
        name: `adamw`, `adam`, `sgd`, `lion`, `muon`, or any other name of `timm.optim.list_optimizers()`.
        lr: Peak learning rate.
        weight_decay: Applied to matrices and kernels; never to parameters with fewer than two dimensions.
        betas: Decay rates of the running averages; None takes those the optimiser was published with.
        momentum: Of optimisers that have one; None takes theirs, or 0.9 where theirs is none (`sgd`).
        clip: Largest norm of the gradient; None never clips.
        options: Further keyword arguments of the optimiser.
    """

    name: str = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.01
    betas: tuple[float, float] | None = None
    momentum: float | None = None
    clip: float | None = 1.0
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        settings.coerce(self, section="optim")
        require(self.lr > 0, "optim.lr", self.lr, "a number above 0")
        require(self.weight_decay >= 0, "optim.weight_decay", self.weight_decay, "0 or more")
        betas = self.betas is None or all(0 <= beta < 1 for beta in self.betas)
        require(betas, "optim.betas", self.betas, "two numbers in [0, 1), or null")
        momentum = self.momentum is None or 0 <= self.momentum < 1
        require(momentum, "optim.momentum", self.momentum, "a number in [0, 1), or null")
        require(self.clip is None or self.clip > 0, "optim.clip", self.clip, "a number above 0, or null")


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The learning rate over the run, a pure function of the step.

    Attributes:
        name: After warm-up: `cosine` or `linear` decay, `constant`, or `wsd` (constant, then linear decay).
        warmup: Steps of linear warm-up, or a fraction of all steps when below 1.
        final: Last learning rate as a fraction of the peak.
        decay: `wsd`: fraction of all steps spent decaying.
    """

    name: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    warmup: float = 0.05
    final: float = 0.01
    decay: float = 0.2

    def __post_init__(self) -> None:
        settings.coerce(self, section="schedule")
        require(self.warmup >= 0, "schedule.warmup", self.warmup, "0 or more")
        require(0 <= self.final <= 1, "schedule.final", self.final, "a fraction in [0, 1]")
        require(0 < self.decay <= 1, "schedule.decay", self.decay, "a fraction in (0, 1]")


@dataclass(frozen=True, kw_only=True)
class EmaConfig:
    """Exponential moving average of the weights; where on, it is what is evaluated and saved as the model.

    Attributes:
        decay: Share of the average kept per step, such as 0.999 (it starts lower and grows); None switches it off.
    """

    decay: float | None = None

    def __post_init__(self) -> None:
        settings.coerce(self, section="ema")
        require(self.decay is None or 0 < self.decay < 1, "ema.decay", self.decay, "a number in (0, 1), or null")


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Evaluation on the validation split, and early stopping.

    Attributes:
        every: Steps between evaluations; None evaluates after each epoch.
        batch_size: Samples per forward pass; None takes that of one training micro-batch.
        patience: Stop after so many evaluations without improvement; None never stops early.
        min_delta: What counts as improvement of the score.
    """

    every: int | None = None
    batch_size: int | None = None
    patience: int | None = None
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        settings.coerce(self, section="evaluation")
        for name in ("every", "batch_size", "patience"):
            value = getattr(self, name)
            require(value is None or value > 0, f"evaluation.{name}", value, "a whole number above 0, or null")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Checkpoints of the complete state.

    Attributes:
        every: Steps between checkpoints; None writes one only when training stops.
        keep: How many are kept.
        background: Write while training goes on, from a copy on the host that must fit into a quarter of its free
            memory; several processes wait in any case. None: on a GPU, where waiting would leave it idle.
    """

    every: int | None = 500
    keep: int = 2
    background: bool | None = None

    def __post_init__(self) -> None:
        settings.coerce(self, section="checkpoint")
        require(self.every is None or self.every > 0, "checkpoint.every", self.every, "above 0, or null")
        require(self.keep >= 1, "checkpoint.keep", self.keep, "1 or more; 2 survive a damaged last one")


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """What is reported while training.

    Attributes:
        every: Steps between lines of `log.jsonl`.
        trackers: Names of Accelerate's trackers: `tensorboard`, `wandb`, ...
        project: Project name for the trackers.
        progress: A progress bar on the terminal; it shows on the main process only, and only on a terminal.
    """

    every: int = 20
    trackers: tuple[str, ...] = ()
    project: str = "astrozoo"
    progress: bool = True

    def __post_init__(self) -> None:
        settings.coerce(self, section="log")
        require(self.every > 0, "log.every", self.every, "a whole number above 0")


@dataclass(frozen=True, kw_only=True)
class ProfileConfig:
    """A profile of some steps, in the folder `profile` of the run: `steps.md` for people, `trace.json.gz` for a viewer.

    Attributes:
        steps: How many to profile; 0 for none.
        after: Steps before them, in which kernels are compiled and caches fill.
        rows: Operations in each table.
    """

    steps: int = 0
    after: int = 10
    rows: int = 20

    def __post_init__(self) -> None:
        settings.coerce(self, section="profile")
        for name, least in (("steps", 0), ("after", 0), ("rows", 1)):
            value = getattr(self, name)
            require(value >= least, f"profile.{name}", value, f"a whole number of at least {least}")


@dataclass(frozen=True, kw_only=True)
class DistributedConfig:
    """Several processes, started by `torchrun` or `accelerate launch`.

    Attributes:
        strategy: `ddp` copies the model, `fsdp2` shards it; `auto` follows `accelerate launch`, else `ddp`.
        wrap: `fsdp2`: modules that are sharded one by one, the rest together: patterns of their names in which `*` is
            anything between two dots, such as `blocks.*`. Empty takes the `blocks` of the model's spec.
        find_unused: `ddp`: allow parameters that a step does not use (slower).
        timeout: Seconds that processes wait for one that is late, such as the first while it writes a checkpoint,
            before the run fails. One that has died ends it at once.
    """

    strategy: Literal["auto", "ddp", "fsdp2"] = "auto"
    wrap: tuple[str, ...] = ()
    find_unused: bool = False
    timeout: float = 600.0

    def __post_init__(self) -> None:
        settings.coerce(self, section="distributed")
        require(self.timeout > 0, "distributed.timeout", self.timeout, "seconds above 0")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of `astrozoo.train`. Training ends at `max_steps` or after `epochs`, whichever comes first.

    Attributes:
        max_steps: Optimiser steps.
        epochs: Passes over the training split; 10 when neither is given.
        max_minutes: Stop, saved, after so much time.
        batch_size: Samples per optimiser step, over all processes and micro-batches together: adding processes or
            `accumulate` changes speed and memory, not the result. `auto`: as many as give each forward pass the largest
            power of two of samples that fits into memory, found before the first step.
        accumulate: Micro-batches per step and process. `auto`: the smallest power of two with which a step of
            `batch_size` samples fits into memory, found before the first step.
        drop_last: Leave out the last, smaller batch of each epoch.
        seed: Of initialisation, data order and dropout.
        deterministic: Only operations with reproducible results; one that has none ends training with its name.
        device: `auto`, `cpu`, `cuda`, ...
        precision: `fp32` (or `no`), `bf16`, `fp16`: of autocast. Weights keep their dtype.
        compile: Use `torch.compile`.
        cuda_graphs: With `compile`, on one GPU: record the compiled step and replay it, where the host takes longer to
            launch kernels than the GPU to run them. Each size of batch is recorded and keeps memory for itself.
        grad_checkpointing: Recompute activations in the backward pass.
        num_workers: Processes that load data.
        out: Folder of checkpoints, models and logs; None makes a new one under `runs/`.
    """

    max_steps: int | None = None
    epochs: int | None = None
    max_minutes: float | None = None
    batch_size: int | Literal["auto"] = 32
    accumulate: int | Literal["auto"] = 1
    drop_last: bool = False
    seed: int = 0
    deterministic: bool = False
    device: str = "auto"
    precision: Literal["fp32", "no", "bf16", "fp16"] = "fp32"
    compile: bool = False
    cuda_graphs: bool = False
    grad_checkpointing: bool = False
    num_workers: int = 0
    out: str | None = None
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
    profile: ProfileConfig = field(default_factory=ProfileConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)

    def __post_init__(self) -> None:
        settings.coerce(self)
        for name in ("max_steps", "epochs", "max_minutes"):
            value = getattr(self, name)
            require(value is None or value > 0, name, value, "above 0, or null")
        for name in ("batch_size", "accumulate"):
            value = getattr(self, name)
            require(value == "auto" or value > 0, name, value, "a whole number above 0, or auto")
        if self.batch_size == "auto" or self.accumulate == "auto":
            both = self.batch_size == self.accumulate
            require(
                not both, "accumulate", self.accumulate, "a number where batch_size is auto, or the other way round"
            )
        else:
            require(self.accumulate <= self.batch_size, "accumulate", self.accumulate, "at most batch_size")
        require(self.num_workers >= 0, "num_workers", self.num_workers, "0 or more")
        require(self.seed >= 0, "seed", self.seed, "0 or more")
        if self.precision == "no":
            object.__setattr__(self, "precision", "fp32")

    def batches(self) -> tuple[int, int]:
        """`batch_size` and `accumulate`.

        Raises:
            ConfigError: One of them is `auto`, which only training can settle.
        """
        if self.batch_size == "auto" or self.accumulate == "auto":
            name = "batch_size" if self.batch_size == "auto" else "accumulate"
            raise ConfigError(f"{name} is 'auto', which astrozoo.train settles; expected a whole number here.")
        return self.batch_size, self.accumulate

    @classmethod
    def from_yaml(cls, path: str | Path) -> TrainConfig:
        """The configuration in a YAML file; what it leaves out has its default.

        Raises:
            ConfigError: The file cannot be read, a key is unknown, or a value has the wrong type.
        """
        return cls.from_dict(settings.read_yaml(path))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """The inverse of `to_dict`; raises ConfigError as `from_yaml` does."""
        return settings.from_mapping(cls, values)

    def to_dict(self) -> dict[str, Any]:
        """All settings as JSON-able values."""
        return settings.to_mapping(self)

    def with_overrides(self, overrides: Iterable[str]) -> TrainConfig:
        """A copy with flags such as `optim.lr=3e-4` applied; raises ConfigError as `from_yaml` does."""
        return settings.with_overrides(self, overrides)
