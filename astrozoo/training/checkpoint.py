"""Checkpoints: the complete state of a run, in safetensors and JSON, written whole or not at all.

    <out>/checkpoints/step-00000500/
        state.json            position, settings, plain values of the optimiser, size and sha256 of every other file
        model.safetensors     parameters and buffers, unsharded
        ema.safetensors       the moving average, if there is one
        optimizer.safetensors `parameter name|key`, and what the optimiser keeps beside its parameters
        rng.safetensors       generators of every process

Nothing is ever unpickled. A checkpoint written by any number of processes loads into any other number.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from astrozoo.errors import TrainingError, WeightsError
from astrozoo.weights.files import atomic_folder, find_file, read_tensors, remove_abandoned, write_tensors

__all__ = [
    "Checkpoint",
    "checkpoints",
    "latest_checkpoint",
    "load_optimizer",
    "load_tensors",
    "optimizer_state",
    "read_checkpoint",
    "rng_state",
    "set_aside",
    "set_rng_state",
    "tidy",
    "full_tensors",
    "write_checkpoint",
]

log = logging.getLogger("astrozoo.training")
FORMAT = 1


@dataclass
class Checkpoint:
    """What one checkpoint holds: `state` as JSON-able values, and groups of named tensors."""

    state: dict[str, Any]
    tensors: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    path: Path | None = None


def checkpoints(folder: Path) -> list[Path]:
    """Folders of checkpoints in `folder`, oldest first; not necessarily readable."""
    return sorted(path for path in folder.glob("step-*") if path.is_dir())


def set_aside(out: Path, after: int, *, fresh: bool) -> list[Path]:
    """Rename what is of later steps than `after`, or all if this run does not go on from `out`; returns the new paths.

    A run that goes on from an earlier step writes the later ones again, and must not find them first; nor may it pass
    off as its own the models of what it is not a part of.
    """
    later = [path for path in checkpoints(out / "checkpoints") if fresh or not path.name <= f"step-{after:08d}"]
    models = [out / name for name in ("best", "last") if fresh or (later and _trained_beyond(out / name, after))]
    old = [path for path in [*models, *([out / "log.jsonl"] if fresh else [])] if path.exists()]
    if not old and not later:
        return []
    number = 1
    while list(out.glob(f"*-before-{number}*")):
        number += 1
    moved = []
    if later:
        aside = out / f"checkpoints-before-{number}"
        aside.mkdir()
        for path in later:
            path.rename(aside / path.name)
        moved.append(aside)
    return moved + [path.rename(path.with_name(f"{path.stem}-before-{number}{path.suffix}")) for path in old]


def tidy(out: Path) -> None:
    """Remove what killed processes have left half-written in the folder of a run; each may be as large as the state."""
    for folder in (out, out / "checkpoints", out / "best", out / "last"):
        remove_abandoned(folder)
    for file in out.glob(".log.jsonl.*"):
        file.unlink(missing_ok=True)


def _trained_beyond(model: Path, step: int) -> bool:
    """Whether the saved model says that it has been trained for more steps; one that cannot be read is not ours."""
    try:
        config = json.loads((find_file(model, "config.json") or model / "config.json").read_text(encoding="utf-8"))
        return bool(config["provenance"]["training"]["step"] > step)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def write_checkpoint(folder: Path, step: int, checkpoint: Checkpoint, *, keep: int) -> Path:
    """Write `folder/step-<step>` atomically, then remove all but the last `keep`.

    Raises:
        WeightsError: It could not be written (full disk, no permission); older checkpoints are as they were.
    """
    path = folder / f"step-{step:08d}"
    with atomic_folder(path) as staging:
        files = {}
        for group, tensors in checkpoint.tensors.items():
            file = staging / f"{group}.safetensors"
            write_tensors(tensors, file)
            files[file.name] = {"bytes": file.stat().st_size, "sha256": _digest(file)}
        state = {"format": FORMAT, "step": step, "files": files, **checkpoint.state}
        (staging / "state.json").write_text(json.dumps(state, indent=1), encoding="utf-8")
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    remove_abandoned(folder)  # a process killed amid its save leaves a copy of the whole state
    return path


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read and verify one checkpoint.

    Raises:
        WeightsError: A file is missing, truncated or altered; the message names it.
    """
    path = Path(path)
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        listed = state["files"].items()
        known = state["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path} is no readable checkpoint: state.json: {error!r}.") from error
    if not known:
        raise WeightsError(f"{path} has format {state['format']!r}; this version of astrozoo reads {FORMAT}.")
    tensors = {}
    for name, expected in listed:
        file = path / Path(name).name
        size = file.stat().st_size if file.exists() else None
        if size != expected["bytes"]:
            found = "is missing" if size is None else f"has {size:,} bytes"
            raise WeightsError(f"{file} {found}; {expected['bytes']:,} bytes were written.")
        if _digest(file) != expected["sha256"]:
            raise WeightsError(f"{file} does not have the sha256 that was written: it is damaged.")
        tensors[file.stem] = read_tensors(file)
    return Checkpoint(state, tensors, path)


