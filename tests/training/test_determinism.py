"""`deterministic=True`: settings that are restored, and the name of what cannot be reproducible."""

from __future__ import annotations

import os

import cases
import pytest
import torch
from torch import Tensor

from astrozoo.errors import TrainingError
from astrozoo.registry.family import Family
from astrozoo.training import TrainConfig, train
from astrozoo.training.checkpoint import latest_checkpoint
from astrozoo.training.determinism import (
    explain_no_determinism,
    only_deterministic,
    operation_without_determinism,
)

VARIABLE = "CUBLAS_WORKSPACE_CONFIG"


def settings() -> tuple[bool, bool, bool, str | None]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.benchmark,
        os.environ.get(VARIABLE),
    )


@pytest.fixture(params=["off", "warn only"])
def before(request, monkeypatch):
    """Settings as a user may have left them."""
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", request.param == "warn only")
    monkeypatch.delenv(VARIABLE, raising=False)
    if request.param == "warn only":
        monkeypatch.setenv(VARIABLE, ":16:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
    yield settings()
    torch.use_deterministic_algorithms(False)


def test_settings_hold_inside_and_are_restored_after_an_error(before):
    seen = []

    def fail() -> None:
        with only_deterministic():
            seen.append(settings())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert seen == [(True, False, False, before[3] or ":4096:8")]
    assert settings() == before


def test_not_enabled_changes_nothing(before):
    with only_deterministic(enabled=False):
        assert settings() == before


class PutNet(cases.Net):
    """A net that fills its outputs by an operation that PyTorch never makes deterministic, from its third step on."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        self.calls += 1
        places = torch.arange(y.numel())
        return y if self.calls < 3 else torch.zeros_like(y).put(places, y.flatten())


def test_training_ends_with_the_name_of_the_operation(tmp_path):
    family = Family(
        name="put", domain="test", summary="A net.", model=PutNet, config=cases.NetConfig, miniature={}
    )  # fmt: skip
    config = TrainConfig(
        max_steps=5, batch_size=4, device="cpu", out=str(tmp_path), deterministic=True, checkpoint={"every": 1}
    )
    untouched = settings()
    data = cases.Line()
    del data.val
    with pytest.raises(TrainingError, match=r"'put_'.*deterministic=False.*intact") as caught:
        train(family.variant("nano", "").build(), data, config)
    assert operation_without_determinism(caught.value.__cause__) == "put_"
    assert settings() == untouched
    assert latest_checkpoint(tmp_path / "checkpoints").state["step"] == 2


def missing(operation: str) -> RuntimeError:
    return RuntimeError(
        f"{operation} does not have a deterministic implementation, but you set "
        f"'torch.use_deterministic_algorithms(True)'. You can turn off determinism just for this operation."
    )


@pytest.mark.parametrize(
    ("operation", "advice"),
    [
        ("upsample_bilinear2d_backward_out_cuda", "mode nearest"),
        ("cumsum_cuda_kernel", "attention without running sums"),
        ("scatter with src tensor", "Set deterministic=False."),
    ],
)
def test_the_error_says_what_to_do_instead(operation, advice):
    said = explain_no_determinism(missing(operation))
    assert f"{operation!r}" in said
    assert advice in said


def test_a_cublas_that_started_without_its_setting_is_explained(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    said = explain_no_determinism(RuntimeError(f"not deterministic because it uses CuBLAS: set {VARIABLE}=:4096:8"))
    assert f"{VARIABLE} to :4096:8 or :16:8 before Python starts (here it is None)" in said


@pytest.mark.parametrize("error", [RuntimeError("CUDA out of memory"), ValueError(str(missing("put_")))])
def test_other_errors_are_not_explained(error):
    assert explain_no_determinism(error) is None
    assert operation_without_determinism(error) is None
