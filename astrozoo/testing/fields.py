"""Checks of models whose inputs and outputs are fields on a latitude-longitude grid: the physics of the grid.

They apply to models that take an input with the dimensions `lat` and `lon` and give one back. A model says itself how
far a field may be turned in longitude (`longitude_step`), so that a family that cannot turn must say why.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from astrozoo.batch import Batch, random_batch
from astrozoo.errors import InputError
from astrozoo.module import ZooModel
from astrozoo.testing.report import NotApplicable, require
from astrozoo.testing.subject import Subject, free_dims, model_spec, named_tensors, relative_error

__all__ = ["CHECKS"]


def longitude_roll(subject: Subject) -> None:
    """Turning the globe turns the output along: there is no seam."""
    model = _fields_model(subject)
    step = _step(model)
    batch = _global_batch(model, columns=4 * step)
    with torch.no_grad():
        for turn in (step, -2 * step):
            rolled = _on_grid(model, batch, lambda x, turn=turn: x.roll(turn, -1))
            error = relative_error(rolled, _rolled(model, model(**batch.inputs), turn))
            require(error < 1e-8, f"turning the input by {turn} columns changes the output by {error:.1e}")


def poles(subject: Subject) -> None:
    """The rows next to the poles are part of the field: they see and are seen, and north may be first or last."""
    model = _fields_model(subject)
    batch = _global_batch(model, columns=4 * _step(model))
    inputs = {name: x.clone().requires_grad_(_has_grid(x, model, name)) for name, x in batch.inputs.items()}
    outputs = named_tensors(model(**inputs), model_spec(model))
    sum(y[..., (0, -1), :].square().sum() for name, y in outputs.items() if _gridded(model, name)).backward()  # type: ignore[union-attr]
    gradient = _first(model, inputs).grad
    require(gradient is not None, "the polar rows of the output depend on no input")
    for row, where in ((0, "first"), (-1, "last")):
        require(bool(gradient[..., row, :].any()), f"the {where} row of the input has no influence on the polar rows")  # type: ignore[index]
    with torch.no_grad():
        flipped = named_tensors(_on_grid(model, batch, lambda x: x.flip(-2)), model_spec(model))
    require(all(bool(torch.isfinite(y).all()) for y in flipped.values()), "a field upside down gives NaN")


def resolution(subject: Subject) -> None:
    """The same weights serve a grid twice as fine, and give finite fields on it."""
    model = _fields_model(subject)
    sizes = {name: dim.minimum for name, dim in free_dims(model_spec(model)).items()}
    for factor in (1, 2):
        grid = {**sizes, "lat": factor * max(8, sizes["lat"]), "lon": factor * max(16, sizes["lon"])}
        batch = random_batch(model_spec(model), 1, sizes=grid, dtype=model.dtype)
        with torch.no_grad():
            outputs = named_tensors(model(**batch.inputs), model_spec(model))
        for name, y in outputs.items():
            require(bool(torch.isfinite(y).all()), f"{name!r} is not finite on a grid of {grid}")
            if _gridded(model, name):
                shape = (grid["lat"], grid["lon"])
                require(tuple(y.shape[-2:]) == shape, f"{name!r} has {tuple(y.shape[-2:])} cells, expected {shape}")


def missing_variable(subject: Subject) -> None:
    """An input that lacks a variable is refused by name and number, not broadcast."""
    model = _fields_model(subject)
    batch = subject.batch(model)
    name = _first_name(model)
    spec = next(tensor for tensor in model_spec(model).inputs if tensor.name == name)
    axis = next((index for index, dim in enumerate(spec.dims) if dim.fixed and dim.name == "var"), None)
    if axis is None or spec.dims[axis].example == 1:
        raise NotApplicable("it has one variable only")
    try:
        with torch.no_grad():
            model(**{**batch.inputs, name: batch.inputs[name].narrow(axis, 1, spec.dims[axis].example - 1)})
    except InputError as error:
        require("var" in str(error), f"the error does not name the dimension: {error}")
    else:
        require(False, f"{name!r} was accepted without its first variable")


def constant_field(subject: Subject) -> None:
    """Fields without any variation, zero ones too, give finite outputs and gradients."""
    model = _fields_model(subject, dtype=torch.float32)
    for value in (0.0, 1.0, -3.0):
        batch = subject.batch(model)
        inputs = {
            name: torch.full_like(x, value).requires_grad_() if x.is_floating_point() else x
            for name, x in batch.inputs.items()
        }
        outputs = named_tensors(model(**inputs), model_spec(model))
        for name, y in outputs.items():
            require(bool(torch.isfinite(y).all()), f"{name!r} is not finite for inputs that are {value} everywhere")
        sum(y.square().sum() for y in outputs.values() if y.requires_grad).backward()  # type: ignore[union-attr]
        for name, x in inputs.items():
            if x.grad is not None:
                require(bool(torch.isfinite(x.grad).all()), f"the gradient of {name!r} is not finite at {value}")
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                require(bool(torch.isfinite(parameter.grad).all()), f"the gradient of {name} is not finite at {value}")


def level_order(subject: Subject) -> None:
    """Levels are an axis, not a set: exchanging them in the input does more than exchange them in the output."""
    model = _fields_model(subject)
    dims = free_dims(model_spec(model))
    if "level" not in dims:
        raise NotApplicable("its fields have no free dimension of levels")
    batch = _global_batch(model, columns=4 * _any_step(model), levels=max(4, dims["level"].minimum))
    order = torch.tensor([2, 0, 3, 1, *range(4, _first(model, batch.inputs).shape[-3])])
    with torch.no_grad():
        plain = model(**batch.inputs)
        shuffled = _on_grid(model, batch, lambda x: x[..., order, :, :], levels=True)
    error = relative_error(shuffled, _mapped(model, plain, lambda y: y[..., order, :, :], levels=True))
    require(error > 1e-6, "the levels may be exchanged freely: the model does not know which lies above which")


CHECKS = {
    "longitude_roll": longitude_roll,
    "poles": poles,
    "resolution": resolution,
    "missing_variable": missing_variable,
    "constant_field": constant_field,
    "level_order": level_order,
}


# -- what the checks share ---------------------------------------------------------------------------------------------


def _fields_model(subject: Subject, dtype: torch.dtype = torch.float64) -> ZooModel:
    spec = subject.variant.spec(subject.miniature_config)
    names = [{dim.name for dim in tensor.dims} for tensor in (*spec.inputs[:1], *spec.outputs[:1])]
    if not all({"lat", "lon"} <= dims for dims in names):
        raise NotApplicable("it maps no fields on a latitude-longitude grid to such fields")
    return subject.miniature(jitter=True, dtype=dtype).eval()


def _step(model: ZooModel) -> int:
    """Columns by which the model turns exactly; not applicable where it gives a reason why there are none."""
    declared = getattr(model, "longitude_step", None)
    step = "the family does not say by how much" if declared is None else declared(model.config)
    if isinstance(step, str):
        raise NotApplicable(step)
    return int(step)


def _any_step(model: ZooModel) -> int:
    try:
        return _step(model)
    except NotApplicable:
        return 4


def _global_batch(model: ZooModel, columns: int, levels: int = 2) -> Batch:
    """A batch on a grid whose longitudes are a multiple of every step, small but above all minima."""
    dims = free_dims(model_spec(model))
    sizes = {name: dim.minimum for name, dim in dims.items()}
    sizes["lon"] = columns * -(-max(dims["lon"].minimum, 8) // columns)
    sizes["lat"] = max(dims["lat"].minimum, 8)
    if "level" in dims:
        sizes["level"] = max(dims["level"].minimum, levels)
    return random_batch(model_spec(model), 2, sizes=sizes, dtype=model.dtype)


def _dims(model: ZooModel, name: str) -> list[str]:
    spec = model_spec(model)
    return [dim.name for tensor in (*spec.inputs, *spec.outputs) if tensor.name == name for dim in tensor.dims]


def _gridded(model: ZooModel, name: str, levels: bool = False) -> bool:
    return _dims(model, name)[-2:] == ["lat", "lon"] and (not levels or "level" in _dims(model, name))


def _has_grid(x: Tensor, model: ZooModel, name: str) -> bool:
    return x.is_floating_point() and _gridded(model, name)


def _first_name(model: ZooModel) -> str:
    return model_spec(model).inputs[0].name


def _first(model: ZooModel, inputs: dict[str, Tensor]) -> Tensor:
    return inputs[_first_name(model)]


def _on_grid(model: ZooModel, batch: Batch, change: Any, levels: bool = False) -> Any:
    """The model's outputs for a batch whose fields were all changed."""
    return model(**{name: change(x) if _gridded(model, name, levels) else x for name, x in batch.inputs.items()})


def _mapped(model: ZooModel, outputs: Any, change: Any, levels: bool = False) -> Any:
    named = named_tensors(outputs, model_spec(model))
    changed = [change(y) if _gridded(model, name, levels) else y for name, y in named.items()]
    return changed[0] if isinstance(outputs, Tensor) else changed


def _rolled(model: ZooModel, outputs: Any, turn: int) -> Any:
    return _mapped(model, outputs, lambda y: y.roll(turn, -1))
