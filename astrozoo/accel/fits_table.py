"""Binary tables in NumPy, for the reference of `read_fits_columns`: rows as a structured dtype, converted by column."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Self

import numpy as np

from astrozoo.accel.fits_header import Header, find

__all__ = ["Column", "FileSource", "MemorySource", "MissingColumnError", "Table"]

_BLOCK = 1 << 20  # bytes of rows that are converted at once
_DIMENSIONS = 30
_FORM = re.compile(r" *([0-9]*)([A-Za-z])(.*)", re.DOTALL)
_NATURAL = re.compile(r"[0-9]{1,15}")
_STORED: Mapping[str, str] = MappingProxyType(
    {"L": "u1", "X": "u1", "B": "u1", "I": ">i2", "J": ">i4", "K": ">i8", "A": "u1"}
    | {"E": ">f4", "D": ">f8", "C": ">c8", "M": ">c16", "P": ">u8", "Q": ">c16"}
)
_OFFSETS = MappingProxyType({("B", -128.0): "i1", ("I", 2.0**15): "u2", ("J", 2.0**31): "u4", ("K", 2.0**63): "u8"})


class MissingColumnError(ValueError):
    """Arguments: the message, the name that was asked for, the names that are there."""

    def __str__(self) -> str:
        return str(self.args[0])


class MemorySource:
    """The bytes of a file."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.length = len(data)

    def read(self, at: int, length: int) -> bytes:
        """`length` bytes from `at`; ValueError where there are fewer."""
        return _whole(self._data[at : at + length], at, length)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class FileSource:
    """A file, read at given places."""

    def __init__(self, path: str) -> None:
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115, PTH123 - closed by __exit__
        self.length = os.fstat(self._file.fileno()).st_size

    def read(self, at: int, length: int) -> bytes:
        """`length` bytes from `at`; ValueError where the file ends before."""
        self._file.seek(at)
        data = self._file.read(length)
        while len(data) < length and (more := self._file.read(length - len(data))):
            data += more
        return _whole(data, at, length)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _whole(data: bytes, at: int, length: int) -> bytes:
    if len(data) < length:
        raise ValueError(f"the file ends within the {length} bytes from byte {at}; it was cut short.")
    return data


