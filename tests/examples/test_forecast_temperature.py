"""The example runs from raw files to picture. That it beats its baselines is for `make demo` to show."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import xarray as xr


def test_example_leaves_model_forecast_and_picture(repository: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(repository / "examples" / "forecast_temperature.py"), "--epochs", "1", "--out", "results"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    out = tmp_path / "results"
    assert {"config.json", "model.safetensors"} <= {path.name for path in (out / "model").iterdir()}
    assert (out / "forecast.png").stat().st_size > 50_000
    with xr.open_dataset(out / "forecast.nc") as made:
        assert made["TREFHT"].attrs["units"] == "K"
        assert 200 < float(made["TREFHT"].min()) < float(made["TREFHT"].max()) < 320
    for baseline in ("persistence", "climatology", "damped_persistence"):
        assert f"  {baseline} " in done.stdout


def test_data_notice_names_every_file(repository: Path) -> None:
    notice = (repository / "examples" / "data" / "README.md").read_text(encoding="utf-8")
    for path in (repository / "examples" / "data").glob("*.nc"):
        assert path.name in notice
