"""Loading: build on the meta device, map the files, assign. No weight is initialised, and none is allocated twice.

Everything is checked from headers before a tensor is touched, so what does not fit gives no model at all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from astrozoo import registry
from astrozoo.errors import AmbiguousNameError, AstrozooError, ConfigError, UnknownModelError, WeightsError
from astrozoo.module import ZooModel
from astrozoo.registry.family import Variant
from astrozoo.registry.origin import with_origin
from astrozoo.weights.adapt import Adaptation, plan_adaptation, refit_channels
from astrozoo.weights.config import CONFIG_FILE, SavedModel, read_config
from astrozoo.weights.files import DTYPES, aligned, dtype_text, open_tensors
from astrozoo.weights.fresh import SkipMetaInit, initialise_only
from astrozoo.weights.mismatch import Mismatch
from astrozoo.weights.save import INDEX_FILE, WEIGHTS_FILE
from astrozoo.weights.sources import Place, locate, refuse_pickle, verify

__all__ = ["WeightFiles", "load_model", "load_place", "read_saved", "usable_device", "weight_files"]


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """The files that hold the weights of a place.

    Attributes:
        paths: Safetensors files by the names they were saved under; a source may keep them under others.
        index: For shards: the file that says which tensor is in which.
        by_tensor: For shards: what it says.
    """

    paths: dict[str, Path]
    index: Path | None = None
    by_tensor: dict[str, Path] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Stored:
    """A tensor as the header of its file describes it."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype


def load_model(
    path_or_id: str | os.PathLike[str],
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    adapt: bool = False,
    verify_files: bool = False,
    cache: str | os.PathLike[str] | None = None,
    **overrides: Any,
) -> ZooModel:
    """A saved model, in evaluation mode, with outputs bit-identical to those of the model that was saved.

    On the CPU, weights are views of the mapped file: loading costs little time and no memory of its own, and pages that
    are written to (in training, say) become private copies. The file itself is never changed, and must not be changed
    by others while the model lives; saving again into the same folder is safe. Copied are only weights that would give
    other bits where they lie in the file: those of another layout, such as channels last, and in files of other
    libraries those that are not aligned.

    Args:
        path_or_id: Folder that `save_model` wrote, `hf://org/name@revision`, a bare Hub id `org/name`, or the address
            of a source that a plugin adds.
        device: Where the weights go, tensor by tensor; default: torch's default device.
        dtype: Converts floating weights, tensor by tensor; default: as saved.
        revision: Branch, tag or commit of a Hub repository.
        adapt: Allow other numbers of inputs and outputs than were saved: stems keep their filters, heads are
            initialised anew (see `astrozoo.weights.adapt`). What was done stands in `model.provenance["adapted"]`.
        verify_files: Compare each file's sha256 with the one in `config.json`. Sizes are always compared.
        cache: Folder for downloads; default: the Hub's own.
        overrides: Fields of the configuration that replace the saved ones, such as `out_vars=3` with `adapt=True`.

    Raises:
        WeightsError: Files are missing, damaged, unverified, pickles, or do not fit; then no model is returned.
        UnknownModelError, ConfigError: `config.json` names a model or field that is not installed here, or there is no
            such device.
    """
    if device is not None:
        device = usable_device(device)  # before anything is downloaded
    place = locate(path_or_id, revision=revision, cache=Path(cache) if cache is not None else None)
    return load_place(place, device=device, dtype=dtype, adapt=adapt, verify_files=verify_files, overrides=overrides)


def usable_device(name: torch.device | str) -> torch.device:
    """The device, once it is known that tensors can be made there.

    Raises:
        ConfigError: This machine, or this build of torch, has no such device; the message names those it has.
    """
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch raises AssertionError in builds without CUDA
        if isinstance(error, torch.OutOfMemoryError):
            raise
        reason = str(error).splitlines()[0]
        found = torch.accelerator.current_accelerator(check_available=True)
        count = torch.accelerator.device_count() if found is not None else 0
        there = ["cpu", *(f"{found.type}:{index}" for index in range(count) if found is not None)]
        raise ConfigError(
            f"device is {str(name)!r}, which this machine does not offer ({reason}); it has: {', '.join(there)}."
        ) from error
    return device


