from __future__ import annotations

import resource
import time

import numpy as np
import pytest
import torch
import xarray as xr

import astrozoo
from astrozoo.data import forecast, open_fields
from astrozoo.errors import ConfigError, DataError
from astrozoo.training import TrainConfig, evaluate, predict, train
from astrozoo.training.prediction import write_dataset

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
    with pytest.raises(DataError, match=r"No space left on device.* What was there is unchanged"):
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


def fields(value: float) -> xr.Dataset:
    names = ("time", "lat", "lon")
    noise = np.random.default_rng(0).normal(size=(40, 60, 60)).astype("float32")
    return xr.Dataset(dict.fromkeys(("tas", "pr"), (names, value + 0 * noise if value else noise)))


def largest(out) -> float:
    with xr.open_dataset(out, **({"engine": "zarr", "consolidated": False} if out.suffix == ".zarr" else {})) as read:
        return float(read["tas"].max())


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
def test_disk_that_gets_full_is_named_with_what_is_needed_and_nothing_is_left(suffix, tmp_path):
    out = tmp_path / f"forecast{suffix}"
    write_dataset(fields(7.0), out)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))  # the system refuses to write more, as when full
    try:
        with pytest.raises(DataError, match=rf"forecast{suffix} could not be written: .* needs about 1,152,000 bytes"):
            write_dataset(fields(0.0), out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert largest(out) == 7.0
    time.sleep(0.1)  # threads of Zarr may still write
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
@pytest.mark.parametrize("moment", [0, 1])
def test_ctrl_c_while_renaming_keeps_the_old_output(suffix, moment, tmp_path, monkeypatch):
    out = tmp_path / f"forecast{suffix}"
    write_dataset(fields(7.0), out)
    calls = []

    def interrupted(move):
        def instead(self, target):
            calls.append(target)
            if len(calls) == moment + 1:
                raise KeyboardInterrupt
            return move(self, target)

        return instead

    renames = 2 if suffix == ".zarr" else 1
    with monkeypatch.context() as patch:
        patch.setattr(type(out), "rename", interrupted(type(out).rename))
        if suffix == ".nc":
            patch.setattr(type(out), "replace", interrupted(type(out).replace))
        if moment < renames:
            with pytest.raises(KeyboardInterrupt):
                write_dataset(fields(8.0), out)
        else:
            write_dataset(fields(8.0), out)
    assert largest(out) == (7.0 if moment < renames else 8.0)
    assert list(tmp_path.iterdir()) == [out]


def test_store_that_a_killed_process_had_renamed_is_put_back(tmp_path):
    out = tmp_path / "forecast.zarr"
    write_dataset(fields(7.0), out)
    out.rename(tmp_path / ".forecast.zarr.replaced")
    with pytest.raises(AttributeError):
        write_dataset(None, out)
    assert largest(out) == 7.0
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("device", ["abacus", "cuda:63"])
def test_device_that_does_not_exist_is_named_with_those_there_are(device, file, trained):
    task, result = trained
    for call in (predict, lambda *args, **options: evaluate(result.best, task, **options), astrozoo.load_model):
        arguments = () if call is astrozoo.load_model else (file,)
        with pytest.raises(ConfigError, match=rf"device is '{device}', which .* it has: cpu"):
            call(result.best, *arguments, device=device)


def test_batch_without_a_sample_is_a_config_error(file, trained):
    with pytest.raises(ConfigError, match="batch_size is 0; expected a whole number above 0"):
        predict(trained[1].best, file, batch_size=0)
