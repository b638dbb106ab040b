"""What training a model costs, found out without allocating it.

The model is built on the meta device; then two training steps and one inference step run on fake tensors, which know
shape, dtype and device but hold no memory. Every storage they would have allocated is followed from birth to death, so
the peak is that of the real sequence of operations, gradient checkpointing, autocast and optimiser included. Not
included are workspaces of kernels, fragmentation of the allocator, and the context of a GPU (some hundred MiB).
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from astrozoo.batch import Batch, random_batch
from astrozoo.errors import ConfigError
from astrozoo.module import ZooModel
from astrozoo.training.config import OptimConfig
from astrozoo.training.optim import build_optimizer

__all__ = ["Estimate", "estimate", "simulate"]

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Operations and memory of one model at one batch size.

    Attributes:
        name: The variant.
        batch_size, precision, optimizer, grad_checkpointing: What it was estimated for.
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
        sizes: Replaces example sizes by dimension, such as `{"lat": 192, "lon": 288}`.
        overrides: Fields of the family's configuration.

    Raises:
        ConfigError: An unknown precision, size or override; or a model whose operations depend on values, which cannot
            be followed without computing them.
    """
    from astrozoo.registry import load_variant

    if precision not in PRECISIONS:
        raise ConfigError(f"precision is {precision!r}, expected one of {', '.join(PRECISIONS)}.")
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}, expected at least 1.")
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
        measured = simulate(model, shapes, PRECISIONS[precision], OptimConfig(name=optimizer))
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise ConfigError(f"{name} cannot be estimated: its operations depend on values ({error}).") from error
    return Estimate(
        name=name,
        batch_size=batch_size,
        precision=precision,
        optimizer=optimizer,
        grad_checkpointing=grad_checkpointing,
        inputs={key: tuple(tensor.shape) for key, tensor in shapes.inputs.items()},
        parameters=model.num_parameters(),
        **measured,
    )


def simulate(
    model: ZooModel, shapes: Batch, precision: torch.dtype, optimizer: OptimConfig, *, accumulate: int = 1
) -> dict[str, int]:
    """Two training steps and one inference step on fake tensors; the model, on the meta device, is used up by it.

    With `accumulate` a step has as many forward and backward passes, of which more than two need no more than two.
    """
    with FakeTensorMode(), _LiveMemory() as memory:
        _replace_tensors(model)
        held = memory.now
        batch = shapes.map(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype))
        measured = {"parameter_bytes": held, "batch_bytes": memory.now - held}

        model.eval()
        memory.peak = memory.now
        with torch.no_grad(), _autocast(precision), FlopCounterMode(display=False) as forward:
            model(**batch.inputs)
        measured |= {"inference_peak_bytes": memory.peak, "flops_forward": forward.get_total_flops()}

        model.train()
        update = build_optimizer(model, optimizer)
        for _ in range(2):  # the second step finds the optimiser's state already there
            memory.peak = memory.now
            for _ in range(min(accumulate, 2)):
                before = memory.now
                with FlopCounterMode(display=False) as counter:
                    with _autocast(precision):
                        loss = model.loss(batch)["loss"]
                    activations = memory.now - before
                    loss.backward()
                del loss
            memory.values_matter = False
            update.step()
            memory.values_matter = True
            gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
            update.zero_grad(set_to_none=True)
        measured |= {
            "activation_bytes": activations,
            "gradient_bytes": gradients,
            "optimizer_bytes": memory.now - measured["parameter_bytes"] - measured["batch_bytes"],
            "training_peak_bytes": memory.peak,
            "flops_step": counter.get_total_flops(),
        }
    return measured


@contextlib.contextmanager
def _autocast(precision: torch.dtype) -> Iterator[None]:
    # Fake tensors stand in for any device; the CPU's list of autocast operations is that of CUDA for what weighs.
    enabled = precision != torch.float32
    with torch.autocast("cpu", dtype=precision if enabled else torch.bfloat16, enabled=enabled):
        yield


def _replace_tensors(model: nn.Module) -> None:
    """Give every parameter and buffer of a model on the meta device a fake storage, shared ones once."""
    replaced: dict[Tensor, Tensor] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                if parameter not in replaced:
                    fake = torch.empty(parameter.shape, dtype=parameter.dtype)
                    replaced[parameter] = nn.Parameter(fake, requires_grad=parameter.requires_grad)
                module._parameters[name] = replaced[parameter]  # type: ignore[assignment]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                if buffer not in replaced:
                    replaced[buffer] = torch.empty(buffer.shape, dtype=buffer.dtype)
                module._buffers[name] = replaced[buffer]


class _LiveMemory(TorchDispatchMode):
    """Bytes of all storages alive, now and at the peak."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self.values_matter = True
        self._known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is torch.ops.aten._local_scalar_dense.default and not self.values_matter:
            return 1.0  # some optimisers read a norm or a step count, which changes what they compute, not how much
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._follow(leaf.untyped_storage())
        return result

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return

        def forget(_: object) -> None:
            del self._known[key]
            self.now -= size

        self._known[key] = weakref.ref(storage, forget)
        self.now += size
        self.peak = max(self.peak, self.now)
