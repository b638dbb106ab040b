"""The long run in short: that it kills, resumes and compares, and that what is wrong is seen."""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
from pathlib import Path

import pytest

pytest.importorskip("psutil", reason="comes with the extra train")
if not sys.platform.startswith("linux"):
    pytest.skip("signals and process groups as on Linux", allow_module_level=True)

from astrozoo.bench import longrun
from astrozoo.bench.faults.reference import events
from astrozoo.bench.longrun import runs
from astrozoo.bench.longrun.figures import Figures, distance, figures
from astrozoo.bench.longrun.runs import Plan, _hold_figures, _hold_metrics, _Run
from astrozoo.errors import ConfigError

SMALL = (
    "batch_size=4", "num_workers=0", "log.every=10", "model.widths=[4,8]", "model.depths=[0,1]",
    "model.decoder_depths=[1]", "model.strides=[2]", "model.level_strides=[1]",
)  # fmt: skip


def arguments(repository: Path, *words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    longrun.add_arguments(parser)
    config = str(repository / "examples" / "long_run.yaml")
    flags = [word for flag in SMALL for word in ("--set", flag)]
    data = map(str, sorted((repository / "examples" / "data").glob("*.nc")))
    return parser.parse_args(["--config", config, "--variant", "cube_unet_nano", *flags, *words, "--data", *data])


@pytest.fixture(scope="module")
def measured(repository, tmp_path_factory):
    """The comparison of a tiny model on the real files, and where its runs are."""
    folder = tmp_path_factory.mktemp("longrun")
    plan = Plan.of(arguments(repository, "--steps", "20"), folder)
    plan = type(plan)(**{**vars(plan), "fresh": False})
    return runs.measure(plan, seed=1, compare_steps=20, again=1), folder


def test_a_killed_run_ends_as_the_others_bit_for_bit(measured):
    comparison, folder = measured
    assert list(comparison.samples) == ["undisturbed", "undisturbed again", "killed and resumed"]
    assert [(target.label, target.value) for target in comparison.targets] == [
        ("number of runs that differ in a bit", 0)
    ]
    assert any(note.startswith("killed by SIGKILL after step ") for note in comparison.notes)
    out = folder / "killed-and-resumed"
    begun = [row["step"] for row in events(out, "start")]
    assert len(begun) == 2
    assert 0 < begun[1] < 20
    assert len(events(out, "train")) == len(events(folder / "undisturbed", "train"))


def test_intervals_shrink_with_the_run_and_the_table_tells_what_was_measured(measured):
    comparison, folder = measured
    config = events(folder / "undisturbed", "start")[0]["config"]
    assert (config["checkpoint"]["every"], config["evaluation"]["every"], config["log"]["every"]) == (2, 4, 1)
    row = comparison.to_dict()["rows"][0]
    assert 0 < row["data_wait"] < 1
    assert row["samples_per_second"] > 0
    assert row["host_bytes"] > 1 << 20
    headers = [column.header for column in comparison.table().columns]
    assert {"samples/s", "GPU busy", "wait for data"} <= set(headers)


def test_a_run_with_another_bit_is_seen(measured, tmp_path):
    comparison, folder = measured
    row = comparison.rows[0]
    result = {"headline": row["headline"], "metrics": row["metrics"], "history": row["history"], "steps": 20,
              "stopped": "finished"}  # fmt: skip
    whole = _Run("whole", folder / "undisturbed", result, 1.0, None)
    shutil.copytree(whole.out, tmp_path / "other")
    weights = tmp_path / "other" / "last" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    comparison.targets.clear()
    _hold_metrics(comparison, [whole, whole], _Run("other", tmp_path / "other", result, 1.0, None), exact=True)
    assert comparison.targets[-1].value == 1
    assert "other: last/model.safetensors differs" in comparison.notes


def run_of(folder: Path, name: str, factor: float) -> _Run:
    """A made-up run whose losses are a multiple of those of another."""
    (out := folder / name).mkdir()
    rows = [{"event": "train", "step": step, "loss": factor / step} for step in range(10, 101, 10)]
    (out / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = {"headline": "rmse", "metrics": {"rmse": factor, "loss": factor, "bias": 1e-9 * factor**40}, "steps": 100,
              "history": [{"step": 100, "rmse": factor, "loss": factor}]}  # fmt: skip
    return _Run(name, out, result, 1.0, None)


@pytest.mark.parametrize(("factor", "met"), [(1.0101, True), (0.991, True), (1.05, False), (float("nan"), False)])
def test_on_a_gpu_the_spread_of_two_runs_is_the_measure(measured, tmp_path, factor, met):
    comparison, _ = measured
    comparison.targets.clear()
    one, other, killed = (run_of(tmp_path, name, by) for name, by in (("a", 1.0), ("b", 1.01), ("c", factor)))
    assert distance((one.out, one.result), (other.out, other.result)) == pytest.approx(0.01 / 1.01)
    _hold_metrics(comparison, [one, other], killed, exact=False)
    assert comparison.met is met


@pytest.mark.parametrize(("factor", "met"), [(1.0009, True), (1.0011, False)])
def test_runs_that_agree_by_chance_leave_room_for_rounding(measured, tmp_path, factor, met):
    comparison, _ = measured
    comparison.targets.clear()
    one, other, killed = (run_of(tmp_path, name, by) for name, by in (("a", 1.0), ("b", 1.0), ("c", factor)))
    _hold_metrics(comparison, [one, other], killed, exact=False)
    assert comparison.met is met


def test_the_spread_is_that_of_the_two_that_are_furthest_apart(measured, tmp_path):
    comparison, _ = measured
    comparison.targets.clear()
    undisturbed = [run_of(tmp_path, name, by) for name, by in (("a", 1.0), ("b", 1.001), ("c", 1.02))]
    _hold_metrics(comparison, undisturbed, run_of(tmp_path, "d", 0.98), exact=False)
    (target,) = comparison.targets
    assert target.limit == pytest.approx(1.5 * 100 * 0.02 / 1.02)
    assert target.value == pytest.approx(2.0)


def test_runs_that_logged_other_steps_are_not_near(tmp_path):
    one, other = (run_of(tmp_path, name, 1.0) for name in "ab")
    other.result["history"] = []
    assert not distance((one.out, one.result), (other.out, other.result)) < 1e9


def test_figures_are_those_after_the_first_tenth(tmp_path):
    """A slow and leaky start does not count; later growth and a stall do."""
    rows = []
    for index, step in enumerate(range(5, 101, 5)):
        seconds = 100 * (index == 0) + index + 10 * (step > 50)
        rows.append({
            "event": "train", "step": step, "time": 1000.0 + seconds, "data_wait": 0.5 if step == 5 else 0.1,
            "gpu_utilization": None if step == 30 else 0.9,
            "gpu_peak_bytes": 1 if step < 10 else 1000 + 10 * (step > 80),
            "host_bytes": 2000 + 500 * (step % 20 == 0) + 100 * (step > 80),
        })  # fmt: skip
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = figures(tmp_path, 100, 8)
    assert found.samples_per_second == pytest.approx(90 * 8 / (18 + 10))
    assert found.data_wait == pytest.approx(0.1)
    assert found.gpu_utilization == pytest.approx(0.9)
    assert found.gpu_growth == pytest.approx(0.01)
    assert found.host_growth == pytest.approx(0.05)
    with pytest.raises(RuntimeError, match=r"lower log\.every"):
        figures(tmp_path, 1000, 8)


def test_a_gpu_is_held_to_its_targets(measured, repository, tmp_path):
    comparison, _ = measured
    comparison.targets.clear()
    plan = Plan.of(arguments(repository, "--steps", "1000", "--device", "cuda"), tmp_path)
    poor = Figures(samples_per_second=99, data_wait=0, gpu_utilization=0.84, gpu_bytes=1, gpu_growth=0.02, host_bytes=1,
                   host_growth=0.06)  # fmt: skip
    _hold_figures(comparison, _Run("poor", tmp_path, {}, 1.0, poor), plan)
    assert [target.met for target in comparison.targets] == [False] * 4
    assert "--device" not in plan.command(tmp_path, 1000)
    assert "device=cuda" in plan.command(tmp_path, 1000)


def test_a_length_that_cannot_be_measured_is_refused(repository, tmp_path):
    with pytest.raises(ConfigError, match="at least 10"):
        Plan.of(arguments(repository, "--steps", "5"), tmp_path)


class Ended:
    """A command that has ended, or never does."""

    output, errors = "a result", "CUDA is not available"

    def __init__(self, status: int | None) -> None:
        self.status, self.sent = status, []

    def wait(self, _seconds: float) -> int | None:
        return self.status

    def send(self, number: int, *, group: bool) -> None:
        self.sent.append((number, group))


@pytest.mark.parametrize(("status", "message"), [(1, "status 1.*CUDA is not"), (None, "within --minutes 30.*CUDA")])
def test_a_training_that_fails_or_hangs_says_why(repository, tmp_path, status, message):
    plan, command = Plan.of(arguments(repository), tmp_path), Ended(status)
    with pytest.raises(RuntimeError, match=message):
        runs._Conductor(plan, None, 0.0)._ended("undisturbed", tmp_path, command, 0.0, 1000)
    assert command.sent == ([(signal.SIGKILL, True)] if status is None else [])
