"""The trainer under faults: each kind once for real, and that what goes wrong is seen."""

from __future__ import annotations

import argparse
import io
import json
import random
import re
import shutil
import signal
import sys
from pathlib import Path

import pytest

pytest.importorskip("psutil", reason="comes with the extra train")
pytest.importorskip("zarr", reason="comes with the extra data")
if not sys.platform.startswith("linux"):
    pytest.skip("signals, process groups and limits as on Linux", allow_module_level=True)

from astrozoo.bench import faults as bench
from astrozoo.bench.faults import weather
from astrozoo.bench.faults.campaign import EVERY, Campaign, Outcome
from astrozoo.bench.faults.commands import Starter
from astrozoo.bench.faults.disk import disk
from astrozoo.bench.faults.kinds import KINDS, Fault, Run, Setting
from astrozoo.bench.faults.reference import Reference
from astrozoo.bench.faults.report import reliability
from astrozoo.bench.harness import report

SETTING = Setting("netcdf-checksums", False, 2)


def make_campaign(folder: Path, starter, full, **options) -> Campaign:
    options = {"steps": 20, "device": "cpu", "fresh": 0, "draw": random.Random(4), "settings": (SETTING,)} | options
    return Campaign(starter=starter, disk=full, folder=folder, **options)


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    """One fault of each kind, on the smallest training that has checkpoints to fall back to."""
    folder = tmp_path_factory.mktemp("faults")
    (folder / "output").mkdir()
    with disk(folder / "disk", "limit") as full, Starter(folder / "output") as starter:
        campaign = make_campaign(folder, starter, full)
        campaign.run(len(KINDS), list(KINDS))
    return campaign


def test_each_kind_of_fault_ends_right(campaign):
    assert sorted(outcome.kind for outcome in campaign.outcomes) == sorted(KINDS)
    wrong = [outcome for outcome in campaign.outcomes if outcome.end == "wrong"]
    assert not wrong
    assert {outcome.end for outcome in campaign.outcomes if outcome.kind in ("kill -9", "dead worker")} == {"stopped"}
    result = reliability("", campaign.outcomes, [])
    assert result.met, [str(target) for target in result.targets]


def test_a_run_with_another_weight_is_seen(campaign, tmp_path):
    reference: Reference = campaign._references[SETTING]
    shutil.copytree(reference.out, tmp_path / "run")
    assert reference.final(tmp_path / "run", reference.result) == ""
    newest = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1]
    assert reference.checkpoint(newest) == ""
    state = json.loads((newest / "state.json").read_text())
    state["files"]["ema.safetensors"]["sha256"] = "0"
    (newest / "state.json").write_text(json.dumps(state))
    assert reference.checkpoint(newest) == f"{newest.name}: ema.safetensors differ"
    metrics = {**reference.result["metrics"], "loss": 0.0}
    assert reference.final(tmp_path / "run", {**reference.result, "metrics": metrics}).startswith("metrics")
    (tmp_path / "run" / "best" / ".astrozoo-saving-x").mkdir()
    assert "is left behind" in reference.final(tmp_path / "run", reference.result)
    weights = tmp_path / "run" / "last" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert reference.final(tmp_path / "run", reference.result) == "last/model.safetensors differs"


class Ended:
    """A command that has ended."""

    def __init__(self, status, output="", errors=""):
        self.status, self.output, self.errors = status, output, errors

    def remains(self):
        return []


def said(kind: str, message: str) -> str:
    return json.dumps({"error": {"type": kind, "message": message}})


EARLY = 'Traceback (most recent call last):\n  File "<frozen runpy>", line 112\nKeyboardInterrupt\n'
IMPORTING = EARLY.replace("<frozen runpy>", "astrozoo/cli/app.py").replace("112", "12, in <module>")
LATE = 'Traceback (most recent call last):\n  File "astrozoo/cli/app.py", line 84, in main\nKeyboardInterrupt\n'
FULL = Fault("full disk", "", says="No space left")


