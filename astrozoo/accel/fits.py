"""Chosen columns of binary tables in FITS files, such as light curves and catalogues."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from astrozoo.accel.dispatch import reference, serve
from astrozoo.accel.fits_header import Keyword
from astrozoo.accel.fits_table import FileSource, MemorySource, Table
from astrozoo.accel.threads import workers
from astrozoo.errors import DataError, InputError
from astrozoo.registry.names import suggest

__all__ = ["FitsTable", "read_fits_columns"]

Answer: TypeAlias = tuple[dict[str, np.ndarray], dict[str, str], dict[str, Keyword], dict[str, Keyword]]


class FitsTable(NamedTuple):
    """Columns of a binary table.

    Attributes:
        columns: `[row, ...]` by name, in the order asked for, in the byte order of the machine.
        units: TUNIT of the columns that have one, as written.
        header: Keywords of the table's HDU: strings, whole numbers, floats, booleans, or None where a keyword has no
            value. Long strings (CONTINUE) are joined; COMMENT, HISTORY and HIERARCH are left out.
        primary: Keywords of the primary HDU, likewise.
    """

    columns: Mapping[str, np.ndarray]
    units: Mapping[str, str]
    header: Mapping[str, Keyword]
    primary: Mapping[str, Keyword]


def read_fits_columns(
    path: str | os.PathLike[str] | bytes | bytearray | memoryview,
    columns: str | Sequence[str] | None = None,
    *,
    hdu: int | str | None = None,
    threads: int | None = None,
) -> FitsTable:
    """Read columns of a binary table (FITS standard 4.0; Pence et al. 2010, A&A 524, A42).

    What the codes of TFORM become:

    - L, X: bool; a logical that is undefined is False.
    - B, I, J, K: uint8, int16, int32, int64; with a TZERO of half their range int8, uint16, uint32, uint64.
    - B, I, J, K with another TSCAL or TZERO, or with TNULL: float64; stored values equal to TNULL are NaN.
    - E, D, C, M: float32, float64, complex64, complex128; with TSCAL or TZERO float64 or complex128.
    - A: str, read as Latin-1 up to a NUL, without the blanks at the end.

    int64 with TNULL becomes float64 as well and keeps 53 bits. A repeat count other than 1 adds a dimension
    `[row, repeat]`, TDIM gives `[row, ...]` with the fastest dimension last; of strings the first is their length.
    Arrays of variable length (P, Q) are refused. A blank or repeated TTYPE is called `col` and its number. Times are
    left as they are: see TIMESYS, MJDREF and TUNIT.

    Args:
        path: A file, compressed by gzip if it ends in `.gz`, or the bytes of a file.
        columns: Names; case does not count unless it tells two columns apart. Default: all.
        hdu: Number (the primary HDU is 0) or EXTNAME, whose case does not count. Default: the first binary table.
        threads: See `astrozoo.accel.threads.workers`.

    Returns:
        Columns by name, their units, and the keywords of the table and of the file.

    Raises:
        InputError: An argument of another type, or a negative `hdu`.
        DataError: The file is missing, damaged or cut short, has no such HDU or column, or the column has variable
            length. The message says at which keyword or byte.
    """
    if isinstance(columns, str):
        columns = [columns]
    if columns is not None and not all(isinstance(name, str) for name in columns):
        raise InputError(f"columns is {columns!r}; expected names, or None for all.")
    if hdu is not None and (isinstance(hdu, bool) or not isinstance(hdu, (int, str))):
        raise InputError(f"hdu is {hdu!r}; expected a number, an EXTNAME, or None for the first binary table.")
    if isinstance(hdu, int) and not 0 <= hdu < 1 << 31:
        raise InputError(f"hdu is {hdu}; expected a number from 0, which is the primary HDU.")
    source: str | bytes
    if isinstance(path, (bytes, bytearray, memoryview)):
        where, source = f"the {len(path)} bytes given", bytes(path)
    elif isinstance(path, (str, os.PathLike)):
        where = source = os.fspath(path)
    else:
        raise InputError(f"path is of type {type(path).__name__}; expected a path, or the bytes of a file.")
    try:
        if isinstance(source, str) and source.endswith(".gz"):
            with gzip.open(source) as file:
                source = file.read()
        chosen = None if columns is None else list(columns)
        return FitsTable(*serve("read_fits_columns")(source, chosen, hdu, workers(threads)))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{where}: gzip cannot read it ({error}); is the file complete?") from error
    except OSError as error:
        raise DataError(f"{where} cannot be read: {error.strerror or error}.") from error
    except ValueError as error:
        raise DataError(f"{where}: {_explained(error)}") from error


def _explained(error: ValueError) -> str:
    if len(error.args) != 3:
        return str(error)
    message, name, present = error.args  # a column is missing
    shown = ", ".join(present[:40]) + (f" and {len(present) - 40} more" if len(present) > 40 else "")
    return f"{message}{suggest(name.upper(), map(str.upper, present))} There are: {shown or 'none'}."


@reference
def _read_fits_columns(
    source: bytes | str,
    columns: list[str] | None,
    hdu: int | str | None,
    threads: int,  # noqa: ARG001 - NumPy has one thread
) -> Answer:
    """Columns by name, their units, and the keywords of the table's HDU and of the primary one.

    Raises:
        ValueError: What is wrong with the file; with name and columns as further arguments where one is missing.
        OSError: The file cannot be read.
    """
    with MemorySource(source) if isinstance(source, bytes) else FileSource(source) as opened:
        table = Table.open(opened, hdu)
        chosen = table.select(columns)
        values = table.read(opened, chosen)
        units = {column.name: column.unit for column in chosen if column.unit}
        return values, units, table.header.values, table.primary.values