def load_place(
    place: Place,
    *,
    variant: Variant | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    adapt: bool = False,
    verify_files: bool = False,
    overrides: Mapping[str, Any] | None = None,
) -> ZooModel:
    """Load from a place, whose `config.json` must name `variant` where that is given.

    Raises:
        WeightsError, UnknownModelError, ConfigError: As for `load_model`.
    """
    saved = read_saved(place)
    if variant is not None and variant.name != saved.name:
        raise WeightsError(f"{place.label} holds a {saved.name}, not a {variant.name}; load that model instead.")
    with _prefixed(f"{place.label}/{CONFIG_FILE}"):
        name = _registry_name(saved)
        variant = variant or registry.load_variant(name)
        config = variant.config(**{**saved.config, **(overrides or {})})
    files = weight_files(place, saved)
    _check_files(files, saved, place, verify_files)
    stored = _headers(files)
    _check_layouts(saved, stored, place)

    def build(device: str) -> ZooModel:
        return variant.build(config, device=device, dtype=dtype or _main_dtype(saved, stored))

    with _prefixed(f"{place.label}/{CONFIG_FILE}"), SkipMetaInit():
        model = build("meta")
    if not isinstance(model, ZooModel):
        raise WeightsError(f"{saved.name!r} built a {type(model).__name__}; a model must derive from ZooModel.")
    target = torch.get_default_device() if device is None else torch.device(device)
    expected = model.state_dict(keep_vars=True)
    groups = _tied(expected, saved)
    mismatch, origin = _compare(expected, groups, stored, saved)
    plan = Adaptation()
    if mismatch:
        plan = _plan_or_refuse(mismatch, model, place, adapt)
    own_dtype = {name: tensor.dtype for name, tensor in expected.items() if isinstance(tensor, Tensor)}
    random_state = contextlib.nullcontext() if plan.fresh else torch.random.fork_rng(devices=[])
    with random_state:  # loading alone draws no random numbers, so it must not disturb those of the user
        fresh = initialise_only(model, plan.fresh, target, build)
    tensors = _read(origin, plan, stored, target, own_dtype if dtype is not None else {}, saved.layouts)
    tensors.update(fresh)
    model.load_state_dict(tensors, strict=False, assign=True)
    _retie(model, groups)
    left = [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.is_meta]
    if left and target.type != "meta":
        raise WeightsError(f"{place.label} left {', '.join(left)} of {saved.name} without values.")
    model.spec = with_origin(model.spec or variant.spec(config), name)
    model.preprocessing, model.provenance = saved.preprocessing, dict(saved.provenance)
    if mismatch:
        model.provenance["adapted"] = plan.to_dict()
        model.preprocessing = None  # variables and their statistics belong to the channels that were there before
    return model.eval()


# -- files -------------------------------------------------------------------------------------------------------------


def read_saved(place: Place) -> SavedModel:
    """The configuration of a place; a pickle in its stead is refused."""
    path = place.find(CONFIG_FILE)
    if path is not None:
        return read_config(path)
    for name in ("pytorch_model.bin", "model.pt", "model.ckpt"):
        if (pickle := place.find(name)) is not None:
            refuse_pickle(pickle)
    raise WeightsError(
        f"{place.label} has no {CONFIG_FILE}, so it is no saved model. Give the folder or repository that save_model "
        f"or push_model wrote; weights of other libraries are taken in with `astrozoo convert FILE OUT --name NAME`."
    )


def weight_files(place: Place, saved: SavedModel) -> WeightFiles:
    """The files that hold the weights: one, or shards.

    The configuration says which it wrote: a repository may still hold what an earlier push put there.
    """
    sharded = INDEX_FILE in saved.files and WEIGHTS_FILE not in saved.files
    single = None if sharded else place.find(WEIGHTS_FILE)
    if single is not None:
        return WeightFiles({WEIGHTS_FILE: single})
    index = place.find(INDEX_FILE)
    if index is None:
        if (pickle := place.find("pytorch_model.bin")) is not None:
            refuse_pickle(pickle)
        wanted = f"no {INDEX_FILE}" if sharded else f"neither {WEIGHTS_FILE} nor {INDEX_FILE}"
        raise WeightsError(f"{place.label} has {wanted}; save or download the model again.")
    shards: dict[str, Path] = {}
    by_tensor = {}
    for tensor, name in _read_index(index).items():
        if name not in shards:
            shard = place.find(name)
            if shard is None:
                raise WeightsError(f"{index} names the shard {name!r}, which {place.label} does not have; copy it too.")
            shards[name] = shard
        by_tensor[tensor] = shards[name]
    return WeightFiles(shards, index, by_tensor)


