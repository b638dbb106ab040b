"""Checks of a small model for real: numbers, gradients, precision, compilation, export, checkpointing, features."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from astrozoo.errors import ConfigError
from astrozoo.testing.report import ConformanceError, NotApplicable, require
from astrozoo.testing.subject import Subject, model_spec, named_tensors, relative_error

__all__: list[str] = []


def finite(subject: Subject) -> None:
    """Outputs, loss and gradients are finite."""
    model = subject.miniature(jitter=True)
    batch = subject.batch(model)
    suspects: list[str] = []

    def watch(module: torch.nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor) and not bool(torch.isfinite(output).all()):
            sound = all(bool(torch.isfinite(item).all()) for item in inputs if isinstance(item, Tensor))
            weights = all(bool(torch.isfinite(item).all()) for item in module.parameters())
            state = f"inputs {'finite' if sound else 'not finite'}, weights {'finite' if weights else 'not finite'}"
            suspects.append(f"{names[module]!r} ({type(module).__name__} -> {list(output.shape)}; {state})")

    # Found while it happens: what reads memory that nobody wrote gives another result when asked again.
    names = {module: name for name, module in model.named_modules()}
    handles = [module.register_forward_hook(watch) for module in names]
    outputs = model(**batch.inputs)
    for handle in handles:
        handle.remove()
    for name, y in named_tensors(outputs, model_spec(model)).items():
        require(
            bool(torch.isfinite(y).all()), f"output {name!r} is not finite, first seen in {suspects[:1] or 'forward'}"
        )
    model.loss(batch)["loss"].backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            require(bool(torch.isfinite(parameter.grad).all()), f"the gradient of {name} is not finite")


def deterministic(subject: Subject) -> None:
    """In evaluation, the same input gives the same output."""
    model = subject.miniature(jitter=True).eval()
    inputs = subject.batch(model).inputs
    with torch.no_grad():
        require(relative_error(model(**inputs), model(**inputs)) == 0, "two evaluations of one input differ")


def batch_invariant(subject: Subject) -> None:
    """In evaluation, a sample's output does not depend on what else is in the batch."""
    model = subject.miniature(jitter=True, dtype=torch.float64).eval()
    inputs = subject.batch(model, 3).inputs
    with torch.no_grad():
        together = named_tensors(model(**inputs), model_spec(model))
        alone = named_tensors(model(**{name: tensor[1:2] for name, tensor in inputs.items()}), model_spec(model))
    for name, y in together.items():
        error = relative_error(alone[name], y[1:2])
        require(error < 1e-9, f"{name!r} of one sample changes by {error:.1e} with its neighbours in the batch")


def gradients(subject: Subject) -> None:
    """Every parameter that asks for a gradient gets one that is not zero."""
    model = subject.miniature(jitter=True).eval()  # no dropout: it zeroes gradients by chance
    torch.manual_seed(0)
    model.loss(subject.batch(model, 4))["loss"].backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            require(parameter.grad is not None, f"{name} gets no gradient")
            require(bool(parameter.grad.any()), f"the gradient of {name} is zero")  # type: ignore[union-attr]


def overfits(subject: Subject) -> None:
    """One small batch can be learnt: the loss falls by the model's `overfit_factor`."""
    model = subject.miniature().eval()
    batch = subject.batch(model)
    optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=1e-2)

    def step_loss() -> Tensor:
        torch.manual_seed(0)  # the same noise in every step, for methods that draw some
        return model.loss(batch)["loss"]

    first = step_loss().item()
    loss = first
    for _ in range(300):
        optimizer.zero_grad()
        value = step_loss()
        value.backward()
        optimizer.step()
        loss = value.item()
        if loss < first / model.overfit_factor:
            return
    require(False, f"the loss of one batch fell only from {first:.3g} to {loss:.3g} in 300 steps")


def autocast(subject: Subject, dtype: torch.dtype) -> None:
    """Under autocast, outputs stay near those in float32 and gradients finite."""
    name = str(dtype).removeprefix("torch.")

    def holds() -> None:
        model = subject.miniature(jitter=True).eval()
        batch = subject.batch(model)
        with torch.no_grad():
            expected = named_tensors(model(**batch.inputs), model_spec(model))
        with torch.autocast("cpu", dtype=dtype):
            got = named_tensors(model(**batch.inputs), model_spec(model))
            loss = model.loss(batch)["loss"]
        for output, y in got.items():
            if y.is_floating_point():
                error = relative_error(y, expected[output])
                require(error < 0.1, f"{output!r} differs by {error:.1%} of its range from float32")
        loss.backward()
        for parameter_name, parameter in model.named_parameters():
            if parameter.grad is not None:
                require(bool(torch.isfinite(parameter.grad).all()), f"the gradient of {parameter_name} is not finite")

    claimed = name in subject.variant.spec().capabilities.amp
    _prove(True if claimed else f"{name} is not among capabilities.amp", f"autocast {name}", holds)