@dataclass(frozen=True, slots=True)
class Column:
    """A column: where in a row it lies, and what it becomes.

    Attributes:
        shape: Dimensions of the values of a row; of strings with their length last.
        dtype: In memory.
        scaling: TSCAL, TZERO, TNULL; None where the stored numbers are the values.
    """

    number: int
    name: str
    offset: int
    width: int
    code: str
    repeat: int
    unit: str = ""
    shape: tuple[int, ...] = ()
    dtype: str = "f8"
    scaling: tuple[float, float, int | None] | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """A binary table whose rows all lie within the file."""

    primary: Header
    header: Header
    rows: int
    width: int
    fields: list[Column]

    @classmethod
    def open(cls, source: MemorySource | FileSource, hdu: int | str | None) -> Self:
        """Find a table and read its header; ValueError where it is not there or damaged."""
        primary, found = find(source, hdu)
        header = found.header
        for key, expected in (("BITPIX", 8), ("NAXIS", 2), ("GCOUNT", 1)):
            if header.integer(key, -(1 << 63), default=1 if key == "GCOUNT" else None) != expected:
                raise header.invalid(key, f"{expected} for a binary table")
        width, rows, count = header.integer("NAXIS1"), header.integer("NAXIS2"), header.integer("TFIELDS", 0, 999)
        if width == 0 and rows > 0:
            raise header.invalid("NAXIS2", "0, as rows have no bytes (NAXIS1)")
        end = header.end + width * rows
        if end > source.length:
            raise ValueError(
                f"the {rows} rows of {width} bytes of HDU {header.hdu} should end at byte {end}, and the file ends at "
                f"byte {source.length}: it was cut short, or NAXIS1 or NAXIS2 is wrong."
            )
        return cls(primary.header, header, rows, width, _fields(header, count, width))

    def select(self, names: list[str] | None) -> list[Column]:
        """The columns with these names, or all; ValueError where one is missing or makes no sense."""
        if names is None:
            return [_complete(self.header, field) for field in self.fields]
        chosen: dict[int, Column] = {}
        for name in names:
            field = next((field for field in self.fields if field.name == name), None)
            field = field or next((field for field in self.fields if field.name.lower() == name.lower()), None)
            if field is None:
                present = [field.name for field in self.fields]
                raise MissingColumnError(f"there is no column '{name}'.", name, present)
            if field.number not in chosen:
                chosen[field.number] = _complete(self.header, field)
        return list(chosen.values())

    def read(self, source: MemorySource | FileSource, columns: list[Column]) -> dict[str, np.ndarray]:
        """`[row, ...]` by name."""
        values = {column.name: np.zeros((self.rows, *_shape(column)), column.dtype) for column in columns}
        filled = [column for column in columns if values[column.name].size]
        if not filled:
            return values
        layout = np.dtype({
            "names": [column.name for column in filled],
            "formats": [_stored(column) for column in filled],
            "offsets": [column.offset for column in filled],
            "itemsize": self.width,
        })  # fmt: skip
        step = max(_BLOCK // self.width, 1)
        for first in range(0, self.rows, step):
            count = min(step, self.rows - first)
            block = np.frombuffer(source.read(self.header.end + first * self.width, count * self.width), layout)
            for column in filled:
                values[column.name][first : first + count] = _converted(column, block[column.name])
        return values


def _fields(header: Header, count: int, width: int) -> list[Column]:
    fields: list[Column] = []
    taken: set[str] = set()
    offset = 0
    for number in range(1, count + 1):
        form = _tform(header.text(f"TFORM{number}"))
        if form is None:
            raise header.invalid(f"TFORM{number}", "a form such as 1E, 8A or 20J")
        name = (header.text(f"TTYPE{number}") or "").strip(" ")
        name = f"col{number}" if not name or name in taken else name
        while name in taken:
            name += "_"
        taken.add(name)
        code, repeat, size = form
        fields.append(Column(number, name, offset, size, code, repeat))
        offset += size
    if offset != width:
        raise ValueError(f"the columns (TFORM) fill {offset} bytes of a row, and NAXIS1 is {width}; expected the same.")
    return fields


def _tform(text: str | None) -> tuple[str, int, int] | None:
    """Code, repeat count and bytes of a TFORM."""
    match = _FORM.fullmatch((text or "").strip(" "))
    if match is None or match[2].upper() not in _STORED:
        return None
    digits, code, behind = match[1], match[2].upper(), match[3]
    if code == "A" and not digits and behind.isascii() and behind.isdecimal():
        digits = behind  # `A8` is the form of text tables, a common mistake that means `8A`
    if digits and not _NATURAL.fullmatch(digits):
        return None
    repeat = int(digits or 1)
    return code, repeat, -(-repeat // 8) if code == "X" else repeat * np.dtype(_STORED[code]).itemsize


def _complete(header: Header, field: Column) -> Column:
    """The field with what only chosen columns need: unit, shape, dtype, scaling."""
    number, code = field.number, field.code
    if code in "PQ":
        raise ValueError(
            f"column '{field.name}' holds arrays of variable length (TFORM{number}), which are not read; "
            "name the other columns."
        )
    scaling = None if code in "LXA" else _scaling(header, field)
    shape = _dimensions(header, field)
    if code in "LX":
        kind = "?"
    elif code == "A":
        kind = f"U{max(shape[-1], 1)}"
    elif scaling is None:
        kind = _STORED[code].lstrip(">")
    elif code in "CM":
        kind = "c16"
    else:
        scale, zero, null = scaling
        kind = _OFFSETS.get((code, zero), "f8") if scale == 1 and null is None else "f8"
    unit = (header.text(f"TUNIT{number}") or "").strip(" ")
    return Column(number, field.name, field.offset, field.width, code, field.repeat, unit, shape, kind, scaling)


def _scaling(header: Header, field: Column) -> tuple[float, float, int | None] | None:
    null = f"TNULL{field.number}"
    missing = header.integer(null, -(1 << 63)) if field.code in "BIJK" and null in header.values else None
    scale, zero = header.number(f"TSCAL{field.number}", 1.0), header.number(f"TZERO{field.number}", 0.0)
    return (scale, zero, missing) if scale != 1 or zero != 0 or missing is not None else None


def _dimensions(header: Header, field: Column) -> tuple[int, ...]:
    key = f"TDIM{field.number}"
    if field.repeat == 0 or key not in header.values:
        return () if field.repeat == 1 and field.code != "A" else (field.repeat,)
    text = (header.text(key) or "").strip(" ")
    lengths = [part.strip(" ") for part in text[1:-1].split(",")] if text[:1] == "(" and text[-1:] == ")" else [""]
    numbers = [int(part) if _NATURAL.fullmatch(part) else 0 for part in lengths]
    if 0 in numbers or math.prod(numbers) > field.repeat or len(numbers) > _DIMENSIONS:
        raise header.invalid(
            key, f"dimensions such as (3,4), at most {_DIMENSIONS}, for {field.repeat} elements or fewer"
        )
    return tuple(reversed(numbers))


def _shape(column: Column) -> tuple[int, ...]:
    return column.shape[:-1] if column.code == "A" and column.shape[-1] else column.shape


def _stored(column: Column) -> tuple[str, tuple[int, ...]]:
    """Format of a field in a structured dtype; bits are unpacked later."""
    if column.code == "X":
        return "u1", (column.width,)
    return _STORED[column.code], column.shape


def _converted(column: Column, stored: np.ndarray) -> np.ndarray:
    """Values of rows of a field."""
    if column.code == "L":
        return stored == ord("T")
    if column.code == "X":
        bits = np.unpackbits(stored, axis=1)[:, : math.prod(column.shape)]
        return bits.reshape(-1, *column.shape).astype(bool)
    if column.code == "A":
        return _strings(stored)
    if column.scaling is None:
        return stored
    scale, zero, null = column.scaling
    if column.dtype != "f8" and column.code in "BIJK":  # the offset turns the highest bit over
        native = stored.astype(stored.dtype.newbyteorder("=")).view(column.dtype)
        return native ^ np.array(1 << (8 * native.itemsize - 1), f"u{native.itemsize}").view(column.dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        if column.dtype == "c16":
            parts = np.ascontiguousarray(stored, "c16").view("f8").reshape(*stored.shape, 2) * scale
            parts[..., 0] += zero  # TZERO belongs to the real part
            return parts.view("c16")[..., 0]
        values = stored.astype("f8") * scale + zero
    return values if null is None else np.where(stored == null, np.nan, values)


def _strings(stored: np.ndarray) -> np.ndarray:
    """`[..., length]` bytes -> strings that end before a NUL or before the blanks at their end."""
    alive = np.logical_and.accumulate(stored != 0, axis=-1)
    text = alive & (stored != ord(" "))
    kept = np.logical_or.accumulate(text[..., ::-1], axis=-1)[..., ::-1]
    characters = np.where(kept & alive, stored, 0).astype("u4")
    return np.ascontiguousarray(characters).view(f"U{stored.shape[-1]}")[..., 0]