@pytest.mark.parametrize(
    ("fault", "command", "why"),
    [
        (FULL, Ended(1, said("WeightsError", "Could not write a: No space left on device.")), ""),
        (FULL, Ended(1, said("OSError", "No space left on device.")), "OSError is none of ours"),
        (FULL, Ended(1, said("WeightsError", "No space left\non device.")), "several lines"),
        (FULL, Ended(1, said("WeightsError", "Something failed.")), "does not name it"),
        (FULL, Ended(1, "", "Traceback (most recent call last):\nKeyError: 'x'"), "with a traceback: KeyError"),
        (FULL, Ended(-9), "exit status -9"),
        (Fault("kill -9", "", statuses=(-9,)), Ended(-9, "", "Traceback\nConnectionResetError: its worker's"), ""),
        (None, Ended(1, said("WeightsError", "No space left")), "exit status 1"),
        (FULL, Ended(None), "hung"),
        (Fault("SIGTERM", "", statuses=(143,)), Ended(143), ""),
        (Fault("SIGINT", "", statuses=(130,)), Ended(-2, "", EARLY), ""),
        (Fault("SIGINT", "", statuses=(130,)), Ended(-2, "", IMPORTING), ""),
        (Fault("SIGINT", "", statuses=(130,)), Ended(1, "", f"Fatal Python error: init_import_site: x\n{EARLY}"), ""),
        (Fault("SIGINT", "", statuses=(130,)), Ended(1, "", EARLY), "with a traceback"),
        (Fault("SIGINT", "", statuses=(130,)), Ended(-2, "", LATE), "with a traceback"),
        (Fault("damaged checkpoint", "", warns="is damaged"), Ended(0), "nothing was said about the damage"),
    ],
)
def test_only_a_clear_error_is_a_clear_stop(fault, command, why, tmp_path):
    with Starter(tmp_path) as starter, disk(tmp_path / "disk", "limit") as full:
        campaign = make_campaign(tmp_path, starter, full)
        run = Run(SETTING, tmp_path / "run", tmp_path / "weather.nc", full, 20, 42)
        end, message = campaign._judge(run, None, fault, command, [])
    assert (end == "wrong") == bool(why)
    assert why in message


def test_commands_hear_ctrl_c_though_whoever_starts_them_ignores_it(tmp_path):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Starter(tmp_path) as starter:
            command = starter.start(["list"], fresh=True)
            status = Path(f"/proc/{command.pid}/status").read_text()
            command.wait(60)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    ignored = int(re.search(r"SigIgn:\s*(\w+)", status)[1], 16)
    assert not ignored & 1 << signal.SIGINT - 1


def test_the_report_counts_ends_and_fails_on_a_wrong_one():
    outcomes = [
        Outcome("kill -9", "", "", "stopped", lost=3),
        Outcome("kill -9", "", "", "stopped", lost=EVERY),
        Outcome("damaged checkpoint", "", "", "finished", lost=2 * EVERY),
        Outcome("full disk", "", "", "finished"),
    ]
    right = reliability("faults", outcomes, [])
    assert right.met
    assert right.rows()[-1] == ("all", 4, 2, 2, 0, "6.0", "10")
    stream = io.StringIO()
    assert report([right], stream=stream)
    assert "stopped clearly, resumed" in stream.getvalue()
    wrong = reliability("faults", [*outcomes, Outcome("SIGINT", "x", "y", "wrong", "hung")], [])
    assert not wrong.met
    assert "WRONG after SIGINT, x (y): hung" in wrong.notes
    assert wrong.to_dict()["faults"][-1]["message"] == "hung"
    late = reliability("faults", [Outcome("kill -9", "", "", "stopped", lost=EVERY + 1)], [])
    assert not late.met


@pytest.mark.parametrize("storage", weather.STORAGES)
@pytest.mark.parametrize("in_place", [True, False])
def test_a_value_is_set_where_it_is_said(storage, in_place, tmp_path):
    import numpy as np
    import xarray as xr

    path = tmp_path / ("weather.zarr" if storage.startswith("zarr") else "weather.nc")
    weather.write(weather.fields(), path, storage)
    what = weather.set_value(path, storage, 7, float("nan"), random.Random(0), in_place=in_place)
    with xr.open_dataset(path, engine="zarr" if path.is_dir() else "netcdf4") as dataset:
        name = what.split()[0]
        step, *_ = np.argwhere(np.isnan(dataset[name].values))[0]
        assert int(step) == 7
        assert int(dataset.isnull().sum().to_array().sum()) == 1


def test_the_benchmark_runs_from_the_command_line(monkeypatch, tmp_path):
    seen = {}

    def run(self, faults, kinds):
        seen.update(faults=faults, kinds=kinds, device=self.device, steps=self.steps)
        self.outcomes.append(Outcome(kinds[0], "", "", "stopped", lost=1))

    monkeypatch.setattr(Campaign, "run", run)
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    arguments = parser.parse_args(["--faults", "3", "--kinds", "full disk", "--disk", "limit"])
    (comparison,) = bench.run(arguments)
    assert seen == {"faults": 3, "kinds": ["full disk"], "device": "cpu", "steps": 40}
    assert comparison.met
    assert any("EFBIG" in note for note in comparison.notes)
    assert tuple(KINDS) == bench._KINDS
