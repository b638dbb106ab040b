"""The settings of a training run from a YAML file and flags: one schema of three parts.

Top level and sections such as `optim` are fields of `astrozoo.TrainConfig`; section `data` holds fields of
`astrozoo.data.DataConfig`; section `model` holds fields of the model's configuration. Flags are applied last.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from astrozoo import settings
from astrozoo.errors import ConfigError

if TYPE_CHECKING:
    from astrozoo.data.config import DataConfig
    from astrozoo.training.config import TrainConfig

__all__ = ["Job", "data_config", "read_job"]


@dataclass(frozen=True, slots=True)
class Job:
    """What `astrozoo train` was asked to do.

    Attributes:
        train: Settings of the trainer.
        data: Settings of the data.
        model: Overrides of the model's configuration.
    """

    train: TrainConfig
    data: DataConfig
    model: dict[str, Any]


def read_job(config: Path | None, flags: Iterable[str], files: Sequence[str]) -> Job:
    """Merge a YAML file, `key=value` flags and the files given on the command line.

    Raises:
        ConfigError: A key that is no setting, or a value it cannot take.
    """
    from astrozoo.training.config import TrainConfig

    values = {} if config is None else settings.read_yaml(config)
    parts: dict[str, dict[str, Any]] = {}
    for section in ("data", "model"):
        part = values.pop(section, None) or {}
        if not isinstance(part, Mapping):
            raise ConfigError(f"section {section!r} of {config} is {part!r}; expected keys with values.")
        parts[section] = dict(part)
    sorted_flags: dict[str, list[str]] = {"data": [], "model": [], "": []}
    for flag in flags:
        section, dot, rest = flag.partition(".")
        known = bool(dot) and section in parts
        sorted_flags[section if known else ""].append(rest if known else flag)
    return Job(
        train=settings.from_mapping(TrainConfig, values).with_overrides(sorted_flags[""]),
        data=data_config(parts["data"], sorted_flags["data"], files),
        model=_model_overrides(parts["model"], sorted_flags["model"]),
    )


def data_config(values: Mapping[str, Any], flags: Iterable[str], files: Sequence[str]) -> DataConfig:
    """The data settings; `files` replace those of `values`.

    Raises:
        ConfigError: No files are given, a key is no setting, or a value cannot be taken.
    """
    from astrozoo.data import DataConfig

    merged = dict(values)
    if files:
        merged["files"] = list(files)
    if not merged.get("files"):
        raise ConfigError(
            "no data: give files with --data FILE..., or as `files` in section `data` of the configuration."
        )
    return settings.with_overrides(settings.from_mapping(DataConfig, merged, section="data"), flags)


def _model_overrides(values: Mapping[str, Any], flags: Iterable[str]) -> dict[str, Any]:
    import yaml

    merged = dict(values)
    for flag in flags:
        name, equals, text = flag.partition("=")
        if not equals:
            raise ConfigError(f"override 'model.{flag}' is not key=value; write for example model.depths=[1,1,2].")
        try:
            merged[name] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"the value of override 'model.{flag}' is no YAML: {error}") from error
    # Configurations hold tuples, which YAML does not have.
    return {name: tuple(value) if isinstance(value, list) else value for name, value in merged.items()}