def compile_fullgraph(subject: Subject) -> None:
    """`torch.compile(fullgraph=True)` gives the same outputs and gradients."""

    def holds() -> None:
        torch._dynamo.reset()
        model = subject.miniature(jitter=True).eval()
        batch = subject.batch(model)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        results = []
        for function in (model, compiled):
            model.zero_grad()
            outputs = named_tensors(function(**batch.inputs), model_spec(model))
            sum(y.square().sum() for y in outputs.values() if y.requires_grad).backward()  # type: ignore[union-attr]
            gradient = [p.grad.clone() for p in model.parameters() if p.grad is not None]
            results.append([y.detach() for y in outputs.values()] + gradient)
        error = relative_error(results[1], results[0])
        require(error < 1e-3, f"compiled outputs or gradients differ by {error:.1e}")

    _prove(subject.variant.spec().capabilities.compile, "torch.compile", holds)


def export(subject: Subject) -> None:
    """`torch.export` with a dynamic batch size gives the same outputs."""

    def holds() -> None:
        model = subject.miniature(jitter=True).eval()
        inputs = subject.batch(model, 2).inputs
        size = torch.export.Dim("batch", min=1, max=64)
        dynamic = {
            tensor.name: {axis: size for axis, dim in enumerate(tensor.dims) if dim.name == "batch"}
            for tensor in model_spec(model).inputs
        }
        program = torch.export.export(model, (), kwargs=inputs, dynamic_shapes=dynamic).module()
        other = subject.batch(model, 5).inputs
        with torch.no_grad():
            error = relative_error(program(**other), model(**other))
        require(error < 1e-4, f"exported outputs differ by {error:.1e}")

    _prove(subject.variant.spec().capabilities.export, "torch.export", holds)


def grad_checkpointing(subject: Subject) -> None:
    """`set_grad_checkpointing()` keeps fewer bytes for the backward pass and gives the same gradients."""

    def holds() -> None:
        model = subject.miniature(jitter=True).train()
        batch = subject.batch(model, small=False)
        gradient, saved = [], []
        for enabled in (False, True):
            model.set_grad_checkpointing(enabled)
            model.zero_grad()
            torch.manual_seed(0)
            with saved_bytes(model) as count:
                loss = model.loss(batch)["loss"]
            loss.backward()
            saved.append(count())
            gradient.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        error = relative_error(gradient[1], gradient[0])
        require(error < 1e-6, f"gradients differ by {error:.1e} with checkpointing")
        require(saved[1] < saved[0], f"checkpointing keeps {saved[1]:,} bytes, without it {saved[0]:,}")

    _prove(subject.variant.spec().capabilities.grad_checkpointing, "grad checkpointing", holds)


@contextmanager
def saved_bytes(model: torch.nn.Module) -> Iterator[Callable[[], int]]:
    """Count bytes of the distinct storages, other than the model's parameters, that autograd keeps inside the block."""
    storages: dict[int, Any] = {}
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield lambda: sum(storage.nbytes() for storage in storages.values())


def features(subject: Subject) -> None:
    """`features` returns the stages that the spec declares, or refuses where it declares none."""
    model = subject.miniature(jitter=True).eval()
    declared = model_spec(model).capabilities.features
    inputs = subject.batch(model).inputs
    if not declared or isinstance(declared, str):
        try:
            model.features(**inputs)
        except ConfigError:
            raise NotApplicable(str(declared) or "the family declares no stages") from None
        raise ConformanceError("the spec declares no feature stages, but features() returns some")
    with torch.no_grad():
        stages = model.features(**inputs)
    require(tuple(stages) == declared, f"features returned {tuple(stages)}, the spec declares {declared}")
    for name, tensor in stages.items():
        require(bool(torch.isfinite(tensor).all()), f"stage {name!r} is not finite")


def _prove(claim: bool | str, capability: str, holds: Callable[[], None]) -> None:
    """Run `holds`; where the spec says no, it must fail, and the check is then not applicable for the spec's reason."""
    if claim is True:
        try:
            holds()
        except ConformanceError:
            raise
        except Exception as error:
            first_line = str(error).strip().splitlines()[0] if str(error).strip() else ""
            raise ConformanceError(f"{capability} raised {type(error).__name__}: {first_line}") from error
        return
    try:
        holds()
    except Exception:  # any failure proves the "no"
        raise NotApplicable(str(claim)) from None
    raise ConformanceError(f"the spec says that {capability} does not work ({claim}), but it does")
