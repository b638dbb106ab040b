import dataclasses
from functools import partial

import pytest
import torch
from miniatures import inputs_of, miniature
from torch.func import functional_call

from astrozoo import load_model, save_model
from astrozoo.batch import Batch, random_batch
from astrozoo.errors import ConfigError
from astrozoo.models.cube import nas
from astrozoo.nn import BilevelStep, architecture_gradient
from astrozoo.nn.mixed import OPERATIONS

RANGES = {"small": (8, 35), "base": (35, 130)}
SINGLE = {"widths": (8,), "depths": (1,), "decoder_depths": (), "strides": (), "level_strides": ()}
PLAIN = {"in_vars": 1, "out_vars": 1, "static_vars": 0, "condition_dim": 0, "level_kernel": 1}


build = partial(miniature, nas.cube_nas_small)


@pytest.fixture
def model():
    return build()


@pytest.fixture
def one_thread():
    """Many tiny tensors: threads that wait for each other take most of the time on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("size", RANGES)
def test_parameters_are_in_the_range_of_the_size(size):
    low, high = RANGES[size]
    assert low <= getattr(nas, f"cube_nas_{size}").build(device="meta").num_parameters() / 1e6 <= high


# -- the grid ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("lat", "lon"), [(16, 24), (13, 12)])
@pytest.mark.parametrize("discrete", [False, True], ids=["supernet", "discrete"])
def test_rolling_longitude_rolls_output(lat, lon, discrete):
    model = build(
        operations=tuple(OPERATIONS),
        widths=(8, 12, 16),
        depths=(1, 2, 1),
        decoder_depths=(1, 1),
        strides=(2, 2),
        level_strides=(2, 1),
    )
    model = model.derive() if discrete else model
    inputs = inputs_of(model, level=3, lat=lat, lon=lon)
    rolled = {name: x.roll(4, -1) if x.ndim > 2 else x for name, x in inputs.items()}
    assert type(model).longitude_step(model.config) == 4
    torch.testing.assert_close(model(**rolled), model(**inputs).roll(4, -1), rtol=0, atol=1e-10)


def test_a_regional_grid_has_edges():
    model = build(longitude="regional", poles="edge")
    inputs = inputs_of(model, level=2, lat=8, lon=16)
    rolled = {name: x.roll(4, -1) if x.ndim > 2 else x for name, x in inputs.items()}
    assert not torch.allclose(model(**rolled), model(**inputs).roll(4, -1))


@pytest.mark.parametrize(("level", "lat", "lon"), [(1, 2, 2), (1, 7, 9), (3, 5, 64), (2, 33, 49)])
@pytest.mark.parametrize("edges", [("periodic", "cross"), ("regional", "edge")], ids="-".join)
def test_any_grid_comes_back_at_its_size(level, lat, lon, edges):
    model = build(operations=tuple(OPERATIONS), longitude=edges[0], poles=edges[1])
    y = model(**inputs_of(model, level=level, lat=lat, lon=lon))
    assert y.shape == (2, 2, level, lat, lon)
    assert y.isfinite().all()


def test_levels_exchange_only_where_an_operation_reads_them():
    for operation, reach in (("sep5", 0), ("column", 2), ("conv3", 1)):
        cell = (operation, "none")
        model = build(**SINGLE, nodes=1, genotype=(cell,), **{**PLAIN, "level_kernel": 3})
        # The stem alone reads one level to either side.
        inputs = inputs_of(model, level=9, lat=8, lon=8)
        moved = inputs["x"].clone()
        moved[:, :, 4] += 1
        changed = (model(moved) - model(**inputs)).abs().amax((0, 1, 3, 4)) > 1e-12
        expected = [abs(level - 4) <= 1 + reach for level in range(9)]
        assert changed.tolist() == expected, operation


# -- the supernet --------------------------------------------------------------------------------------------------


def test_untrained_model_predicts_the_climatology():
    assert not build(jitter=0)(**inputs_of(build())).any()


def test_all_candidates_start_with_nearly_equal_shares():
    for shares in build(jitter=0).shares().values():
        torch.testing.assert_close(shares, torch.full_like(shares, 1 / 7), rtol=0, atol=1e-3)


def test_a_supernet_that_is_sure_equals_the_network_it_derives(model):
    with torch.no_grad():
        for table in model.architecture.values():
            best = [1 + index % 6 for index in range(len(table))]
            best[2] = 0  # of three edges into the second inner node this one is none
            table.copy_(torch.nn.functional.one_hot(torch.tensor(best), 7) * 60.0)
    discrete = model.derive()
    assert discrete.config.genotype[0] == ("identity", "mean3", "none", "sep5", "dil3")
    inputs = inputs_of(model, level=3, lat=6, lon=10)
    torch.testing.assert_close(discrete(**inputs), model(**inputs), rtol=0, atol=1e-9)


def test_the_rule_keeps_the_strongest_edges_and_never_none(model):
    tables = {}
    for kind, table in model.architecture.items():
        logits = torch.zeros_like(table)
        logits[:, 0] = 5.0  # none is the strongest everywhere
        logits[0, 3], logits[1, 1] = 1.0, 2.0  # into the first inner node: conv3, identity
        logits[2, 4], logits[3, 5], logits[4, 6] = 3.0, 2.0, 4.0  # into the second: sep5, dil3 (weakest), column
        tables[kind] = logits
    with torch.no_grad():
        for kind, logits in tables.items():
            model.architecture[kind].copy_(logits)
    assert model.genotype() == (("conv3", "identity", "sep5", "none", "column"),) * 2


def test_every_weight_of_a_discrete_network_gets_a_gradient(model):
    discrete = model.derive()
    discrete(**inputs_of(discrete, level=3)).square().sum().backward()
    assert [name for name, value in discrete.named_parameters() if value.grad is None or not value.grad.any()] == []


def test_a_discrete_network_has_its_own_copy_and_no_architecture(model):
    discrete = model.derive()
    own = {value.data_ptr() for value in model.parameters()}
    assert not own & {value.data_ptr() for value in discrete.parameters()}
    assert discrete.architecture_parameters() == []
    assert discrete.num_parameters() < model.num_parameters()
    assert dataclasses.replace(discrete.config, genotype=()) == model.config
    with pytest.raises(ConfigError, match="discrete already"):
        discrete.derive()
    with pytest.raises(ConfigError, match="no architecture parameters"):
        BilevelStep(discrete)


def test_weights_and_architecture_are_all_parameters(model):
    both = {id(value) for value in (*model.weight_parameters(), *model.architecture_parameters())}
    assert both == {id(value) for value in model.parameters()}
    assert len(model.architecture_parameters()) == 2


def test_a_discrete_network_saves_and_loads_by_itself(model, tmp_path):
    discrete = model.derive()
    save_model(discrete, tmp_path / "model")
    loaded = load_model(tmp_path / "model").eval()
    assert loaded.config == discrete.config
    inputs = inputs_of(discrete)
    assert torch.equal(loaded(**inputs), discrete(**inputs))


# -- the search ----------------------------------------------------------------------------------------------------


def east(x):
    return x.roll(4, -1)


def upwards(x):
    return torch.nn.functional.pad(x, (0, 0, 0, 0, 2, 0))[:, :, :-2]


def planted(law, *, seed):
    """Fields, and what a law that the search does not know makes of them."""
    x = torch.randn(8, 1, 1 if law is east else 6, 6, 12, generator=torch.Generator().manual_seed(seed))
    return Batch({"x": x}, {"y": law(x)})


@pytest.mark.parametrize("unrolled", [True, False], ids=["unrolled", "first-order"])
@pytest.mark.parametrize(("law", "operation"), [(east, "dil5"), (upwards, "column")])
@pytest.mark.usefixtures("one_thread")
def test_search_finds_the_planted_operation(unrolled, law, operation):
    # The stem reads one cell and level to either side, so that the law is beyond all candidates but one.
    plain = {**PLAIN, "level_kernel": 3, "operations": ("none", "identity", "sep3", operation)}
    model = build(**SINGLE, **plain, nodes=1, kept_edges=1, jitter=0, dtype=torch.float32).train()
    step = BilevelStep(
        model,
        weights=torch.optim.Adam(model.weight_parameters(), lr=2e-2),
        architecture=torch.optim.Adam(model.architecture_parameters(), lr=2e-2, betas=(0.5, 0.999)),
        unrolled=unrolled,
    )
    losses = [step(planted(law, seed=2 * i), planted(law, seed=2 * i + 1))["validation"] for i in range(60)]
    assert losses[-1] < 0.7 * losses[0]
    chosen = [name for name in model.genotype()[0] if name != "none"]
    assert chosen == [operation]


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_the_unrolled_gradient_is_the_exact_second_order_one(rate):
    model = build(**{**PLAIN, "level_kernel": 3})
    batches = [random_batch(model.spec, 2, sizes={"level": 2, "lat": 4, "lon": 6}, seed=seed) for seed in (0, 1)]
    train, validation = (batch.to(dtype=torch.float64) for batch in batches)
    names = [name for name, _ in model.named_parameters() if not name.startswith("architecture.")]
    weights, architecture = model.weight_parameters(), model.architecture_parameters()

    def loss_at(batch, values):
        y = functional_call(model, dict(zip(names, values, strict=True)), kwargs=batch.inputs)
        return (y - batch.targets["y"]).square().mean()

    gradient = torch.autograd.grad(loss_at(train, weights), weights, create_graph=True)
    ahead = [weight - rate * value for weight, value in zip(weights, gradient, strict=True)]
    exact = torch.autograd.grad(loss_at(validation, ahead), architecture)

    before = {name: value.clone() for name, value in model.state_dict().items()}
    _, got = architecture_gradient(model, train, validation, rate=rate, difference=1e-4)
    torch.testing.assert_close(got, list(exact), rtol=1e-5, atol=1e-9)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    if rate:
        _, first_order = architecture_gradient(model, train, validation, rate=0.0)
        assert not torch.allclose(first_order[0], exact[0], rtol=1e-2)


def test_dropout_is_the_same_in_both_gradients_of_the_difference():
    model = build(**{**PLAIN, "level_kernel": 3}, dropout=0.5).train()
    batch = random_batch(model.spec, 2, sizes={"level": 2, "lat": 4, "lon": 6}, dtype=torch.float64)
    wide, narrow = (
        architecture_gradient(model, batch, batch, rate=0.3, difference=difference)[1]
        for difference in (1e-3, 1e-5)
        if torch.manual_seed(0) is not None
    )
    torch.testing.assert_close(wide, narrow, rtol=1e-3, atol=1e-6)


def test_a_step_moves_weights_and_architecture_and_leaves_no_gradient(model):
    before = {name: value.clone() for name, value in model.named_parameters()}
    batch = random_batch(model.spec, 2, sizes={"level": 2, "lat": 4, "lon": 6}, dtype=torch.float64)
    losses = BilevelStep(model)(batch, batch)
    assert set(losses) == {"loss", "validation"}
    assert [name for name, value in model.named_parameters() if torch.equal(value, before[name])] == []
    assert all(value.grad is None for value in model.parameters())


# -- configuration -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("nodes", 0),
        ("nodes", 3),
        ("depths", (0, 1)),
        ("operations", ("none",)),
        ("operations", ("sep3", "sep3")),
        ("operations", ("sep4",)),
        ("kept_edges", 0),
        ("genotype", (("sep3",) * 5,)),
        ("genotype", (("sep3",) * 4,) * 2),
        ("genotype", (("sep3", "none", "none", "none", "none"),) * 2),
        ("genotype", (("sep3", "none", "sep9", "none", "none"),) * 2),
    ],
)
def test_a_bad_value_names_field_and_value(field, value):
    with pytest.raises(ConfigError, match="allowed: ") as error:
        build(**{field: value})
    named = "widths" if (field, value) == ("nodes", 3) else field
    assert f"CubeNASConfig.{named} is " in str(error.value)


def test_lists_from_a_file_become_tuples():
    genotype = [["sep3", "none", "conv3", "none", "none"]] * 2
    config = build(genotype=genotype, operations=["none", "sep3"]).config
    assert config.genotype == tuple(tuple(cell) for cell in genotype)
    assert config.operations == ("none", "sep3")
