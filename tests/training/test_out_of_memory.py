"""An out-of-memory error amid training: nothing is lost, the message says what fits, and with that one goes on."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import cases
import numpy as np
import out_of_memory_case
import pytest
import torch
import xarray as xr
from torch._subclasses.fake_tensor import FakeTensor

from astrozoo.errors import TrainingError, WeightsError
from astrozoo.training import TrainConfig, memory, train
from astrozoo.training import checkpoint as saved
from astrozoo.training.trainer import Trainer

STEPS, BATCH = 9, 4
ROOM = 100 * 2**20  # bytes for a step that needs about twice that
CUDA = torch.OutOfMemoryError("CUDA out of memory.")


def run(out: Path, **settings):
    model = cases.net(torch.float64, dropout=0.0)
    settings = {"checkpoint": {"every": 3, "keep": 9}, "ema": {"decay": 0.9}, "optim": {"lr": 0.01}, **settings}
    config = TrainConfig(out=str(out), batch_size=BATCH, max_steps=STEPS, device="cpu", **settings)
    return train(model, cases.Line(dtype=torch.float64), config)


def run_out_at(step: int, monkeypatch, *, samples: int = 0) -> None:
    """In that step (from 1) a forward pass of more than so many samples, with values in it, is too much."""
    forward, seen = cases.Net.forward, []

    def limited(self, x):
        if self.training and not isinstance(x, FakeTensor):
            seen.append(len(x))
            if len(seen) >= step and len(x) > samples:
                raise CUDA
        return forward(self, x)

    monkeypatch.setattr(cases.Net, "forward", limited)


def checkpoint_of(out: Path) -> saved.Checkpoint:
    return saved.latest_checkpoint(out / "checkpoints")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> saved.Checkpoint:
    out = tmp_path_factory.mktemp("undisturbed")
    run(out)
    return checkpoint_of(out)


@pytest.mark.parametrize("step", [2, 5, 7])  # before any checkpoint, between two, and right after one
def test_the_state_before_the_failed_step_is_kept_and_goes_on_as_advised(step, undisturbed, tmp_path, monkeypatch):
    room = []
    monkeypatch.setattr(memory, "available_memory", lambda device, held=0: room[0])
    room.append(10**9)
    needed = {  # what the advice is made of
        size: memory.needed_bytes(
            cases.net(torch.float64), memory.one_sample(cases.Line(dtype=torch.float64)), size, BATCH // size,
            TrainConfig(ema={"decay": 0.9}), type("Runtime", (), {"strategy": "single", "device": torch.device("cpu")}),
            checkpointing=False,
        ) for size in (2, 4)
    }  # fmt: skip
    room[0] = (needed[2] + needed[4]) / 2 / memory.USABLE
    with monkeypatch.context() as patch:
        run_out_at(step, patch, samples=2)
        with pytest.raises(TrainingError) as raised:
            run(tmp_path)
    said = str(raised.value)
    assert said.startswith("Out of memory on cpu with 4 samples per forward pass")
    kept = checkpoint_of(tmp_path)
    assert kept.state["step"] == step - 1
    assert f"The last checkpoint is {kept.path} and intact" in said
    assert f"goes on from step {step - 1}." in said
    accumulate = int(re.search(r"accumulate=(\d+), with the same batch_size and result", said)[1])
    assert accumulate == 2

    run_out_at(1, monkeypatch, samples=2)  # what ran out then would now, too
    result = run(tmp_path, accumulate=accumulate)
    assert result.steps == STEPS
    for group in ("model", "ema", "optimizer"):
        for name, tensor in checkpoint_of(tmp_path).tensors[group].items():
            torch.testing.assert_close(tensor, undisturbed.tensors[group][name], rtol=1e-8, atol=1e-10)


def test_running_out_in_the_first_step_leaves_nothing_that_a_changed_run_would_stumble_over(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        run_out_at(1, patch)
        with pytest.raises(TrainingError, match="No checkpoint exists yet"):
            run(tmp_path)
    assert saved.checkpoints(tmp_path / "checkpoints") == []
    config = TrainConfig(out=str(tmp_path), batch_size=2, max_steps=3, device="cpu")
    assert train(cases.net(), cases.Line(), config).steps == 3


def test_running_out_amid_the_optimiser_names_the_checkpoint_before(tmp_path, monkeypatch):
    """Some weights have been changed by then, and belong to no step."""
    update = torch.optim.AdamW.step
    calls = []

    def step(self, closure=None):
        calls.append(1)
        if len(calls) == 5:
            with torch.no_grad():
                self.param_groups[0]["params"][0].add_(1.0)
            raise CUDA
        return update(self, closure)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    with pytest.raises(TrainingError, match=r"step-00000003 and intact: .* goes on from step 3"):
        run(tmp_path)
    assert checkpoint_of(tmp_path).state["step"] == 3
    assert run(tmp_path).steps == STEPS


def test_a_state_that_cannot_be_saved_is_said_and_the_one_before_is_named(tmp_path, monkeypatch):
    write = saved.write_checkpoint

    def fail(folder, step, *args, **kwargs):
        if step == 4:
            raise WeightsError("no space left on device")
        return write(folder, step, *args, **kwargs)

    monkeypatch.setattr(saved, "write_checkpoint", fail)
    run_out_at(5, monkeypatch)
    with pytest.raises(TrainingError, match="step-00000003 and intact") as raised:
        run(tmp_path)
    assert "That of step 4 could not be saved (no space left on device)" in str(raised.value)


def test_running_out_in_the_evaluation_loses_nothing(tmp_path, monkeypatch):
    evaluate = Trainer._evaluate

    def fail(self):
        if self.step == 4:
            raise CUDA
        return evaluate(self)

    monkeypatch.setattr(Trainer, "_evaluate", fail)
    with pytest.raises(TrainingError, match="goes on from step 4"):
        run(tmp_path, evaluation={"every": 4})
    assert checkpoint_of(tmp_path).state["step"] == 4


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux holds a process to RLIMIT_AS")
def test_a_process_that_really_runs_out_ends_with_status_1_and_goes_on_with_what_it_advised(tmp_path):
    lat, lon = np.linspace(-88, 88, 64), np.arange(128) * 2.8125
    values = np.random.default_rng(0).standard_normal((100, 64, 128)).astype("float32")
    xr.Dataset(
        {"tas": (("time", "lat", "lon"), values, {"units": "K"})},
        coords={
            "time": np.datetime64("2000-01-01", "ns") + np.arange(100) * np.timedelta64(1, "D"),
            "lat": ("lat", lat, {"units": "degrees_north"}),
            "lon": ("lon", lon, {"units": "degrees_east"}),
        },
    ).to_netcdf(tmp_path / "tas.nc")
    flags = [
        "model.widths=[16,16]", "model.depths=[1,1]", "model.decoder_depths=[1]", "model.strides=[2]",
        "model.level_strides=[1]", "model.dropout=0.0", "batch_size=30", "max_steps=4", "device=cpu",
        "checkpoint.every=2",
    ]  # fmt: skip

    def command(step: int, room: int, *more: str) -> subprocess.CompletedProcess[str]:
        # Freed memory goes back to the system at once, so that a limit holds what it says.
        fixed = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
        words = [word for flag in (*flags, *more) for word in ("--set", flag)]
        return subprocess.run(
            [sys.executable, out_of_memory_case.__file__, str(step), str(room), "train", "cube_unet_nano",
             "--data", str(tmp_path / "tas.nc"), "--out", str(tmp_path / "run"), *words],
            capture_output=True, text=True, timeout=300,
            env={**os.environ, **fixed, "PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip

    failed = command(3, ROOM)
    assert failed.returncode == 1, failed.stderr
    assert "Out of memory on cpu with 30 samples per forward pass" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert checkpoint_of(tmp_path / "run").state["step"] == 3
    advised = re.search(r"accumulate=(\d+), with the same batch_size and result", failed.stderr)
    assert advised, failed.stderr
    assert 1 < int(advised[1]) <= 30

    resumed = command(0, ROOM, f"accumulate={advised[1]}")
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])["step"] == 4
