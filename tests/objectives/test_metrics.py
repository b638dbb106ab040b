from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
import xarray as xr
from torchmetrics import MetricCollection

from astrozoo.errors import InputError
from astrozoo.objectives import AnomalyCorrelation, AreaWeightedBias, AreaWeightedRMSE
from astrozoo.objectives.area import area_weights

LAT = torch.linspace(-85, 85, 9, dtype=torch.float64)


def pair():
    generator = torch.Generator().manual_seed(0)
    prediction, target = (torch.randn(6, 2, 3, 9, 12, generator=generator, dtype=torch.float64) for _ in range(2))
    target = target + 0.5 * prediction
    target[0, 0, 0, :4] = torch.nan
    return prediction, target


def as_arrays(*tensors):
    dims = ("sample", "var", "level", "lat", "lon")
    weight = xr.DataArray(area_weights(LAT).numpy(), dims="lat")
    return [xr.DataArray(tensor.numpy(), dims=dims) for tensor in tensors], weight


@pytest.mark.parametrize("metric", [AreaWeightedRMSE, AreaWeightedBias, AnomalyCorrelation])
def test_metric_agrees_with_xarray_in_one_batch_or_three(metric):
    prediction, target = pair()
    (p, t), weight = as_arrays(prediction, target)
    error = (p - t).weighted(weight)
    known = t.notnull()
    over = ("lat", "lon")
    expected = {
        AreaWeightedRMSE: lambda: np.sqrt(((p - t) ** 2).weighted(weight).mean(("sample", *over))),
        AreaWeightedBias: lambda: error.mean(("sample", *over)),
        AnomalyCorrelation: lambda: (
            (p * t * weight).sum(over) / np.sqrt((p.where(known) ** 2 * weight).sum(over) * (t**2 * weight).sum(over))
        ).mean("sample"),
    }[metric]()
    once, thrice = metric(LAT, (2, 3)), metric(LAT, (2, 3))
    once.update(prediction, target)
    for part in range(0, 6, 2):
        thrice.update(prediction[part : part + 2], target[part : part + 2])
    np.testing.assert_allclose(once.compute(), expected, rtol=1e-12)
    torch.testing.assert_close(thrice.compute(), once.compute(), rtol=1e-12, atol=0)


def test_climatology_is_subtracted_from_both():
    prediction, target = pair()
    climatology = torch.randn(2, 3, 9, 12, dtype=torch.float64)
    plain, shifted = AnomalyCorrelation(LAT, (2, 3)), AnomalyCorrelation(LAT, (2, 3), climatology)
    plain.update(prediction, target)
    shifted.update(prediction + climatology, target + climatology)
    torch.testing.assert_close(shifted.compute(), plain.compute())


def test_nothing_known_is_nan_and_wrong_shape_is_an_error():
    metric = AreaWeightedRMSE(LAT)
    metric.update(torch.zeros(1, 9, 4), torch.full((1, 9, 4), torch.nan))
    assert metric.compute().isnan()
    with pytest.raises(InputError, match=r"\[batch, 9, lon\]"):
        metric.update(torch.zeros(1, 8, 4), torch.zeros(1, 8, 4))


def test_a_prediction_that_is_not_finite_does_not_score():
    prediction, target = pair()
    prediction[3] = torch.nan
    for metric in (AreaWeightedRMSE, AreaWeightedBias, AnomalyCorrelation):
        broken = metric(LAT, (2, 3))
        broken.update(prediction, target)
        assert broken.compute().isnan().all()


def test_a_collection_keeps_metrics_apart_that_agree_on_the_first_batch():
    prediction, target = pair()
    metrics = {"rmse": AreaWeightedRMSE, "bias": AreaWeightedBias, "acc": AnomalyCorrelation}
    collection = MetricCollection({name: metric(LAT, (2, 3)) for name, metric in metrics.items()})
    alone = {name: metric(LAT, (2, 3)) for name, metric in metrics.items()}
    for batch in ((target, target), (prediction, target)):
        collection.update(*batch)
        for metric in alone.values():
            metric.update(*batch)
    for name, value in collection.compute().items():
        torch.testing.assert_close(value, alone[name].compute())


def _score_half(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    prediction, target = pair()
    metric = AreaWeightedRMSE(LAT, (2, 3))
    metric.update(prediction[rank::2], target[rank::2])
    torch.save(metric.compute(), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_agree_with_one(tmp_path):
    other = mp.get_context("spawn").Process(target=_score_half, args=(1, str(tmp_path)))
    other.start()
    _score_half(0, str(tmp_path))
    other.join()
    assert other.exitcode == 0
    metric = AreaWeightedRMSE(LAT, (2, 3))
    metric.update(*pair())
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), metric.compute())
