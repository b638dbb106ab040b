"""Deterministic splits: which time steps, or which members, train, validate and test.

A split is a rule, not a shuffle. Time splits are blocks with a gap between them, the same for every member, so that no
member tells another's future. Members of one ensemble share their forcing; `MemberSplit` is for the question how well
a model does on a run it has never seen.
"""

from __future__ import annotations

import datetime as dt
import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from astrozoo.errors import ConfigError, DataError

__all__ = ["Blocks", "MemberSplit", "TimeSplit", "contiguous_runs", "date_of", "split_from_dict"]

Blocks = dict[str, list[tuple[int, range]]]
"""For each part of a split: pairs of a member's index and the time steps of that member that belong to it."""

Part = float | tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class TimeSplit:
    """Blocks of time, equal for all members.

    Attributes:
        train, val, test: Either fractions of the time steps, taken in this order, or inclusive dates as pairs such as
            `("1890", "1959-12")`, in any order. A fraction of 0 leaves that part out.
        gap: Time steps left unused between two neighbouring blocks, against autocorrelation.
    """

    train: Part = 0.7
    val: Part = 0.15
    test: Part = 0.15
    gap: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.gap, int) or self.gap < 0:
            raise ConfigError(f"split gap is {self.gap}, expected 0 or more time steps.")
        parts = {}
        for name in ("train", "val", "test"):
            part = getattr(self, name)
            if isinstance(part, (list, tuple)):
                if len(part) != 2:
                    raise ConfigError(f"split {name} is {part!r}, expected a fraction or a pair of dates.")
                part = (str(part[0]), str(part[1]))
                if _parse_date(part[0], name) > _parse_date(part[1], name)[: len(_parse_date(part[0], name))]:
                    raise ConfigError(f"split {name} ends at {part[1]!r}, before it starts at {part[0]!r}.")
                object.__setattr__(self, name, part)
            elif not (isinstance(part, (int, float)) and 0.0 <= part <= 1.0):
                raise ConfigError(f"split {name} is {part!r}, expected a fraction from 0 to 1 or a pair of dates.")
            parts[name] = part
        fractions = [part for part in parts.values() if not isinstance(part, tuple)]
        dated = len(fractions) < 3
        if dated and any(fractions):
            raise ConfigError("a split takes fractions or dates, not both; give 0 for a part that is left out.")
        if not dated and sum(fractions) > 1.0 + 1e-9:
            raise ConfigError(f"split fractions {fractions} add up to {sum(fractions):g}, expected at most 1.")
        if not self.train:
            raise ConfigError("split train is 0; a task needs training data.")

    def blocks(self, times: np.ndarray, members: Sequence[Any]) -> Blocks:
        """The time steps of every part.

        Args:
            times: `[time]`, ascending datetime64, cftime dates or numbers.
            members: Labels of the members; only their number matters here.

        Raises:
            DataError: Blocks overlap, or a part that was asked for is empty.
        """
        steps = {name: self._steps(name, times) for name in ("train", "val", "test")}
        present = {name: block for name, block in steps.items() if block is not None}
        ordered = sorted(present, key=lambda name: present[name].start)
        for first, second in itertools.pairwise(ordered):
            if present[second].start < present[first].stop:
                raise DataError(f"split parts {first} and {second} overlap; each time step may belong to one.")
            present[second] = range(max(present[second].start, present[first].stop + self.gap), present[second].stop)
        for name, block in present.items():
            if not len(block):
                raise DataError(
                    f"split part {name} is empty: {getattr(self, name)!r} of {len(times)} time steps "
                    f"({date_of(times[0])} to {date_of(times[-1])}) with a gap of {self.gap}."
                )
        return {
            name: [(member, present[name]) for member in range(len(members))] if name in present else []
            for name in ("train", "val", "test")
        }

    def _steps(self, name: str, times: np.ndarray) -> range | None:
        part = getattr(self, name)
        if isinstance(part, tuple):
            first, last = _parse_date(part[0], name), _parse_date(part[1], name)
            if not _has_dates(times):
                raise DataError("the split gives dates, but the time axis of the files has none; give fractions.")
            inside = [
                index
                for index, time in enumerate(times)
                if first <= _date_parts(time)[: len(first)] and _date_parts(time)[: len(last)] <= last
            ]
            return range(inside[0], inside[-1] + 1) if inside else range(0)
        if not part:
            return None
        before = 0.0
        for earlier in ("train", "val", "test")[: ("train", "val", "test").index(name)]:
            before += float(getattr(self, earlier))
        count = len(times)
        return range(_round(before * count), min(count, _round((before + float(part)) * count)))

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values; `split_from_dict` is the inverse."""
        return {"by": "time", **{key: _plain(value) for key, value in asdict(self).items()}}


@dataclass(frozen=True, kw_only=True)
class MemberSplit:
    """Whole ensemble members, by their labels. `val` and `test` may be empty."""

    train: tuple[str, ...]
    val: tuple[str, ...] = ()
    test: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("train", "val", "test"):
            object.__setattr__(self, name, tuple(str(label) for label in getattr(self, name)))
        labels = [*self.train, *self.val, *self.test]
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if twice:
            raise ConfigError(f"member {', '.join(twice)} is in several parts of the split.")
        if not self.train:
            raise ConfigError("split train names no member; a task needs training data.")

    def blocks(self, times: np.ndarray, members: Sequence[Any]) -> Blocks:
        """All time steps of the members of every part.

        Raises:
            DataError: A label names no member.
        """
        known = [str(label) for label in members]
        blocks: Blocks = {}
        for name in ("train", "val", "test"):
            missing = [label for label in getattr(self, name) if label not in known]
            if missing:
                raise DataError(f"split {name} names member {', '.join(missing)}; the fields have {', '.join(known)}.")
            blocks[name] = [(known.index(label), range(len(times))) for label in getattr(self, name)]
        return blocks

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values; `split_from_dict` is the inverse."""
        return {"by": "member", **{key: list(value) for key, value in asdict(self).items()}}


