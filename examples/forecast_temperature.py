"""Forecast next year's temperature map with a model trained in minutes, and check that it is worth having.

    make demo                                   # or: python examples/forecast_temperature.py [--out FOLDER]

A climate model simulated 1890 to 1999 three times. From one year's annual mean 2 m temperature we forecast the next
year's. `cube_unet_nano` learns from 1890-1965, the best epoch is chosen on 1968-1979, and the scores are those of
1982-1999, which neither has seen. What has to be beaten needs no learning: persistence (next year equals this year),
climatology (the mean of the training years), and damped persistence (climatology plus a fitted fraction of this year's
departure from it).

The script leaves the model (safetensors), the forecast (NetCDF, in kelvin) and a picture, and says where.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from forecast_plot import draw

import astrozoo
from astrozoo.data import FieldTask, TimeSplit, forecast, open_fields
from astrozoo.training import TrainResult
from astrozoo.training.evaluation import evaluate_baselines

DATA = Path(__file__).parent / "data"
SPLIT = TimeSplit(train=("1890", "1965"), val=("1968", "1979"), test=("1982", "1999"))
EPOCHS, BATCH_SIZE = 12, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/forecast_temperature"), help="folder for all results")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help=f"passes over the training years ({EPOCHS})")
    arguments = parser.parse_args()
    start = time.perf_counter()

    # 1. Data: three files of one grid become an ensemble; a task is inputs, targets, normalisation and split.
    files = sorted(DATA.glob("TREFHT.B06.*.nc"))
    fields = open_fields(files)
    task = forecast(fields, inputs=["TREFHT"], lead=1, normalize="gridpoint", split=SPLIT)
    print(task)

    # 2. Training. The task knows what the model must look like; one level needs no convolution over levels.
    steps_per_epoch = -(-len(task.train) // BATCH_SIZE)
    config = astrozoo.TrainConfig(
        epochs=arguments.epochs,
        batch_size=BATCH_SIZE,
        optim={"lr": 3e-3, "weight_decay": 0.05},
        schedule={"warmup": 0.1},
        log={"every": steps_per_epoch},
        out=str(arguments.out / "training"),
    )
    single_level = {"level_kernel": 1, "level_strides": (1, 1, 1)}
    result = astrozoo.train("cube_unet_nano", task, config, overrides=single_level, resume=False)
    print(result.summary())

    # 3. Scores on the held-out years, by run: does it beat every baseline?
    report(result)

    # 4. Files: save, load, and be sure that the loaded model is the same model.
    folder = astrozoo.save_model(result.model, arguments.out / "model")
    model = astrozoo.load_model(folder)
    sample = task.collate([task.test[0]])
    with torch.inference_mode():
        assert torch.equal(model(**sample.inputs), result.model(**sample.inputs)), "the saved model differs"

    # 5. Forecast from the raw file, in kelvin, as NetCDF.
    forecast_file = arguments.out / "forecast.nc"
    astrozoo.predict(model, files[0], out=forecast_file)
    picture = arguments.out / "forecast.png"
    picture_of_last_year(picture, task, result, files[0], forecast_file)

    print(f"\nmodel     {folder}/\nforecast  {forecast_file}\npicture   {picture}")
    print(f"done in {time.perf_counter() - start:.0f} s")


def report(result: TrainResult) -> None:
    """Print the headline score of model and baselines, and what the model gains over each."""
    score = result.metrics[result.headline]
    print(f"\n{result.headline} in K on the test years {SPLIT.test[0]}-{SPLIT.test[1]}, area-weighted:")
    print(f"  {'cube_unet_nano':<20}{score:.4f}")
    for name, scores in sorted(result.baselines.items(), key=lambda item: item[1][result.headline]):
        baseline = scores[result.headline]
        print(f"  {name:<20}{baseline:.4f}   the model's error is {100 * (1 - score / baseline):.1f} % smaller")


def picture_of_last_year(path: Path, task: FieldTask, result: TrainResult, file: Path, forecast_file: Path) -> None:
    """Draw the last year of one run: truth, forecast, error, and how the model learned."""
    truth = open_fields(file)["TREFHT"].isel(time=-1).load()
    year = int(truth.time.dt.year)
    made = open_fields(forecast_file)["TREFHT"]
    predicted = made.sel(time=made.time.dt.year == year).isel(time=0)
    climatology = truth.copy(data=task.climatology["TREFHT"].squeeze())
    log = [json.loads(line) for line in (result.out / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    baselines = evaluate_baselines(task, task.val, result.model, batch_size=32)
    draw(
        path,
        truth=truth,
        forecast=predicted,
        climatology=climatology,
        title=f"Annual mean 2 m temperature of {year}, run B06.57, forecast from {year - 1}",
        history={
            "train": [row["loss"] for row in log if row["event"] == "train"],
            "val": [row["loss"] for row in result.history],
        },
        baselines={name: scores["loss"] for name, scores in baselines.items()},
    )


if __name__ == "__main__":
    main()
