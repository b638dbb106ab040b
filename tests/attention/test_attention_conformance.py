"""Every registered attention keeps the attention contract: one test per check and attention."""

import pytest

from astrozoo.testing import assert_attention_check, attention_checks


@pytest.mark.parametrize(("name", "check"), attention_checks())
def test_attention_conforms(name, check):
    assert_attention_check(name, check)
