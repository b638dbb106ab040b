from __future__ import annotations

import json

import cases
import pytest
import torch
from torch import nn

from astrozoo.batch import Batch
from astrozoo.errors import ConfigError, DataError, TrainingError
from astrozoo.training import TrainConfig, evaluate, train
from astrozoo.training import checkpoint as saved
from astrozoo.training.order import DataOrder


def settings(out, **changes) -> TrainConfig:
    return TrainConfig(**{"out": str(out), "batch_size": 4, "max_steps": 12, "device": "cpu"} | changes)


def test_training_beats_the_baseline_and_says_so(tmp_path):
    config = settings(tmp_path, max_steps=200, optim={"lr": 0.03}, evaluation={"every": 40})
    result = train(cases.net(dropout=0.0), cases.FullLine(), config)
    assert result.split == "test"
    assert result.headline == "rmse"
    assert result.metrics["rmse"] < 0.5 * result.baselines["zero"]["rmse"]
    assert "the model beats every baseline" in result.summary()
    assert result.model.preprocessing == {"variables": ["x"]}
    assert not result.model.training
    assert json.loads((tmp_path / "best" / "config.json").read_text())["preprocessing"] == {"variables": ["x"]}
    best = min(result.history, key=lambda row: row["rmse"])
    assert evaluate(result.model, cases.FullLine(), "val")["rmse"] == pytest.approx(best["rmse"], rel=1e-5)


def test_result_equals_a_hand_written_loop(data, tmp_path):
    config = settings(tmp_path, optim={"clip": None, "weight_decay": 0.0}, schedule={"name": "constant", "warmup": 0})
    train(cases.net(dropout=0.0), data, config)
    model, order = cases.net(dropout=0.0), DataOrder(22, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    for step in range(12):
        order.epoch = step // order.steps
        samples = [data.train[index] for index in list(order)[step % order.steps]]
        x = torch.stack([sample.inputs["x"] for sample in samples])
        y = torch.stack([sample.targets["y"] for sample in samples])
        optimizer.zero_grad()
        (model(x=x) - y).square().mean().backward()
        optimizer.step()
    last = saved.latest_checkpoint(tmp_path / "checkpoints").tensors["model"]
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(last[name], tensor, rtol=1e-6, atol=1e-7)


def test_accumulation_gives_the_same_weights(tmp_path):
    data = cases.Line(22, dtype=torch.float64)
    ends = []
    for accumulate in (1, 2, 3):
        config = settings(tmp_path / str(accumulate), batch_size=6, accumulate=accumulate, epochs=2)
        train(cases.net(torch.float64, dropout=0.0), data, config)
        ends.append(saved.latest_checkpoint(tmp_path / str(accumulate) / "checkpoints").tensors["model"])
    for end in ends[1:]:
        for name, tensor in end.items():
            torch.testing.assert_close(tensor, ends[0][name], rtol=1e-10, atol=1e-12)


def test_log_is_always_written(data, tmp_path):
    train(cases.net(), data, settings(tmp_path, log={"every": 4}, evaluation={"every": 6}))
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["start", "train", "eval", "train", "train", "eval", "end"]
    row = lines[1]
    assert row["step"] == 4
    for key in ("loss", "lr", "grad_norm", "samples_per_second", "memory_bytes", "time", "epoch"):
        assert row[key] >= 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_through_accelerate(data, tmp_path):
    train(cases.net(), data, settings(tmp_path, log={"every": 4, "trackers": ["tensorboard"]}))
    assert list(tmp_path.rglob("events.out.tfevents*"))


def test_unknown_tracker_is_a_config_error(data, tmp_path):
    with pytest.raises(ConfigError, match=r"log\.trackers"):
        train(cases.net(), data, settings(tmp_path, log={"trackers": ["paper"]}))


def test_early_stopping_and_callbacks_give_their_reason(data, tmp_path):
    config = settings(tmp_path / "a", max_steps=50, evaluation={"every": 1, "patience": 2, "min_delta": 1e9})
    result = train(cases.net(), data, config)
    assert (result.stopped, result.steps) == ("early stopping", 3)
    result = train(cases.net(), data, settings(tmp_path / "b"), callbacks=[lambda t: "enough" if t.step == 5 else None])
    assert (result.stopped, result.steps) == ("enough", 5)
    result = train(cases.net(), data, settings(tmp_path / "c", max_minutes=1e-9))
    assert (result.stopped, result.steps) == ("time limit", 1)


def test_ema_is_what_is_evaluated_and_saved(data, tmp_path):
    result = train(cases.net(), data, settings(tmp_path, ema={"decay": 0.9}, evaluation={"every": 12}))
    state = saved.latest_checkpoint(tmp_path / "checkpoints").tensors
    for name, tensor in result.model.state_dict().items():
        assert torch.equal(tensor, state["ema"][name])
        assert not torch.equal(tensor, state["model"][name])


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_trains_in_autocast_and_keeps_float32_weights(precision, data, tmp_path):
    result = train(
        cases.net(dropout=0.0), data, settings(tmp_path, precision=precision, max_steps=80, optim={"lr": 0.02})
    )
    assert result.model.dtype == torch.float32
    assert result.history[-1]["loss"] < result.history[0]["loss"]


def test_only_train_is_needed(tmp_path):
    class Bare:
        train = cases.Samples(9, 0)

    result = train(cases.net(), Bare(), settings(tmp_path, max_steps=3))
    assert result.metrics == {}
    assert result.best is None
    assert "3 steps, stopped: finished" in result.summary()


def test_data_without_train_or_random_access_is_refused(tmp_path):
    with pytest.raises(DataError, match="has no split 'train'"):
        train(cases.net(), object(), settings(tmp_path))

    class Stream:
        train = iter([])

    with pytest.raises(DataError, match="map-style"):
        train(cases.net(), Stream(), settings(tmp_path))
    with pytest.raises(DataError, match="is empty"):
        train(cases.net(), cases.Line(0), settings(tmp_path))
    with pytest.raises(DataError, match="no split 'test'; it has train, val"):
        evaluate(cases.net(), cases.Line())


def test_device_that_does_not_exist_is_a_config_error(data, tmp_path):
    with pytest.raises(ConfigError, match="device is 'abacus'"):
        train(cases.net(), data, settings(tmp_path, device="abacus"))


# -- the sentinel ------------------------------------------------------------------------------------------------------


class Spoilt(cases.Samples):
    def __init__(self, index: int, part: str, value: float) -> None:
        super().__init__(22, 0)
        self.spoilt, self.part, self.value = index, part, value

    def __getitem__(self, index: int) -> Batch:
        sample = super().__getitem__(index)
        if index == self.spoilt:
            tensors = getattr(sample, self.part)
            name = next(iter(tensors))
            tensors[name] = torch.full_like(tensors[name], self.value)
        return sample


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("inputs", float("nan"), "the input 'x' holds NaN"),
        ("inputs", float("inf"), "the input 'x' holds infinity"),
        ("targets", float("inf"), "the objective made of their outputs is inf"),
        ("targets", -3e30, r"; the target 'y' reaches 3e\+30, which looks like a fill value"),
    ],
)
def test_bad_data_stop_training_and_are_named(part, value, message, tmp_path):
    class Data:
        train = Spoilt(3, part, value)

    with pytest.raises(TrainingError, match=message):
        train(cases.net(), Data(), settings(tmp_path, epochs=1, checkpoint={"every": 1}))
    for path in saved.checkpoints(tmp_path / "checkpoints"):
        tensors = saved.read_checkpoint(path).tensors["model"]
        assert all(tensor.isfinite().all() for tensor in tensors.values())


