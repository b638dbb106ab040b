"""What every family of sequences promises, whatever is inside: lengths, roll-out, gradients, scheduled sampling."""

import pytest
import torch

from astrozoo.batch import Batch, random_batch
from astrozoo.errors import ConfigError, InputError
from astrozoo.models.cube import convlstm, simvp
from astrozoo.models.sequences import Feedback

FAMILIES = {"convlstm": convlstm.cube_convlstm_tiny, "simvp": simvp.cube_simvp_tiny}
GRID = {"level": 1, "lat": 4, "lon": 8}


@pytest.fixture(params=FAMILIES)
def variant(request):
    return FAMILIES[request.param]


def build(variant, *, jitter=True, dtype=torch.float64, **overrides):
    torch.manual_seed(0)
    fields = {"static_vars": 0, "condition_dim": 0, "dropout": 0.0, "out_steps": 4, **overrides}
    if variant.family is simvp.FAMILY:
        fields = {"block_steps": 1, "drop_path": 0.0, **fields}
    model = variant.build(variant.config(**{**variant.family.miniature, **fields}), dtype=dtype).eval()
    if jitter:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def batch_of(model, batch_size=2, **sizes):
    return random_batch(model.spec, batch_size, sizes={**GRID, **sizes}, dtype=model.dtype)


def test_dims_are_named_time_and_out_time(variant):
    spec = variant.spec()
    assert [dim.name for dim in spec.inputs[0].dims] == ["batch", "time", "var", "level", "lat", "lon"]
    assert [dim.name for dim in spec.outputs[0].dims] == ["batch", "out_time", "out_var", "level", "lat", "lon"]
    assert (spec.outputs[0].dims[1].example, spec.outputs[0].dims[1].fixed) == (4, True)
    assert spec.task == "field_forecast"


@pytest.mark.parametrize(("time", "steps"), [(1, None), (2, 1), (7, 9), (1, 9)])
def test_input_and_forecast_have_any_length(variant, time, steps):
    model = build(variant)
    y = model(**batch_of(model, time=time).inputs, steps=steps)
    assert y.shape == (2, steps or 4, 2, 1, 4, 8)
    assert y.isfinite().all()


@pytest.mark.parametrize("steps", [0, 1.5])
def test_a_forecast_without_steps_is_refused(variant, steps):
    model = build(variant)
    with pytest.raises(InputError, match=f"steps is {steps}"):
        model(**batch_of(model).inputs, steps=steps)


def test_a_longer_forecast_begins_with_the_shorter(variant):
    model = build(variant)
    inputs = batch_of(model).inputs
    torch.testing.assert_close(model(**inputs, steps=6)[:, :3], model(**inputs, steps=3))
    torch.testing.assert_close(model.rollout(**inputs, steps=6), model(**inputs, steps=6))


def test_every_step_depends_on_every_field_read(variant):
    model = build(variant)
    x = batch_of(model, time=3).inputs["x"].requires_grad_()
    y = model(x)
    for step in range(4):
        gradient = torch.autograd.grad(y[:, step].square().sum(), x, retain_graph=True)[0]
        assert gradient.abs().amax((0, 2, 3, 4, 5)).gt(0).all()


def test_the_order_of_times_matters(variant):
    model = build(variant)
    x = batch_of(model, time=3).inputs["x"]
    assert not torch.allclose(model(x), model(x.flip(1)))


def test_gradients_go_through_time_unless_detached(variant):
    model = build(variant)
    x = batch_of(model).inputs["x"].requires_grad_()
    first = model.rollout(x, 4)[:, 0].sum()
    through = torch.autograd.grad(model.rollout(x, 4)[:, 2].sum(), x)[0]
    assert through.any()
    detached = model.rollout(x, 4, detach=True)
    torch.testing.assert_close(detached, model.rollout(x, 4))
    assert torch.autograd.grad(first, x)[0].any()
    own = torch.autograd.grad(detached[:, 2].sum(), x, allow_unused=True, retain_graph=True)[0]
    assert own is None or not own.any()
    head = next(parameter for name, parameter in model.named_parameters() if name.endswith("head.weight"))
    assert torch.autograd.grad(detached[:, 2].sum(), head)[0].any()  # each step still trains the model


def test_untrained_model_predicts_the_climatology(variant):
    model = build(variant, jitter=False)
    assert not model(**batch_of(model).inputs).any()


def test_untrained_model_with_persistence_repeats_the_last_field(variant):
    model = build(variant, jitter=False, persistence=1.0)
    x = batch_of(model).inputs["x"]
    torch.testing.assert_close(model(x), x[:, -1:].expand(-1, 4, -1, -1, -1, -1))


def test_evaluation_never_looks_at_targets(variant):
    model = build(variant)
    model.truth_probability = 1.0
    batch = batch_of(model)
    expected = (model(**batch.inputs) - batch.targets["y"]).square().mean()
    torch.testing.assert_close(model.loss(batch)["loss"].double(), expected)


def test_feeding_the_truth_always_makes_every_step_a_first_one(variant):
    # With the truth fed, the prediction of step k is that of a forecast whose previous field is the true one.
    model = build(variant)
    batch = batch_of(model)
    x, truth = batch.inputs["x"], batch.targets["y"]
    y = model(x, feedback=Feedback(truth=truth, probability=1.0))
    torch.testing.assert_close(y[:, 0], model(x)[:, 0])
    assert not torch.allclose(y[:, 1], model(x)[:, 1])
    if variant.family is simvp.FAMILY:  # has no other memory
        for step in range(1, 4):
            torch.testing.assert_close(y[:, step], model(torch.cat([x, truth[:, :step]], 1), steps=1)[:, 0])


