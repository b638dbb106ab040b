"""A model as a file that runs without its code: torch.export, verified before it takes its name."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from astrozoo import example_batch
from astrozoo.errors import ConfigError
from astrozoo.module import ZooModel

__all__ = ["export_model"]


def export_model(model: ZooModel, path: str | Path, *, sizes: Mapping[str, int] | None = None) -> dict[str, Any]:
    """Write `model` in evaluation mode as a `torch.export` program with a variable batch dimension.

    Args:
        model: A model with a spec.
        path: A file ending in `.pt2`, in a folder that is made if need be; an existing one is replaced only by a
            verified new one.
        sizes: Sizes of the free dimensions other than batch; default: the example sizes.

    Returns:
        The shapes of the example inputs, and the largest difference between outputs of program and model at another
        batch size.

    Raises:
        ConfigError: The path has another suffix, or the spec says why the model cannot be exported.
    """
    path = Path(path)
    if path.suffix != ".pt2":
        raise ConfigError(f"{path} does not end in .pt2, by which torch.export programs are known.")
    if model.spec is not None and model.spec.capabilities.export is not True:
        raise ConfigError(f"{model.spec.name} cannot be exported: {model.spec.capabilities.export}.")
    model = model.eval()
    inputs = example_batch(model, 2, sizes=sizes).inputs
    other = example_batch(model, 3, sizes=sizes).inputs
    varying = {name: {0: torch.export.Dim("batch", min=1)} for name in inputs}
    with torch.no_grad():
        program = torch.export.export(model, (), kwargs=dict(inputs), dynamic_shapes=varying)
        path.parent.mkdir(parents=True, exist_ok=True)
        # A folder, not mkstemp: its file would keep permissions for nobody but its maker.
        with tempfile.TemporaryDirectory(prefix=".export-", dir=path.parent) as folder:
            draft = Path(folder) / path.name
            torch.export.save(program, draft)
            loaded = torch.export.load(draft).module()
            difference = max(
                (one - two).abs().max().item()
                for one, two in zip(_tensors(loaded(**other)), _tensors(model(**other)), strict=True)
            )
            draft.replace(path)
    return {"inputs": {name: tuple(tensor.shape) for name, tensor in inputs.items()}, "difference": difference}


def _tensors(outputs: Any) -> tuple[torch.Tensor, ...]:
    return tuple(outputs) if isinstance(outputs, tuple) else (outputs,)
