from __future__ import annotations

import copy
import math
from itertools import chain, pairwise

import cases
import numpy as np
import pytest
import torch
from torch import nn

from astrozoo.batch import Batch
from astrozoo.errors import ConfigError, DataError
from astrozoo.training.config import OptimConfig, ScheduleConfig
from astrozoo.training.optim import Ema, build_optimizer, clip_gradients, learning_rate
from astrozoo.training.order import DataOrder
from astrozoo.training.sentinel import diagnose

# -- order -------------------------------------------------------------------------------------------------------------


def epoch_of(order: DataOrder) -> list[list[int]]:
    return [list(chunk) for chunk in order]


def test_epoch_visits_each_sample_once_and_epochs_differ():
    order = DataOrder(22, 4, seed=1)
    first = epoch_of(order)
    order.epoch = 1
    second = epoch_of(order)
    assert sorted(chain(*first)) == sorted(chain(*second)) == list(range(22))
    assert first != second
    assert [len(chunk) for chunk in first] == [4, 4, 4, 4, 4, 2]


def test_resuming_amid_an_epoch_yields_its_rest():
    order = DataOrder(22, 4, accumulate=2)
    whole = epoch_of(order)
    order.start = 3
    assert epoch_of(order) == whole[6:]
    assert len(order) == len(whole) - 6


def test_an_iteration_may_go_on_through_epochs():
    order = DataOrder(22, 4, accumulate=2)
    each = []
    for order.epoch in (1, 2, 3):
        each.append(list(order))
    order.epoch, order.start, order.epochs = 1, 3, 3
    assert len(order) == 3 * 12 - 6
    through = list(order)
    assert [list(chunk) for chunk in through] == [list(chunk) for chunk in chain(each[0][6:], each[1], each[2])]
    assert [chunk.seed for chunk in through] == [chunk.seed for chunk in chain(each[0][6:], each[1], each[2])]


@pytest.mark.parametrize(("accumulate", "processes"), [(1, 1), (3, 1), (1, 2), (2, 2), (2, 3)])
def test_weighted_mean_over_parts_is_the_mean_over_the_batch(accumulate, processes):
    values = np.random.default_rng(0).normal(size=22)
    whole = epoch_of(DataOrder(22, 8, seed=5))
    for step, samples in enumerate(whole):
        total = 0.0
        for rank in range(processes):
            order = DataOrder(22, 8, accumulate=accumulate, processes=processes, rank=rank, seed=5)
            chunks = epoch_of(order)[step * accumulate : (step + 1) * accumulate]
            for chunk, weight in zip(chunks, order.weights(step), strict=True):
                total += weight * values[chunk].mean() / processes  # DDP averages over processes
        assert total == pytest.approx(values[samples].mean(), abs=1e-14)


def test_batch_smaller_than_the_number_of_parts_is_an_error():
    with pytest.raises(ConfigError, match="batch_size is 3; expected at least 4"):
        DataOrder(10, 3, accumulate=2, processes=2)
    with pytest.raises(DataError, match="do not fill one batch"):
        DataOrder(3, 4, drop_last=True)


# -- optimiser, schedule, clipping, average ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "lion", "muon", "nadamw"])
def test_optimiser_lowers_the_loss_and_spares_vectors_from_decay(name):
    model = cases.net(dropout=0.0)
    optimizer = build_optimizer(model, OptimConfig(name=name, lr=1e-2))
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            assert group["weight_decay"] == (0.01 if parameter.ndim > 1 else 0.0)
    batch = cases.Line().train
    x = torch.stack([batch[index].inputs["x"] for index in range(len(batch))])
    losses = []
    for _ in range(30):
        loss = (model(x=x) - x.sum(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_unknown_optimiser_offers_the_nearest():
    with pytest.raises(ConfigError, match=r"'adammw', which no library offers. Did you mean 'adamw'"):
        build_optimizer(cases.net(), OptimConfig(name="adammw"))


def test_optimiser_refusing_an_option_says_so():
    with pytest.raises(ConfigError, match="'adamw' refuses its settings"):
        build_optimizer(cases.net(), OptimConfig(options={"speed": 3}))


@pytest.mark.parametrize("name", ["cosine", "linear", "constant", "wsd"])
def test_schedule_warms_up_and_ends_where_it_should(name):
    config = ScheduleConfig(name=name, warmup=10, final=0.1)
    rates = [learning_rate(config, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(1 / 11)
    assert max(rates) == pytest.approx(1.0, abs=0.02)
    assert all(a < b for a, b in pairwise(rates[:10]))
    assert all(a >= b for a, b in pairwise(rates[10:]))
    assert rates[-1] == pytest.approx(1.0 if name == "constant" else 0.1)
    if name == "cosine":
        assert rates[54] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 44 / 89)))
    if name == "wsd":
        assert rates[79] == 1.0 > rates[82]


@pytest.mark.parametrize("largest", [0.01, 100.0, None])
def test_clipping_equals_torch(largest):
    parameters = [nn.Parameter(torch.randn(5, 3)), nn.Parameter(torch.randn(7))]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    others = copy.deepcopy(parameters)
    for one, other in zip(parameters, others, strict=True):
        other.grad = one.grad.clone()
    norm = clip_gradients([parameter.grad for parameter in parameters], largest)
    torch.testing.assert_close(norm, nn.utils.clip_grad_norm_(others, largest or math.inf))
    for one, other in zip(parameters, others, strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_average_of_weights_follows_its_formula_and_gives_them_back():
    model = nn.Linear(2, 2)
    ema = Ema(model, 0.5)
    expected = model.weight.detach().clone()
    for step in range(5):
        with torch.no_grad():
            model.weight.add_(1.0)
        ema.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.weight.detach()
    own = model.weight.detach().clone()
    with ema.applied():
        torch.testing.assert_close(model.weight.detach(), expected)
    assert torch.equal(model.weight, own)


def test_an_absurd_input_is_named_beside_the_module_that_it_overflows():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.LayerNorm(3))
    batch = Batch({"x": torch.tensor([[1.0, 2.0, 3e30]])}, {"y": torch.zeros(1, 3)})
    found = diagnose(model, lambda batch: {"loss": model(batch.inputs["x"]).sum()}, [batch])
    assert found.startswith(
        "the first bad module is '1' (LayerNorm): non-finite output from finite inputs; the input 'x'"
    )
    assert "reaches 3e+30, which looks like a fill value" in found
