"""Rows of normalised fields, by number: held in memory as one tensor, or read from files when asked for.

A row is one time step of one member: `row = member * steps + step`. Both kinds run the same arithmetic, so training in
memory, training from files and prediction see the same numbers, bit for bit.
"""

from __future__ import annotations

import contextlib
import os
import stat
import weakref
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from astrozoo.data.schema import FieldSchema
from astrozoo.data.splits import date_of
from astrozoo.errors import DataError

__all__ = ["LazySeries", "MemorySeries", "Series", "blocks", "make_series", "read", "readable"]

_BLOCK_BYTES = 64 << 20
_LOOKS = 64  # files looked after per batch; of thousands on a network each look would be felt

Transform = Callable[[np.ndarray], np.ndarray]
"""`[time, var, level, lat, lon]` float64 in physical units -> float32 for the model."""


def read(fields: xr.Dataset, channels: Sequence[tuple[str, int | None]], member: int, steps: slice) -> np.ndarray:
    """`[time, var, level, lat, lon]`, float64, in physical units; channels as `FieldSchema.channels` gives them.

    Raises:
        DataError: The file cannot be read to its end.
    """
    arrays = []
    for name, level in channels:
        variable = fields[name]
        if "member" in variable.dims:
            variable = variable.isel(member=member)
        variable = variable.isel(time=steps)
        if "level" in variable.dims:
            variable = variable.isel(level=slice(None) if level is None else slice(level, level + 1))
        dims = [dim for dim in ("time", "level", "lat", "lon") if dim in variable.dims]
        values = _values(variable.transpose(*dims), name, fields)
        arrays.append(values if "level" in dims else values[:, None])
    return np.stack(arrays, axis=1)


def _values(variable: xr.DataArray, name: str, fields: xr.Dataset) -> np.ndarray:
    with readable(name, fields):
        if variable.chunks is not None:
            variable = variable.compute(scheduler="synchronous")  # a forked worker has none of its parent's threads
        return np.asarray(variable.values, dtype=np.float64)


@contextlib.contextmanager
def readable(name: str, fields: xr.Dataset) -> Iterator[None]:
    """Around the reading of a variable: whatever libraries and codecs raise about its file becomes a DataError."""
    try:
        yield
    except (OSError, RuntimeError, ValueError, LookupError, AttributeError, EOFError, zlib.error) as error:
        files = fields.encoding.get("files", ())
        known = fields[name].encoding.get("source") if name in fields else None
        where = files[0] if len(files) == 1 else known or "its file"
        raise DataError(f"variable {name!r} cannot be read from {where} ({error}); is the file complete?") from error


