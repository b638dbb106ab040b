"""Tasks whose samples are sequences: several steps in, several steps out."""

import numpy as np
import pytest
import torch

from astrozoo.data import DataConfig, TimeSplit, forecast, prepare, to_dataset
from astrozoo.errors import ConfigError, DataError


@pytest.fixture
def task(make_fields):
    fields = make_fields(steps=120, names=("a", "b"), levels=2)
    return forecast(fields, ["a", "b"], ["b"], lead=2, history=3, steps=4)


TRAIN_ONLY = TimeSplit(train=1.0, val=0, test=0)


def test_samples_are_the_steps_of_the_file(make_fields):
    fields = make_fields(names=("a", "b"))
    task = forecast(fields, ["a", "b"], ["b"], lead=2, history=3, steps=4, normalize="none", split=TRAIN_ONLY)
    sample = task.train[5]  # its present is time step 7
    assert sample.inputs["x"].shape == (3, 2, 1, 8, 16)
    assert sample.targets["y"].shape == (4, 1, 1, 8, 16)
    np.testing.assert_array_equal(sample.inputs["x"][:, 0, 0], fields["a"].values[5:8])
    np.testing.assert_array_equal(sample.targets["y"][:, 0, 0], fields["b"].values[9:16:2])


def test_no_sample_reaches_beyond_its_part(task):
    periods = task.schema()["split"]["periods"]
    for part in ("train", "val", "test"):
        rows = getattr(task, part).rows
        first, last = (int(periods[part][end][:4]) - 1950 for end in ("first", "last"))
        assert rows.min() - 2 >= first
        assert rows.max() + 8 <= last


def test_a_model_is_told_the_number_of_steps(task):
    overrides = task.model_overrides()
    assert (overrides["in_vars"], overrides["out_vars"], overrides["out_steps"]) == (2, 1, 4)


def test_missing_values_are_masked_in_every_step(make_fields):
    fields = make_fields()
    fields["t2m"][3, 2, 5] = np.nan
    sample = forecast(fields, history=2, steps=2, fill="mask", split=TRAIN_ONLY).train[2]
    assert sample.inputs["x"].shape == (2, 2, 1, 8, 16)
    assert sample.inputs["x"][1, 1, 0, 2, 5] == 0
    assert sample.inputs["x"][0, 1].all()


def test_persistence_repeats_the_present(task):
    batch = task.collate(task.test.__getitems__([0, 1]))
    persistence = task.baselines()["persistence"](batch)
    assert persistence.shape == batch.targets["y"].shape
    assert torch.equal(persistence[:, 3], batch.inputs["x"][:, -1, 1:2])


def test_damping_is_the_regression_at_each_lead(make_fields):
    fields = make_fields()
    fields["t2m"].values[:] = fields["t2m"].values.cumsum(0) / 5  # a walk: the present tells something
    task = forecast(fields, steps=3, split=TRAIN_ONLY)
    batch = task.collate(task.train.__getitems__(range(len(task.train))))
    weight = torch.cos(torch.deg2rad(torch.tensor(fields.lat.values)))[:, None]
    x, y = batch.inputs["x"][:, -1:].double(), batch.targets["y"].double()
    mean = task.baselines()["climatology"](batch).double()
    damped = task.baselines()["damped_persistence"](batch).double()
    for step in range(3):
        a, b = x[:, 0] - mean[:, step], y[:, step] - mean[:, step]
        slope = (weight * a * b).sum() / (weight * a * a).sum()
        torch.testing.assert_close(damped[:, step] - mean[:, step], slope * a, rtol=2e-3, atol=2e-3)


def test_scores_are_given_by_lead(task):
    batch = task.collate(task.test.__getitems__([0]))
    metrics = task.new_metrics()
    metrics.update(batch.targets["y"] + torch.arange(1.0, 5.0)[:, None, None, None, None], batch)
    scores = metrics.compute()
    std = np.sqrt((task.field_schema.stacked(("b",), "std")[0, :, 0, 0] ** 2).mean())
    for step in range(4):
        assert scores[f"rmse/b_lead{2 * step + 2}"] == pytest.approx((step + 1) * std, rel=1e-4)
    assert scores["rmse/b"] == pytest.approx(np.sqrt(30 / 4) * std, rel=1e-4)


def test_outputs_become_fields_along_lead_and_start(make_fields):
    fields = make_fields(members=2)
    task = forecast(fields, lead=2, steps=3, normalize="none", split=TRAIN_ONLY)
    inputs = prepare(fields.isel(time=slice(0, 10)), task.schema())
    outputs = torch.stack([inputs.inputs.take(inputs.rows) + 10 * lead for lead in (1, 2, 3)], 1)
    made = to_dataset(outputs, task.schema(), inputs.coordinates())
    assert made["t2m"].dims == ("lead", "member", "init_time", "lat", "lon")
    assert made.lead.values.tolist() == [2, 4, 6]
    assert made.time.dims == ("lead", "init_time")
    assert str(made.time.values[1, 3])[:10] == "1957-01-01"  # started in 1953, four years ahead
    np.testing.assert_allclose(made["t2m"].values[2, 1, 4], fields["t2m"].values[1, 4] + 30, rtol=1e-6)


def test_outputs_without_steps_are_refused(task):
    with pytest.raises(DataError, match="of a model of sequences"):
        to_dataset(torch.zeros(1, 1, 2, 8, 16), task.schema(), {})


def test_steps_of_no_lead_are_refused(make_fields):
    with pytest.raises(ConfigError, match="lead is 0"):
        forecast(make_fields(names=("a", "b")), ["a"], ["b"], lead=0, steps=2)


def test_a_configuration_may_ask_for_steps(make_fields, tmp_path):
    make_fields(steps=80).to_netcdf(tmp_path / "fields.nc")
    config = DataConfig(files=(str(tmp_path / "fields.nc"),), history=2, steps=3)
    assert DataConfig.from_dict(config.to_dict()) == config
    assert config.build().train[0].targets["y"].shape == (3, 1, 1, 8, 16)
