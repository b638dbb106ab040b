import numpy as np
import pytest
import torch

from astrozoo.batch import Batch
from astrozoo.errors import ConfigError
from astrozoo.objectives import register_task_loss, task_loss
from astrozoo.objectives.area import area_weights
from astrozoo.objectives.losses import weighted_mse


def test_area_weights_are_the_exact_areas_of_a_regular_grid():
    edges = np.linspace(-90, 90, 19)
    area = np.diff(np.sin(np.radians(edges)))
    lat = torch.from_numpy((edges[1:] + edges[:-1]) / 2)
    np.testing.assert_allclose(area_weights(lat).numpy(), area / area.mean(), rtol=1e-12)
    np.testing.assert_allclose(area_weights(lat.flip(0)).numpy(), (area / area.mean())[::-1], rtol=1e-12)


def test_rows_on_the_poles_have_the_area_of_their_caps():
    weights = area_weights(torch.linspace(-90, 90, 19, dtype=torch.float64))
    assert weights[0] / weights[9] == pytest.approx((1 - np.sin(np.radians(85))) / (2 * np.sin(np.radians(5))))


def test_a_single_row_has_weight_one():
    assert area_weights(torch.tensor([47.0])).tolist() == [1.0]


def test_missing_targets_carry_neither_weight_nor_gradient():
    prediction = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    loss = weighted_mse(prediction, torch.tensor([0.0, torch.nan, 1.0]))
    loss.backward()
    assert loss.item() == pytest.approx((1 + 4) / 2)
    assert prediction.grad.tolist() == [1.0, 0.0, 2.0]


def test_no_known_target_gives_zero_with_zero_gradient():
    prediction = torch.ones(3, requires_grad=True)
    loss = weighted_mse(prediction, torch.full((3,), torch.nan))
    loss.backward()
    assert loss.item() == 0
    assert prediction.grad.tolist() == [0, 0, 0]


def test_half_precision_is_summed_in_float32():
    prediction = torch.full((4096,), 300.0, dtype=torch.float16)
    assert weighted_mse(prediction, torch.zeros_like(prediction)).item() == pytest.approx(90000)


def test_fields_are_weighted_by_cell_area_and_weights_broadcast():
    lat = torch.tensor([-60.0, 0.0, 60.0])
    y, target = torch.randn(2, 1, 1, 3, 4), torch.randn(2, 1, 1, 3, 4)
    batch = Batch(inputs={}, targets={"y": target}, context={"lat": lat})
    weights = area_weights(lat)[:, None].expand(2, 1, 1, 3, 4)
    expected = np.average((y - target).square().numpy(), weights=weights.numpy())
    assert task_loss("field_regression", y, batch)["loss"].item() == pytest.approx(expected, rel=1e-5)


def test_without_latitudes_every_cell_counts_the_same():
    y, target = torch.randn(2, 1, 1, 3, 4), torch.randn(2, 1, 1, 3, 4)
    batch = Batch(inputs={}, targets={"y": target})
    expected = (y - target).square().mean().item()
    assert task_loss("field_forecast", y, batch)["loss"].item() == pytest.approx(expected, rel=1e-5)


def test_an_unknown_task_says_what_to_do():
    with pytest.raises(ConfigError, match=r"no shared loss for task 'divination'.*implement loss"):
        task_loss("divination", torch.ones(1), Batch(inputs={}))


def test_a_registered_loss_is_found(monkeypatch):
    from astrozoo.objectives import losses

    monkeypatch.setattr(losses, "_LOSSES", dict(losses._LOSSES))
    register_task_loss("counting")(lambda outputs, batch: {"loss": outputs.sum()})
    assert task_loss("counting", torch.ones(3), Batch(inputs={}))["loss"].item() == 3
