"""The task a saved model was trained on, rebuilt on given files to score the model again.

Normalisation, channels, units and grid are those saved with the model, whatever the files hold; only the climatology,
which a model does not carry, is computed anew.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import xarray as xr

from astrozoo.data.fields import open_fields
from astrozoo.data.inference import _matching
from astrozoo.data.schema import FieldSchema
from astrozoo.data.splits import split_from_dict
from astrozoo.data.tasks import FieldTask, _datasets, _moments
from astrozoo.errors import ConfigError

__all__ = ["rescoring_task"]


def rescoring_task(
    fields: xr.Dataset | str | Path | Sequence[str | Path], schema: Mapping[str, Any], split: str = "test"
) -> FieldTask:
    """Data to score a saved model on.

    Args:
        fields: In standard form, or files for `open_fields`.
        schema: What the model was saved with (`model.preprocessing`).
        split: `train`, `val` or `test` split the fields by the rule the model was trained with; for `all`, every time
            step belongs to the part `train`, and the climatology is that of the fields themselves.

    Raises:
        ConfigError: There is no such split.
        DataError: The fields lack a variable or level, have another grid, or are too short.
    """
    if split not in ("train", "val", "test", "all"):
        raise ConfigError(f"split is {split!r}, expected train, val, test or all.")
    known = FieldSchema.from_dict(schema)
    if not isinstance(fields, xr.Dataset):
        fields = open_fields(fields, decode_times=bool(known.calendar))
    variables = tuple(dict.fromkeys([*known.inputs, *known.targets]))
    fields = _matching(fields, dataclasses.replace(known, inputs=variables))
    times = fields["time"].values
    members = [str(label) for label in fields["member"].values] if "member" in fields.dims else None
    if split == "all":
        every = [(member, range(len(times))) for member in range(len(members or [""]))]
        parts: dict[str, list[tuple[int, range]]] = {"train": every, "val": [], "test": []}
    else:
        rule = {key: value for key, value in known.split.items() if key != "periods"}  # what it came to in training
        parts = split_from_dict(rule).blocks(times, members or [""])
    moments, _ = _moments(fields, list(known.targets), {"train": parts["train"]})
    climatology = {name: moments[name].climatology() for name in known.targets}
    return FieldTask(_datasets(fields, known, parts, members, in_memory=False), known, climatology)
