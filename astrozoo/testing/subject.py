"""The model under test: how to make it at full size on the meta device, and small for real."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from astrozoo.batch import Batch, random_batch
from astrozoo.module import ZooModel
from astrozoo.registry.family import Variant
from astrozoo.registry.spec import ModelSpec

__all__ = ["Subject", "named_tensors", "relative_error"]


class Subject:
    """A registered name, or a `Variant` that no distribution offers (yet)."""

    def __init__(self, model: str | Variant) -> None:
        if isinstance(model, Variant):
            self.name, self.variant, self.registered = model.name, model, False
        else:
            from astrozoo import registry

            self.name, self.variant, self.registered = model, registry.load_variant(model), True
        self.miniature_config = self.variant.config(**self.variant.family.miniature)

    def create(self, **arguments: Any) -> ZooModel:
        """`create_model` for a registered name; the variant's own build otherwise."""
        if self.registered:
            from astrozoo.factory import create_model

            return create_model(self.name, **arguments)
        build = {key: arguments.pop(key) for key in ("device", "dtype") if key in arguments}
        return self.variant.build(self.variant.config(**arguments), **build)

    def miniature(self, *, seed: int = 0, jitter: bool = False, **arguments: Any) -> ZooModel:
        """A small model. `jitter` moves every weight a little: layers that start at zero hide what lies behind them."""
        torch.manual_seed(seed)
        model = self.create(**self.variant.family.miniature, **arguments)
        if jitter:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(torch.randn_like(parameter), alpha=0.05)
        return model

    def batch(self, model: ZooModel, batch_size: int = 2, *, small: bool = True, **arguments: Any) -> Batch:
        """A random batch for `model`; `small` keeps free dimensions near 4 cells."""
        spec = model_spec(model)
        sizes = small_sizes(spec) if small else {}
        return random_batch(spec, batch_size, **{"sizes": sizes, "dtype": model.dtype, **arguments})


def model_spec(model: ZooModel) -> ModelSpec:
    """The spec of a model that the registry built."""
    assert model.spec is not None
    return model.spec


def free_dims(spec: ModelSpec) -> Mapping[str, Any]:
    """Dimensions whose size the caller chooses, by name; the strictest where several tensors share one."""
    dims: dict[str, Any] = {}
    for tensor in (*spec.inputs, *spec.targets):
        for dim in tensor.dims:
            if not dim.fixed and dim.name != "batch" and dim.minimum >= getattr(dims.get(dim.name), "minimum", 0):
                dims[dim.name] = dim
    return dims


def small_sizes(spec: ModelSpec, wanted: int = 4) -> dict[str, int]:
    """Free sizes as near to `wanted` as the spec allows."""
    return {
        name: -(-max(dim.minimum, min(wanted, dim.example)) // dim.multiple_of) * dim.multiple_of
        for name, dim in free_dims(spec).items()
    }


def named_tensors(outputs: Any, spec: ModelSpec) -> dict[str, Tensor]:
    """Outputs of `forward` by the names of the spec: one tensor, or the fields of a NamedTuple."""
    if isinstance(outputs, Tensor):
        return {spec.outputs[0].name: outputs}
    return dict(zip(getattr(outputs, "_fields", ()), outputs, strict=True))


def relative_error(got: Any, expected: Any) -> float:
    """Largest difference over the outputs, relative to the largest value expected; infinite where something is NaN."""
    pairs = [(got, expected)] if isinstance(got, Tensor) else list(zip(got, expected, strict=True))
    errors = [
        ((one.double() - other.double()).abs().max() / other.double().abs().max().clamp_min(1e-30)).item()
        for one, other in pairs
    ]
    return max((float("inf") if error != error else error for error in errors), default=0.0)