def blocks(fields: xr.Dataset, names: Sequence[str], steps: range) -> Iterator[slice]:
    """Slices of `steps` small enough to hold in memory."""
    grid = [[size for dim, size in fields[name].sizes.items() if dim not in ("time", "member")] for name in names]
    cells = sum(int(np.prod(sizes)) for sizes in grid)
    length = max(1, int(_BLOCK_BYTES // (8 * max(cells, 1))))
    for start in range(steps.start, steps.stop, length):
        yield slice(start, min(start + length, steps.stop))


class MemorySeries:
    """All rows as one tensor `[row, var, level, lat, lon]`."""

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def take(self, rows: Tensor) -> Tensor:
        """`rows[...]` -> `[..., var, level, lat, lon]`."""
        taken = self.values.index_select(0, rows.reshape(-1))
        return taken.reshape(*rows.shape, *taken.shape[1:])


class LazySeries:
    """Rows read from files when taken. Every process opens the files for itself."""

    def __init__(
        self, fields: xr.Dataset, schema: FieldSchema, names: Sequence[str], transform: Transform, checked: bool
    ) -> None:
        self.fields = fields[list(names)]
        self.schema = schema
        self.names = tuple(names)
        self.transform = transform
        self.checked = checked
        self.files = tuple(map(Path, fields.encoding.get("files", ())))
        self.states = tuple(map(_state, self.files))
        self._looked = 0
        _LAZY.add(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        _LAZY.add(self)

    def take(self, rows: Tensor) -> Tensor:
        """`rows[...]` -> `[..., var, level, lat, lon]`."""
        steps = self.fields.sizes["time"]
        unique, places = torch.unique(rows, return_inverse=True)
        fields = []
        for row in unique.tolist():
            member, step = divmod(row, steps)
            raw = read(self.fields, self.schema.channels(self.names), member, slice(step, step + 1))
            if self.checked:
                _Missing(self.fields, self.schema, self.names).check(raw, slice(step, step + 1)).stop()
            fields.append(torch.from_numpy(self.transform(raw)))
        self._check_files()
        return torch.cat(fields)[places]

    def _check_files(self) -> None:
        """After reading, so that what has been read is what was there before."""
        first, end = self._looked, self._looked + _LOOKS
        self._looked = end if end < len(self.files) else 0
        for file, state in zip(self.files[first:end], self.states[first:end], strict=True):
            if _state(file) != state:
                raise DataError(
                    f"{file} was changed or replaced while it was being read, so batches are no longer of the data "
                    "that the statistics are of. Put the file back, or start anew with the new one."
                )


def _state(file: Path) -> tuple[int, ...] | None:
    """What changes when a file is written to or replaced; of a folder (Zarr) nothing, as it grows in good order."""
    try:
        status = file.stat()
    except OSError:
        return ()
    return (status.st_ino, status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None


Series = MemorySeries | LazySeries


def make_series(
    fields: xr.Dataset,
    schema: FieldSchema,
    names: Sequence[str],
    transform: Transform,
    *,
    in_memory: bool,
    checked: bool,
) -> Series:
    """A series of the named variables, `transform`ed; where it is `checked`, a missing value is an error.

    Raises:
        DataError: `checked`, and a value is missing; the message names variable, count and first time.
    """
    if not in_memory:
        return LazySeries(fields, schema, names, transform, checked)
    steps = fields.sizes["time"]
    missing = _Missing(fields, schema, names)
    values: Tensor | None = None
    for member in range(fields.sizes.get("member", 1)):
        for block in blocks(fields, names, range(steps)):
            raw = read(fields, schema.channels(names), member, block)
            if checked:
                missing.check(raw, block)
            part = torch.from_numpy(transform(raw))
            if values is None:
                values = part.new_empty(fields.sizes.get("member", 1) * steps, *part.shape[1:])
            values[member * steps + block.start : member * steps + block.stop] = part
    missing.stop()
    if values is None:
        raise DataError("the fields have no time step.")
    return MemorySeries(values)


class _Missing:
    """Counts missing values, to say all at once where they are."""

    def __init__(self, fields: xr.Dataset, schema: FieldSchema, names: Sequence[str]) -> None:
        self.fields = fields
        self.names = [name for name, _ in schema.channels(names)]
        self.count: dict[str, int] = {}
        self.first: dict[str, int] = {}

    def check(self, raw: np.ndarray, steps: slice) -> _Missing:
        unknown = ~np.isfinite(raw)
        if unknown.any():
            for index, name in enumerate(self.names):
                times = np.flatnonzero(unknown[:, index].any(axis=(1, 2, 3)))
                if times.size:
                    self.count[name] = self.count.get(name, 0) + int(unknown[:, index].sum())
                    self.first[name] = min(self.first.get(name, 1 << 60), steps.start + int(times[0]))
        return self

    def stop(self) -> None:
        if self.count:
            listed = "; ".join(
                f"{name!r} has {count} missing values, first at {date_of(self.fields['time'].values[self.first[name]])}"
                for name, count in self.count.items()
            )
            raise DataError(
                f"inputs hold missing values: {listed}. Choose fill='mean' (the climatological mean), fill='mask' "
                "(the same, with a channel that says where), or fill the fields yourself."
            )


_LAZY: weakref.WeakSet[LazySeries] = weakref.WeakSet()


def _release_files() -> None:
    """Close what xarray holds open just before this process forks; parent and child reopen on their next read.

    A forked worker would otherwise share file offsets and library state with its parent.
    """
    if len(_LAZY):
        from xarray.backends.file_manager import FILE_CACHE

        for key in list(FILE_CACHE):
            FILE_CACHE.pop(key).close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_release_files)
