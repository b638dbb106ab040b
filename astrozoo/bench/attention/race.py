"""One table: contestants at one size, timed in the same rounds, with their work, memory and error."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from astrozoo.bench.attention.cases import case_of
from astrozoo.bench.attention.contestants import Contestant, relative_errors
from astrozoo.bench.attention.interleave import WAYS, Effort, interleave, reason_of, release
from astrozoo.bench.attention.setting import Setting
from astrozoo.bench.environment import describe_environment
from astrozoo.bench.harness import Samples
from astrozoo.bench.rows import Rows
from astrozoo.readable import format_bytes, format_seconds

__all__ = ["PACKAGES", "Errors", "Make", "race"]

PACKAGES = ("triton", "flash-attn-4", "flash-attn-3", "flash-attn", "flash-linear-attention", "natten")  # of the peers

# Contestants at a size, and notes of those left out.
Make = Callable[[Setting], tuple[list[Contestant], list[str]]]

# Operations for a pair of a query and a key and each channel of key and value: two forward; with gradients five more,
# as the logits are computed again. This is how kernels are usually rated, whatever they really do.
_OPERATIONS = (2, 7)


class Errors:
    """Errors against float64, for one head of one row and no longer than the reference can be: measured once each.

    Args:
        make: Makes the contestants.
        longest: Tokens at most.
    """

    def __init__(self, make: Make, longest: int) -> None:
        self.make = make
        self.longest = longest
        self._known: dict[Setting, dict[str, tuple[float, float] | None]] = {}

    def at(self, setting: Setting) -> dict[str, tuple[float, float] | None]:
        """Errors of the output and of the gradients by name."""
        small = setting.replace(batch=1, heads=1, tokens=min(setting.tokens, self.longest))
        if small not in self._known:
            known: dict[str, tuple[float, float] | None] = {}
            for contestant in self.make(small)[0]:
                try:
                    known[contestant.name] = relative_errors(contestant)
                except Exception:  # one that fails here fails in the race too, which tells
                    known[contestant.name] = None
                release()
            self._known[small] = known
        return self._known[small]


def race(title: str, setting: Setting, make: Make, effort: Effort, errors: Errors | None = None) -> Rows:
    """Time the contestants at a size.

    Args:
        title: What is compared.
        setting: The size.
        make: Makes the contestants.
        effort: How long to measure.
        errors: Where their errors come from.

    Returns:
        Times are under "name, forward" and "name, forward+backward"; who fails is told in a note, and is a missed
        target where it is ours.
    """
    release()
    problem = ""
    try:
        contestants, notes = make(setting)
    except Exception as error:  # a size that does not fit leaves the others to be measured
        problem = reason_of(error)
        contestants, notes = [], [f"it could not be set up: {problem}"]
    samples, failures = interleave(contestants, setting.device, effort)
    found = errors.at(setting) if errors is not None else {}
    rows = [_row(title, contestant, setting, samples, found) for contestant in contestants]
    environment = describe_environment(PACKAGES)
    comparison = Rows(f"{title}: {setting}", samples, environment, rows=rows, cells=_cells, notes=notes)
    if problem:
        comparison.target(f"failures to set up {comparison.title}", 1, at_most=0, unit="")
    for label, reason in failures.items():
        comparison.notes.append(f"{label} failed: {reason}")
        if any(contestant.ours and label.startswith(f"{contestant.name}, ") for contestant in contestants):
            comparison.target(f"failures of {label}", 1, at_most=0, unit="")
    if errors is not None and setting.tokens > errors.longest:
        comparison.notes.append(f"errors are those at {errors.longest} tokens")
    return comparison


def _row(
    title: str,
    contestant: Contestant,
    setting: Setting,
    samples: Mapping[str, Samples],
    errors: Mapping[str, tuple[float, float] | None],
) -> dict[str, Any]:
    row: dict[str, Any] = {"table": title, "name": contestant.name, "peer": contestant.peer, **setting.to_dict()}
    for index, way in enumerate(WAYS):
        taken = samples.get(f"{contestant.name}, {way}")
        if taken is None:
            continue
        seconds = taken.median()
        row[way] = {
            "seconds": seconds,
            "quartiles": taken.quartiles(),
            "peak_bytes": taken.median("peak_bytes"),
            **_rate(contestant, setting, seconds, index),
        }
        theirs = samples.get(f"{contestant.peer}, {way}")
        if theirs is not None:
            row[way]["over_peer"] = seconds / theirs.median()
    error = errors.get(contestant.name)
    if error is not None:
        row["error"], row["gradient_error"] = error
    return row


def _rate(contestant: Contestant, setting: Setting, seconds: float, way: int) -> dict[str, float]:
    """Floating-point operations or bytes per second, whichever limits attentions of that kind."""
    module = contestant.module
    if module is None:
        return {}
    case = case_of(module.spec.name)
    if case.causal is False and setting.causal:  # pairs are counted as it is mostly used
        return {}
    pairs = case.pairs
    if pairs is None:
        return {} if module.spec.softmax else {"bytes_per_second": contestant.moved_bytes[way] / seconds}
    each = (module.config.key_dim + module.config.value_dim) * _OPERATIONS[way]
    return {"flops_per_second": setting.batch * setting.heads * pairs(setting) * each / seconds}


def _cells(row: Mapping[str, Any]) -> dict[str, str]:
    found = [row.get(way, {}) for way in WAYS]
    ratios = _pair(found, "over_peer", lambda ratio: f"{ratio:.3g}x")
    return {
        "": row["name"],
        **{way: _duration(taken) for way, taken in zip(WAYS, found, strict=True)},
        "rate": _rates(found, "flops_per_second", "FLOP/s") or _rates(found, "bytes_per_second", "B/s"),
        "peak memory": _pair(found, "peak_bytes", format_bytes),
        "time over": f"{row['peer']}: {ratios}" if ratios else "",
        "error": f"{row['error']:.1e} / {row['gradient_error']:.1e}" if "error" in row else "",
    }


def _pair(found: Sequence[Mapping[str, Any]], key: str, text: Callable[[float], str]) -> str:
    """A value forward and one with gradients, or nothing where there is neither."""
    texts = [text(taken[key]) if key in taken else "-" for taken in found]
    return "" if set(texts) == {"-"} else " / ".join(texts)


def _rates(found: Sequence[Mapping[str, Any]], key: str, unit: str) -> str:
    fastest = max((taken[key] for taken in found if key in taken), default=0.0)
    prefix, scale = ("T", 1e12) if fastest >= 1e12 else ("G", 1e9)
    texts = _pair(found, key, lambda rate: _short(rate / scale))
    return f"{texts} {prefix}{unit}" if texts else ""


def _duration(taken: Mapping[str, Any]) -> str:
    if not taken:
        return "-"
    low, high = taken["quartiles"]
    number, _, unit = format_seconds(taken["seconds"]).partition(" ")
    scale = taken["seconds"] / float(number)
    return f"{number} {unit} ({_short(low / scale)} to {_short(high / scale)})"


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