class Overflow(nn.Module):
    """Finite in its first calls, then infinite forwards or in its gradient."""

    def __init__(self, calls: int, where: str) -> None:
        super().__init__()
        self.calls, self.where = calls, where

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls -= self.training
        if self.calls >= 0:
            return x
        return x * float("inf") if self.where == "forward" else (x - x.detach()).abs().sqrt() + x


@pytest.mark.parametrize(("where", "kind"), [("forward", "output"), ("backward", "gradient of its inputs")])
def test_first_bad_module_is_named_and_checkpoints_stay_good(where, kind, data, tmp_path):
    model = cases.net()
    model.drop = Overflow(5, where)
    with pytest.raises(
        TrainingError, match=rf"step 6, epoch 1: the first bad module is 'drop' \(Overflow\): non-finite {kind}"
    ):
        train(model, data, settings(tmp_path, checkpoint={"every": 2, "keep": 9}))
    assert [path.name[-1] for path in saved.checkpoints(tmp_path / "checkpoints")] == ["2", "4"]


def test_out_of_memory_says_what_helps(data, tmp_path):
    class Huge(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.empty(2**45, dtype=torch.float64)

    model = cases.net()
    model.drop = Huge()
    with pytest.raises(TrainingError, match=r"Out of memory on cpu with 4 samples .*accumulate=2, .* precision=bf16"):
        train(model, data, settings(tmp_path))


def test_overrides_need_a_name(data, tmp_path):
    with pytest.raises(ConfigError, match="overrides apply when a name is given"):
        train(cases.net(), data, settings(tmp_path), overrides={"width": 3})


def test_non_finite_loss_stops_half_precision_too(tmp_path):
    class Data:
        train = Spoilt(3, "inputs", float("nan"))

    with pytest.raises(TrainingError, match="the input 'x' holds NaN"):
        train(cases.net(), Data(), settings(tmp_path, epochs=1, precision="fp16"))


def test_nan_in_validation_inputs_is_named_and_the_log_stays_json(data, tmp_path):
    data.val.x[2] = float("nan")
    with pytest.raises(TrainingError, match=r"on the split 'val' is NaN .* the input 'x' holds NaN"):
        train(cases.net(), data, settings(tmp_path))
    for line in (tmp_path / "log.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_samples_that_are_no_batches_are_named(tmp_path):
    class Data:
        train = [(torch.zeros(3), torch.zeros(1))] * 9

    with pytest.raises(DataError, match=r"a sample is of type tuple; expected an astrozoo.Batch"):
        train(cases.net(), Data(), settings(tmp_path))
