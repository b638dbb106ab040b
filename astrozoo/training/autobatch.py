"""`batch_size: auto` and `accumulate: auto`: settled before the first step, by estimate and then by real steps.

The estimate says where to begin. Then a copy of the model takes two whole optimiser steps on samples of the data: with
its optimiser, averaging, precision and compilation, each process for itself. Where memory runs out, half as many
samples per forward pass are tried; where they fit on a GPU, twice as many, until that fails. What all processes can do
counts.

The training itself is not touched: it begins with the weights, the random numbers and the order of data that it would
have had with the same numbers in its settings.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import gc
import logging
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from astrozoo.errors import ConfigError, TrainingError
from astrozoo.module import ZooModel
from astrozoo.readable import format_bytes
from astrozoo.training.config import DistributedConfig, TrainConfig
from astrozoo.training.device import available_memory
from astrozoo.training.estimate import largest_power_of_two
from astrozoo.training.memory import USABLE, explain_out_of_memory, is_out_of_memory, needed_bytes, one_sample
from astrozoo.training.protocol import split_of
from astrozoo.training.runtime import Runtime
from astrozoo.training.trainer import Trainer

if TYPE_CHECKING:
    from astrozoo.training.checkpoint import Checkpoint

__all__ = ["Settled", "settle"]

log = logging.getLogger("astrozoo.training")
_STEPS = 2  # the second finds the optimiser's state beside its activations
_HOPELESS = 1.15  # of the memory; estimates are not further off
_TIGHT = 0.95  # of the memory; a long run needs a little for what its first steps do not show, such as fragmentation


@dataclass(frozen=True)
class Settled:
    """What `auto` came to.

    Attributes:
        config: The settings with numbers in place of `auto`.
        record: How they were found, JSON-able: `samples` per forward pass, `tried` (one row per attempt), and
            `estimated_bytes`, `measured_bytes`, `available_bytes`; None where nothing was to be found.
    """

    config: TrainConfig
    record: dict[str, Any] | None = None


def settle(model: ZooModel, data: Any, config: TrainConfig, runtime: Runtime, found: Checkpoint | None) -> Settled:
    """`config` with numbers in place of `auto`. All processes must call it together.

    Args:
        model: What will be trained. It may be on the CPU afterwards, and is otherwise as it was.
        data: What it will be trained on.
        config: The settings.
        runtime: Device and processes.
        found: The checkpoint that will be continued, whose numbers count.

    Raises:
        ConfigError: Weights are sharded, so no process can try on its own.
        TrainingError: Not even the least fits.
    """
    if not _asks(config):
        return Settled(config)
    if found is not None:
        config = _as_before(config, found, runtime)
        if not _asks(config):
            return Settled(config)
    if runtime.strategy == "fsdp2":
        name = "batch_size" if config.batch_size == "auto" else "accumulate"
        raise ConfigError(f"{name} is 'auto'; expected a number with fsdp2, where no process can try on its own.")
    return _Search(model, data, config, runtime).run()


def _asks(config: TrainConfig) -> bool:
    return "auto" in (config.batch_size, config.accumulate)


def _as_before(config: TrainConfig, found: Checkpoint, runtime: Runtime) -> TrainConfig:
    """A run that goes on keeps its numbers; `accumulate` only with as many processes as there were."""
    before = found.state["config"]
    if config.batch_size == "auto":
        return dataclasses.replace(config, batch_size=before["batch_size"])
    if len(found.state["rng"]) == runtime.processes and config.batch_size == before["batch_size"]:
        return dataclasses.replace(config, accumulate=before["accumulate"])
    return config


class _Search:
    """Candidates in the order of what they need, and the largest that fits."""

    def __init__(self, model: ZooModel, data: Any, config: TrainConfig, runtime: Runtime) -> None:
        self.model, self.data, self.config, self.runtime = model, data, config, runtime
        samples = split_of(data, "train")
        assert samples is not None
        self.candidates = _candidates(config, len(samples), runtime.processes)
        self.sample = one_sample(data)
        self.held = sum(item.nbytes for item in model.parameters() if item.device.type == runtime.device.type)
        self.room = available_memory(runtime.device, self.held)
        self.needs = functools.cache(self._needs)
        self.tried: list[dict[str, Any]] = []
        self.error: BaseException | None = None

    def run(self) -> Settled:
        """Begin where the estimate says, go down until a candidate fits, or up while the next one does."""
        self.model.to("cpu")  # the copy that is tried stands in its place; training moves it to the device
        index = min(self.runtime.gather(self._begin()))
        # On the CPU nothing tells a process that it takes too much: the system ends one. Only a GPU is asked for more.
        up = self.runtime.device.type == "cuda"
        while not self._fits(index):
            up = False
            if index == 0:
                raise TrainingError(self._nothing_fits()) from self.error
            index -= 1
        while up and all(self.runtime.gather(self._worth_trying(index + 1))):
            if not self._fits(index + 1):
                break
            index += 1
        return Settled(self.candidates[index], self._record(index))

    def _begin(self) -> int:
        """The largest candidate that needs no more than there is by estimate; the least where nothing is known."""
        if self.room is None:
            return 0
        highest = 2 ** (len(self.candidates) - 1)  # each has about twice the samples of the one before
        found = largest_power_of_two(
            lambda power: self.needs(power.bit_length() - 1) or sys.maxsize, USABLE * self.room, highest
        )
        return max(found.bit_length() - 1, 0)

    def _needs(self, index: int) -> int | None:
        candidate = self.candidates[index]
        micro, accumulate = self._micro(candidate), candidate.batches()[1]
        try:
            return needed_bytes(
                self.model, self.sample, micro, accumulate, candidate, self.runtime,
                checkpointing=candidate.grad_checkpointing,
            )  # fmt: skip
        except Exception as error:  # whatever it is, the model can be tried all the same, from the least
            log.info("What %d samples need could not be estimated: %s", micro, error)
            return None

    def _worth_trying(self, index: int) -> bool:
        """Whether there is such a candidate, and the estimate, which is not further off, gives it a chance."""
        if index >= len(self.candidates):
            return False
        needed = self.needs(index)
        return needed is None or self.room is None or needed <= _HOPELESS * self.room

    def _fits(self, index: int) -> bool:
        """Whether a copy of the model can take steps with this candidate, on all processes, with a little to spare."""
        candidate, device = self.candidates[index], self.runtime.device
        cuda = device.type == "cuda"
        before = torch.cuda.memory_allocated(device) if cuda else 0
        if cuda:
            torch.cuda.reset_peak_memory_stats(device)
        outcome, failure = "fits", None
        try:
            self._try(candidate)
        except Exception as error:
            traceback.clear_frames(error.__traceback__)  # they hold the tensors of the failed step
            outcome, failure = ("too much" if is_out_of_memory(error) else "failed"), error
        gc.collect()
        peak = torch.cuda.max_memory_allocated(device) - before if cuda else None
        if cuda:
            torch.cuda.empty_cache()
        if peak is not None and self.room is not None and peak > _TIGHT * self.room:
            outcome = "too much" if outcome == "fits" else outcome
        outcomes = self.runtime.gather(outcome)
        if "failed" in outcomes:
            if outcome == "failed" and failure is not None:
                raise failure
            raise TrainingError("another process failed while the size of a batch was tried; its message says why.")
        self.error = failure or self.error
        fits = set(outcomes) == {"fits"}
        self.tried.append({"samples": self._micro(candidate), "fits": fits, "peak_bytes": peak})
        return fits

    def _try(self, candidate: TrainConfig) -> None:
        """Steps of a copy of the model with this process's own part of a step."""
        batch_size = self._micro(candidate) * candidate.batches()[1]
        own = dataclasses.replace(candidate, batch_size=batch_size, num_workers=0, distributed=DistributedConfig())
        twin = copy.deepcopy(self.model)
        buckets = []
        if self.runtime.strategy == "ddp":  # gradients have a second place there
            buckets = [torch.empty_like(item, device=self.runtime.device) for item in twin.parameters()]
        alone = _Alone(self.runtime.device, self.runtime.accelerator, "single")
        Trainer(twin, self.data, own, alone, Path()).rehearse(_STEPS)
        del buckets

    def _record(self, index: int) -> dict[str, Any]:
        batch_size, accumulate = self.candidates[index].batches()
        micro, estimated = self._micro(self.candidates[index]), self.needs(index)
        peak = next(row["peak_bytes"] for row in reversed(self.tried) if row["fits"])
        amounts = {"estimated": estimated, "measured": peak, "available": self.room}
        log.info(
            "Found: %d samples per forward pass, so batch_size=%d and accumulate=%d (%s). Tried: %s.",
            micro,
            batch_size,
            accumulate,
            ", ".join(f"{name} {format_bytes(count)}" for name, count in amounts.items() if count is not None),
            ", ".join(f"{row['samples']} {'fit' if row['fits'] else 'do not'}" for row in self.tried),
        )
        return {
            "samples": micro,
            "tried": self.tried,
            **{f"{name}_bytes": count for name, count in amounts.items()},
        }

    def _micro(self, candidate: TrainConfig) -> int:
        batch_size, accumulate = candidate.batches()
        return -(-batch_size // (accumulate * self.runtime.processes))

    def _nothing_fits(self) -> str:
        least = self.candidates[0]
        explained = None
        if self.error is not None:
            explained = explain_out_of_memory(self.error, self.model, self.data, least, self.runtime, held=self.held)
        name = "batch_size" if self.config.batch_size == "auto" else "accumulate"
        reason = explained or "Another process ran out of memory."
        fewest = self._micro(least)
        samples = "one sample" if fewest == 1 else f"{fewest} samples"
        return f"{name} is 'auto', but not even {samples} per forward pass can be had. {reason}"


class _Alone(Runtime):
    """The same device, for a process that waits for no other."""

    @property
    def processes(self) -> int:
        """Itself."""
        return 1

    @property
    def rank(self) -> int:
        """The first of one."""
        return 0


def _candidates(config: TrainConfig, samples: int, processes: int) -> list[TrainConfig]:
    """Settings with numbers, from the least samples per forward pass to the most."""
    if config.batch_size == "auto":
        assert config.accumulate != "auto"
        parts = config.accumulate * processes
        powers = range(max(samples // parts, 1).bit_length())
        return [dataclasses.replace(config, batch_size=2**power * parts) for power in powers]
    powers = range(max(config.batch_size // processes, 1).bit_length())
    return [dataclasses.replace(config, accumulate=2**power) for power in reversed(powers)]
