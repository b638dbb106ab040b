"""Every registered model keeps the model contract: one test per check and model."""

import pytest

from astrozoo.testing import assert_check, model_checks


@pytest.mark.parametrize(("name", "check"), model_checks())
def test_model_conforms(name, check):
    assert_check(name, check)
