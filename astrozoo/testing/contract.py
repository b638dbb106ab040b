"""Checks of the contract at the door: creation, shapes, errors, loss, saving, and full size on the meta device."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.utils.deterministic

from astrozoo.batch import random_batch
from astrozoo.errors import AstrozooError, ConfigError, InputError
from astrozoo.module import ZooModel
from astrozoo.registry.spec import ModelSpec
from astrozoo.testing.report import NotApplicable, require
from astrozoo.testing.subject import Subject, free_dims, model_spec, named_tensors, relative_error, small_sizes

__all__: list[str] = []

_settings: Any = torch.utils.deterministic  # its attributes are properties that type checkers do not see


def create(subject: Subject) -> None:
    """Creation takes configuration fields as overrides, and the spec survives JSON."""
    model = subject.miniature()
    require(isinstance(model, ZooModel), f"creating it gave a {type(model).__name__}, not a ZooModel")
    require(model.spec is not None, "the model does not know its spec")
    for name, value in subject.variant.family.miniature.items():
        require(getattr(model.config, name) == value, f"override {name}={value!r} was ignored")
    spec = model_spec(model)
    require(ModelSpec.from_dict(spec.to_dict()) == spec, "the spec changes on its way through to_dict and from_dict")


def unknown_override(subject: Subject) -> None:
    """A misspelt field is an error that offers the right one."""
    known = dataclasses.fields(subject.variant.family.config)[0].name
    wrong = f"{known}_"
    try:
        subject.create(device="meta", **{wrong: 1})
    except ConfigError as error:
        message = str(error)
        require(wrong in message and f"'{known}'" in message, f"the error does not suggest {known!r}: {message}")
    else:
        require(False, f"the unknown override {wrong!r} was accepted")


def forward(subject: Subject) -> None:
    """`forward` takes the inputs and returns the outputs that the spec names, with its shapes and dtypes.

    Free dimensions that only outputs have, such as patches, are as long as the model makes them.
    """
    model = subject.miniature().eval()
    batch = subject.batch(model, 3)
    spec = model_spec(model)
    with torch.no_grad():
        outputs = named_tensors(model(**batch.inputs), spec)
    names = [tensor.name for tensor in spec.outputs]
    require(list(outputs) == names, f"forward returned {list(outputs)}, the spec names {names}")
    sizes = {"batch": 3, **small_sizes(spec)}
    for tensor in spec.outputs:
        got = outputs[tensor.name]
        require(got.ndim == len(tensor.dims), f"{tensor} has {got.ndim} dimensions, expected {len(tensor.dims)}")
        expected = [
            dim.example if dim.fixed else sizes.get(dim.name, size)
            for dim, size in zip(tensor.dims, got.shape, strict=True)
        ]
        require(list(got.shape) == expected, f"{tensor} has shape {list(got.shape)}, expected {expected}")
        dtype = str(model.dtype).removeprefix("torch.") if tensor.dtype == "float" else tensor.dtype
        require(str(got.dtype) == f"torch.{dtype}", f"{tensor} is {got.dtype}, expected torch.{dtype}")


def bad_inputs(subject: Subject) -> None:
    """A wrong rank, size or dtype is an InputError that spells the dimensions."""
    model = subject.miniature().eval()
    good = subject.batch(model).inputs
    for spec in model_spec(model).inputs:
        tensor = good[spec.name]
        wrong_dtype = torch.int32 if spec.dtype == "float" else torch.float32
        cases = {"rank": tensor[None], "dtype": tensor.to(wrong_dtype)}
        for axis, dim in enumerate(spec.dims):
            if dim.fixed:
                cases[f"size of {dim.name}"] = torch.cat([tensor, tensor], axis)
        if not spec.optional:
            cases["missing"] = None  # type: ignore[assignment]
        for case, wrong in cases.items():
            try:
                with torch.no_grad():
                    model(**{**good, spec.name: wrong})
            except InputError as error:
                require(str(spec) in str(error), f"the error for a wrong {case} does not spell {spec}: {error}")
            except Exception as error:  # what a user would see instead of our message
                require(
                    False, f"a wrong {case} of {spec.name!r} raised {type(error).__name__}, not InputError: {error}"
                )
            else:
                require(False, f"a wrong {case} of {spec.name!r} was accepted")


def loss(subject: Subject) -> None:
    """`loss` returns named scalars, `"loss"` among them, that the model can be trained on."""
    model = subject.miniature()
    parts = model.loss(subject.batch(model))
    require(isinstance(parts, dict) and "loss" in parts, f"loss returned {type(parts).__name__} without 'loss'")
    for name, value in parts.items():
        require(value.ndim == 0 and bool(torch.isfinite(value)), f"part {name!r} is not a finite scalar: {value}")
    require(parts["loss"].requires_grad, "the loss has no gradient")


def other_grids(subject: Subject) -> None:
    """Any grid from the minimum up, odd sizes too; below it an InputError that names the dimension."""
    model = subject.miniature().eval()
    spec = model_spec(model)
    dims = free_dims(spec)
    if not dims:
        raise NotApplicable("every dimension is fixed by the configuration")

    def output_sizes(sizes: dict[str, int]) -> None:
        with torch.no_grad():
            outputs = named_tensors(model(**random_batch(spec, 2, sizes=sizes, dtype=model.dtype).inputs), spec)
        for tensor in spec.outputs:
            for dim, size in zip(tensor.dims, outputs[tensor.name].shape, strict=True):
                if dim.name in sizes and not dim.fixed:
                    require(size == sizes[dim.name], f"{tensor} has {dim.name}={size} for inputs of {sizes}")
        require(all(bool(torch.isfinite(y).all()) for y in outputs.values()), f"outputs for {sizes} are not finite")

    minimum = {name: -(-dim.minimum // dim.multiple_of) * dim.multiple_of for name, dim in dims.items()}
    odd = {
        name: minimum[name] + step * dim.multiple_of for step, (name, dim) in zip(_STEPS, dims.items(), strict=False)
    }
    for sizes in (minimum, odd):
        try:
            output_sizes(sizes)
        except AstrozooError:
            raise
        except Exception as error:
            require(False, f"inputs of {sizes}, which the spec allows, raised {type(error).__name__}: {error}")
    for name, dim in dims.items():
        if dim.minimum > 1:
            try:
                output_sizes({**minimum, name: dim.minimum - 1})
            except InputError as error:
                require(name in str(error), f"the error for too small a {name} does not name it: {error}")
            else:
                require(False, f"{name}={dim.minimum - 1} is below the spec's minimum and was accepted")


_STEPS = (1, 3, 5, 7, 9, 11, 13, 15)  # different odd steps, so that no two dimensions agree by chance


def attention_swap(subject: Subject) -> None:
    """Every attention that the spec allows can be asked for by name."""
    spec = subject.variant.spec()
    if not spec.attentions:
        raise NotApplicable("the family has no token attention")
    for name in spec.attentions:
        model = subject.miniature(attention=name).eval()
        with torch.no_grad():
            outputs = named_tensors(model(**subject.batch(model).inputs), spec)
        require(all(bool(torch.isfinite(y).all()) for y in outputs.values()), f"attention {name!r} gives NaN")


def save_load(subject: Subject) -> None:
    """What is saved and loaded again gives bit-identical outputs."""
    model = subject.miniature(jitter=True).eval()
    inputs = subject.batch(model).inputs
    if subject.registered:
        from astrozoo.weights import load_model, save_model

        with tempfile.TemporaryDirectory() as folder:
            save_model(model, Path(folder) / "model")
            loaded = load_model(Path(folder) / "model").eval()
            require(loaded.config == model.config, f"the configuration came back as {loaded.config}")
            same = _same_outputs(model, loaded, inputs)
    else:  # a name that nobody offers cannot be loaded by name; its state can
        loaded = subject.miniature(seed=1).eval()
        loaded.load_state_dict(model.state_dict())
        same = _same_outputs(model, loaded, inputs)
    require(same, "outputs differ after a round trip: something that matters is not in the state")


def _same_outputs(model: ZooModel, other: ZooModel, inputs: dict[str, torch.Tensor]) -> bool:
    with torch.no_grad():
        torch.manual_seed(0)
        first = model(**inputs)
        torch.manual_seed(0)
        return relative_error(other(**inputs), first) == 0


def initialisation(subject: Subject) -> None:
    """Equal seeds give equal weights, built directly or materialised later, and nothing is left uninitialised."""
    with _poisoned_memory():
        direct, again = subject.miniature(seed=7), subject.miniature(seed=7)
        later = subject.miniature(device="meta")
        torch.manual_seed(7)
        later.materialize("cpu")
    for name, tensor in (*direct.named_parameters(), *direct.named_buffers()):
        require(bool(torch.isfinite(tensor.double()).all()), f"{name} is not initialised")
    for other, how in ((again, "built twice from one seed"), (later, "materialised after the meta device")):
        tensors = dict(other.state_dict(keep_vars=True))
        for name, tensor in direct.state_dict(keep_vars=True).items():
            require(torch.equal(tensor, tensors[name]), f"{name} differs when {how}")
    require(
        any(
            not torch.equal(a, b)
            for a, b in zip(direct.parameters(), subject.miniature(seed=8).parameters(), strict=True)
        ),
        "two seeds give the same weights",
    )


class _poisoned_memory:  # noqa: N801  # reads as a verb where it is used
    """While it lasts, memory that PyTorch hands out uninitialised holds NaN."""

    def __enter__(self) -> None:
        self.before = (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            _settings.fill_uninitialized_memory,
        )
        torch.use_deterministic_algorithms(True, warn_only=True)
        _settings.fill_uninitialized_memory = True

    def __exit__(self, *exception: object) -> None:
        enabled, warn_only, fill = self.before
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        _settings.fill_uninitialized_memory = fill


def full_size(subject: Subject) -> None:
    """At full size, on the meta device: outputs as the spec says, a gradient of the right shape for every parameter."""
    model = subject.create(device="meta")
    require(all(p.is_meta for p in (*model.parameters(), *model.buffers())), "device='meta' allocated memory")
    spec = model_spec(model)
    batch = random_batch(spec, 1, device="meta", dtype=model.dtype)
    outputs = named_tensors(model(**batch.inputs), spec)
    for tensor in spec.outputs:
        shape = list(outputs[tensor.name].shape)
        require(shape == list(tensor.example_shape(1)), f"{tensor} has shape {shape} at the example size")
    model.loss(batch)["loss"].backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            require(parameter.grad is not None, f"{name} gets no gradient")
            require(parameter.grad.shape == parameter.shape, f"the gradient of {name} has another shape")  # type: ignore[union-attr]


def parameter_count(subject: Subject) -> None:
    """The catalogue tells the truth about the number of parameters."""
    if not subject.registered:
        raise NotApplicable("the variant is not registered")
    from astrozoo import registry

    costs = registry.model_info(subject.name).costs
    if costs is None:
        raise NotApplicable("its distribution ships no catalogue")
    count = subject.create(device="meta").num_parameters()
    require(count == costs.parameters, f"{count:,} parameters, the catalogue says {costs.parameters:,}")
