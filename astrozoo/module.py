"""`ZooModel`: what every model of the zoo is, built in or third party.

A family's class sets `task`, describes its tensors (`input_specs`, `output_specs`), builds its layers inside
`with torch.device("meta")` and ends its `__init__` with `self.materialize(device, dtype)`:

    class CubeUNet(ZooModel):
        task = "field_regression"

        def __init__(self, config, *, device=None, dtype=None):
            super().__init__(config)
            with torch.device("meta"):
                self.stem = ...
            self.materialize(device, dtype)

Building on the meta device first is what makes three promises hold at once: `device="meta"` allocates nothing, no
weight is initialised twice, and a model materialised later equals one built directly from the same seed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from astrozoo import objectives
from astrozoo.batch import Batch
from astrozoo.errors import ConfigError, InputError
from astrozoo.registry.spec import ModelSpec, TensorSpec

__all__ = ["ZooModel"]


class ZooModel(nn.Module):
    """Base class of all models: configuration, spec, input checks, loss, features, checkpointing.

    Attributes:
        config: The family's frozen configuration dataclass.
        spec: The torch-free spec of this instance; None when the class was built without the registry.
        preprocessing: How raw data become inputs (variables, units, normalisation statistics) as JSON-able values. The
            trainer sets it, `save_model` writes it, `load_model` restores it.
        provenance: Where the weights come from, as JSON-able values; `save_model` adds to it.
    """

    task: ClassVar[str]
    # How far the conformance kit expects the loss of one small batch to fall. Methods whose loss has a floor that no
    # weights can remove (the noise of a diffusion step, the entropy of a latent) set a smaller factor.
    overfit_factor: ClassVar[float] = 10.0

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.spec: ModelSpec | None = None
        self.preprocessing: dict[str, Any] | None = None
        self.provenance: dict[str, Any] = {}
        self.grad_checkpointing = False
        self._input_specs = {tensor.name: tensor for tensor in self.input_specs(config)}

    # -- what goes in and out ------------------------------------------------------------------------------------------

    @classmethod
    def input_specs(cls, config: Any) -> tuple[TensorSpec, ...]:
        """Specs of the keyword arguments of `forward` under `config`."""
        raise NotImplementedError(f"{cls.__name__} must define input_specs(config)")

    @classmethod
    def output_specs(cls, config: Any) -> tuple[TensorSpec, ...]:
        """Specs of what `forward` returns under `config`: one tensor, or the fields of a NamedTuple."""
        raise NotImplementedError(f"{cls.__name__} must define output_specs(config)")

    @classmethod
    def target_specs(cls, config: Any) -> tuple[TensorSpec, ...]:
        """Specs of the targets `loss` expects; by default those of the outputs."""
        return cls.output_specs(config)

    @classmethod
    def feature_stages(cls, config: Any) -> tuple[str, ...]:
        """Names of the stages `features` returns under `config`, in order.

        Empty where they do not depend on the configuration: then the family's capabilities name them, or the reason
        why there are none.
        """
        del config
        return ()

    def check_inputs(self, **tensors: Tensor | None) -> None:
        """Compare tensors with the spec by name, first thing in `forward`; vanishes under torch.compile and export.

        Raises:
            InputError: A tensor is missing or not expected, or its rank, sizes or dtype differ from the spec; the
                message gives the named dims expected and got.
        """
        if torch.compiler.is_compiling():
            return
        for name, tensor in tensors.items():
            if tensor is not None and name not in self._input_specs:
                raise InputError(
                    f"{self._label()} takes no input {name!r} as configured; it takes "
                    f"{', '.join(str(spec) for spec in self._input_specs.values())}."
                )
        seen: dict[str, tuple[int, str]] = {}
        for name, spec in self._input_specs.items():
            tensor = tensors.get(name)
            if tensor is None:
                if not spec.optional:
                    raise InputError(f"{self._label()} needs input {spec}, which was not given.")
                continue
            self._check_rank_and_dtype(spec, tensor)
            for dim, size in zip(spec.dims, tensor.shape, strict=True):
                problem = ""
                if dim.fixed and size != dim.example:
                    problem = f"{dim.name} is {size}, expected {dim.example}"
                elif size < dim.minimum:
                    problem = f"{dim.name} is {size}, the smallest accepted is {dim.minimum}"
                elif size % dim.multiple_of:
                    problem = f"{dim.name} is {size}, which is no multiple of {dim.multiple_of}"
                elif seen.setdefault(dim.name, (size, name))[0] != size:
                    first, where = seen[dim.name]
                    problem = f"{dim.name} is {size}, but {first} in {where!r}"
                if problem:
                    raise InputError(f"{self._label()} expects {spec}, got shape {list(tensor.shape)}: {problem}.")

    def _check_rank_and_dtype(self, spec: TensorSpec, tensor: Tensor) -> None:
        if tensor.ndim != len(spec.dims):
            raise InputError(
                f"{self._label()} expects {spec} with {len(spec.dims)} dimensions, "
                f"got {tensor.ndim} with shape {list(tensor.shape)}."
            )
        if spec.dtype == "float":
            own = self.dtype
            fits = tensor.is_floating_point() and (tensor.dtype == own or torch.is_autocast_enabled(tensor.device.type))
            expected = str(own).removeprefix("torch.")
        else:
            expected = spec.dtype
            fits = str(tensor.dtype) == f"torch.{expected}"
        if not fits:
            got = str(tensor.dtype).removeprefix("torch.")
            raise InputError(
                f"{self._label()} expects {spec} as {expected}, got {got}; convert with x.to(torch.{expected})."
            )

    def _label(self) -> str:
        return self.spec.name if self.spec is not None else type(self).__name__

    # -- training ------------------------------------------------------------------------------------------------------

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Scalar `"loss"` and named parts of it. Predictive models share the objective of their task.

        Models whose method owns its objective (VAE, diffusion, masked modelling, ...) override this.
        """
        return objectives.task_loss(self.task, self(**batch.inputs), batch)

    def loss_weights(self, batch: Batch) -> dict[str, Tensor]:
        """What the loss of this batch is a mean over, known before the model runs.

        The trainer weights micro-batches and processes with it, so that the loss of a batch does not depend on how it
        is cut, however many targets are missing in which part.

        Returns:
            Weights `[]` by names of the parts of `loss(batch)` whose plain mean the loss is: `{"loss": ...}` where it
            is one mean, such as over valid cells. Empty, as for every model that overrides `loss` alone: the loss is a
            mean over samples.
        """
        return objectives.task_weights(self.task, batch) if type(self).loss is ZooModel.loss else {}

    def features(self, **inputs: Tensor) -> dict[str, Tensor]:  # noqa: ARG002
        """Intermediate features by stage name, finest first, for families that declare stages.

        Raises:
            ConfigError: The family has no stages; the message gives its reason.
        """
        declared = self.spec.capabilities.features if self.spec is not None else ()
        reason = declared if isinstance(declared, str) else "the family declares no stages"
        raise ConfigError(f"{self._label()} has no intermediate features: {reason}.")

    def set_grad_checkpointing(self, enabled: bool = True) -> None:
        """Recompute blocks in the backward pass instead of keeping their activations: less memory, more time."""
        supported = True if self.spec is None else self.spec.capabilities.grad_checkpointing
        if enabled and supported is not True:
            raise ConfigError(f"{self._label()} cannot checkpoint gradients: {supported}.")
        self.grad_checkpointing = enabled

    def run(self, block: Callable[..., Any], *args: Any) -> Any:
        """Call `block`, through activation checkpointing when it is switched on and gradients are wanted."""
        if self.grad_checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(block, *args, use_reentrant=False)
        return block(*args)

    # -- initialisation ------------------------------------------------------------------------------------------------

    def materialize(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> None:
        """Give a model built on the meta device memory and initial weights; `device="meta"` only sets the dtype."""
        if dtype is not None:
            if not dtype.is_floating_point:
                raise ConfigError(f"dtype is {dtype}; a model needs a floating dtype such as torch.float32.")
            # `to` visits every module, and most models that are loaded have their dtype already.
            if any(t.is_floating_point() and t.dtype != dtype for t in (*self.parameters(), *self.buffers())):
                self.to(dtype)
        target = torch.get_default_device() if device is None else torch.device(device)
        if target.type != "meta":
            self.to_empty(device=target)
            self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise every parameter and buffer, children before parents, in the order they were defined.

        A block's own `reset_parameters` sets only what differs from its children's initialisation (and its own
        parameters and buffers), so that each weight is drawn by the innermost module that owns it, then adjusted.
        """
        _reset_children(self)

    # -- convenience ---------------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Device of the first parameter."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the first floating parameter."""
        return next(parameter.dtype for parameter in self.parameters() if parameter.is_floating_point())

    def num_parameters(self) -> int:
        """Number of parameters, shared ones counted once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def extra_repr(self) -> str:
        """Name and number of parameters."""
        return f"{self._label()}, {self.num_parameters():,} parameters"


def _reset_children(module: nn.Module) -> None:
    for child in module.children():
        _reset_children(child)
        reset = getattr(child, "reset_parameters", None)
        if reset is not None:
            reset()