def _read_index(index: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise WeightsError(f"{index} is no index of shards ({error!r}); save or download the model again.") from error
    if not isinstance(weight_map, dict) or not weight_map:
        raise WeightsError(f"{index} lists no tensors; save or download the model again.")
    for name in weight_map.values():
        # A name with a path could make us read any file of this machine.
        if (
            not isinstance(name, str)
            or name != Path(name).name
            or "\\" in name
            or ":" in name
            or name in ("", ".", "..")
        ):
            raise WeightsError(f"{index} names the shard {name!r}; shards are plain names of files beside the index.")
        refuse_pickle(index.with_name(name))
        if not name.endswith(".safetensors"):
            raise WeightsError(f"{index} names the shard {name!r}; expected a .safetensors file.")
    return weight_map


def _check_files(files: WeightFiles, saved: SavedModel, place: Place, verify_files: bool) -> None:
    index = {} if files.index is None else {INDEX_FILE: files.index}
    for name, path in {**index, **files.paths}.items():
        facts = saved.files.get(name, {})
        size, expected = path.stat().st_size, facts.get("bytes", None)
        if expected is not None and size != expected:
            raise WeightsError(
                f"{path} has {size:,} bytes, but {CONFIG_FILE} says {expected!r}: it is truncated, or belongs to "
                f"another save. Copy or download {place.label} again."
            )
        if verify_files:
            if not isinstance(facts.get("sha256"), str):
                raise WeightsError(f"{CONFIG_FILE} of {place.label} has no sha256 of {name} to verify it with.")
            verify(path, facts["sha256"], f"{name} of {place.label}")


def _headers(files: WeightFiles) -> dict[str, _Stored]:
    stored: dict[str, _Stored] = {}
    for path in files.paths.values():
        with open_tensors(path) as file:
            for name in file.keys():  # noqa: SIM118  a reader, not a dict
                if name in stored:
                    raise WeightsError(f"{name!r} is in {stored[name].file} and in {path}; save the model again.")
                view = file.get_slice(name)
                if view.get_dtype() not in DTYPES:
                    raise WeightsError(f"{name!r} in {path} has dtype {view.get_dtype()}, which torch does not have.")
                stored[name] = _Stored(path, tuple(view.get_shape()), DTYPES[view.get_dtype()])
    for name, path in files.by_tensor.items():
        if name not in stored or stored[name].file != path:
            raise WeightsError(f"The index says that {name!r} is in {path}, but it is not; save or download again.")
    return stored


def _check_layouts(saved: SavedModel, stored: dict[str, _Stored], place: Place) -> None:
    for name, order in saved.layouts.items():
        dims = len(stored[name].shape) if name in stored else len(order)
        if not all(isinstance(dim, int) for dim in order) or sorted(order) != list(range(dims)):
            raise WeightsError(
                f"{CONFIG_FILE} of {place.label} has the layout {list(order)} for {name!r}, expected an order of its "
                f"{dims} dims; save or download the model again."
            )


def _read(
    origin: dict[str, str],
    plan: Adaptation,
    stored: dict[str, _Stored],
    device: torch.device,
    dtypes: Mapping[str, torch.dtype],
    layouts: Mapping[str, tuple[int, ...]],
) -> dict[str, Tensor]:
    """Tensors by name in the model, moved, converted and laid out one at a time."""
    by_file: dict[Path, list[str]] = {}
    for name, source in origin.items():
        if name not in plan.fresh:
            by_file.setdefault(stored[source].file, []).append(name)
    tensors = {}
    for path, names in by_file.items():
        with open_tensors(path) as file:
            for name in names:
                try:
                    tensor = file.get_tensor(origin[name])
                except RuntimeError as error:  # torch cannot view bytes that are not aligned
                    raise WeightsError(f"{origin[name]!r} in {path} cannot be read: {error}") from error
                if name in plan.refit:
                    tensor = refit_channels(tensor, plan.refit[name][1])
                tensor = tensor.to(device, dtypes.get(name))
                order = layouts.get(origin[name])
                tensors[name] = aligned(tensor) if order is None or name in plan.refit else _laid_out(tensor, order)
    return tensors


def _laid_out(tensor: Tensor, order: tuple[int, ...]) -> Tensor:
    """A copy whose dims lie in memory in this order, outermost first."""
    return torch.empty_permuted(tensor.shape, order, dtype=tensor.dtype, device=tensor.device).copy_(tensor)


# -- fit ---------------------------------------------------------------------------------------------------------------


def _tied(expected: Mapping[str, Any], saved: SavedModel) -> list[list[str]]:
    """Names that share one tensor: because the model is built so, or because the saved one was."""
    by_tensor: dict[int, list[str]] = {}
    for name, tensor in expected.items():
        by_tensor.setdefault(id(tensor), []).append(name)
    group_of = {name: group for group in by_tensor.values() for name in group}
    for alias, name in saved.tied.items():
        first, second = group_of.get(name), group_of.get(alias)
        if first is not None and second is not None and first is not second:
            first.extend(second)
            group_of.update(dict.fromkeys(second, first))
    groups = {id(group): group for group in group_of.values() if len(group) > 1}
    return list(groups.values())


def _compare(
    expected: Mapping[str, Any], groups: list[list[str]], stored: dict[str, _Stored], saved: SavedModel
) -> tuple[Mismatch, dict[str, str]]:
    """What does not fit, and for each tensor of the model its name in the file."""
    partners = {name: group for group in groups for name in group}
    mismatch, origin = Mismatch(), {}
    for name, tensor in expected.items():
        if not isinstance(tensor, Tensor):
            continue
        source = next((other for other in (name, *partners.get(name, ())) if other in stored), None)
        if source is None:
            mismatch.missing[name] = tuple(tensor.shape)
            continue
        origin[name] = source
        entry = stored[source]
        if entry.shape != tuple(tensor.shape):
            mismatch.shapes[name] = (entry.shape, tuple(tensor.shape))
        wanted = dtype_text(tensor.dtype)
        if tensor.is_floating_point() and entry.dtype.is_floating_point:
            wanted = saved.dtypes.get(source, saved.dtype) or dtype_text(entry.dtype)
        if dtype_text(entry.dtype) != wanted:
            mismatch.dtypes[name] = (dtype_text(entry.dtype), wanted)
    used = set(origin.values())
    mismatch.unexpected = {
        name: entry.shape for name, entry in stored.items() if name not in used and name not in expected
    }
    return mismatch, origin


def _plan_or_refuse(mismatch: Mismatch, model: ZooModel, place: Place, adapt: bool) -> Adaptation:
    """How to adapt the model, if that is allowed and enough; otherwise the table of what does not fit, as an error."""
    assert model.spec is not None
    plan, taken_care_of = plan_adaptation(mismatch, model.spec)
    rest = mismatch.names() - taken_care_of | set(mismatch.dtypes)
    if adapt and not rest:
        return plan
    if not rest:
        advice = (
            f"Only stem and head differ: load_model({place.label!r}, adapt=True, ...) keeps the stem's filters and "
            f"initialises the head anew."
        )
    elif adapt:
        advice = f"adapt=True changes only {', '.join((*model.spec.stems, *model.spec.heads)) or 'nothing here'}."
    else:
        advice = "Is it the checkpoint of another model, or were configuration fields overridden?"
    raise WeightsError(f"The weights in {place.label} do not fit {model.spec.name}:\n{mismatch.table()}\n{advice}")


def _main_dtype(saved: SavedModel, stored: dict[str, _Stored]) -> torch.dtype | None:
    """The dtype to build in, so that buffers which no file holds get the dtype of the weights."""
    dtype = getattr(torch, saved.dtype, None) if saved.dtype else None
    if dtype is None:
        dtype = next((entry.dtype for entry in stored.values() if entry.dtype.is_floating_point), None)
    return dtype if isinstance(dtype, torch.dtype) and dtype.is_floating_point else None


def _retie(model: nn.Module, groups: list[list[str]]) -> None:
    """Make names that share a tensor share one parameter object again, as an optimiser needs it."""
    for first, *others in groups:
        owner, _, leaf = first.rpartition(".")
        shared = getattr(model.get_submodule(owner), leaf)
        for name in others:
            owner, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, shared)


def _registry_name(saved: SavedModel) -> str:
    """The name under which the registry has the model: where several distributions offer it, that of the one it was."""
    try:
        registry.load_variant(saved.name)
    except AmbiguousNameError:
        for distribution in saved.versions:
            with contextlib.suppress(UnknownModelError):
                registry.load_variant(f"{distribution}/{saved.name}")
                return f"{distribution}/{saved.name}"
        raise
    return saved.name


@contextlib.contextmanager
def _prefixed(where: str) -> Any:
    """Say which file named the unknown model or field."""
    try:
        yield
    except AstrozooError as error:
        raise type(error)(f"{where}: {error}") from error
    except (TypeError, ValueError, RuntimeError) as error:  # values that the configuration's own checks let through
        raise WeightsError(f"{where}: the configuration cannot take its values: {error}.") from error
