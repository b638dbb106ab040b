"""Settings as frozen dataclasses: from YAML, from `key=value` flags and from Python, checked by one schema.

Imports no torch, so that a command can read its configuration before anything heavy starts. Nested dataclasses are
sections; keys are spelt with dots (`optim.lr`). Every problem is a `ConfigError` that names key, value and expectation.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from astrozoo.errors import ConfigError
from astrozoo.registry.names import suggest

__all__ = ["coerce", "from_mapping", "read_yaml", "require", "to_mapping", "with_overrides"]

T = TypeVar("T")


def from_mapping(cls: type[T], values: Mapping[str, Any], *, section: str = "") -> T:
    """An instance of the dataclass `cls` with `values`; sections may be mappings themselves.

    Raises:
        ConfigError: A key is unknown (the nearest are offered) or a value has the wrong type.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{section or cls.__name__} is {values!r}; expected a mapping of keys to values.")
    hints = typing.get_type_hints(cls)
    names = [item.name for item in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for name in values:
        if name not in names:
            raise ConfigError(
                f"{_key(section, name)} is no setting.{suggest(str(name), names)} "
                f"Known {'in ' + section if section else 'settings'}: {', '.join(names)}."
            )
    return cls(**{name: _convert(value, hints[name], _key(section, name)) for name, value in values.items()})


def coerce(config: Any, *, section: str = "") -> None:
    """Check and convert every field of a frozen dataclass by its annotation; call it first in `__post_init__`."""
    for name, hint in typing.get_type_hints(type(config)).items():
        object.__setattr__(config, name, _convert(getattr(config, name), hint, _key(section, name)))


def require(met: bool, key: str, value: Any, expected: str) -> None:
    """Raise a ConfigError that `key` is `value` but should be `expected`, unless `met`."""
    if not met:
        raise ConfigError(f"{key} is {value!r}; expected {expected}.")


def with_overrides(config: T, overrides: Iterable[str]) -> T:
    """A copy with `key=value` flags applied, such as `optim.lr=3e-4`; values are read as YAML.

    Raises:
        ConfigError: A flag is not `key=value`, or names or sets something it cannot.
    """
    import yaml

    values = to_mapping(config)
    for flag in overrides:
        key, equals, text = flag.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"override {flag!r} is not key=value; write for example optim.lr=3e-4.")
        *path, last = key.strip().split(".")
        place = values
        for depth, part in enumerate(path):
            if not isinstance(place.get(part), dict):
                where = ".".join(path[: depth + 1])
                raise ConfigError(f"{where} (in override {flag!r}) is no section.{suggest(part, place)}")
            place = place[part]
        try:
            place[last] = yaml.safe_load(text) if text else None
        except yaml.YAMLError as error:
            raise ConfigError(f"the value of override {flag!r} is no YAML: {error}") from error
    return from_mapping(type(config), values)


def to_mapping(config: Any) -> dict[str, Any]:
    """The configuration as JSON-able values; `from_mapping` is the inverse."""
    result: dict[str, Any] = _plain(dataclasses.asdict(config))
    return result


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: The file is missing, is no YAML, or holds something other than a mapping.
    """
    import yaml

    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"configuration {path} cannot be read: {error.strerror or error}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"configuration {path} is no YAML: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"configuration {path} holds {type(values).__name__}; expected a mapping of keys to values.")
    return values


def _key(section: str, name: object) -> str:
    return f"{section}.{name}" if section else str(name)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _convert(value: Any, hint: Any, key: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _convert_union(value, arguments, key)
    if origin is typing.Literal:
        require(value in arguments, key, value, "one of " + ", ".join(map(str, arguments)))
        return value
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else from_mapping(hint, value, section=key)  # type: ignore[arg-type]
    if origin in (tuple, list):
        require(isinstance(value, (tuple, list)), key, value, "a list")
        if origin is tuple and arguments and arguments[-1] is not ...:
            require(len(value) == len(arguments), key, value, f"a list of {len(arguments)} values")
            return tuple(
                _convert(item, kind, f"{key}[{i}]") for i, (item, kind) in enumerate(zip(value, arguments, strict=True))
            )
        kind = arguments[0] if arguments else Any
        return origin(_convert(item, kind, f"{key}[{index}]") for index, item in enumerate(value))
    if origin is not None and issubclass(origin, Mapping):
        require(isinstance(value, Mapping), key, value, "a mapping")
        return dict(value)
    return _scalar(value, hint, key)


def _convert_union(value: Any, choices: tuple[Any, ...], key: str) -> Any:
    if value is None and type(None) in choices:
        return None
    problem: ConfigError | None = None
    for choice in choices:
        if choice is not type(None):
            try:
                return _convert(value, choice, key)
            except ConfigError as error:
                problem = problem or error
    assert problem is not None
    raise problem


def _scalar(value: Any, kind: Any, key: str) -> Any:
    if kind is bool:
        require(isinstance(value, bool), key, value, "true or false")
        return value
    if kind in (int, float):
        expected = "a whole number" if kind is int else "a finite number"
        require(not isinstance(value, bool), key, value, expected)
        try:
            # YAML reads 3e-4 as text (it wants 3.0e-4); a number is meant.
            number = float(value) if isinstance(value, str) else value
        except ValueError:
            number = None
        fits = isinstance(number, (int, float)) and (math.isfinite(number) if kind is float else number % 1 == 0)
        require(fits, key, value, expected)
        return kind(number)
    if kind is str and isinstance(value, Path):
        return str(value)
    require(isinstance(value, kind), key, value, "text" if kind is str else f"a {kind.__name__}")
    return value