def split_from_dict(row: dict[str, Any]) -> TimeSplit | MemberSplit:
    """The split that `to_dict` described."""
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in row.items() if key != "by"
    }
    return MemberSplit(**values) if row.get("by") == "member" else TimeSplit(**values)


def contiguous_runs(times: np.ndarray) -> np.ndarray:
    """`[time]`: the number of the unbroken run each step belongs to; a step of unusual length starts a new one.

    Months of 28 and 31 days and leap years count as equal steps, an extra hour or a missing day does not.
    """
    if len(times) < 3:
        return np.zeros(len(times), dtype=np.int64)
    steps = np.array([_seconds(later - earlier) for earlier, later in itertools.pairwise(times)])
    usual = np.median(steps)
    return np.concatenate([[0], np.cumsum(np.abs(steps - usual) > 0.25 * usual)]).astype(np.int64)


def date_of(time: Any) -> str:
    """A time step in ISO format, or the number of a time axis without dates."""
    if isinstance(time, np.datetime64):
        return str(time.astype("datetime64[s]"))
    return str(time.isoformat()) if hasattr(time, "isoformat") else str(time)


def _seconds(step: Any) -> float:
    if isinstance(step, np.timedelta64):
        return float(step / np.timedelta64(1, "s"))
    return step.total_seconds() if isinstance(step, dt.timedelta) else float(step)


def _has_dates(times: np.ndarray) -> bool:
    return len(times) > 0 and (np.issubdtype(times.dtype, np.datetime64) or hasattr(times[0], "year"))


def _date_parts(time: Any) -> tuple[int, ...]:
    if isinstance(time, np.datetime64):
        time = time.astype("datetime64[s]").item()
    return (time.year, time.month, time.day, time.hour, time.minute, time.second)


def _parse_date(text: str, name: str) -> tuple[int, ...]:
    """`1990-03` as (1990, 3): as many parts as are given, so that `("1990", "1991")` includes all of 1991."""
    sign, digits = (-1, text[1:]) if text.startswith("-") else (1, text)
    for separator in "T:":
        digits = digits.replace(separator, "-")
    try:
        parts = [int(part) for part in digits.replace(" ", "-").split("-")]
    except ValueError:
        raise ConfigError(
            f"split {name} has date {text!r}, expected ISO format such as '1990' or '1990-03-01'."
        ) from None
    smallest, largest = (1, 1, 0, 0, 0), (12, 31, 23, 59, 59)
    if any(not low <= part <= high for low, part, high in zip(smallest, parts[1:], largest, strict=False)):
        raise ConfigError(f"split {name} has date {text!r}, which no calendar has.")
    return (sign * parts[0], *parts[1:])


def _round(value: float) -> int:
    return math.floor(value + 0.5 + 1e-9)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
