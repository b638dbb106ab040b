"""Writing catalogues: specs with measured costs, as JSON that lists and filters without importing any model.

`python -m astrozoo.catalogue` (or `make catalog`) derives astrozoo's own `entry_points.txt` and `catalog.json` from the
variants defined in the files of `astrozoo.models`; `write_catalogue` does the JSON for an installed plugin.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import pkgutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

import astrozoo
from astrozoo import registry
from astrozoo.batch import random_batch
from astrozoo.errors import PluginError
from astrozoo.module import ZooModel
from astrozoo.registry.catalog import CatalogError, dumps, split
from astrozoo.registry.discovery import ATTENTION, CATALOG, CORE, MODELS, normalized
from astrozoo.registry.family import AttentionImplementation, Variant
from astrozoo.registry.spec import AttentionSpec, Costs, ModelSpec
from astrozoo.weights.files import atomic_write

__all__ = ["Definitions", "definitions", "entry_points", "measure", "measured_spec", "write_catalogue", "write_own"]

_PACKAGES = ("astrozoo.models", "astrozoo.attention")


@dataclass(frozen=True, slots=True)
class Definitions:
    """Objects that a package defines at module level, by entry-point value `module:name`."""

    models: Mapping[str, Variant]
    attention: Mapping[str, AttentionImplementation]


def definitions(packages: Iterable[str] = _PACKAGES) -> Definitions:
    """Import every module of `packages` and collect its variants and attention implementations.

    Raises:
        PluginError: Two objects have one name, or an object's variable is not called as the object is.
    """
    found = Definitions({}, {})
    for package in packages:
        if importlib.util.find_spec(package) is None:
            continue
        root = importlib.import_module(package)
        for info in pkgutil.walk_packages(root.__path__, f"{package}."):
            module = importlib.import_module(info.name)
            for variable, value in vars(module).items():
                if isinstance(value, Variant):
                    _collect(found.models, info.name, variable, value, value.name)
                elif isinstance(value, AttentionImplementation):
                    _collect(found.attention, info.name, variable, value, value.spec.name)
    return found


def _collect(known: Mapping[str, Any], module: str, variable: str, value: Any, name: str) -> None:
    assert isinstance(known, dict)  # narrows for the type checker: `definitions` made it
    where = f"{module}:{variable}"
    if variable != name:
        raise PluginError(f"{where} is called {name!r}; the variable must have the same name.")
    for other in known:
        if other.endswith(f":{name}"):
            raise PluginError(f"{name!r} is defined in {other} and in {where}; a name belongs to one of them.")
    known[where] = value


def entry_points(found: Definitions) -> str:
    """The text of `entry_points.txt` that declares `found`, in order of names."""
    groups = {
        CATALOG: {"astrozoo": "astrozoo:catalog.json"},
        ATTENTION: {where.rpartition(":")[2]: where for where in found.attention},
        MODELS: {where.rpartition(":")[2]: where for where in found.models},
    }
    sections = [
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in sorted(entries.items()))
        for group, entries in sorted(groups.items())
        if entries
    ]
    return "\n".join(sections)


def measure(model: ZooModel, spec: ModelSpec) -> Costs:
    """Costs of a model on the meta device at the example sizes, batch 1: nothing is allocated or computed.

    Args:
        model: A model built with `device="meta"`.
        spec: Its spec; optional inputs are left out, as a default configuration has none.
    """
    batch = random_batch(spec, 1, optional=False, device="meta", dtype=model.dtype)
    owned = {_storage(tensor) for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.Tensor] = {}  # by storage; holding the tensor keeps its storage from being reused

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if _storage(tensor) not in owned:
            kept.setdefault(_storage(tensor), tensor)
        return tensor

    with (
        FlopCounterMode(display=False) as counter,
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        model(**batch.inputs)
    return Costs(
        parameters=model.num_parameters(),
        flops=int(counter.get_total_flops()),
        activation_bytes=sum(tensor.untyped_storage().nbytes() for tensor in kept.values()),
        checkpoint_bytes=sum(tensor.nbytes for tensor in {id(t): t for t in model.state_dict().values()}.values()),
    )


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)  # meta storages have no address; this identifies the object


def measured_spec(variant: Variant) -> ModelSpec:
    """The variant's spec with its costs."""
    spec = variant.spec()
    return dataclasses.replace(spec, costs=measure(variant.build(device="meta"), spec))


def write_own(folder: Path | None = None) -> tuple[Path, Path]:
    """Write `entry_points.txt` and `catalog.json` of astrozoo itself; returns their paths.

    Args:
        folder: Where to write; by default the package, so that an editable install sees it after reinstallation.
    """
    folder = Path(astrozoo.__file__).parent if folder is None else folder
    found = definitions()
    rows = dumps(
        [measured_spec(variant) for variant in found.models.values()],
        [implementation.spec for implementation in found.attention.values()],
    )
    paths = folder / "entry_points.txt", folder / "catalog.json"
    for path, text in zip(paths, (entry_points(found), rows), strict=True):
        _write(path, text)
    return paths


def write_catalogue(distribution: str, path: str | Path | None = None) -> Path:
    """Write the catalogue of an installed distribution, with costs measured on the meta device.

    Args:
        distribution: Name of the plugin's distribution; `astrozoo` writes its own files.
        path: Where to write; by default where its entry point in `astrozoo.catalog` says.

    Raises:
        PluginError: It is not installed, offers no model or attention, declares no catalogue, or one of its models is
            broken; nothing is written then.
    """
    if normalized(distribution) == CORE and path is None:
        return write_own()[1]
    offers = {normalized(status.distribution): status for status in registry.list_plugins()}
    status = offers.get(normalized(distribution))
    if status is None:
        raise PluginError(f"No plugin {distribution!r} is installed; there are {', '.join(sorted(offers))}.")
    if not (status.models or status.attentions):
        raise PluginError(f"{status.distribution} offers neither models nor attentions; it needs no catalogue.")
    target = _declared_path(status.distribution) if path is None else Path(path)
    models = [measured_spec(registry.load_variant(f"{status.distribution}/{name}")) for name in status.models]
    attention: list[AttentionSpec] = [
        registry.load_attention(f"{status.distribution}/{name}").spec for name in status.attentions
    ]
    _write(target, dumps(models, attention))
    return target


def _declared_path(distribution: str) -> Path:
    """Where the file of the catalogue entry point belongs; it need not exist yet."""
    entries = registry.current().offers[normalized(distribution)].entries[CATALOG]
    for entry in entries.values():
        try:
            package, file = split(entry.value)
        except CatalogError as error:
            raise PluginError(f"The catalogue of {distribution} cannot be written: {error}.") from error
        found = importlib.util.find_spec(package)
        if found is not None and found.submodule_search_locations:
            return Path(found.submodule_search_locations[0], file)
    raise PluginError(
        f"{distribution} declares no catalogue: add the entry point `{distribution} = package:catalog.json` "
        "to the group astrozoo.catalog, or give a path to write to."
    )


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as staging:
        staging.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    import sys

    for written in write_own():
        sys.stdout.write(f"{written}\n")
