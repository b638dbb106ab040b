"""What training a model costs, found out without allocating it.

The model is built on the meta device; then two training steps and one inference step run on fake tensors (see
`astrozoo.training.simulation`). Not included are workspaces of cuDNN, cuBLAS, cuFFT and oneDNN, fragmentation of the
allocator, and the context of a GPU (some hundred MiB). `astrozoo bench memory` compares with real steps.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from astrozoo.batch import random_batch
from astrozoo.errors import ConfigError
from astrozoo.readable import format_bytes
from astrozoo.training.config import OptimConfig
from astrozoo.training.device import available_memory, usable_device
from astrozoo.training.simulation import simulate

__all__ = ["PRECISIONS", "Estimate", "estimate", "largest_batch", "largest_power_of_two"]

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_LIMIT = 2**20  # samples, beyond which no search goes


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Operations and memory of one model at one batch size.

    Attributes:
        name: The variant.
        batch_size, precision, optimizer, grad_checkpointing: What it was estimated for.
        device: Whose kernels and rules of autocast were followed.
        inputs: Shapes of the inputs.
        parameters: Number of parameters, shared ones counted once.
        flops_forward: Floating-point operations of one forward pass of the whole batch (a multiply-add counts two).
        flops_step: Those of forward and backward.
        parameter_bytes: Parameters and buffers.
        gradient_bytes: Gradients of the parameters.
        optimizer_bytes: State the optimiser keeps.
        activation_bytes: What is alive between forward and backward beyond parameters and batch.
        batch_bytes: Inputs and targets.
        training_peak_bytes: Highest total of a training step in the steady state.
        inference_peak_bytes: Highest total of a forward pass without gradients.
    """

    name: str
    batch_size: int
    precision: str
    optimizer: str
    grad_checkpointing: bool
    device: str
    inputs: dict[str, tuple[int, ...]]
    parameters: int
    flops_forward: int
    flops_step: int
    parameter_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    activation_bytes: int
    batch_bytes: int
    training_peak_bytes: int
    inference_peak_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """The estimate as JSON-able values."""
        return asdict(self)


def estimate(
    name: str,
    *,
    batch_size: int = 1,
    precision: str = "fp32",
    optimizer: str = "adamw",
    grad_checkpointing: bool = False,
    device: str = "auto",
    sizes: Mapping[str, int] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Estimate:
    """Operations and memory of training and applying a variant.

    Args:
        name: A registered variant.
        batch_size: Examples per step on one device.
        precision: `fp32`, or mixed precision `bf16` or `fp16`, as in `TrainConfig`.
        optimizer: As in `TrainConfig`.
        grad_checkpointing: Recompute activations in the backward pass.
        device: As in `TrainConfig`. Kernels and autocast differ between devices; a GPU must be there to be asked.
        sizes: Replaces example sizes by dimension, such as `{"lat": 192, "lon": 288}`.
        overrides: Fields of the family's configuration.

    Raises:
        ConfigError: An unknown precision, device, size or override; or a model whose operations depend on values, which
            cannot be followed without computing them.
    """
    from astrozoo.registry import load_variant

    if precision not in PRECISIONS:
        raise ConfigError(f"precision is {precision!r}, expected one of {', '.join(PRECISIONS)}.")
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}, expected at least 1.")
    place = usable_device(device)
    variant = load_variant(name)
    model = variant.build(variant.config(**(overrides or {})), device="meta")
    assert model.spec is not None
    sizes = dict(sizes or {})
    free = {dim.name for tensor in model.spec.inputs for dim in tensor.dims if not dim.fixed} - {"batch"}
    for dim in sizes:
        if dim not in free:
            raise ConfigError(
                f"{name} has no free dimension {dim!r}; its free dimensions are: {', '.join(sorted(free))}."
            )
    if grad_checkpointing:
        model.set_grad_checkpointing()
    shapes = random_batch(model.spec, batch_size, sizes=sizes, device="meta")
    try:
        measured = simulate(model, shapes, PRECISIONS[precision], OptimConfig(name=optimizer), device=place)
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise ConfigError(f"{name} cannot be estimated: its operations depend on values ({error}).") from error
    return Estimate(
        name=name,
        batch_size=batch_size,
        precision=precision,
        optimizer=optimizer,
        grad_checkpointing=grad_checkpointing,
        device=str(place),
        inputs={key: tuple(tensor.shape) for key, tensor in shapes.inputs.items()},
        parameters=model.num_parameters(),
        **measured,
    )


def largest_batch(name: str, *, memory: int | None = None, device: str = "auto", **settings: Any) -> Estimate:
    """The estimate for the largest power of two of examples whose training fits into memory.

    Args:
        name: A registered variant.
        memory: Bytes; default: what this process can have on the device now.
        device: As for `estimate`.
        settings: The other arguments of `estimate`, without `batch_size`.

    Raises:
        ConfigError: As `estimate`; or not even one example fits, or the memory of the device is unknown.
    """

    @functools.cache
    def at(batch_size: int) -> Estimate:
        return estimate(name, batch_size=batch_size, device=device, **settings)

    room = available_memory(usable_device(device)) if memory is None else memory
    if room is None:
        raise ConfigError(f"the memory of {usable_device(device)} is unknown; say how much there is.")
    found = largest_power_of_two(lambda size: at(size).training_peak_bytes, room, _LIMIT)
    if not found:
        raise ConfigError(
            f"not even one example of {name} fits: training needs {format_bytes(at(1).training_peak_bytes)} of the "
            f"{format_bytes(room)} there are. Gradient checkpointing, bf16 or a smaller variant need less."
        )
    return at(found)


def largest_power_of_two(needed: Callable[[int], int], room: float, limit: int) -> int:
    """The largest power of two up to `limit` (at least 1) that needs at most `room`; 0 where one is too much.

    Each look may take seconds, so it starts where a straight line through the first two points says.
    """
    looked: dict[int, int] = {}

    def fits(exponent: int) -> bool:
        if exponent not in looked:
            looked[exponent] = needed(2**exponent)
        return looked[exponent] <= room

    if not fits(0):
        return 0
    highest = max(limit, 1).bit_length() - 1
    if highest == 0 or not fits(1):
        return 1
    growth = max(looked[1] - looked[0], 1)
    exponent = min(int((room - looked[0]) / growth + 1).bit_length() - 1, highest)
    while not fits(exponent):
        exponent -= 1
    while exponent < highest and fits(exponent + 1):
        exponent += 1
    return 2**exponent
