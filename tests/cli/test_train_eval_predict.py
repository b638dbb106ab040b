"""The path from a file to scores and a forecast, through the command alone."""

import json

import numpy as np
import pytest
import xarray as xr

import astrozoo as zoo

SMALL = ["widths=[4,8]", "depths=[1,1]", "decoder_depths=[1]", "strides=[2]", "level_strides=[1]"]


def write_fields(path, steps=40, variable="tas"):
    generator = np.random.default_rng(0)
    time = np.arange(steps)
    season = 280 + 10 * np.sin(time / 6)[:, None, None] + np.linspace(-5, 5, 8)[None, :, None]
    values = (season + 0.1 * generator.standard_normal((steps, 8, 16))).astype("float32")
    xr.Dataset(
        {variable: (("time", "lat", "lon"), values, {"units": "K"})},
        coords={
            "time": np.datetime64("2000-01-01", "ns") + time * np.timedelta64(1, "D"),
            "lat": ("lat", np.linspace(-78.75, 78.75, 8), {"units": "degrees_north"}),
            "lon": ("lon", np.arange(16) * 22.5, {"units": "degrees_east"}),
        },
    ).to_netcdf(path)
    return path


@pytest.fixture(scope="module")
def fields(tmp_path_factory):
    return write_fields(tmp_path_factory.mktemp("fields") / "tas.nc")


def train(astrozoo, fields, out, *more):
    flags = [word for flag in SMALL for word in ("--set", f"model.{flag}")]
    steps = ["--set", "max_steps=2", "--set", "batch_size=4"]
    return astrozoo("train", "cube_unet_nano", "--data", fields, "--out", out, *flags, *steps, *more)


def test_train_then_eval_then_predict(astrozoo, fields, tmp_path):
    trained = train(astrozoo, fields, tmp_path / "run", "--json")
    assert trained.status == 0, trained.err
    summary = trained.json
    assert summary["steps"] == 2
    assert summary["stopped"] == "finished"
    assert "persistence" in summary["baselines"]

    # The same files split by the same rule: the same samples, normalised by the saved statistics.
    scored = astrozoo("eval", summary["best"], "--data", fields, "--json")
    assert scored.status == 0, scored.err
    scores = scored.json["scores"]
    headline = scored.json["headline"]
    assert headline == summary["headline"] == "rmse/tas"
    assert scores["model"][headline] == pytest.approx(summary["metrics"][headline], rel=1e-5)
    assert scores["persistence"][headline] == pytest.approx(summary["baselines"]["persistence"][headline], rel=1e-5)

    written = tmp_path / "forecast.nc"
    predicted = astrozoo("predict", summary["best"], "--data", fields, "--out", written)
    assert predicted.status == 0, predicted.err
    with xr.open_dataset(written) as forecast:
        assert forecast["tas"].attrs["units"] == "K"
        assert 200 < float(forecast["tas"].mean()) < 350
        assert forecast.sizes["lat"] == 8


def test_eval_of_all_uses_the_saved_normalisation(astrozoo, fields, tmp_path):
    run = train(astrozoo, fields, tmp_path / "run", "--json").json
    other = write_fields(tmp_path / "other.nc", steps=12)
    result = astrozoo("eval", run["last"], "--data", other, "--split", "all", "--json")
    assert result.status == 0, result.err
    assert np.isfinite(result.json["scores"]["model"]["rmse/tas"])
    # Persistence in physical units does not depend on any normalisation: one day apart, by hand.
    with xr.open_dataset(other) as source:
        values = source["tas"].values.astype("float64")
    edges = np.deg2rad(np.linspace(-90, 90, 9))
    area = np.diff(np.sin(edges))
    squared = ((values[1:] - values[:-1]) ** 2).mean(axis=-1) @ (area / area.sum())
    assert result.json["scores"]["persistence"]["rmse/tas"] == pytest.approx(np.sqrt(squared.mean()), rel=1e-4)


