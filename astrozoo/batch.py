"""A batch: what a data set hands to a model, and what `model.loss` takes.

Three dictionaries of tensors: `inputs` (by the names of the model's `forward`), `targets` (by the names of the spec's
targets) and `context` (what is neither, but objectives and metrics need: `lat` in degrees north, `time`, weights).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from astrozoo.registry.spec import ModelSpec, TensorSpec

__all__ = ["Batch", "collate", "random_batch", "random_tensor"]

_DTYPES = {"int64": torch.int64, "bool": torch.bool}


@dataclass(slots=True)
class Batch:
    """Tensors of one training or inference step.

    Attributes:
        inputs: Keyword arguments of `forward`.
        targets: What the outputs are compared with; NaN marks a missing value.
        context: Coordinates and weights that objectives and metrics use, such as `lat[lat]` in degrees north. A context
            tensor is shared by all samples of the batch and has no batch dimension.
    """

    inputs: dict[str, Tensor]
    targets: dict[str, Tensor] = field(default_factory=dict)
    context: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return next(iter(self.inputs.values())).shape[0]

    def to(self, *args: Any, **kwargs: Any) -> Batch:
        """A copy with every tensor moved; a dtype applies to floating tensors only."""
        return self.map(lambda tensor: _to(tensor, *args, **kwargs))

    def pin_memory(self) -> Batch:
        """A copy in page-locked memory, for asynchronous transfer to an accelerator."""
        return self.condensed().map(Tensor.pin_memory).expanded(self)

    def condensed(self) -> Batch:
        """Where all samples are one sample that was expanded, as static fields are: that one, as a batch of one."""
        return self.map(lambda tensor: tensor[:1] if _is_expanded(tensor) else tensor)

    def expanded(self, whole: Batch) -> Batch:
        """The inverse of `condensed`: with the shapes of `whole`, so that copies and transfers happen once."""
        pairs = zip(self._parts(), whole._parts(), strict=True)
        return Batch(*({name: item.expand(sizes[name].shape) for name, item in part.items()} for part, sizes in pairs))

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """A copy with `function` applied to every tensor."""
        return Batch(*({name: function(tensor) for name, tensor in part.items()} for part in self._parts()))

    def _parts(self) -> tuple[dict[str, Tensor], ...]:
        return self.inputs, self.targets, self.context


def collate(samples: Sequence[Batch]) -> Batch:
    """Stack samples (batches whose tensors have no batch dimension) into one batch; context is taken from the first."""
    return Batch(
        inputs={name: torch.stack([sample.inputs[name] for sample in samples]) for name in samples[0].inputs},
        targets={name: torch.stack([sample.targets[name] for sample in samples]) for name in samples[0].targets},
        context=dict(samples[0].context),
    )


def random_batch(
    spec: ModelSpec,
    batch_size: int = 2,
    *,
    sizes: Mapping[str, int] | None = None,
    optional: bool = True,
    seed: int = 0,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Batch:
    """A reproducible batch that fits `spec`: standard-normal floats, uniform integers.

    Args:
        spec: Of the model the batch is for.
        batch_size: Number of samples.
        sizes: Replaces example sizes by dimension name, such as `{"lat": 33, "lon": 64}`.
        optional: Whether optional inputs are included.
        seed: Equal seeds give equal batches, whatever the device.
        device: Where the tensors live.
        dtype: Of the floating tensors.
    """
    generator = torch.Generator().manual_seed(seed)

    def tensors(specs: Sequence[TensorSpec]) -> dict[str, Tensor]:
        chosen = (tensor for tensor in specs if optional or not tensor.optional)
        return {
            tensor.name: random_tensor(tensor, batch_size, sizes=sizes, generator=generator, device=device, dtype=dtype)
            for tensor in chosen
        }

    return Batch(inputs=tensors(spec.inputs), targets=tensors(spec.targets))


def random_tensor(
    spec: TensorSpec,
    batch_size: int,
    *,
    sizes: Mapping[str, int] | None = None,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """One tensor that fits `spec`; on the meta device nothing is drawn."""
    chosen = {"batch": batch_size, **(sizes or {})}
    shape = [dim.example if dim.fixed else chosen.get(dim.name, dim.example) for dim in spec.dims]
    if device is not None and torch.device(device).type == "meta":
        return torch.empty(shape, dtype=_DTYPES.get(spec.dtype, dtype), device="meta")
    if spec.dtype == "int64":
        return torch.randint(spec.high or 2, shape, generator=generator).to(device)
    if spec.dtype == "bool":
        return (torch.rand(shape, generator=generator) < 0.5).to(device)
    return torch.randn(shape, generator=generator).to(device=device, dtype=dtype)


def _is_expanded(tensor: Tensor) -> bool:
    return tensor.ndim > 0 and tensor.shape[0] > 1 and tensor.stride(0) == 0


def _to(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    if tensor.is_floating_point():
        return tensor.to(*args, **kwargs)
    kept = [arg for arg in args if not isinstance(arg, torch.dtype)]
    return tensor.to(*kept, **{key: value for key, value in kwargs.items() if key != "dtype"})
