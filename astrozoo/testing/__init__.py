"""The conformance kit: what every model must pass to be one of the zoo, built in or third party.

    from astrozoo.testing import check_model
    print(check_model("my_model_small").table())

Under pytest, one test per check and model with readable ids:

    @pytest.mark.parametrize(("name", "check"), model_checks(["my_model_small"]))
    def test_model_conforms(name, check):
        assert_check(name, check)
"""

from astrozoo.testing.kit import CHECKS, assert_check, check_model, model_checks
from astrozoo.testing.report import CheckResult, ConformanceError, Report

__all__ = ["CHECKS", "CheckResult", "ConformanceError", "Report", "assert_check", "check_model", "model_checks"]
