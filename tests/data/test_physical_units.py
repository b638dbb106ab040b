from __future__ import annotations

import pytest

from astrozoo.data.units import conversion, is_pressure, same_unit
from astrozoo.errors import DataError


@pytest.mark.parametrize(
    ("first", "second"),
    [("m s-1", "m s**-1"), ("m2 s-2", "m**2 s**-2"), ("kg m-2 s-1", "kg/m**2/s"), ("degC", "Celsius"), ("K", "kelvin"),
     ("millibars", "hPa"), ("1", ""), ("W m^-2", "W m-2"), ("kg kg-1", "kg kg**-1"),
     ("Kelvin", "K"), ("Pascals", "Pa"), ("ºC", "degC")],
)  # fmt: skip
def test_spellings_of_one_unit_are_the_same(first, second):
    assert same_unit(first, second)
    assert conversion(first, second, "x") is None


@pytest.mark.parametrize(
    ("source", "target", "value", "expected"),
    [
        ("degC", "K", 20.0, 293.15),
        ("hPa", "Pa", 850.0, 85000.0),
        ("mm day-1", "m s-1", 86.4, 1e-6),
        ("%", "1", 50.0, 0.5),
    ],
)
def test_conversion_gives_factor_and_offset(source, target, value, expected):
    factor, offset = conversion(source, target, "x")
    assert value * factor + offset == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("pair", [("K", "m"), ("K", None), (None, "K"), ("furlongs per blue moon", "K")])
def test_units_that_do_not_fit_are_a_data_error(pair):
    with pytest.raises(DataError, match="variable 't'"):
        conversion(*pair, "variable 't'")


def test_pressure_is_recognised():
    assert is_pressure("millibars")
    assert not is_pressure("m")
    assert not is_pressure("sigma_level")
