"""Physical units of files and models: parsed with pint, in the spellings that climate files use.

pint alone does not read `kg m-2 s-1` (UDUNITS exponents), `degrees_north` or `millibars of water`; the aliases here do.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from astrozoo.errors import DataError

__all__ = ["conversion", "is_pressure", "same_unit"]

# Spellings met in CF, GRIB and model output, keyed in lower case, with what pint calls them.
_ALIASES = {
    "": "dimensionless",
    "1": "dimensionless",
    "-": "dimensionless",
    "none": "dimensionless",
    "unitless": "dimensionless",
    "(0 - 1)": "dimensionless",
    "0-1": "dimensionless",
    "fraction": "dimensionless",
    "proportion": "dimensionless",
    "psu": "dimensionless",
    "~": "dimensionless",
    "%": "percent",
    "c": "degC",
    "degc": "degC",
    "deg_c": "degC",
    "deg c": "degC",
    "°c": "degC",
    "celsius": "degC",
    "degree_celsius": "degC",
    "degrees_celsius": "degC",
    "degrees c": "degC",
    "degrees celsius": "degC",
    "k": "kelvin",
    "kelvin": "kelvin",
    "kelvins": "kelvin",
    "ºc": "degC",  # the ordinal sign, taken for a degree
    "degk": "kelvin",
    "deg_k": "kelvin",
    "degrees k": "kelvin",
    "degrees_kelvin": "kelvin",
    "f": "degF",
    "degf": "degF",
    "deg_f": "degF",
    "pascal": "pascal",
    "pascals": "pascal",
    "mb": "millibar",
    "mbar": "millibar",
    "millibars": "millibar",
    "gpm": "meter",  # geopotential metres: a height in all but name
    "m of water equivalent": "meter",
    "degrees_north": "degree",
    "degrees_east": "degree",
    "degrees": "degree",
}
_EXPONENT = re.compile(r"(?<=[A-Za-zµ])\^?([+-]?\d+)")  # the 2 of `m2`, the -1 of `s-1` and of `s^-1`


@cache
def _registry() -> Any:
    import pint  # half a second of start-up that only unit checks pay for

    return pint.UnitRegistry()


@cache
def _parse(unit: str) -> Any:
    text = unit.strip()
    text = _ALIASES.get(text.lower(), text)
    if text not in _ALIASES.values():
        text = _EXPONENT.sub(r"**\1", text)
        text = re.sub(r"(?<=[\w)%])[ .](?=[A-Za-z(%])", "*", text)  # a blank or a dot between units multiplies
    try:
        return _registry().Unit(text)
    except Exception as error:  # pint raises its own, tokenizer's and arithmetic errors; all mean the same here
        raise DataError(
            f"unit {unit!r} is not understood ({type(error).__name__}: {error}); "
            "write it as UDUNITS does, such as 'K', 'm s-1', 'kg m-2 s-1'."
        ) from error


def same_unit(first: str | None, second: str | None) -> bool:
    """Whether two spellings name one unit; unknown spellings are the same only when they are equal."""
    first, second = (first or "").strip(), (second or "").strip()
    if first == second:
        return True
    try:
        one, two = _parse(first), _parse(second)
        return bool(one == two or (one.is_compatible_with(two) and _affine(one, two) == (1.0, 0.0)))
    except DataError:
        return False


def is_pressure(unit: str | None) -> bool:
    """Whether `unit` can be converted to hPa."""
    if not unit:
        return False
    try:
        return bool(_parse(unit).is_compatible_with("hPa"))
    except DataError:
        return False


def conversion(source: str | None, target: str | None, what: str) -> tuple[float, float] | None:
    """Factor and offset with `value_in_target = factor * value_in_source + offset`; None when nothing is to do.

    Args:
        source: Unit of the values, in UDUNITS or pint spelling.
        target: Unit wanted.
        what: Names the quantity in messages, such as `variable 't2m' of a.nc`.

    Raises:
        DataError: One of the units is missing or unknown, or they measure different things.
    """
    if same_unit(source, target):
        return None
    if not source or not target:
        missing, known = ("no unit", target) if not source else (f"unit {source!r}", "none")
        raise DataError(
            f"{what} has {missing}, expected {known}; declare it with open_fields(..., units={{name: unit}})."
        )
    try:
        first, second = _parse(source), _parse(target)
    except DataError as error:
        raise DataError(f"{what}: {error}") from error
    if not first.is_compatible_with(second):
        raise DataError(f"{what} is in {source!r}, which cannot be converted to {target!r}.")
    return _affine(first, second)


def _affine(first: Any, second: Any) -> tuple[float, float]:
    """Factor and offset between compatible units, without the rounding of 1 to 0.9999999999999999."""
    quantity = _registry().Quantity
    offset = float(quantity(0.0, first).to(second).magnitude)
    factor = float(quantity(1.0, first).to(second).magnitude) - offset
    return (1.0 if abs(factor - 1.0) < 1e-9 else factor), offset