def test_a_step_depends_on_no_later_target(variant):
    model = build(variant)
    batch = batch_of(model)
    other = batch.targets["y"].clone()
    other[:, 2:] += 1
    fed = [model(**batch.inputs, feedback=Feedback(truth=y, probability=1.0)) for y in (batch.targets["y"], other)]
    torch.testing.assert_close(fed[0][:, :3], fed[1][:, :3], rtol=0, atol=0)
    assert not torch.allclose(fed[0][:, 3], fed[1][:, 3])


def test_missing_truth_is_not_fed(variant):
    model = build(variant).train()
    model.truth_probability = 1.0
    batch = batch_of(model)
    batch.targets["y"][:, :, 0, :, 1] = torch.nan
    loss = model.loss(batch)["loss"]
    loss.backward()
    assert loss.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_sampling_draws_samples_and_steps_from_the_torch_generator():
    truth, own = torch.ones(64, 8, 1, 1, 1, 1), torch.zeros(64, 8, 1, 1, 1, 1)
    feedback = Feedback(truth=truth, probability=0.25)
    torch.manual_seed(3)
    first = feedback(own, 0)
    torch.manual_seed(3)
    assert torch.equal(first, feedback(own, 0))
    assert 0.15 < first.mean() < 0.35
    assert first.mean((1, 2, 3, 4, 5)).unique().numel() > 2
    assert first.mean((0, 2, 3, 4, 5)).unique().numel() > 2


def test_training_with_sampling_is_reproducible(variant):
    model = build(variant, truth_schedule="constant", truth_start=0.5).train()
    batch = batch_of(model, 4)
    losses = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        losses.append(model.loss(batch)["loss"].item())
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("never", [0, 0, 0, 0]),
        ("constant", [0.8, 0.8, 0.8, 0.8]),
        ("linear", [0.8, 0.4, 0, 0]),
        ("exponential", [0.8, 0.08, 0.008, 0.0008]),
        ("sigmoid", [0.798, 0.4, 0.00198, 0]),
    ],
)
def test_schedules_fall_as_in_the_paper(schedule, expected):
    model = build(FAMILIES["simvp"], truth_schedule=schedule, truth_start=0.8, truth_steps=10)
    got = [float(model._next_truth_probability()) for _ in range(16)]
    torch.testing.assert_close(got[::5], [float(value) for value in expected], rtol=1e-3, atol=1e-4)


def test_the_schedule_is_part_of_the_state_and_can_be_overridden(variant):
    model = build(variant, truth_schedule="linear", truth_steps=10).train()
    batch = batch_of(model)
    for _ in range(3):
        model.loss(batch)
    model.eval().loss(batch)
    resumed = build(variant, truth_schedule="linear", truth_steps=10)
    resumed.load_state_dict(model.state_dict())
    assert float(resumed._next_truth_probability()) == pytest.approx(0.7)
    resumed.truth_probability = 0.25
    assert resumed._next_truth_probability() == 0.25


def test_targets_of_another_length_train_as_many_steps(variant):
    model = build(variant)
    batch = batch_of(model)
    longer = Batch(batch.inputs, {"y": torch.randn(2, 6, 2, 1, 4, 8, dtype=torch.float64)})
    expected = (model(**batch.inputs, steps=6) - longer.targets["y"]).square().mean()
    torch.testing.assert_close(model.loss(longer)["loss"], expected)


def test_sampling_compiles(variant):
    model = build(variant, dtype=torch.float32, out_steps=2)
    batch = batch_of(model)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for probability in (torch.tensor(1.0), torch.tensor(0.0)):  # a tensor, as schedules give: no second compilation
        feedback = Feedback(truth=batch.targets["y"], probability=probability)
        with torch.no_grad():
            torch.testing.assert_close(
                compiled(**batch.inputs, feedback=feedback), model(**batch.inputs, feedback=feedback)
            )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("out_steps", 0),
        ("feedback", 1),
        ("persistence", -0.1),
        ("persistence", True),
        ("truth_schedule", "cosine"),
        ("truth_start", 1.5),
        ("truth_steps", 0),
    ],
)
def test_a_bad_value_names_field_and_value(variant, field, value):
    with pytest.raises(ConfigError, match=rf"Config\.{field} is {value!r}; allowed: "):
        variant.config(**{field: value})


@pytest.mark.parametrize("other", [{"out_vars": 3}, {"feedback": False}])
@pytest.mark.parametrize(("field", "value"), [("persistence", 1.0), ("truth_schedule", "linear")])
def test_what_needs_feedback_says_so(variant, other, field, value):
    with pytest.raises(ConfigError, match=rf"{field} is {value!r}.*feedback=True and in_vars equal to out_vars"):
        variant.config(**{field: value, **other})


def test_truth_cannot_be_fed_where_nothing_is(variant):
    model = build(variant, out_vars=1, out_steps=1).train()
    model.truth_probability = 0.5
    with pytest.raises(ConfigError, match="feeds nothing back"):
        model.loss(batch_of(model))
