"""Saving: `config.json` and safetensors, all of it or nothing of it."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from torch import Tensor, nn

from astrozoo._version import __version__
from astrozoo.errors import WeightsError
from astrozoo.module import ZooModel
from astrozoo.weights.config import CONFIG_FILE, SavedModel, to_json
from astrozoo.weights.files import atomic_folder, dtype_text, write_tensors

__all__ = ["INDEX_FILE", "OURS", "WEIGHTS_FILE", "save_model", "sha256_of", "tied_names", "unwrapped"]

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
OURS = (CONFIG_FILE, WEIGHTS_FILE, INDEX_FILE, "model-*-of-*.safetensors")


def save_model(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    max_shard_bytes: int = 5_000_000_000,
    state_dict: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write a model to a folder: `config.json` and `model.safetensors`, or shards and an index when it is larger.

    The folder appears complete or keeps what it held: a crash, Ctrl-C or a full disk loses nothing. Other files in it
    stay. A model wrapped by `torch.compile` or DistributedDataParallel is unwrapped.

    Args:
        model: A model from `create_model` or `load_model`.
        path: Folder to write to.
        max_shard_bytes: Size above which weights are split over several files.
        state_dict: Tensors to write instead of the model's own, such as averaged weights, or the gathered state dict of
            a model whose parameters are sharded over processes.

    Returns:
        The folder.

    Raises:
        WeightsError: The model has no registry name, its state is no plain tensors, or the files cannot be written.
    """
    model = unwrapped(model)
    if model.spec is None:
        raise WeightsError(
            f"This {type(model).__name__} was built without the registry, so a saved file could not say how to build "
            f"it again. Create it with astrozoo.create_model(name), or with variant.build(), and save that."
        )
    tensors = dict(model.state_dict() if state_dict is None else state_dict)
    tied = tied_names(tensors)
    tensors = {name: tensor for name, tensor in tensors.items() if name not in tied}
    main, others = _dtypes(tensors)
    saved = SavedModel(
        name=model.spec.name,
        config=dataclasses.asdict(model.config),
        dtype=main,
        dtypes=others,
        tied=tied,
        layouts=_layouts(tensors),
        preprocessing=model.preprocessing,
        provenance={**model.provenance, "saved_at": datetime.now(UTC).isoformat(timespec="seconds")},
        versions=_versions(model),
    )
    to_json(saved.to_dict(), "The model's configuration, preprocessing or provenance")  # before gigabytes are written
    with atomic_folder(path, replaces=OURS) as folder:
        files = _write_weights(tensors, folder, max_shard_bytes)
        saved = dataclasses.replace(saved, files=files)
        (folder / CONFIG_FILE).write_text(to_json(saved.to_dict(), "The configuration"), encoding="utf-8")
    return Path(path)


def tied_names(tensors: Mapping[str, Any]) -> dict[str, str]:
    """By name: an earlier name of the very same memory (same address, shape, strides and dtype)."""
    first: dict[tuple[Any, ...], str] = {}
    tied = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, Tensor) and tensor.layout == torch.strided and tensor.numel() and not tensor.is_meta:
            place = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
            if first.setdefault(place, name) != name:
                tied[name] = first[place]
    return tied


def sha256_of(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unwrapped(model: nn.Module) -> ZooModel:
    """The model inside what torch.compile or DistributedDataParallel put around it."""
    while not isinstance(model, ZooModel):
        inner = getattr(model, "_orig_mod", None) or getattr(model, "module", None)
        if not isinstance(inner, nn.Module):
            raise WeightsError(f"save_model takes a model of the zoo, got {type(model).__name__}.")
        model = inner
    return model


def _write_weights(tensors: dict[str, Tensor], folder: Path, max_shard_bytes: int) -> dict[str, dict[str, Any]]:
    if max_shard_bytes < 1:
        raise WeightsError(f"max_shard_bytes is {max_shard_bytes}; expected a positive number of bytes.")
    # The splitter measures tensors, so what is none must be refused first; write_tensors says which it is.
    plain = all(isinstance(tensor, Tensor) and tensor.layout == torch.strided for tensor in tensors.values())
    total = sum(tensor.nbytes for tensor in tensors.values()) if plain else 0
    if total <= max_shard_bytes:
        write_tensors(tensors, folder / WEIGHTS_FILE)
    else:
        split = split_torch_state_dict_into_shards(tensors, max_shard_size=max_shard_bytes)
        for file, names in split.filename_to_tensors.items():
            write_tensors({name: tensors[name] for name in names}, folder / file)
        if split.is_sharded:
            index = {"metadata": {"total_size": total}, "weight_map": split.tensor_to_filename}
            (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return {
        file.name: {"bytes": file.stat().st_size, "sha256": sha256_of(file)} for file in sorted(folder.glob("model*"))
    }


def _dtypes(tensors: Mapping[str, Any]) -> tuple[str | None, dict[str, str]]:
    floating = {
        name: dtype_text(tensor.dtype)
        for name, tensor in tensors.items()
        if isinstance(tensor, Tensor) and tensor.is_floating_point()
    }
    if not floating:
        return None, {}
    main = next(iter(floating.values()))
    return main, {name: dtype for name, dtype in floating.items() if dtype != main}


def _layouts(tensors: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Dims in the order in which they lie in memory, for tensors where it is not the usual one."""
    layouts = {}
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or 0 in tensor.stride():
            continue  # a stride of zero repeats the same memory: a file holds it repeated, in the usual order
        strides = tensor.stride()
        order = tuple(sorted(range(tensor.ndim), key=strides.__getitem__, reverse=True))
        if order != tuple(range(tensor.ndim)):
            layouts[name] = order
    return layouts


def _versions(model: ZooModel) -> dict[str, str]:
    versions = {"astrozoo": __version__, "torch": str(torch.__version__), "python": platform.python_version()}
    distribution = model.spec.distribution if model.spec is not None else ""
    if distribution and distribution not in versions:
        try:
            versions[distribution] = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            versions[distribution] = model.spec.version if model.spec is not None else ""
    return versions
