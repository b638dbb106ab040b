"""Catalogues: specs of variants and attentions as JSON beside a distribution's code, readable without importing it.

A distribution declares its catalogue as entry point `anything = top_level_package:catalog.json` in group
`astrozoo.catalog`. The file is found through the import system, so editable installs work, but nothing is imported.

Layout: `{"format": 1, "models": [row, ...], "attention": [row, ...]}`, rows as `ModelSpec.to_dict` gives them without
distribution and version, one row on a line so that a change reads well in a diff.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from astrozoo.registry.spec import AttentionSpec, ModelSpec

__all__ = ["FORMAT", "Catalog", "CatalogError", "dumps", "locate", "misfit", "parse", "split"]

FORMAT = 1
_FILLED_IN = ("distribution", "version")  # by the registry, from the metadata of whoever ships the file
_Spec = TypeVar("_Spec", ModelSpec, AttentionSpec)


class CatalogError(ValueError):
    """A catalogue that cannot be found or read; the registry reports it and goes on without."""


@dataclass(frozen=True, slots=True)
class Catalog:
    """Specs by name."""

    models: Mapping[str, ModelSpec] = field(default_factory=dict)
    attention: Mapping[str, AttentionSpec] = field(default_factory=dict)


def split(value: str) -> tuple[str, str]:
    """Package and file of an entry point `package:file`.

    Raises:
        CatalogError: The value has another form, or the file would lie outside the package.
    """
    package, colon, file = value.partition(":")
    if not colon or not package.isidentifier() or Path(file).is_absolute() or ".." in Path(file).parts:
        raise CatalogError(f"entry point {value!r} is not `top_level_package:file.json`")
    return package, file


def locate(value: str) -> Path:
    """The file that an entry point `package:file` names, without importing the package.

    Raises:
        CatalogError: The value has another form, or the package or the file does not exist.
    """
    from importlib.util import find_spec

    package, file = split(value)
    try:
        found = find_spec(package)
    except (ImportError, ValueError) as error:
        raise CatalogError(f"package {package!r} cannot be found: {error}") from error
    for folder in (found.submodule_search_locations or ()) if found is not None else ():
        path = Path(folder, file)
        if path.is_file():
            return path
    raise CatalogError(f"package {package!r} {'holds no ' + file if found else 'does not exist'}")


def parse(text: str, *, distribution: str = "", version: str = "", check: bool = True) -> Catalog:
    """The catalogue written in `text`.

    Args:
        text: Content of a catalogue file.
        distribution: Who ships it.
        version: Of that distribution.
        check: Whether the types of all fields are compared with the spec classes.

    Raises:
        CatalogError: The text is no JSON or does not have the layout; the message names the row.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CatalogError(f"is no JSON: {error}") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise CatalogError(f"has no `format` {FORMAT}, which this version of astrozoo reads")
    origin = {"distribution": distribution, "version": version}
    return Catalog(
        models=_rows(document, "models", ModelSpec, origin, check),
        attention=_rows(document, "attention", AttentionSpec, origin, check),
    )


def dumps(models: Iterable[ModelSpec], attention: Iterable[AttentionSpec] = ()) -> str:
    """A catalogue as text: the same specs always give the same bytes, ordered by name."""
    parts = []
    tables: tuple[tuple[str, Iterable[ModelSpec | AttentionSpec]], ...] = (("attention", attention), ("models", models))
    for key, specs in tables:
        rows = [
            json.dumps({key: value for key, value in spec.to_dict().items() if key not in _FILLED_IN}, sort_keys=True)
            for spec in sorted(specs, key=lambda spec: spec.name)
        ]
        parts.append(f'"{key}": [\n' + ",\n".join(rows) + "\n]" if rows else f'"{key}": []')
    return f'{{"format": {FORMAT},\n' + ",\n".join(parts) + "}\n"


def _rows(
    document: Mapping[str, Any], key: str, kind: type[_Spec], origin: Mapping[str, str], check: bool
) -> dict[str, _Spec]:
    rows = document.get(key, [])
    if not isinstance(rows, list):
        raise CatalogError(f"has {key!r} that is no list of rows")
    specs: dict[str, _Spec] = {}
    for number, row in enumerate(rows):
        name = row.get("name") if isinstance(row, dict) else None
        label = f"row {number} of {key!r}" if name is None else f"the row of {name!r}"
        try:
            spec = typing.cast("Callable[[Mapping[str, Any]], _Spec]", kind.from_dict)({**row, **origin})
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise CatalogError(f"does not match the schema in {label}: {type(error).__name__}: {error}") from error
        if check and (wrong := misfit(spec, kind)):
            raise CatalogError(f"does not match the schema in {label}: {wrong}")
        if specs.setdefault(spec.name, spec) is not spec:
            raise CatalogError(f"has two rows named {spec.name!r} in {key!r}")
    return specs


def misfit(value: Any, hint: Any, where: str = "") -> str:
    """What in `value` is not of type `hint`, or an empty string. Knows the types that specs are made of."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return ""
    if origin in (typing.Union, types.UnionType):
        problems = [misfit(value, option, where) for option in arguments]
        return "" if "" in problems else f"{where} is {value!r}, expected {hint}"
    if origin is tuple:
        if not isinstance(value, tuple):
            return f"{where} is {value!r}, expected a list"
        return next(filter(None, (misfit(item, arguments[0], where) for item in value)), "")
    if origin is not None:  # Mapping[str, ...]
        if not isinstance(value, Mapping):
            return f"{where} is {value!r}, expected a mapping"
        return next(filter(None, (misfit(item, arguments[1], f"{where}[{key!r}]") for key, item in value.items())), "")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return ""
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        return f"{where or 'it'} is {value!r}, expected {hint.__name__}"
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        return next(
            filter(
                None,
                (
                    misfit(getattr(value, name), kind, f"{where}.{name}" if where else name)
                    for name, kind in hints.items()
                ),
            ),
            "",
        )
    return ""
