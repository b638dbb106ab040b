from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr

import astrozoo
from astrozoo.data import forecast, open_fields
from astrozoo.errors import ConfigError, DataError
from astrozoo.training import TrainConfig, evaluate, predict, train

TINY = {
    "widths": (4, 8),
    "depths": (1, 1),
    "decoder_depths": (1,),
    "strides": (2,),
    "level_kernel": 1,
    "level_strides": (1,),
}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Ten years of a monthly temperature, a seasonal wave that moves east, in kelvin."""
    time = xr.date_range("2000-01", periods=120, freq="MS")
    lat, lon = np.linspace(-80, 80, 9), np.arange(0, 360, 22.5)
    phase = 2 * np.pi * np.arange(120)[:, None, None] / 12 - np.deg2rad(lon)
    values = 280 + 10 * np.cos(np.deg2rad(lat))[:, None] * np.sin(phase)
    noise = np.random.default_rng(0).normal(size=values.shape)
    fields = xr.Dataset(
        {"tas": (("time", "lat", "lon"), (values + 0.1 * noise).astype("float32"), {"units": "K"})},
        {
            "time": time,
            "lat": ("lat", lat, {"units": "degrees_north", "standard_name": "latitude"}),
            "lon": ("lon", lon, {"units": "degrees_east", "standard_name": "longitude"}),
        },
    )
    path = tmp_path_factory.mktemp("fields") / "tas.nc"
    fields.to_netcdf(path)
    return path


@pytest.fixture(scope="module")
def trained(file, tmp_path_factory):
    task = forecast(open_fields(file), lead=1)
    config = TrainConfig(
        out=str(tmp_path_factory.mktemp("run")),
        max_steps=40,
        batch_size=8,
        device="cpu",
        optim={"lr": 2e-2},
        evaluation={"every": 20},
    )
    return task, train("cube_unet_nano", task, config, overrides=TINY)


def test_named_model_trains_on_a_file_and_beats_persistence(trained):
    task, result = trained
    assert result.split == "test"
    assert result.metrics[result.headline] < result.baselines["persistence"][result.headline]
    assert result.summary().count("persistence") >= 1
    assert evaluate(result.best, task, "test")[result.headline] == pytest.approx(
        result.metrics[result.headline], rel=1e-4
    )


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
def test_prediction_is_written_in_physical_units_with_coordinates(suffix, file, trained, tmp_path):
    _, result = trained
    out = tmp_path / f"forecast{suffix}"
    for _ in range(2):  # the second time over the first
        dataset = predict(result.best, file, out=out)
    written = xr.open_zarr(out, consolidated=False) if suffix == ".zarr" else xr.open_dataset(out)
    with written:
        assert written["tas"].attrs["units"] == "K"
        assert written["tas"].dims == ("time", "lat", "lon")
        assert abs(float(written["tas"].mean()) - 280) < 3
        np.testing.assert_array_equal(written["tas"], dataset["tas"])
        with xr.open_dataset(file) as truth:
            np.testing.assert_allclose(written["lat"], truth["lat"])
            error = written["tas"].sel(time=truth["time"][1:]) - truth["tas"].isel(time=slice(1, None))
            persistence = truth["tas"].diff("time")
            assert float((error**2).mean()) < float((persistence**2).mean())
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_prediction_of_a_task_is_that_of_its_test_split(trained):
    task, result = trained
    dataset = predict(result.model, task)
    assert dataset.sizes["time"] == len(task.test)
    with torch.inference_mode():
        first = result.model(**task.collate([task.test[0]]).inputs)
    assert dataset["tas"].shape[1:] == first.shape[-2:]


def test_failed_write_leaves_the_old_file(file, trained, tmp_path, monkeypatch):
    _, result = trained
    out = tmp_path / "forecast.nc"
    out.write_bytes(b"old")

    def full(self, path, **options):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(xr.Dataset, "to_netcdf", full)
    with pytest.raises(DataError, match=r"No space left on device. What was there is unchanged"):
        predict(result.model, file, out=out)
    assert out.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [out]


def test_what_cannot_be_predicted_says_why(file, trained, tmp_path):
    _, result = trained
    with pytest.raises(ConfigError, match=r"expected a name that ends in .nc"):
        predict(result.model, file, out=tmp_path / "forecast.csv")
    with pytest.raises(ConfigError, match="holds no preprocessing"):
        predict(astrozoo.create_model("cube_unet_nano", **TINY), file)
    with pytest.raises(DataError, match="neither files"):
        predict(result.model, 3)


def test_prediction_replaces_neither_its_input_nor_a_folder(file, trained, tmp_path):
    _, result = trained
    with pytest.raises(ConfigError, match="one of the files to predict from"):
        predict(result.model, [file], out=file)
    (tmp_path / "folder.nc").mkdir()
    with pytest.raises(ConfigError, match="which is a folder"):
        predict(result.model, file, out=tmp_path / "folder.nc")