def latest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest readable checkpoint, with a warning about every newer one that is damaged; None without any.

    Raises:
        TrainingError: There are checkpoints, and all are damaged.
    """
    found = checkpoints(folder)
    for path in reversed(found):
        try:
            return read_checkpoint(path)
        except WeightsError as error:
            log.warning("Checkpoint %s is damaged and was skipped, the one before it is used: %s", path.name, error)
    if found:
        raise TrainingError(
            f"all {len(found)} checkpoints in {folder} are damaged; restore one, or start again with resume=False."
        )
    return None


def full_tensors(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Detached tensors without shards and without second names of shared ones. All processes must call it together.

    What was sharded is whole on the first process only, in the memory of the CPU, gathered one after another; the
    others, which would not write it, get tensors on the meta device.
    """
    seen: set[tuple[Any, ...]] = set()
    result = {}
    for name, tensor in named.items():
        part = tensor.to_local() if hasattr(tensor, "to_local") else tensor
        key = (part.data_ptr(), part.storage_offset(), tensor.shape)
        if tensor.numel() and part.numel() and key in seen:
            continue
        seen.add(key)
        result[name] = _whole(tensor)
    return result


def _whole(tensor: Tensor) -> Tensor:
    if not hasattr(tensor, "full_tensor"):
        return tensor.detach()
    return tensor.full_tensor().detach().to("cpu" if torch.distributed.get_rank() == 0 else "meta")


@torch.no_grad()
def load_tensors(named: Mapping[str, Tensor], saved: Mapping[str, Tensor], what: str) -> None:
    """Copy `saved` into the tensors of the same names, sharded or not.

    Raises:
        TrainingError: Names or shapes differ.
    """
    unknown = [name for name in saved if name not in named]
    wrong = [name for name in saved if name in named and saved[name].shape != named[name].shape]
    reached = {_address(named[name]) for name in saved if name in named}
    missing = [name for name, tensor in named.items() if name not in saved and _address(tensor) not in reached]
    if unknown or wrong or missing:
        raise TrainingError(
            f"the checkpoint's {what} belongs to another model: missing {missing[:3]}, unknown {unknown[:3]}, of "
            f"another shape {wrong[:3]} (first three each). Choose another `out`, or start again with resume=False."
        )
    for name, tensor in saved.items():
        named[name].copy_(_like(named[name], tensor))


def _address(tensor: Tensor) -> int:
    return (tensor.to_local() if hasattr(tensor, "to_local") else tensor).data_ptr()


def _like(tensor: Tensor, whole: Tensor) -> Tensor:
    if not hasattr(tensor, "full_tensor"):
        return whole
    from torch.distributed.tensor import distribute_tensor

    moved = whole.to(device=tensor.device)
    return distribute_tensor(moved, tensor.device_mesh, tensor.placements)  # type: ignore[attr-defined]


