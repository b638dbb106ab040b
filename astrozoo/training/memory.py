"""Out of memory: what the run needed, what there is, and which settings are estimated to fit."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from astrozoo.batch import Batch
from astrozoo.errors import AstrozooError, ConfigError
from astrozoo.module import ZooModel
from astrozoo.readable import format_bytes
from astrozoo.training.config import TrainConfig
from astrozoo.training.device import available_memory
from astrozoo.training.estimate import PRECISIONS
from astrozoo.training.optim import local
from astrozoo.training.order import SeededSamples
from astrozoo.training.protocol import collate_of
from astrozoo.training.sentinel import LAG
from astrozoo.training.simulation import simulate

if TYPE_CHECKING:
    from astrozoo.training.runtime import Runtime
    from astrozoo.training.trainer import Trainer

__all__ = [
    "USABLE",
    "explain_out_of_memory",
    "held_bytes",
    "is_out_of_memory",
    "needed_bytes",
    "one_sample",
    "what_fits",
]

_WORDS = (
    "allocate memory",  # the CPU's allocator
    "CUDA error: out of memory",  # the driver, for what is not a tensor
    "_ALLOC_FAILED",  # cuBLAS, cuDNN, cuFFT
    "Unable to find a valid cuDNN algorithm",  # none found the room it works in
)
USABLE = 0.9  # the rest is for what estimates leave out: workspaces of kernels, fragmentation


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` is about memory. The CPU's allocator and CUDA's libraries say so only in their text."""
    if isinstance(error, AstrozooError):
        return False
    text = str(error)
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(words in text for words in _WORDS)


