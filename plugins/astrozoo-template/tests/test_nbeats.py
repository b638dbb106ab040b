"""Conformance of every variant, and what is special about this family."""

import pytest
import torch

import astrozoo
from astrozoo.testing import check_model


@pytest.mark.parametrize("name", ["nbeats_tiny", "nbeats_small"])
def test_variant_conforms(name):
    check_model(name)


def test_level_and_unit_of_series_do_not_matter():
    model = astrozoo.create_model("nbeats_tiny", dtype=torch.float64).eval()
    flux = torch.randn(3, 1, 96, dtype=torch.float64)
    torch.testing.assert_close(model(1000 + 5 * flux), 1000 + 5 * model(flux), rtol=1e-5, atol=1e-4)


def test_channels_are_independent_series():
    model = astrozoo.create_model("nbeats_tiny", channels=2, dtype=torch.float64).eval()
    flux = torch.randn(3, 2, 96, dtype=torch.float64)
    torch.testing.assert_close(model(flux.flip(1)), model(flux).flip(1))


def test_learns_a_sine_better_than_repeating_the_last_value():
    torch.manual_seed(0)
    model = astrozoo.create_model("nbeats_tiny", lookback=48, horizon=12)
    phase = 2 * torch.pi * torch.rand(64, 1, 1)
    series = torch.sin(phase + 2 * torch.pi * torch.arange(60) / 17)  # [batch, channel, time]
    past, future = series[..., :48], series[..., 48:]
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(200):
        loss = model.loss(astrozoo.Batch(inputs={"flux": past}, targets={"forecast": future}))["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    persistence = (future - past[..., -1:]).square().mean()
    assert loss < 0.05 * persistence