def optimizer_state(optimizer: torch.optim.Optimizer, model: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What an optimiser remembers, as JSON-able values and tensors. All processes must call it together.

    Some optimisers count steps in their groups, or keep a generator of their own beside them; settings are left out.

    Raises:
        TrainingError: It remembers something that cannot be saved.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    settings = {"params", *optimizer.defaults}
    tensors: dict[str, Tensor] = {}
    extra = {key: value for key, value in optimizer.state_dict().items() if key not in ("state", "param_groups")}
    plain = {
        "parameters": {names[id(p)]: _packed(v, names[id(p)], tensors) for p, v in optimizer.state.items()},
        "groups": [
            _packed({key: value for key, value in group.items() if key not in settings}, f"|group {index}", tensors)
            for index, group in enumerate(optimizer.param_groups)
        ],
        "extra": _packed(extra, "|extra", tensors),
    }
    return plain, tensors


def load_optimizer(
    optimizer: torch.optim.Optimizer, model: nn.Module, plain: Mapping[str, Any], saved: Mapping[str, Tensor]
) -> None:
    """The inverse of `optimizer_state`; settings such as betas stay those of the current configuration."""
    parameters = dict(model.named_parameters())
    # Reading maps the file; the optimiser writes in place, so it gets memory of its own, of shards no more than these.
    owned = {name: tensor.clone() for name, tensor in saved.items() if name.startswith("|")}
    current = optimizer.state_dict()
    order = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    names = {id(parameter): name for name, parameter in parameters.items()}
    state = {name: _unpacked(values, saved) for name, values in plain["parameters"].items()}
    for name, values in state.items():
        for entry, value in values.items():
            if isinstance(value, Tensor):
                cut = hasattr(parameters[name], "full_tensor") and value.shape == parameters[name].shape
                values[entry] = _like(parameters[name], value) if cut else value.clone()
    current["state"] = {i: dict(state[names[id(p)]]) for i, p in enumerate(order) if names[id(p)] in state}
    for group, values in zip(current["param_groups"], plain["groups"], strict=True):
        group.update(_unpacked(values, owned))
    optimizer.load_state_dict({**current, **_unpacked(plain["extra"], owned)})
    for parameter, values in optimizer.state.items():
        for entry, value in values.items():
            kept = state[names[id(parameter)]].get(entry)
            if isinstance(kept, Tensor) and kept.dtype != value.dtype:
                values[entry] = value.to(kept.dtype)  # torch casts to the parameter's, which is not what was saved


def _packed(value: Any, key: str, tensors: dict[str, Tensor]) -> Any:
    """`value` as JSON; the tensors in it go to `tensors`, under names that begin with `key`."""
    if isinstance(value, Tensor):
        tensors[key] = _whole(value)
        return {"tensor": key}
    if isinstance(value, Mapping):
        return {str(name): _packed(item, f"{key}|{name}", tensors) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_packed(item, f"{key}|{index}", tensors) for index, item in enumerate(value)]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TrainingError(
        f"the optimiser remembers {key!r} as {type(value).__name__}, which no checkpoint can hold; choose another "
        f"optim.name."
    )


def _unpacked(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    if value.keys() == {"tensor"}:
        return tensors[value["tensor"]]
    if value.keys() in ({"list"}, {"tuple"}):
        ((kind, items),) = value.items()
        return (tuple if kind == "tuple" else list)(_unpacked(item, tensors) for item in items)
    return {name: _unpacked(item, tensors) for name, item in value.items()}


def rng_state(device: torch.device) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Generators of python, numpy and torch of this process, as JSON-able values and tensors."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002  libraries draw from it
    tensors = {"torch": torch.get_rng_state(), "numpy": torch.from_numpy(np.asarray(keys).astype(np.int64))}
    tensors["python"] = torch.tensor(words, dtype=torch.int64)
    if device.type == "cuda":
        tensors["cuda"] = torch.cuda.get_rng_state(device)
    plain = {"python": [version, gauss], "numpy": [kind, int(position), int(has_gauss), float(cached)]}
    return plain, tensors


def set_rng_state(plain: Mapping[str, Any], tensors: Mapping[str, Tensor], device: torch.device) -> None:
    """The inverse of `rng_state`."""
    version, gauss = plain["python"]
    random.setstate((version, tuple(tensors["python"].tolist()), gauss))
    kind, position, has_gauss, cached = plain["numpy"]
    keys = tensors["numpy"].numpy().astype(np.uint32)
    np.random.set_state((kind, keys, position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(tensors["torch"].clone())
    if device.type == "cuda" and "cuda" in tensors:
        torch.cuda.set_rng_state(tensors["cuda"].clone(), device)


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
