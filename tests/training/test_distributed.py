from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import cases
import distributed_case
import pytest
import torch

from astrozoo.errors import ConfigError
from astrozoo.training import TrainConfig, train
from astrozoo.training import checkpoint as saved

PLACES = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(PLACES)}


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@pytest.fixture(scope="module")
def single(tmp_path_factory) -> saved.Checkpoint:
    out = tmp_path_factory.mktemp("single")
    distributed_case.run(out, "auto")
    return saved.latest_checkpoint(out / "checkpoints")


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory) -> Path:
    """Folder with the runs of both strategies; one launch for both, because starting takes longer than training."""
    out = tmp_path_factory.mktemp("two")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1",
               f"--master-port={free_port()}", distributed_case.__file__, out, "ddp", "fsdp2"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=300)
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_train_the_weights_of_one(strategy, single, two_processes):
    checkpoint = saved.latest_checkpoint(two_processes / strategy / "checkpoints")
    for group in ("model", "ema", "optimizer"):
        assert checkpoint.tensors[group].keys() == single.tensors[group].keys()
        for name, tensor in checkpoint.tensors[group].items():
            torch.testing.assert_close(tensor, single.tensors[group][name], rtol=1e-10, atol=1e-12)
    for row, expected in zip(checkpoint.state["history"], single.state["history"], strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], rel=1e-6)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_checkpoint_of_two_processes_continues_in_one(strategy, two_processes, tmp_path):
    folder = two_processes / strategy
    saved_by_two = sorted((folder / "checkpoints").iterdir())[-1]
    config = TrainConfig.from_dict(
        {
            **saved.read_checkpoint(saved_by_two).state["config"],
            "max_steps": 12,
            "distributed": {},
            "out": str(tmp_path),
        }
    )
    data = cases.Line(22, dtype=torch.float64)
    result = train(cases.net(torch.float64, dropout=0.0), data, config, resume=saved_by_two)
    assert result.steps == 12
    assert (folder / "best" / "model.safetensors").exists()


def test_sharding_needs_several_processes(data, tmp_path):
    with pytest.raises(ConfigError, match="expected several processes: start with torchrun"):
        train(cases.net(), data, TrainConfig(out=str(tmp_path), distributed={"strategy": "fsdp2"}))
