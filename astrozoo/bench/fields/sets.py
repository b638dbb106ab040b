"""Real fields to compare on: each a task of `astrozoo.data`, made from files that the user names.

Forecasts are sequences with as many steps out as in; the other sets map one set of fields to another. The data are
small: a few hundred samples each. What the files hold and where they come from is said in the guide to the benchmark.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from astrozoo.batch import Batch
from astrozoo.data import FieldTask, MemberSplit, TimeSplit, forecast, infill, open_fields, prepare
from astrozoo.errors import DataError

__all__ = ["SETS", "FieldSet", "open_set"]

_GEOMETRY = ("sin_lat", "cos_lat", "sin_lon", "cos_lon")


@dataclass(frozen=True, kw_only=True)
class FieldSet:
    """A task and how it is reported.

    Attributes:
        name: As on the command line.
        title: For people.
        unit: Of the scores.
        leads: Names of the steps of a forecast; one empty name where there is none.
        rows: Where the latitudes of a globe lie, as `cube_sfno` wants to know it.
        task: The data.
        val, test: What is chosen by and what is scored, where they are no parts of the task.
        turns: Whether training turns the globe at random: the law to be learnt knows no longitude.
        odd: Variables that change sign where training mirrors the globe at the equator, at random: the law to be learnt
            is the same in both hemispheres. None where it is not mirrored.
        copies: Draws of the samples in a step, each turned, mirrored and hidden anew; more than 1 for single snapshots.
    """

    name: str
    title: str
    unit: str
    leads: tuple[str, ...]
    rows: str
    task: FieldTask
    val: Batch | None = None
    test: Batch | None = None
    turns: bool = False
    odd: tuple[str, ...] | None = None
    copies: int = 1

    @property
    def headline(self) -> str:
        """The score that stands for all."""
        return str(self.task.new_metrics().headline)

    @property
    def chosen_by(self) -> Any:
        """What checkpoints, learning rates and other choices go by: samples or a batch; None where there is nothing."""
        return self.task.val if self.val is None else self.val

    @property
    def scored_on(self) -> Any:
        """Samples or a batch that nothing goes by."""
        return self.task.test if self.test is None else self.test

    @property
    def forecasts(self) -> bool:
        """Whether it predicts its own inputs at later times."""
        return self.task.field_schema.task == "forecast" and self.task.field_schema.steps is not None

    @cached_property
    def start(self) -> Callable[[Batch], torch.Tensor] | None:
        """What forecasts correct: persistence or damped persistence, whichever validates better; None elsewhere."""
        if not self.forecasts:
            return None
        known = self.task.baselines()
        chosen = [known["persistence"], known["damped_persistence"]]
        return min(chosen, key=lambda forecaster: self.score(forecaster, self.chosen_by)[self.headline])

    @torch.no_grad()
    def score(self, forecaster: Any, part: Any, device: str = "cpu") -> dict[str, float]:
        """Scores in physical units on a part of the task, or on a batch."""
        if isinstance(forecaster, torch.nn.Module):
            forecaster.eval()
        metrics = self.task.new_metrics()
        if isinstance(part, Batch):
            batches = [part]
        else:
            starts = range(0, len(part), 32)
            batches = [self.task.collate(part.__getitems__(range(at, min(at + 32, len(part))))) for at in starts]
        for batch in batches:
            moved = batch.to(device)
            metrics.update(forecaster(moved), moved)
        scores: dict[str, float] = metrics.compute()
        return scores


def open_set(name: str, folder: Path) -> FieldSet:
    """The set `name`, read from the files in `folder`.

    Raises:
        DataError: A file is not there.
    """
    return SETS[name](folder)


def _ensemble(folder: Path) -> FieldSet:
    """Annual mean temperature of five runs of a climate model, 64 x 128 cells: the next three years."""
    members = ["57", "59", "60", "66", "67"]
    files = [_file(folder, f"TREFHT.B06.{member}.atm.1890-1999ANN.nc") for member in members]
    fields = open_fields(files).load()
    labels = dict(zip(members, map(str, fields["member"].values), strict=True))
    split = MemberSplit(
        train=tuple(labels[member] for member in ("57", "59", "66")), val=(labels["60"],), test=(labels["67"],)
    )
    task = forecast(fields, "TREFHT", history=3, steps=3, normalize="gridpoint", static=_GEOMETRY, split=split)
    return FieldSet(
        name="ensemble", title="annual 2 m temperature, NCAR ensemble", unit="K", leads=("1 yr", "2 yr", "3 yr"),
        rows="gauss", task=task,
    )  # fmt: skip


def _scenario(folder: Path) -> FieldSet:
    """Annual mean temperature of North America under the scenario A1B, 37 x 49 cells: warmer than any training year."""
    fields = open_fields(_file(folder, "A1B_north_america.nc"), "air_temperature").load()
    # 180 years to learn from, the last 30 of them to choose by, and the 60 years after them.
    split = TimeSplit(train=150 / 240, val=30 / 240, test=60 / 240, gap=0)
    task = forecast(
        fields, "air_temperature", history=3, steps=3, normalize="gridpoint", static=_GEOMETRY[:2], split=split
    )
    return FieldSet(
        name="scenario", title="annual temperature of North America, Met Office A1B", unit="K",
        leads=("1 yr", "2 yr", "3 yr"), rows="", task=task,
    )  # fmt: skip


def _weather(folder: Path) -> FieldSet:
    """2 m temperature of the British Isles in March 2019, 33 x 49 cells: the next day in steps of six hours."""
    with np.load(_file(folder, "era5_t2m_uk_2019-03_days01-24.npz"), allow_pickle=False) as file:
        values, lat, lon = file["t2m"], file["latitude"], file["longitude"]
    start = np.datetime64("2019-03-01T00", "ns")
    steps = len(values) // 6
    # The six series of every sixth hour, as members: all hours start a forecast, and steps are six hours.
    series = np.stack([values[hour : 6 * steps : 6] for hour in range(6)])
    times = start + np.arange(steps) * np.timedelta64(6, "h").astype("timedelta64[ns]")
    fields = xr.Dataset(
        {"t2m": (("member", "time", "lat", "lon"), series, {"units": "K"})},
        {"member": [f"{hour:02d}" for hour in range(6)], "time": times, "lat": lat, "lon": lon},
    )
    fields["t2m"].attrs["units"] = "K"
    fields = open_fields(fields)
    split = TimeSplit(train=0.65, val=0.14, test=0.21, gap=0)
    task = forecast(
        fields, "t2m", history=4, steps=4, normalize="gridpoint", static=_GEOMETRY[:2], condition="hour_of_day",
        split=split,
    )  # fmt: skip
    return FieldSet(
        name="weather", title="2 m temperature, British Isles, ERA5", unit="K", leads=("6 h", "12 h", "18 h", "24 h"),
        rows="", task=task,
    )  # fmt: skip


def _wind(folder: Path) -> FieldSet:
    """Wind from geopotential at three levels, 60 x 120 cells: learnt in July, asked in January.

    A season that was never seen is no stranger to who has seen the other hemisphere's: training mirrors the globe.
    """
    with warnings.catch_warnings():  # the file holds integers and says that NaN marks what is missing
        warnings.filterwarnings(
            "ignore", message=".*_FillValue.*", category=xr.SerializationWarning
        )  # integers with NaN
        fields = xr.open_dataset(_file(folder, "eraint_uvz.nc")).load()
    fields = fields.rename({"month": "time", "latitude": "lat", "longitude": "lon"})
    # From 241 rows between the poles to 240 of cells, so that rows north and south mirror each other.
    fields = fields.interp(lat=(fields["lat"].values[1:] + fields["lat"].values[:-1]) / 2).coarsen(lat=4, lon=4).mean()
    times = np.array(["1980-01-01", "1980-07-01"], dtype="datetime64[ns]")
    fields = open_fields(fields.assign_coords(time=times))
    # The other way round the smallest variants were chosen, so that July can judge nobody any more.
    split = TimeSplit(train=("1980-07-01", "1980-07-02"), val=0, test=("1980-01-01", "1980-01-02"), gap=0)
    task = forecast(fields, ["z"], ["u", "v"], lead=0, normalize="variable", static=_GEOMETRY[:2], split=split)
    return FieldSet(
        name="wind", title="wind from geopotential, ERA-Interim, July to January", unit="standard deviations",
        leads=("",), rows="centres", task=task, turns=True, odd=("v",), copies=4,
    )  # fmt: skip


def _planet(folder: Path) -> FieldSet:
    """The hot Jupiter HD 209458 b, temperature and wind on 16 levels and 32 x 64 cells: hidden columns."""
    from scipy.spatial import cKDTree

    with np.load(_file(folder, "hd209458b_mitgcm_cs32_it0038016000.npz"), allow_pickle=False) as file:
        cube = {name: file[name].astype(np.float64) for name in ("T", "U", "V", "XC", "YC", "AngleCS", "AngleSN", "RC")}
    lat, lon = np.linspace(-90 + 180 / 64, 90 - 180 / 64, 32), np.arange(64) * 360 / 64
    tree = cKDTree(_unit_vectors(cube["YC"].ravel(), cube["XC"].ravel()))
    mesh = np.meshgrid(lat, lon, indexing="ij")
    distance, nearest = tree.query(_unit_vectors(mesh[0].ravel(), mesh[1].ravel()), k=4)
    weight = 1 / np.maximum(distance, 1e-6)
    weight /= weight.sum(1, keepdims=True)
    levels = slice(0, 47, 3)
    east = cube["U"] * cube["AngleCS"] - cube["V"] * cube["AngleSN"]  # winds follow the faces of the cube
    north = cube["U"] * cube["AngleSN"] + cube["V"] * cube["AngleCS"]

    def regridded(values: np.ndarray) -> np.ndarray:
        flat = values[levels].reshape(len(range(47)[levels]), -1)
        return (flat[:, nearest] * weight).sum(-1).reshape(1, -1, 32, 64)

    dims = ("time", "level", "lat", "lon")
    fields = xr.Dataset(
        {
            "T": (dims, regridded(cube["T"]), {"units": "K"}),
            "u": (dims, regridded(east), {"units": "m s-1"}),
            "v": (dims, regridded(north), {"units": "m s-1"}),
        },
        {"time": [np.datetime64("2000-01-01", "ns")], "level": cube["RC"][levels] / 100, "lat": lat, "lon": lon},
    )  # fmt: skip
    fields["level"].attrs["units"] = "hPa"
    val, test = _blocks()
    # Neither is in the fields that models learn from, be it as input or as target.
    seen = open_fields(fields.where(xr.DataArray(~(val | test), dims=("lat", "lon"))))
    # What is to be filled in are columns, so that columns are what training hides.
    task = infill(seen, hidden=0.4, block=4, columns=True, split=TimeSplit(train=1.0, val=0, test=0))
    schema = task.schema()
    target = prepare(fields, schema).inputs.take(torch.tensor([0]))  # [batch, var, level, lat, lon], normalised

    def asked(columns: np.ndarray) -> Batch:
        batch = task.collate([prepare(seen, schema)[0]])
        batch.targets["y"] = torch.where(torch.tensor(columns), target, torch.nan)
        return batch

    return FieldSet(
        name="planet", title="hidden columns of HD 209458 b, MITgcm", unit="standard deviations", leads=("",),
        rows="centres", task=task, val=asked(val), test=asked(test), copies=4,
    )  # fmt: skip


def _blocks() -> tuple[np.ndarray, np.ndarray]:
    """Columns to choose by and columns to score on, `[lat, lon]`: a tenth and a quarter of the planet, in blocks.

    Not among them is a quarter by which the smallest variants were chosen: on it they would look better than they are.
    """
    chosen_by = np.random.default_rng(0).random((8, 16)) < 0.25
    rest = np.random.default_rng(1).permutation(np.flatnonzero(~chosen_by))
    masks = []
    for blocks in np.split(rest, (13, 45))[:2]:
        mask = np.zeros(128, bool)
        mask[blocks] = True
        masks.append(mask.reshape(8, 16).repeat(4, 0).repeat(4, 1))
    return masks[0], masks[1]


def _unit_vectors(lat: np.ndarray, lon: np.ndarray) -> np.ndarray:
    lat, lon = np.deg2rad(lat), np.deg2rad(lon)
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], -1)


def _file(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.is_file():
        raise DataError(f"there is no file {str(path)!r}; name the folder that holds it with --data.")
    return path


SETS: dict[str, Callable[[Path], FieldSet]] = {
    "ensemble": _ensemble,
    "scenario": _scenario,
    "weather": _weather,
    "wind": _wind,
    "planet": _planet,
}
