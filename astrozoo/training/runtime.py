"""Where training runs: device, processes, precision, and the module whose forward is the loss.

Accelerate starts the process group (under `torchrun` or `accelerate launch`, on one machine or many), wraps for DDP and
runs the trackers. Sharding is PyTorch's `fully_shard`, which works on every device Accelerate's own wrapper does not.
"""

from __future__ import annotations

import atexit
import logging
import os
import random
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from astrozoo.batch import Batch
from astrozoo.errors import AstrozooError, ConfigError
from astrozoo.module import ZooModel
from astrozoo.processes import leave_process_group
from astrozoo.training.config import TrainConfig
from astrozoo.training.device import usable_device
from astrozoo.training.lifeline import Lifeline, connect
from astrozoo.training.sharding import shard

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["LossModule", "Runtime", "mover", "seed_everything", "start", "wrap"]

log = logging.getLogger("astrozoo.training")
_LIFELINE: dict[str, Any] = {}
AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class LossModule(nn.Module):
    """The loss as a forward pass, so that DDP and FSDP see every use of the model; in autocast if a dtype is given."""

    def __init__(self, model: ZooModel, autocast: torch.dtype | None = None) -> None:
        super().__init__()
        self.model = model
        self.autocast = autocast

    def forward(self, batch: Batch, outputs: bool = False) -> Any:
        """`model.loss(batch)`, or with `outputs` what the model makes of the inputs."""
        if self.autocast is None:
            return self.model(**batch.inputs) if outputs else self.model.loss(batch)
        with torch.autocast(self.model.device.type, self.autocast):
            return self.model(**batch.inputs) if outputs else self.model.loss(batch)


@dataclass
class Runtime:
    """Device and processes of a run."""

    device: torch.device
    accelerator: Accelerator
    strategy: str  # "single", "ddp" or "fsdp2"
    lifeline: Lifeline | None = None

    @property
    def processes(self) -> int:
        """How many processes train together."""
        return self.accelerator.num_processes

    @property
    def rank(self) -> int:
        """Number of this process."""
        return self.accelerator.process_index

    @property
    def main(self) -> bool:
        """Whether this process writes files."""
        return self.accelerator.is_main_process

    def sum(self, values: list[float]) -> list[float]:
        """Element-wise sums over processes."""
        if self.processes == 1:
            return values
        kind = torch.float32 if self.device.type == "mps" else torch.float64
        tensor = torch.tensor(values, dtype=kind, device=self.device)
        torch.distributed.all_reduce(tensor)
        result: list[float] = tensor.tolist()
        return result

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in order of their ranks."""
        if self.processes == 1:
            return [value]
        values: list[Any] = [None] * self.processes
        torch.distributed.all_gather_object(values, value)
        return values

    def failed(self, error: BaseException) -> str | None:
        """Note that this process fails; where it does because another is lost, which one and why."""
        if self.lifeline is None:
            return None
        # The connection that broke under a collective operation may be noticed before the lifeline's.
        foreign = isinstance(error, RuntimeError) and not isinstance(error, AstrozooError)
        lost = self.lifeline.lost() if foreign else None
        self.lifeline.fail(error)
        return lost

    def together(self, action: Any) -> Any:
        """Run `action` on the main process; if it fails there, all processes raise its error.

        Raises:
            Exception: What the action raised.
        """
        result, problem = None, None
        if self.main:
            try:
                result = action()
            except Exception as error:
                if self.processes == 1:
                    raise
                problem = error
        problem, result = self.gather((problem, result))[0]
        if problem is not None:
            raise problem
        return result


def start(config: TrainConfig) -> Runtime:
    """Choose device and processes.

    Raises:
        ConfigError: The device does not exist, or the strategy needs several processes.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

    device = usable_device(config.device)
    launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
    wants_fsdp = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if asked not in ("no", config.precision):
        log.warning("accelerate launch asks for precision %s; the configuration's %s counts.", asked, config.precision)
    if AcceleratorState._shared_state:  # Accelerate remembers device and precision of an earlier run in this process
        AcceleratorState._reset_state(reset_partial_state=not launched)
    handlers = [
        DistributedDataParallelKwargs(find_unused_parameters=config.distributed.find_unused),
        InitProcessGroupKwargs(timeout=timedelta(seconds=config.distributed.timeout)),
    ]
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision="no", kwargs_handlers=handlers)
    strategy: str = config.distributed.strategy
    if accelerator.num_processes == 1:
        if strategy == "fsdp2":
            raise ConfigError("distributed.strategy is 'fsdp2', expected several processes: start with torchrun.")
        strategy = "single"
    elif strategy == "auto":
        strategy = "fsdp2" if wants_fsdp else "ddp"
    runtime = Runtime(device, accelerator, strategy)
    if accelerator.num_processes > 1:
        runtime.device = accelerator.device
        atexit.unregister(leave_process_group)
        atexit.register(leave_process_group)
        runtime.lifeline = _connected(runtime)
    return runtime


def _connected(runtime: Runtime) -> Lifeline | None:
    """The lifeline of this process group; one serves all runs of a process."""
    group = torch.distributed.group.WORLD
    if _LIFELINE.get("group") is not group:
        line = connect(runtime.rank, runtime.processes, runtime.gather)
        _LIFELINE.update(group=group, line=line)
        if line is not None:
            atexit.register(line.leave)  # runs before the process group is left, which may take long
    line = _LIFELINE["line"]
    if line is not None:
        line.failure = None
    return line


def wrap(
    model: ZooModel, runtime: Runtime, config: TrainConfig, *, recorded: bool = False
) -> tuple[LossModule, nn.Module]:
    """The loss module, and what to call in a training step: compiled (and `recorded`), in DDP, or sharded in place.

    The model moves to the device. Call it before the optimiser is built, which must see sharded parameters.
    """
    model.to(runtime.device)
    if config.grad_checkpointing:
        model.set_grad_checkpointing(True)
    loss = LossModule(model, AUTOCAST[config.precision])
    step: nn.Module = loss
    if runtime.strategy == "fsdp2":
        shard(loss, model, runtime.device, runtime.processes, config.distributed.wrap)
    if config.compile:
        step = torch.compile(step, mode="reduce-overhead" if recorded else None)  # type: ignore[assignment]
    if runtime.strategy == "ddp":
        if runtime.device.type == "cpu" or runtime.accelerator.distributed_type != "FSDP":
            step = runtime.accelerator.prepare_model(step)
        else:  # launched for FSDP, configured for DDP
            step = nn.parallel.DistributedDataParallel(step, device_ids=[runtime.device.index])
    return loss, step


def mover(model: nn.Module, device: torch.device) -> Any:
    """A function that moves a batch to the device and its floats to the model's dtype; None when batches fit as is."""
    dtype = next(item.dtype for item in model.parameters() if item.is_floating_point())

    def move(batch: Batch) -> Batch:
        def to(tensors: dict[str, Tensor], kind: torch.dtype | None) -> dict[str, Tensor]:
            return {
                name: item.to(device, kind if kind and item.is_floating_point() else item.dtype, non_blocking=True)
                for name, item in tensors.items()
            }

        # Coordinates in the context keep their own precision.
        return Batch(to(batch.inputs, dtype), to(batch.targets, dtype), to(batch.context, None))

    return move


def seed_everything(seed: int) -> None:
    """Seed python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  transforms of other libraries draw from the global generator
    torch.manual_seed(seed)
