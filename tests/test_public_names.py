"""What `import astrozoo` offers, and that it stays cheap."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import astrozoo


@pytest.mark.parametrize("name", sorted(set(astrozoo.__all__) - {"__version__"}))
def test_public_name_is_that_of_its_module(name):
    value = getattr(astrozoo, name)
    assert value is getattr(importlib.import_module(astrozoo._HOME[name]), name)
    assert value.__doc__


def test_every_name_of_a_module_is_public():
    assert set(astrozoo._HOME) | {"__version__"} == set(astrozoo.__all__)
    assert set(astrozoo.__all__) <= set(dir(astrozoo))


def test_unknown_attribute_is_an_attribute_error():
    with pytest.raises(AttributeError, match="creat_model"):
        _ = astrozoo.creat_model


def test_subpackages_need_no_import_of_their_own():
    script = (
        "import sys, astrozoo; assert 'torch' not in sys.modules;"
        "print(astrozoo.testing.check_model.__name__, astrozoo.data.DataConfig.__name__,"
        "      astrozoo.errors.InputError.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["check_model", "DataConfig", "InputError"]