def explain_out_of_memory(
    error: BaseException, model: ZooModel, data: Any, config: TrainConfig, runtime: Runtime, *, held: int = 0
) -> str | None:
    """What to do about `error` if it is about memory, with the sizes that are estimated to fit; None for any other.

    Args:
        error: What was raised.
        model: What was trained.
        data: What it was trained on.
        config: The settings, without `auto`.
        runtime: Device and processes.
        held: Bytes of the training's tensors beyond the step that failed.
    """
    if not is_out_of_memory(error):
        return None
    batch_size, accumulate = config.batches()
    micro = _share(config, runtime, accumulate)
    weights = sum(item.numel() * item.element_size() for item in model.parameters())
    sizes = f"{micro} samples per forward pass, {format_bytes(weights)} of weights"
    if runtime.device.type == "cuda":
        peak, total = torch.cuda.max_memory_allocated(runtime.device), torch.cuda.mem_get_info(runtime.device)[1]
        sizes += f", {format_bytes(peak)} used at the peak of {format_bytes(total)}"
    traceback.clear_frames(error.__traceback__)  # they hold the tensors of the failed step; the estimate needs room
    advice = []
    try:
        found = what_fits(model, data, config, runtime, held=held)
    except Exception as problem:  # whatever fails here must not take the place of the error that is explained
        found = f"What would fit could not be estimated: {str(problem) or type(problem).__name__}."
        if micro > 1:
            more = min(2 * accumulate, batch_size // runtime.processes)
            advice.append(f"accumulate={more} (fewer activations at a time, the same result)")
    if _can_checkpoint(model) and not config.grad_checkpointing:
        advice.append("grad_checkpointing=true (activations of one block at a time)")
    if config.precision == "fp32":
        advice.append("precision=bf16 (about half the activations)")
    if runtime.processes > 1 and runtime.strategy == "ddp":
        advice.append(f"distributed.strategy=fsdp2 (weights and optimiser state over {runtime.processes} processes)")
    advice.append("a smaller variant (astrozoo estimate prints what one needs)")
    return f"Out of memory on {runtime.device} with {sizes}. {found} What helps: {'; '.join(advice)}."


def what_fits(model: ZooModel, data: Any, config: TrainConfig, runtime: Runtime, *, held: int = 0) -> str:
    """Which batch size, by estimate, fits into the memory of the device, and whether gradient checkpointing would do.

    Arguments as for `explain_out_of_memory`.

    Raises:
        ConfigError: It cannot be estimated: the memory of the device is unknown, weights are sharded, or the model's
            operations depend on values.
    """
    room = available_memory(runtime.device, held)
    if room is None:
        raise ConfigError(f"the memory of {runtime.device} is unknown")
    sample = one_sample(data)
    micro = _share(config, runtime, config.batches()[1])

    def needed(size: int, checkpointing: bool) -> int:
        return needed_bytes(
            model, sample, size, _share(config, runtime, size), config, runtime, checkpointing=checkpointing
        )

    def largest(upper: int, checkpointing: bool) -> int:
        return _largest(lambda size: needed(size, checkpointing) <= USABLE * room, upper)

    now = needed(micro, config.grad_checkpointing)
    text = [f"By estimate this needs {format_bytes(now)} of the {format_bytes(room)} that {runtime.device} has for it"]
    if now <= USABLE * room:
        text[0] += ", which should do: other programs or workspaces of kernels take the rest"
        if micro > 1:
            text.append(f"fewer samples need less: {_as_settings(micro // 2, config, runtime)}")
        return "; ".join(text) + "."
    fits = largest(micro - 1, config.grad_checkpointing)
    text.append(f"at most {_as_settings(fits, config, runtime)} fit" if fits else "not even one sample at a time fits")
    if _can_checkpoint(model) and not config.grad_checkpointing:
        recomputed = needed(micro, True)
        if recomputed <= USABLE * room:
            text.append(f"with grad_checkpointing=true all {micro} fit ({format_bytes(recomputed)})")
        else:
            fits = largest(micro - 1, True)
            then = f"at most {_as_settings(fits, config, runtime)} do" if fits else "nor does a single one"
            text.append(f"with grad_checkpointing=true {micro} do not fit either ({format_bytes(recomputed)}), {then}")
    return "; ".join(text) + "."


def held_bytes(trainer: Trainer) -> int:
    """Bytes that weights, gradients, optimiser and average have on this process."""
    kept = [*trainer.model.parameters(), *trainer.model.buffers()]
    kept += [item.grad for item in trainer.model.parameters() if item.grad is not None]
    for values in trainer.optimizer.state.values():
        kept += [item for item in values.values() if isinstance(item, torch.Tensor)]
    kept += trainer.ema.averages.values() if trainer.ema is not None else []
    return sum(local(item).nbytes for item in kept)


def one_sample(data: Any) -> Batch:
    """The first training sample, as a batch of one."""
    return collate_of(data)(SeededSamples(data.train).__getitems__([0]))


def needed_bytes(
    model: ZooModel,
    sample: Batch,
    size: int,
    accumulate: int,
    config: TrainConfig,
    runtime: Runtime,
    *,
    checkpointing: bool,
) -> int:
    """Estimated bytes at the peak of a step of this run on one process.

    Args:
        model: Of which another is built on the meta device.
        sample: Of which a batch is made up.
        size: Samples per forward pass.
        accumulate: Forward passes per step.
        config: Precision, optimiser and averaging.
        runtime: Device and processes.
        checkpointing: Whether activations are recomputed.

    Raises:
        ConfigError: It cannot be estimated.
    """
    if runtime.strategy == "fsdp2":
        raise ConfigError("what sharded weights need at once depends on how they are wrapped")
    twin = type(model)(model.config, device="meta", dtype=model.dtype)  # type: ignore[call-arg]  # of every family
    twin.spec = model.spec
    twin.set_grad_checkpointing(checkpointing)
    shapes, precision = _resized(sample, size, model.dtype), PRECISIONS[config.precision]
    try:
        found = simulate(
            twin, shapes, precision, config.optim, accumulate=accumulate, device=runtime.device, count=False
        )
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise ConfigError(f"operations of {type(model).__name__} depend on values ({error})") from error
    # Batches stay for the diagnosis of a bad loss: of this step, and on a GPU of those that were not looked at yet.
    batches = accumulate * (1 + (LAG if runtime.device.type == "cuda" else 0)) - 1
    peak = found["training_peak_bytes"] + batches * found["batch_bytes"]
    if config.ema.decay:
        peak += found["parameter_bytes"]
    if runtime.strategy == "ddp":
        peak += found["gradient_bytes"]  # its buckets
    return peak


def _resized(sample: Batch, size: int, dtype: torch.dtype) -> Batch:
    """The shapes of a batch of `size` samples, from those of a batch of one."""

    def resize(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        wrong = [name for name, item in tensors.items() if item.shape[:1] != (1,)]
        if wrong:
            raise ConfigError(f"the first dimension of {wrong} does not count samples")
        return {
            name: torch.empty(
                size, *item.shape[1:], dtype=dtype if item.is_floating_point() else item.dtype, device="meta"
            )
            for name, item in tensors.items()
        }

    context = {name: item.to("meta") for name, item in sample.context.items()}
    return Batch(resize(sample.inputs), resize(sample.targets), context)


def _largest(fits: Callable[[int], bool], upper: int) -> int:
    """The largest number from 1 to `upper` that fits, where whatever is smaller fits too; 0 if none does."""
    lower = 0
    while lower < upper:
        middle = (lower + upper + 1) // 2
        lower, upper = (middle, upper) if fits(middle) else (lower, middle - 1)
    return lower


def _as_settings(size: int, config: TrainConfig, runtime: Runtime) -> str:
    batch_size, present = config.batches()
    accumulate = _share(config, runtime, size)
    text = f"batch_size={size * present * runtime.processes}, in a new run"
    if accumulate * runtime.processes <= batch_size:  # or a part would have no sample
        text = f"accumulate={accumulate}, with the same batch_size and result, or {text}"
    return f"{size} samples per forward pass ({text})"


def _share(config: TrainConfig, runtime: Runtime, parts: int) -> int:
    """Samples per forward pass when each process has `parts` of them in a step; or passes, of `parts` samples each."""
    return -(-config.batches()[0] // (parts * runtime.processes))


def _can_checkpoint(model: ZooModel) -> bool:
    return model.spec is None or model.spec.capabilities.grad_checkpointing is True
