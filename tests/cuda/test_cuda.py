"""What only a GPU can show. Every test here is skipped, with that reason, where there is none."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch._dynamo.utils import counters

import astrozoo
from astrozoo import TrainConfig
from astrozoo.data import SyntheticData
from astrozoo.errors import TrainingError

# PyTorch warns on its way to a GPU (first cuBLAS call, TF32 left off); see tests/cuda/test_attention_cuda.py.
pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore"),
]

SMALL = {"in_vars": 2, "out_vars": 2, "widths": (8, 16), "depths": (1, 1), "decoder_depths": (1,), "strides": (2,)}
SMALL = {**SMALL, "level_strides": (2,)}


@pytest.fixture
def model() -> astrozoo.ZooModel:
    return astrozoo.create_model("cube_unet_nano", device="cuda", **SMALL)


class Changed:
    """Samples after `change(index, sample)`."""

    def __init__(self, samples, change):
        self.samples, self.change = samples, change

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.change(index, self.samples[index])


def halved(index, sample):
    """The model is to give half of what it gets: something it can learn."""
    return astrozoo.Batch(inputs=sample.inputs, targets={"y": sample.inputs["x"] / 2})


def poisoned(index, sample):
    """Sample 17 is NaN; it is met somewhere in the middle of the epoch."""
    return sample.map(lambda tensor: torch.full_like(tensor, torch.nan)) if index == 17 else sample


@pytest.fixture
def data(model):
    class Data:
        train = Changed(SyntheticData(model.spec, length=32, seed=0).train, halved)

    return Data()


def config(tmp_path, **settings) -> TrainConfig:
    settings = {"max_steps": 20, "batch_size": 4, "log": {"every": 5}, "out": str(tmp_path / "run"), **settings}
    return TrainConfig(device="cuda", **settings)


def rows(tmp_path, kind: str) -> list[dict]:
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["event"] == kind]


@pytest.mark.parametrize("name", astrozoo.list_models(plugin="astrozoo", max_params=1e8))
def test_gpu_and_cpu_agree(name):
    torch.manual_seed(0)
    model = astrozoo.create_model(name).eval()
    for parameter in model.parameters():  # heads start at zero; a trained model does not
        torch.nn.init.normal_(parameter, std=0.05) if parameter.ndim > 1 else None
    batch = astrozoo.example_batch(model, batch_size=1)
    with torch.no_grad():
        expected = model(**batch.inputs)
        with torch.backends.cudnn.flags(allow_tf32=False):
            result = model.cuda()(**batch.to("cuda").inputs)
    torch.testing.assert_close(result.cpu(), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_training_lowers_the_loss(model, data, tmp_path, precision, compiled):
    result = astrozoo.train(model, data, config(tmp_path, precision=precision, compile=compiled, max_steps=60))
    losses = [row["loss"] for row in rows(tmp_path, "train")]
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < losses[0]
    assert result.steps == 60


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_graphs_give_what_launching_gives(data, tmp_path, precision):
    losses = []
    counters.clear()
    for graphs in (False, True):
        torch.manual_seed(0)
        model = astrozoo.create_model("cube_unet_nano", device="cuda", **SMALL)
        settings = {"precision": precision, "compile": True, "cuda_graphs": graphs, "accumulate": 2, "max_steps": 40}
        astrozoo.train(model, data, config(tmp_path / str(graphs), **settings))
        losses.append([row["loss"] for row in rows(tmp_path / str(graphs), "train")])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4 if precision == "fp32" else 1e-2)
    assert losses[0][-1] < losses[0][0]
    assert counters["inductor"]["cudagraph_skips"] == 0


def test_a_recorded_step_is_launched_as_a_whole(model, data, tmp_path):
    settings = {"compile": True, "cuda_graphs": True, "max_steps": 12, "profile": {"after": 8, "steps": 2}}
    astrozoo.train(model, data, config(tmp_path, **settings))
    trace = (tmp_path / "run" / "profile" / "trace.json").read_text()
    assert trace.count('"cudaGraphLaunch"') >= 2 * 2  # forward and backward


def test_checkpoint_of_the_gpu_continues_where_it_stopped(model, data, tmp_path):
    stop = lambda trainer: "test" if trainer.step == 10 else None  # noqa: E731
    astrozoo.train(model, data, config(tmp_path), callbacks=[stop])
    again = astrozoo.create_model("cube_unet_nano", device="cuda", **SMALL)
    result = astrozoo.train(again, data, config(tmp_path))
    assert result.steps == 20
    assert all(torch.isfinite(parameter).all() for parameter in result.model.parameters())


def test_saved_model_loads_onto_the_gpu_bit_for_bit(model, tmp_path):
    astrozoo.save_model(model, tmp_path / "model")
    loaded = astrozoo.load_model(tmp_path / "model", device="cuda")
    for name, tensor in model.state_dict().items():
        assert loaded.state_dict()[name].is_cuda
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_nan_in_a_late_batch_is_named_and_leaves_the_weights_finite(model, data, tmp_path):
    class Data:
        train = Changed(data.train, poisoned)

    with pytest.raises(TrainingError, match="input 'x' holds NaN"):
        astrozoo.train(model, Data(), config(tmp_path, checkpoint={"every": 1}))
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    restored = astrozoo.create_model("cube_unet_nano", device="cuda", **SMALL)
    result = astrozoo.train(restored, data, config(tmp_path))
    assert result.steps == 20


def test_out_of_memory_says_what_would_fit_and_keeps_the_checkpoint(tmp_path):
    model = astrozoo.create_model("cube_unet_nano", device="cuda", **SMALL)
    data = SyntheticData(model.spec, length=64, seed=0, sizes={"lat": 256, "lon": 512, "level": 16})
    torch.cuda.set_per_process_memory_fraction(0.02)
    try:
        with pytest.raises(TrainingError, match="What helps"):
            astrozoo.train(model, data, config(tmp_path, batch_size=32))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


def test_autocast_keeps_the_output_near_float32(model):
    batch = astrozoo.example_batch(model, batch_size=2)
    model.eval()
    with torch.no_grad():
        torch.nn.init.normal_(model.head.weight, std=0.1)
        exact = model(**batch.inputs)
        for dtype in (torch.bfloat16, torch.float16):
            with torch.autocast("cuda", dtype):
                rounded = model(**batch.inputs).float()
            assert (rounded - exact).norm() / exact.norm() < 0.03
