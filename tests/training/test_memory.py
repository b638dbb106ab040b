from __future__ import annotations

import functools
import re

import cases
import pytest
import torch

import astrozoo
from astrozoo.batch import Batch, random_batch
from astrozoo.errors import TrainingError
from astrozoo.training import TrainConfig, device, memory, train
from astrozoo.training.estimate import estimate

TINY = {"widths": (4, 8), "depths": (1, 1), "decoder_depths": (1,), "strides": (2,), "level_strides": (1,)}
GRID = {"level": 1, "lat": 8, "lon": 16}


class Fields:
    """Samples of the tensors that `estimate` assumes."""

    def __init__(self, model: astrozoo.ZooModel) -> None:
        batch = random_batch(model.spec, 8, sizes=GRID)
        self.train = [
            Batch(*({name: item[index] for name, item in part.items()} for part in (batch.inputs, batch.targets)))
            for index in range(8)
        ]


def run_out(error: BaseException, out, **changes) -> str:
    """What training says when the forward pass raises `error`."""
    model = astrozoo.create_model("cube_unet_nano", **TINY)

    def forward(**inputs):
        raise error

    model.forward = forward
    config = TrainConfig(out=str(out), batch_size=8, max_steps=2, device="cpu", **changes)
    with pytest.raises(TrainingError) as raised:
        train(model, Fields(model), config)
    return str(raised.value)


@functools.cache
def peak(size: int, **options) -> int:
    return estimate("cube_unet_nano", batch_size=size, sizes=GRID, overrides=TINY, **options).training_peak_bytes


CUDA = torch.OutOfMemoryError("CUDA out of memory.")
CPU = RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried to ...")


@pytest.mark.parametrize("error", [CUDA, CPU, MemoryError()], ids=["accelerator", "cpu", "python"])
def test_every_kind_of_out_of_memory_is_recognised_even_if_nothing_can_be_estimated(error, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda device, held=0: None)
    said = run_out(error, tmp_path)
    assert said.startswith("Out of memory on cpu with 8 samples per forward pass")
    assert "could not be estimated: the memory of cpu is unknown" in said
    assert "accumulate=2" in said


@pytest.mark.parametrize(
    ("error", "about_memory"),
    [
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("Unable to find a valid cuDNN algorithm to run convolution"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (TrainingError("a process could not allocate memory"), False),
    ],
    ids=str,
)
def test_libraries_that_run_out_are_understood_by_their_words(error, about_memory):
    assert memory.is_out_of_memory(error) is about_memory


def test_out_of_memory_names_the_largest_batch_that_the_estimate_lets_fit(tmp_path, monkeypatch):
    room = int(peak(5) / 0.9)
    monkeypatch.setattr(memory, "available_memory", lambda device, held=0: room)
    said = run_out(CUDA, tmp_path)
    found = re.search(
        r"at most (\d+) samples per forward pass \(accumulate=(\d+), .*? or batch_size=(\d+), in a new run\) fit;", said
    )
    size, accumulate, batch = map(int, found.groups())
    assert batch == size
    assert -(-8 // accumulate) <= size < 8
    gradients = estimate("cube_unet_nano", batch_size=1, sizes=GRID, overrides=TINY).gradient_bytes
    kept = 8 * estimate("cube_unet_nano", batch_size=1, sizes=GRID, overrides=TINY).batch_bytes
    # Accumulation adds at most the gradients of earlier micro-batches and the batch itself to one step's peak.
    assert peak(size) <= 0.9 * room < peak(size + 1) + gradients + kept
    assert "By estimate" in said
    assert "No checkpoint exists yet" in said


def test_gradient_checkpointing_is_offered_where_the_estimate_lets_it_fit(tmp_path, monkeypatch):
    with_it, without = peak(8, grad_checkpointing=True), peak(8)
    assert with_it < without
    monkeypatch.setattr(memory, "available_memory", lambda device, held=0: (with_it + without) / 2 / 0.9)
    assert "with grad_checkpointing=true all 8 fit" in run_out(CUDA, tmp_path / "a")
    monkeypatch.setattr(memory, "available_memory", lambda device, held=0: (peak(4, grad_checkpointing=True)) / 0.9)
    assert "with grad_checkpointing=true 8 do not fit either" in run_out(CUDA, tmp_path / "b")
    assert "grad_checkpointing" not in run_out(CUDA, tmp_path / "c", grad_checkpointing=True)


def test_not_even_one_sample_fitting_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda device, held=0: peak(1) // 4)
    assert "not even one sample at a time fits" in run_out(CUDA, tmp_path)


def test_other_errors_stay_what_they_are(data, tmp_path):
    model = cases.net()
    model.drop = torch.nn.Linear(3, 3)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        train(model, data, TrainConfig(out=str(tmp_path), batch_size=4, device="cpu"))


def test_memory_of_this_machine_holds_this_process():
    assert 2**26 < device.available_memory(torch.device("cpu")) < 2**50
