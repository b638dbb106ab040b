"""`batch_size: auto` and `accumulate: auto`."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import autobatch_case
import cases
import pytest
import torch

from astrozoo.errors import ConfigError, TrainingError
from astrozoo.training import TrainConfig, autobatch, train
from astrozoo.training import checkpoint as saved
from astrozoo.training.estimate import largest_power_of_two


def run(out: Path, model=None, **settings):
    settings = {"max_steps": 6, "device": "cpu", "ema": {"decay": 0.9}, "checkpoint": {"every": 2}, **settings}
    return train(model or cases.net(), cases.Line(augment=True), TrainConfig(out=str(out), **settings))


def started(out: Path) -> dict:
    return json.loads((out / "log.jsonl").read_text().splitlines()[0])


def runs_out_above(samples: int, monkeypatch) -> None:
    monkeypatch.setattr(cases.Net, "forward", autobatch_case.limited(samples))


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = (saved.latest_checkpoint(path / "checkpoints") for path in (one, other))
    for group in ("model", "ema", "optimizer", "rng"):
        for name, tensor in first.tensors[group].items():
            assert torch.equal(tensor, second.tensors[group][name]), f"{group}: {name}"


@pytest.mark.parametrize("room", [100, 1000, 10_000, 123_456])
def test_the_largest_power_of_two_is_found(room):
    looked = []

    def needed(size: int) -> int:
        looked.append(size)
        return 70 + 9 * size if size > 4 else 90  # little changes while the weights decide

    found = largest_power_of_two(needed, room, 2**20)
    assert needed(found) <= room < needed(2 * found)
    assert len(looked) <= 10


def test_the_largest_power_of_two_knows_its_limits():
    assert largest_power_of_two(lambda size: size, 0.5, 8) == 0
    assert largest_power_of_two(lambda size: size, 1e9, 12) == 8
    assert largest_power_of_two(lambda size: size, 1e9, 1) == 1
    assert largest_power_of_two(lambda size: 5, 5, 2**20) == 2**20  # where samples cost nothing


@pytest.mark.parametrize(("accumulate", "expected"), [(1, 16), (2, 16), (4, 16)])
def test_auto_takes_no_more_than_the_data_have(accumulate, expected, tmp_path):
    run(tmp_path, batch_size="auto", accumulate=accumulate)
    config = started(tmp_path)["config"]
    assert (config["batch_size"], config["accumulate"]) == (expected, accumulate)  # of 22 samples


def test_the_search_leaves_no_trace_in_the_training(tmp_path):
    run(tmp_path / "auto", batch_size="auto")
    run(tmp_path / "number", batch_size=16)
    assert_same_weights(tmp_path / "auto", tmp_path / "number")


def test_what_runs_out_is_halved_until_it_fits_and_the_log_says_so(tmp_path, monkeypatch):
    runs_out_above(5, monkeypatch)
    run(tmp_path, batch_size="auto", accumulate=2)
    line = started(tmp_path)
    assert line["config"]["batch_size"] == 8
    assert [(row["samples"], row["fits"]) for row in line["auto"]["tried"]] == [(8, False), (4, True)]
    assert line["auto"]["samples"] == 4
    assert 0 < line["auto"]["estimated_bytes"] < line["auto"]["available_bytes"]


def test_the_estimate_says_where_to_begin(tmp_path, monkeypatch):
    plenty = tmp_path / "plenty"
    run(plenty, batch_size="auto")
    needed = started(plenty)["auto"]["estimated_bytes"]
    monkeypatch.setattr(autobatch, "available_memory", lambda device, held=0: needed)  # of which a part stays free
    run(tmp_path / "little", batch_size="auto")
    assert [row["samples"] for row in started(tmp_path / "little")["auto"]["tried"]] == [8]


def test_accumulate_auto_keeps_the_batch_and_the_result(tmp_path, monkeypatch):
    model = {"dropout": 0.0}
    run(tmp_path / "whole", cases.net(torch.float64, **model), batch_size=12)
    runs_out_above(3, monkeypatch)
    run(tmp_path / "parts", cases.net(torch.float64, **model), batch_size=12, accumulate="auto")
    config = started(tmp_path / "parts")["config"]
    assert (config["batch_size"], config["accumulate"]) == (12, 4)
    first, second = (saved.latest_checkpoint(tmp_path / name / "checkpoints") for name in ("whole", "parts"))
    assert first.state["epoch_step"] == second.state["epoch_step"]
    for name, tensor in first.tensors["model"].items():
        torch.testing.assert_close(second.tensors["model"][name], tensor, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("settings", [{"batch_size": "auto"}, {"batch_size": 12, "accumulate": "auto"}])
def test_resuming_uses_the_numbers_of_before_and_tries_nothing(settings, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        runs_out_above(5, patch)
        run(tmp_path, max_steps=4, **settings)
    before = started(tmp_path)["config"]
    monkeypatch.setattr(autobatch, "_Search", None)  # 16 or 12 would fit now, and be another order of the data
    result = run(tmp_path, max_steps=6, **settings)
    assert result.steps == 6
    after = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    config = [line for line in after if line["event"] == "start"][-1]["config"]
    assert {key: config[key] for key in ("batch_size", "accumulate")} == {
        key: before[key] for key in ("batch_size", "accumulate")
    }


def test_not_even_one_sample_fitting_ends_the_search(tmp_path, monkeypatch):
    runs_out_above(0, monkeypatch)
    with pytest.raises(TrainingError, match="batch_size is 'auto', but not even one sample per forward pass"):
        run(tmp_path, batch_size="auto")


def test_other_errors_end_the_search_as_they_are(tmp_path):
    model = cases.net()
    model.drop = torch.nn.Linear(3, 3)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        run(tmp_path, model, batch_size="auto")


def test_a_model_that_cannot_be_estimated_is_tried_from_the_least(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise ConfigError("depends on values")

    monkeypatch.setattr(autobatch, "needed_bytes", fail)
    run(tmp_path, batch_size="auto")
    found = started(tmp_path)["auto"]
    assert (found["samples"], found["estimated_bytes"]) == (1, None)


def test_two_autos_are_refused():
    with pytest.raises(ConfigError, match="accumulate is 'auto'; expected a number where batch_size is auto"):
        TrainConfig(batch_size="auto", accumulate="auto")


def test_auto_elsewhere_than_in_training_is_an_error():
    with pytest.raises(ConfigError, match="batch_size is 'auto', which"):
        TrainConfig(batch_size="auto").batches()
    assert TrainConfig(batch_size=6, accumulate=2).batches() == (6, 2)


def test_processes_agree_on_what_the_smallest_can_do(tmp_path):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1",
               f"--master-port={port}", autobatch_case.__file__, tmp_path]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    line = started(tmp_path / "ddp")
    # Rank 1 has room for 3 samples at a time: 2 on each of 2 processes, twice in a step.
    assert (line["config"]["batch_size"], line["config"]["accumulate"]) == (8, 2)
    assert [(row["samples"], row["fits"]) for row in line["auto"]["tried"]] == [(4, False), (2, True)]
    assert re.search("fsdp2, where no process can try on its own", (tmp_path / "fsdp2.txt").read_text())
