"""Conversion of foreign checkpoints into a saved model: the one place that opens a pickle, and only when asked to.

`torch.load(weights_only=True)` builds tensors and plain containers and refuses everything else, so even here no code of
the file's author runs.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from astrozoo import registry
from astrozoo.errors import WeightsError
from astrozoo.weights.files import damaged, dtype_text, read_tensors
from astrozoo.weights.mismatch import Mismatch
from astrozoo.weights.save import save_model, sha256_of

__all__ = ["convert"]

_NESTS = ("state_dict", "model_state_dict", "model", "module", "params")
_WRAPPERS = ("_orig_mod.", "module.", "model.")


def convert(file: str | os.PathLike[str], out: str | os.PathLike[str], *, name: str, **overrides: Any) -> Path:
    """Take the weights of another tool's checkpoint into a folder that `load_model` takes.

    Tensors are renamed by the first plugin whose hook `astrozoo_convert_state_dict` knows the checkpoint. Without one
    they must have the names of the model, apart from what wrappers (compile, DistributedDataParallel, Lightning) put in
    front.

    Args:
        file: `.safetensors`, or a `.pt`, `.pth`, `.ckpt`, `.bin` pickle of tensors.
        out: Folder to write.
        name: Variant that the weights belong to.
        overrides: Fields of its configuration.

    Raises:
        WeightsError: The file holds more than tensors and plain containers, or its tensors do not fit the model.
        UnknownModelError, ConfigError: No such variant, no such field.
    """
    file = Path(file)
    variant = registry.load_variant(name)
    config = variant.config(**overrides)
    model = variant.build(config, device="cpu")
    assert model.spec is not None
    foreign = _tensors(file)
    converted = registry.plugin_manager().hook.astrozoo_convert_state_dict(spec=model.spec, state_dict=foreign)
    own = model.state_dict()
    tensors = dict(converted) if converted is not None else _unwrap(foreign, set(own))
    mismatch = _compare(own, tensors)
    if mismatch:
        raise WeightsError(
            f"The weights in {file} do not fit {name}:\n{mismatch.table()}\nConfiguration fields (--set FIELD=VALUE) "
            f"change the model's shapes; a plugin with the hook astrozoo_convert_state_dict renames tensors."
        )
    model.load_state_dict(tensors, assign=True)
    model.provenance = {"converted_from": file.name, "converted_from_sha256": sha256_of(file)}
    return save_model(model, out)


def _compare(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> Mismatch:
    """What does not fit. Floating dtypes may differ: the checkpoint's are kept."""
    both = {key: (tensor, own[key]) for key, tensor in tensors.items() if key in own}
    return Mismatch(
        missing={key: tuple(tensor.shape) for key, tensor in own.items() if key not in tensors},
        unexpected={key: tuple(tensor.shape) for key, tensor in tensors.items() if key not in own},
        shapes={
            key: (tuple(tensor.shape), tuple(expected.shape))
            for key, (tensor, expected) in both.items()
            if tensor.shape != expected.shape
        },
        dtypes={
            key: (dtype_text(tensor.dtype), dtype_text(expected.dtype))
            for key, (tensor, expected) in both.items()
            if tensor.dtype != expected.dtype and not (tensor.is_floating_point() and expected.is_floating_point())
        },
    )


def _tensors(file: Path) -> dict[str, Tensor]:
    if file.suffix == ".safetensors":
        return read_tensors(file)
    if not file.is_file():
        raise WeightsError(damaged(file, ""))
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise WeightsError(
            f"{file} holds more than tensors and plain containers, or is damaged: {error}. Open it where it was made, "
            f"save its state dict alone (torch.save(model.state_dict(), FILE)), and convert that."
        ) from error
    while isinstance(content, Mapping):
        tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
        nested = next((content[key] for key in _NESTS if isinstance(content.get(key), Mapping)), None)
        if nested is None:
            if tensors:
                return tensors
            break
        content = nested
    raise WeightsError(
        f"{file} holds no state dict: expected tensors by name, or one of {', '.join(_NESTS)} with them."
    )


def _unwrap(tensors: Mapping[str, Tensor], own: set[str]) -> dict[str, Tensor]:
    """Names without what wrappers put in front of all of them."""
    stripped = dict(tensors)
    while stripped and not own & set(stripped):
        prefix = next((wrapper for wrapper in _WRAPPERS if all(key.startswith(wrapper) for key in stripped)), None)
        if prefix is None:
            break
        stripped = {key.removeprefix(prefix): tensor for key, tensor in stripped.items()}
    return stripped
