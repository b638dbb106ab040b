"""Memory on a GPU: estimates against what the allocator saw, the search for a batch, and running out of it."""

from __future__ import annotations

import gc
import json
import re

import pytest
import torch

import astrozoo
from astrozoo.bench import memory
from astrozoo.data import SyntheticData
from astrozoo.errors import TrainingError
from astrozoo.training import TrainConfig
from astrozoo.training import checkpoint as saved
from astrozoo.training.device import available_memory

# PyTorch warns on its way to a GPU (first cuBLAS call, TF32 left off); see tests/cuda/test_attention_cuda.py.
pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore"),
]

MIB = 2**20
SMALL = {
    "in_vars": 2, "out_vars": 2, "widths": (16, 32), "depths": (1, 1), "decoder_depths": (1,), "strides": (2,),
    "level_strides": (2,), "dropout": 0.0,
}  # fmt: skip
GRID = {"level": 8, "lat": 64, "lon": 128}


@pytest.fixture
def little_room():
    """`little_room(bytes)` takes all but so much of the GPU, as another program would."""
    taken = []

    def take(left: int) -> None:
        gc.collect()
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info()[0]
        assert free > left, f"the GPU has {free:,} bytes free, the test needs {left:,}"
        taken.append(torch.empty(free - left, dtype=torch.uint8, device="cuda"))

    yield take
    taken.clear()
    gc.collect()
    torch.cuda.empty_cache()


def model(**changes):
    torch.manual_seed(0)
    return astrozoo.create_model("cube_unet_nano", **{**SMALL, **changes})


def data(length: int = 64):
    class Data:
        def __init__(self) -> None:
            made = SyntheticData(model().spec, length=length, sizes=GRID)
            self.train, self.collate = made.train, made.collate

    return Data()


def needed(batch: int) -> int:
    found = astrozoo.estimate("cube_unet_nano", batch_size=batch, sizes=GRID, overrides=SMALL, device="cuda")
    return found.training_peak_bytes


def log(tmp_path) -> list[dict]:
    return [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("family", memory.FAMILIES)
def test_estimated_peak_is_near_the_measured_one(family, precision):
    row = memory.compare(memory.Case(f"{family}_tiny", 16, precision, "adamw", False, "cuda"))
    assert row["ratio"] == pytest.approx(1, abs=0.15)


def test_memory_that_others_hold_is_not_offered(little_room):
    little_room(2**30)
    assert available_memory(torch.device("cuda")) == pytest.approx(2**30, rel=0.05)
    assert available_memory(torch.device("cuda"), held=MIB) - available_memory(torch.device("cuda")) == MIB


def test_auto_batch_finds_what_real_steps_need(tmp_path, little_room):
    little_room(int(1.5 * needed(16)) + 256 * MIB)
    config = TrainConfig(out=str(tmp_path), batch_size="auto", max_steps=3, device="cuda")
    result = astrozoo.train(model(), data(), config)
    assert result.steps == 3
    start = log(tmp_path)[0]
    found = start["auto"]
    assert found["samples"] == start["config"]["batch_size"]
    assert 8 <= found["samples"] <= 32
    fitting = [row for row in found["tried"] if row["fits"]]
    assert fitting[-1]["samples"] == found["samples"]
    assert fitting[-1]["peak_bytes"] <= found["available_bytes"]
    assert found["estimated_bytes"] == pytest.approx(fitting[-1]["peak_bytes"], rel=0.3)  # cuBLAS takes its room here


def test_the_search_on_a_gpu_leaves_no_trace_in_the_training(tmp_path):
    shared = {"max_steps": 2, "device": "cuda", "log": {"every": 1}}
    astrozoo.train(model(), data(16), TrainConfig(out=str(tmp_path / "auto"), batch_size="auto", **shared))
    size = log(tmp_path / "auto")[0]["config"]["batch_size"]
    astrozoo.train(model(), data(16), TrainConfig(out=str(tmp_path / "number"), batch_size=size, **shared))
    first, second = (saved.latest_checkpoint(tmp_path / name / "checkpoints") for name in ("auto", "number"))
    for name, tensor in first.tensors["rng"].items():
        assert torch.equal(tensor, second.tensors["rng"][name]), name
    losses = [[row["loss"] for row in log(tmp_path / name) if row["event"] == "train"] for name in ("auto", "number")]
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-5)  # the same weights and samples


def test_running_out_keeps_the_state_and_what_is_advised_goes_on(tmp_path, little_room):
    """The GPU fills up while the training runs, as when another program starts."""
    batch, filled = 32, []

    def fill(trainer):
        if trainer.step == 4:
            little_room(needed(batch) // 2)
            filled.append(trainer.step)

    settings = {"out": str(tmp_path), "batch_size": batch, "max_steps": 8, "device": "cuda", "checkpoint": {"every": 3}}
    with pytest.raises(TrainingError) as raised:
        astrozoo.train(model(), data(), TrainConfig(**settings), callbacks=[fill])
    said = str(raised.value)
    assert filled == [4]
    assert said.startswith("Out of memory on cuda")
    kept = saved.latest_checkpoint(tmp_path / "checkpoints")
    assert kept.state["step"] == 4
    assert f"{kept.path} and intact" in said
    del raised
    advised = int(re.search(r"accumulate=(\d+), with the same batch_size and result", said)[1])
    result = astrozoo.train(model(), data(), TrainConfig(**settings, accumulate=advised))
    assert result.steps == 8
    assert all(torch.isfinite(parameter).all() for parameter in result.model.parameters())
