"""Numbers as people read them: three significant digits and the unit that suits."""

from __future__ import annotations

__all__ = ["format_bytes", "format_count", "format_flops", "format_seconds"]


def format_seconds(seconds: float) -> str:
    """A duration: `1.23 s`, `45.6 ms`, `7.89 us`."""
    for scale, unit in ((1.0, "s"), (1e-3, "ms")):
        if abs(seconds) >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"


def format_bytes(count: float) -> str:
    """An amount of memory in binary units: `1.5 GiB`."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if value >= 100 or unit == "B" else f"{value:.3g} {unit}"


def format_count(count: float) -> str:
    """A number of parameters: `950`, `1.23 M`, `13 B`."""
    return _scaled(count, ("", "k", "M", "B", "T")).rstrip()


def format_flops(count: float) -> str:
    """A number of floating-point operations: `1.23 GFLOP`."""
    return _scaled(count, ("", "k", "M", "G", "T", "P", "E")) + "FLOP"


def _scaled(value: float, units: tuple[str, ...]) -> str:
    index = 0
    while abs(value) >= 999.5 and index < len(units) - 1:
        value /= 1000
        index += 1
    return f"{value:.3g} {units[index]}"
