"""`config.json`: what a saved model is, without its weights.

    {"format": 1, "name": "cube_unet_nano", "config": {...}, "dtype": "float32",
     "files": {"model.safetensors": {"bytes": 1234, "sha256": "..."}},
     "preprocessing": {...} or null, "provenance": {...}, "versions": {"astrozoo": "0.1.0", "torch": "2.11.0"}}

`dtypes` lists tensors whose floating dtype is not `dtype`, `tied` names that share the tensor of another name,
`layouts` tensors whose dims do not lie in the usual order in memory (channels last, transposed): kernels sum in that
order, so it decides the last bits of outputs. A file names a registry name, never a module path, and nothing in it is
executed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from astrozoo.errors import WeightsError

__all__ = ["CONFIG_FILE", "FORMAT", "SavedModel", "read_config", "to_json"]

CONFIG_FILE = "config.json"
FORMAT = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class SavedModel:
    """The contents of `config.json`.

    Attributes:
        format: Version of this layout.
        name: Registry name of the variant.
        config: Every field of its configuration.
        dtype: Floating dtype of the weights, such as `float32`; None when the file does not say.
        dtypes: By tensor name: floating dtypes that differ from `dtype`.
        tied: By tensor name: the name under which a shared tensor is stored.
        layouts: By tensor name: its dims from the outermost to the innermost in memory, where that is not their order.
        files: By file name: `bytes` and `sha256`.
        preprocessing, provenance: As on `ZooModel`.
        versions: By distribution, as installed when the model was saved.
    """

    name: str
    config: dict[str, Any]
    format: int = FORMAT
    dtype: str | None = None
    dtypes: dict[str, str] = field(default_factory=dict)
    tied: dict[str, str] = field(default_factory=dict)
    layouts: dict[str, tuple[int, ...]] = field(default_factory=dict)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    preprocessing: dict[str, Any] | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The file's contents, `format` first; empty entries that only say "nothing special" are left out."""
        values = asdict(self)
        for name in ("dtypes", "tied", "layouts"):
            if not values[name]:
                del values[name]
        return {"format": values.pop("format"), **values}


_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "name": str,
    "config": dict,
    "dtype": (str, type(None)),
    "dtypes": dict,
    "tied": dict,
    "layouts": dict,
    "files": dict,
    "preprocessing": (dict, type(None)),
    "provenance": dict,
    "versions": dict,
}
# What the values of these entries are.
_VALUES: Mapping[str, tuple[type, str]] = {
    "dtypes": (str, "the name of a dtype"),
    "tied": (str, "the name of a tensor"),
    "layouts": (list, "the order of its dims"),
    "files": (dict, "its size and digest"),
}


def read_config(path: Path) -> SavedModel:
    """Read and check a `config.json`.

    Raises:
        WeightsError: It is no JSON, of a newer format, or not the configuration of a model of ours.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # ValueError: neither JSON nor UTF-8
        raise WeightsError(f"{path} cannot be read as JSON: {error}. Save or download the model again.") from error
    if not isinstance(values, dict) or "format" not in values or "name" not in values:
        raise WeightsError(
            f"{path} is not the configuration of an astrozoo model: it has no 'format' and 'name'. Weights of other "
            f"libraries are taken in with `astrozoo convert FILE OUT --name NAME`."
        )
    version = values["format"]
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise WeightsError(f"{path} has format {version!r}; expected a whole number from 1 to {FORMAT}.")
    if version > FORMAT:
        raise WeightsError(
            f"{path} has format {version}, written by a newer astrozoo "
            f"({_version_of(values) or 'version unknown'}); this one reads up to {FORMAT}. Upgrade astrozoo."
        )
    for name, kind in _TYPES.items():
        if name in values and not isinstance(values[name], kind):
            raise WeightsError(f"{path}: {name!r} is {values[name]!r}, which is not what format {FORMAT} has there.")
    if "config" not in values:
        raise WeightsError(f"{path} has no 'config'; save or download the model again.")
    for entry, (kind, expected) in _VALUES.items():
        for name, value in values.get(entry, {}).items():
            if not isinstance(value, kind):
                raise WeightsError(f"{path}: {entry!r} has {value!r} for {name!r}, expected {expected}.")
    known = {item.name for item in fields(SavedModel)}
    saved = {name: value for name, value in values.items() if name in known}
    try:
        for entry in ("config", "layouts"):
            saved[entry] = {name: _tuples(value) for name, value in saved.get(entry, {}).items()}
    except RecursionError as error:
        raise WeightsError(f"{path} nests lists too deeply to be a configuration.") from error
    return SavedModel(**saved)


def to_json(values: Any, what: str) -> str:
    """JSON text; numbers and arrays of numpy become plain ones.

    Raises:
        WeightsError: Something has no JSON form; the message says where it stands.
    """

    def plain(value: Any) -> Any:
        if hasattr(value, "tolist"):  # numpy and torch, scalars and arrays
            return value.tolist()
        raise TypeError(f"{value!r} of type {type(value).__name__}")

    try:
        return json.dumps(values, indent=2, default=plain) + "\n"
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{what} holds what JSON cannot: {error}. Use plain numbers, strings and lists.") from error


def _version_of(values: Mapping[str, Any]) -> str:
    versions = values.get("versions")
    version = versions.get("astrozoo") if isinstance(versions, dict) else None
    return f"version {version}" if version else ""


def _tuples(value: Any) -> Any:
    """JSON has lists where configurations have tuples."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
