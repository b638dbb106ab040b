"""FITS headers in Python, for the NumPy reference of `read_fits_columns`: cards, values, and the walk to an HDU.

Checks and messages are those of the Rust reader (`rust/crates/astrozoo-core/src/fits/`), and tests compare them.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Protocol, TypeAlias

__all__ = ["Hdu", "Header", "Keyword", "Source", "find", "read_header"]

Keyword: TypeAlias = bool | int | float | str | None

BLOCK = 2880
CARD = 80
_FIRST = 5 * BLOCK
_LIMIT = 1 << 26  # bytes within which a header must end; the longest known have a few million
_LARGEST = (1 << 63) - 1
_LISTED = 40  # HDUs that a message lists

_STRING = re.compile(rb"'((?:[^']|'')*+)'", re.DOTALL)
_WHOLE = re.compile(rb"[+-]?[0-9]+")
_REAL = re.compile(rb"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[EeDd][+-]?[0-9]+)?")


class Source(Protocol):
    """The bytes of a file."""

    length: int

    def read(self, at: int, length: int) -> bytes:
        """`length` bytes from `at`; ValueError where the file ends before."""


@dataclass(frozen=True, slots=True)
class Header:
    """Keywords of an HDU, and where their cards lie; of a repeated keyword the first."""

    hdu: int
    start: int
    end: int
    values: dict[str, Keyword]
    cards: dict[str, tuple[int, str]]

    def text(self, key: str) -> str | None:
        """A string; None where the keyword is missing or holds something else."""
        value = self.values.get(key)
        return value if isinstance(value, str) else None

    def integer(self, key: str, least: int = 0, most: int = _LARGEST, default: int | None = None) -> int:
        """A whole number from `least` to `most`; ValueError where there is none and no default."""
        if key not in self.values and default is not None:
            return default
        value = self.values.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            bounds = f"of at least {least}" if most == _LARGEST else f"from {least} to {most}"
            raise self.invalid(key, f"a whole number {bounds}")
        return value

    def number(self, key: str, default: float) -> float:
        """A number; ValueError where the keyword holds something else."""
        value = self.values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.invalid(key, "a number")
        return float(value)

    def invalid(self, key: str, expected: str) -> ValueError:
        """That a keyword is missing, or has a value it must not have."""
        if key not in self.cards:
            return ValueError(
                f"the header of HDU {self.hdu} (from byte {self.start}) lacks {key}; expected {expected}."
            )
        at, text = self.cards[key]
        return ValueError(f"{key} of HDU {self.hdu} (byte {at}) is `{text}`; expected {expected}.")


@dataclass(frozen=True, slots=True)
class Hdu:
    """A header with the size of its data in bytes, without padding."""

    number: int
    header: Header
    size: int

    @property
    def kind(self) -> str:
        """`BINTABLE`, `IMAGE`, ..., or `primary`."""
        return "primary" if self.number == 0 else self.header.text("XTENSION") or ""

    @property
    def name(self) -> str:
        """EXTNAME, or an empty string."""
        return self.header.text("EXTNAME") or ""


def find(source: Source, wanted: int | str | None) -> tuple[Hdu, Hdu]:
    """The primary HDU, and the binary table that is asked for; ValueError where it is not there."""
    primary = hdu = _read_hdu(source, 0, 0)
    assert primary is not None
    seen: list[str] = []
    while hdu is not None:
        if (
            hdu.kind == "BINTABLE"
            if wanted is None
            else wanted == hdu.number
            if isinstance(wanted, int)
            else wanted.lower() == hdu.name.lower()
        ):
            if hdu.kind != "BINTABLE":
                raise ValueError(f"HDU {hdu.number} ({hdu.kind}) is no binary table.")
            return primary, hdu
        end = hdu.header.end + hdu.size
        if end > source.length:
            raise ValueError(
                f"the data of HDU {hdu.number} should end at byte {end}, and the file ends at byte {source.length}: "
                "it was cut short."
            )
        seen.append(f"{hdu.number} ({hdu.name or hdu.kind})")
        hdu = _read_hdu(source, hdu.number + 1, hdu.header.end + -(-hdu.size // BLOCK) * BLOCK)
    asked = {type(None): "binary table", int: f"HDU {wanted}"}.get(type(wanted), f"HDU named '{wanted}'")
    listed = seen[:_LISTED] + ([f"and {len(seen) - _LISTED} more"] if len(seen) > _LISTED else [])
    raise ValueError(f"there is no {asked}; its HDUs are: {', '.join(listed)}.")


def _read_hdu(source: Source, number: int, start: int) -> Hdu | None:
    """The HDU at byte `start`; None where the file ends or something else than an extension follows."""
    begins = source.read(start, 9) if start + 9 <= source.length else b""
    if number == 0 and begins != b"SIMPLE  =":
        gzip = " It looks compressed by gzip." if begins.startswith(b"\x1f\x8b") else ""
        raise ValueError(f"it is no FITS file: it does not begin with `SIMPLE  =`.{gzip}")
    if number > 0 and begins != b"XTENSION=":
        return None
    header = read_header(source, number, start)
    return Hdu(number, header, _size(header, number))


def _size(header: Header, number: int) -> int:
    bitpix = header.integer("BITPIX", -64, 64)
    if bitpix not in (8, 16, 32, 64, -32, -64):
        raise header.invalid("BITPIX", "8, 16, 32, 64, -32 or -64")
    lengths = [header.integer(f"NAXIS{axis + 1}") for axis in range(header.integer("NAXIS", 0, 999))]
    if not lengths:
        return 0
    if lengths[0] == 0 and header.values.get("GROUPS") is True:
        lengths = lengths[1:]  # random groups announce themselves by a first axis of no length
    parameters, groups = header.integer("PCOUNT", default=0), header.integer("GCOUNT", default=1)
    size = (math.prod(lengths) + parameters) * groups * abs(bitpix) // 8
    if size >= 1 << 62:
        raise ValueError(
            f"the header of HDU {number} (from byte {header.start}) announces 2^62 bytes of data or more "
            "(NAXIS, PCOUNT, GCOUNT)."
        )
    return size


def read_header(source: Source, hdu: int, start: int) -> Header:
    """The header of HDU number `hdu`, which begins at byte `start`; ValueError where it has no END card."""
    data = b""
    available = min(source.length - start, _LIMIT)
    while len(data) < available:
        searched = len(data) // CARD
        data = source.read(start, min(available, max(_FIRST, 2 * len(data))))
        for card in range(searched, len(data) // CARD):
            if data.startswith(b"END     ", card * CARD):
                return _parse(data[: card * CARD], hdu, start, start + -(-(card + 1) * CARD // BLOCK) * BLOCK)
    raise ValueError(f"the header of HDU {hdu} (from byte {start}) has no END card within {available} bytes.")


def _parse(data: bytes, hdu: int, start: int, end: int) -> Header:
    header = Header(hdu, start, end, {}, {})
    values = header.values
    going_on: str | None = None  # the keyword whose string the next card may go on with
    for at in range(0, len(data), CARD):
        card = data[at : at + CARD]
        key, field = card[:8].rstrip(b" ").decode("latin-1"), card[10:].strip(b" ")
        if key == "CONTINUE":
            more = _STRING.match(card[8:].strip(b" "))
            if more and going_on:
                text = _unquoted(more)
                values[going_on] = f"{values[going_on]}"[:-1] + text
                going_on = going_on if text.endswith("&") else None
            else:
                going_on = None
        elif key and card[8:10] == b"= " and key not in values:
            string = _STRING.match(field)
            values[key] = _unquoted(string) if string else _value(field)
            header.cards[key] = start + at, field.decode("latin-1")
            going_on = key if string and _unquoted(string).endswith("&") else None
        else:
            going_on = None
    return header


def _unquoted(string: re.Match[bytes]) -> str:
    return string[1].replace(b"''", b"'").rstrip(b" ").decode("latin-1")


def _value(field: bytes) -> Keyword:
    """A value that is no string; the text of one that is none of the kinds."""
    text = (field if field.startswith(b"'") else field.partition(b"/")[0]).strip(b" ")
    if text in (b"", b"T", b"F"):
        return text == b"T" if text else None
    if _WHOLE.fullmatch(text):
        number = int(text)
        return number if -(1 << 63) <= number < 1 << 64 else float(text)
    if _REAL.fullmatch(text):
        return float(text.upper().replace(b"D", b"E"))
    return text.decode("latin-1")
