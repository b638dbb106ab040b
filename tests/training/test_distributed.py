from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import cases
import pytest
import torch

from astrozoo.training import TrainConfig, train
from astrozoo.training import checkpoint as saved

SCRIPT = Path(__file__).with_name("distributed_case.py")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parent)}


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@pytest.fixture(scope="module")
def single(tmp_path_factory) -> saved.Checkpoint:
    out = tmp_path_factory.mktemp("single")
    done = subprocess.run(
        [sys.executable, SCRIPT, out, "auto", "10"], capture_output=True, text=True, env=ENVIRONMENT, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return saved.latest_checkpoint(out / "checkpoints")


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_train_the_weights_of_one(strategy, single, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1",
               f"--master-port={free_port()}", SCRIPT, tmp_path, strategy]  # fmt: skip
    done = subprocess.run([*command, "10"], capture_output=True, text=True, env=ENVIRONMENT, timeout=180)
    assert done.returncode == 0, done.stderr
    checkpoint = saved.latest_checkpoint(tmp_path / "checkpoints")
    for group in ("model", "ema", "optimizer"):
        assert checkpoint.tensors[group].keys() == single.tensors[group].keys()
        for name, tensor in checkpoint.tensors[group].items():
            torch.testing.assert_close(tensor, single.tensors[group][name], rtol=1e-10, atol=1e-12)
    for row, expected in zip(checkpoint.state["history"], single.state["history"], strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], rel=1e-6)

    # The checkpoint of two processes continues in one, and the models are ordinary models.
    data = cases.Line(22, dtype=torch.float64)
    config = TrainConfig.from_dict({**checkpoint.state["config"], "max_steps": 12, "distributed": {}})
    result = train(cases.net(torch.float64, dropout=0.0), data, config)
    assert result.steps == 12
    assert (tmp_path / "best" / "model.safetensors").exists()
