"""Settings that change how a step is computed, not what it computes."""

from __future__ import annotations

import pytest
import torch

from astrozoo import create_model
from astrozoo.data import SyntheticData
from astrozoo.training import TrainConfig, train

SMALL = {
    "in_vars": 1, "out_vars": 1, "widths": (4, 8), "depths": (1, 1), "decoder_depths": (1,), "strides": (2,),
    "level_strides": (2,), "dropout": 0.0,
}  # fmt: skip


def trained(tmp_path, name: str, **options):
    torch.manual_seed(0)
    model = create_model("cube_unet_nano", dtype=torch.float64, **SMALL)
    data = SyntheticData(model.spec, length=8, sizes={"level": 2, "lat": 8, "lon": 16})
    config = TrainConfig(max_steps=3, batch_size=4, device="cpu", out=str(tmp_path / name), **options)
    return train(model, data, config).model.state_dict()


@pytest.mark.parametrize(
    "options",
    [{"grad_checkpointing": True}, {"deterministic": True}, {"compile": True}],
    ids=["grad_checkpointing", "deterministic", "compile"],
)
def test_option_leaves_the_weights_as_they_are(tmp_path, options):
    plain, other = trained(tmp_path, "plain"), trained(tmp_path, "other", **options)
    for name, tensor in plain.items():
        torch.testing.assert_close(other[name], tensor, rtol=1e-9, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


def test_deterministic_is_switched_off_again_after_training(tmp_path):
    trained(tmp_path, "run", deterministic=True)
    assert not torch.are_deterministic_algorithms_enabled()
