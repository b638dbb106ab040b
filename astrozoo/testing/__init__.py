"""The conformance kits: what every model and every attention must pass to be one of the zoo, built in or third party.

    from astrozoo.testing import check_attention, check_model
    print(check_model("my_model_small").table())
    print(check_attention("my_attention").table())

Under pytest, one test per check and model or attention with readable ids:

    @pytest.mark.parametrize(("name", "check"), model_checks(["my_model_small"]))
    def test_model_conforms(name, check):
        assert_check(name, check)

    @pytest.mark.parametrize(("name", "check"), attention_checks(["my_attention"]))
    def test_attention_conforms(name, check):
        assert_attention_check(name, check)
"""

from astrozoo.testing.attention.kit import (
    ATTENTION_CHECKS,
    assert_attention_check,
    attention_checks,
    check_attention,
)
from astrozoo.testing.kit import CHECKS, assert_check, check_model, model_checks
from astrozoo.testing.report import CheckResult, ConformanceError, Report

__all__ = [
    "ATTENTION_CHECKS",
    "CHECKS",
    "CheckResult",
    "ConformanceError",
    "Report",
    "assert_attention_check",
    "assert_check",
    "attention_checks",
    "check_attention",
    "check_model",
    "model_checks",
]