def test_settings_come_from_yaml_and_flags_win(fields, tmp_path):
    from astrozoo.cli.jobs import read_job

    config = tmp_path / "run.yaml"
    config.write_text(
        "batch_size: 8\noptim:\n  lr: 0.01\n  name: lion\ndata:\n  lead: 3\n  files: [a.nc]\nmodel:\n  dropout: 0.5\n"
    )
    job = read_job(config, ["optim.lr=3e-4", "data.lead=2", "model.widths=[4, 8]", "precision=bf16"], [str(fields)])
    assert (job.train.batch_size, job.train.optim.lr, job.train.optim.name) == (8, 3e-4, "lion")
    assert job.train.precision == "bf16"
    assert (job.data.lead, job.data.files) == (2, (str(fields),))
    assert job.model == {"dropout": 0.5, "widths": (4, 8)}


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("optim.learning_rate=1", "optim.learning_rate"),
        ("batch_size=many", "batch_size"),
        ("data.leed=1", "lead"),
        ("model.width=3", "widths"),
        ("model.widths=[4,", "is no YAML"),
        ("precision", "key=value"),
    ],
)
def test_a_wrong_setting_is_named(astrozoo, fields, tmp_path, flag, said):
    result = train(astrozoo, fields, tmp_path / "run", "--set", flag)
    assert result.status == 1
    assert said in result.err
    assert not (tmp_path / "run").exists() or not any((tmp_path / "run").glob("*/model.safetensors"))


def test_training_without_data_says_how_to_give_it(astrozoo):
    result = astrozoo("train", "cube_unet_nano")
    assert result.status == 1
    assert "--data" in result.err


def test_eval_names_a_missing_variable(astrozoo, fields, tmp_path):
    run = train(astrozoo, fields, tmp_path / "run", "--json").json
    other = write_fields(tmp_path / "other.nc", variable="pressure")
    result = astrozoo("eval", run["last"], "--data", other)
    assert result.status == 1
    assert "'tas'" in result.err


def test_a_model_without_data_description_cannot_be_scored_on_files(astrozoo, fields, tmp_path):
    zoo.save_model(zoo.create_model("cube_unet_nano"), tmp_path / "bare")
    result = astrozoo("eval", tmp_path / "bare", "--data", fields)
    assert result.status == 1
    assert "without a description of its data" in result.err


@pytest.mark.parametrize("command", ["eval", "predict"])
def test_a_device_that_is_not_there_is_named(astrozoo, command, tmp_path):
    out = ("--out", tmp_path / "y.nc") if command == "predict" else ()
    result = astrozoo(command, "folder", "--data", "x.nc", *out, "--device", "warpdrive")
    assert (result.status, result.out) == (1, "")
    assert result.err.startswith("astrozoo: device is 'warpdrive', which this machine does not offer (")
    assert result.err.count("\n") == 1


@pytest.mark.parametrize("size", ["0", "-3", "many"])
def test_a_batch_has_at_least_one_sample(astrozoo, size):
    result = astrozoo("eval", "folder", "--data", "x.nc", "--batch-size", size)
    assert result.status == 2
    assert f"'{size}' is no positive integer" in result.err


def test_auto_batch_is_found_and_recorded(astrozoo, fields, tmp_path):
    flags = [word for flag in (*(f"model.{flag}" for flag in SMALL), "max_steps=2") for word in ("--set", flag)]
    command = ["train", "cube_unet_nano", "--data", fields, "--out", tmp_path / "run", *flags, "--auto-batch"]
    result = astrozoo(*command, "--json")
    assert result.status == 0, result.err
    start = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[0])
    assert start["config"]["batch_size"] == start["auto"]["samples"] == 16  # of the years that are not kept apart
    refused = astrozoo(*command, "--set", "batch_size=4")
    assert refused.status == 1
    assert "--set batch_size=4 and --auto-batch exclude each other" in refused.err
