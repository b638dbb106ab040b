"""The module `ring`; the function below it is tested in test_ring_core.py."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import astrozoo
from astrozoo.attention.flash import flash
from astrozoo.attention.ring import ring
from astrozoo.errors import BackendUnavailableError, UnsupportedArgument


def test_two_processes_give_outputs_and_weight_gradients_of_one():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    case = Path(__file__).with_name("ring_module_case.py")
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1",
         f"--master-port={port}", case],
        capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_one_process_is_attention_on_the_backend_chain():
    options = {"dim": 16, "num_heads": 2, "rope": True, "causal": True}
    alone, plain = ring.build(**options), flash.build(**options)
    alone.load_state_dict(plain.state_dict())
    x = torch.randn(2, 9, 16)
    torch.testing.assert_close(alone(x), plain(x), rtol=0, atol=0)
    assert alone.last_choice.backend == "sdpa"


def test_world_without_processes_says_how_to_start_them():
    attention = ring.build(dim=16, num_heads=2, group="world")
    with pytest.raises(BackendUnavailableError, match="start with torchrun"):
        attention(torch.randn(1, 4, 16))


def test_dropout_over_processes_is_refused():
    with pytest.raises(UnsupportedArgument, match="leave dropout at 0"):
        ring.build(dim=16, num_heads=2, group="world", dropout=0.1)


def test_unknown_layout_is_refused():
    with pytest.raises(astrozoo.ConfigError, match="allowed: 'zigzag', 'contiguous'"):
        ring.build(dim=16, num_heads=2, layout="zag")
