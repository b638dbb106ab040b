import time

import pytest

from astrozoo.cli import doctor


@pytest.fixture(scope="module")
def diagnosis():
    """What the doctor found, and the processor time it took: a busy machine is not the doctor's fault."""
    start = time.process_time()
    found = {finding.name: finding for finding in doctor.diagnose(device="cpu")}
    return found, time.process_time() - start


@pytest.fixture(scope="module")
def findings(diagnosis):
    return diagnosis[0]


def test_doctor_runs_eleven_checks_in_under_a_minute(diagnosis):
    findings, seconds = diagnosis
    assert len(findings) == len(doctor.CHECKS) == 11
    assert seconds < 60


def test_nothing_fails_here(findings):
    assert {name: item.message for name, item in findings.items() if item.state == "fail"} == {}


def test_only_what_is_optional_warns(findings):
    assert {name for name, item in findings.items() if item.state == "warn"} <= {"array kernels", "imports"}
    assert all(finding.message for finding in findings.values())


def test_a_missing_accelerator_says_that_nothing_else_needs_it(findings):
    if findings["array kernels"].state == "warn":
        assert "not installed; everything works without it" in findings["array kernels"].message


def test_a_wrong_attention_kernel_is_found(monkeypatch):
    import torch

    kernel = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", lambda *a, **k: kernel(*a, **k) * 1.1)
    with pytest.raises(doctor._FailError, match="attention is off"):
        doctor.CHECKS["attention"](doctor._Workbench("cube_unet_nano", "cpu"))


def test_what_breaks_is_reported_and_the_rest_still_runs(astrozoo, monkeypatch):
    def broken(bench):
        raise ValueError("two\nlines")

    checks = {"model build": broken, "forward": doctor.CHECKS["forward"], "array kernels": lambda bench: "fine"}
    monkeypatch.setattr(doctor, "CHECKS", checks)
    result = astrozoo("doctor", "--json", "--device", "cpu")
    assert result.status == 1
    states = {row["name"]: (row["state"], row["message"]) for row in result.json["findings"]}
    assert states["model build"] == ("fail", "ValueError: two lines")
    assert states["forward"] == ("fail", "needs the model, which could not be built.")
    assert states["array kernels"] == ("pass", "fine")
    assert result.json["counts"] == {"pass": 1, "warn": 0, "fail": 2}
    assert "1 passed, 0 warned, 2 failed" in astrozoo("doctor", "--device", "cpu").out
