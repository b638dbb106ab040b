import dataclasses

import pytest
import torch

from astrozoo.batch import Batch, random_batch
from astrozoo.errors import ConfigError, InputError
from astrozoo.models.cube import mae, vit
from astrozoo.models.tokens import SUBSET_ATTENTIONS
from astrozoo.objectives.area import area_weights
from astrozoo.testing import assert_check

RANGES = {"tiny": (1.5, 8), "small": (8, 35), "base": (35, 130), "large": (130, 450)}


def build(*, jitter=True, dtype=torch.float64, **overrides):
    torch.manual_seed(0)
    fields = {**mae.FAMILY.miniature, "dropout": 0.0, "drop_path": 0.0, **overrides}
    model = mae.cube_mae_tiny.build(mae.cube_mae_tiny.config(**fields), dtype=dtype).eval()
    if jitter:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def inputs_of(model, **sizes):
    return random_batch(model.spec, 2, sizes=sizes or {"level": 2, "lat": 8, "lon": 8}, dtype=model.dtype).inputs


def mask_of(model, x, share=0.6):
    count = model.patches(tuple(x.shape[2:]))
    return torch.rand(x.shape[0], count, generator=torch.Generator().manual_seed(3)) < share


@pytest.mark.parametrize("size", RANGES)
def test_parameters_are_in_the_range_of_the_size(size):
    low, high = RANGES[size]
    assert low <= getattr(mae, f"cube_mae_{size}").build(device="meta").num_parameters() / 1e6 <= high


@pytest.mark.parametrize("size", RANGES)
def test_every_size_runs_at_full_size_on_meta(size):
    assert_check(getattr(mae, f"cube_mae_{size}"), "full_size")


# -- masks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ratio", "hidden"), [(0.75, 12), (0.5, 8), (0.0, 0), (0.99, 15)])
def test_as_many_patches_are_hidden_as_asked_for_but_one_stays(ratio, hidden):
    model = build(mask_ratio=ratio)
    inputs = inputs_of(model, level=1, lat=8, lon=8)
    for training in (False, True):
        mask = model.train(training)(**inputs).mask
        assert mask.shape == (2, 16)
        assert mask.sum(1).tolist() == [hidden, hidden]


def test_evaluation_hides_the_same_patches_of_all_samples_and_the_seed_chooses_them():
    model = build()
    inputs = inputs_of(model)
    mask = model(**inputs).mask
    assert torch.equal(mask[0], mask[1])
    assert torch.equal(model(**inputs).mask, mask)
    assert not torch.equal(build(mask_seed=1)(**inputs).mask, mask)


def test_training_hides_others_in_every_sample_and_step_by_torchs_seed():
    model = build().train()
    inputs = inputs_of(model)
    torch.manual_seed(5)
    first, second = model(**inputs).mask, model(**inputs).mask
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, second)
    torch.manual_seed(5)
    assert torch.equal(model(**inputs).mask, first)


def test_every_patch_is_hidden_as_often_as_any_other():
    model = build(mask_ratio=0.75).train()
    torch.manual_seed(0)
    mask, chosen = model._drawn(torch.zeros(4000, 1), (1, 8, 8))
    assert mask.double().mean(0).sub(0.75).abs().max() < 0.03
    assert torch.equal(chosen, (~mask).nonzero()[:, 1].reshape(4000, 4))
    seeds = []
    for seed in range(200):
        model.config = dataclasses.replace(model.config, mask_seed=seed)
        seeds.append(model.eval()._drawn(torch.zeros(1, 1), (1, 8, 8))[0][0])
    seeds = torch.stack(seeds)
    assert seeds.double().mean(0).sub(0.75).abs().max() < 0.12


def test_the_encoder_computes_visible_patches_only():
    model = build(mask_ratio=0.75)
    seen = []
    model.encoder.trunk.blocks[0].register_forward_hook(
        lambda _module, inputs, _output: seen.append(inputs[0].shape[1])
    )
    model(**inputs_of(model, level=2, lat=16, lon=16))
    assert seen == [16]
    assert model.patches((2, 16, 16)) == 64


@pytest.mark.parametrize("attention", SUBSET_ATTENTIONS)
def test_leaving_patches_out_equals_a_mask_that_hides_them(attention):
    model = build(attention=attention)
    inputs = inputs_of(model, level=3, lat=7, lon=10)
    drawn = model(**inputs)
    given = model(**inputs, mask=drawn.mask)
    torch.testing.assert_close(given.reconstruction, drawn.reconstruction, rtol=0, atol=1e-10)


def test_samples_may_hide_as_many_patches_as_they_like():
    model = build()
    inputs = inputs_of(model)
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[0, 3] = True
    mask[1] = True  # nothing is seen at all
    out = model(**inputs, mask=mask)
    assert torch.equal(out.mask, mask)
    assert out.reconstruction.isfinite().all()


@pytest.mark.parametrize("wrong", [torch.zeros(2, 15, dtype=torch.bool), torch.zeros(2, 16)], ids=["size", "dtype"])
def test_a_mask_that_does_not_fit_is_refused(wrong):
    model = build()
    with pytest.raises(InputError, match=r"expects mask\[batch, patch\] as bool of shape \[2, 16\]"):
        model(**inputs_of(model), mask=wrong)


# -- what is reconstructed ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("patch_norm", [False, True])
def test_visible_patches_come_back_as_they_are(patch_norm):
    model = build(patch_norm=patch_norm)
    inputs = inputs_of(model, level=3, lat=7, lon=10)
    out = model(**inputs)
    hidden = model._of_cells(out.mask, inputs["x"]).expand_as(inputs["x"])
    targets = model.targets(inputs["x"])
    assert torch.equal(out.reconstruction[~hidden], targets[~hidden])
    assert not torch.isclose(out.reconstruction[hidden], targets[hidden]).any()


@pytest.mark.parametrize("given", [False, True], ids=["drawn", "given"])
def test_what_is_hidden_is_not_read_even_if_it_is_nan(given):
    model = build()
    inputs = inputs_of(model, level=2, lat=8, lon=8)
    terms = {"mask": model(**inputs).mask} if given else {}
    out = model(**inputs, **terms)
    hidden = model._of_cells(out.mask, inputs["x"])
    gaps = {**inputs, "x": inputs["x"].masked_fill(hidden, torch.nan)}
    gappy = model(**gaps, **terms)
    torch.testing.assert_close(gappy.reconstruction, out.reconstruction, rtol=0, atol=0)
    gappy.reconstruction.square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)


def test_every_cell_of_a_patch_comes_back_at_its_place():
    # With a head that says where a cell is, the reconstruction is a map of these numbers.
    model = build(jitter=False, static_vars=0, condition_dim=0, level_patch=2, patch=2)
    with torch.no_grad():
        model.head.bias.copy_(torch.arange(16))
    x = torch.zeros(1, 2, 4, 4, 4, dtype=torch.float64)
    y = model(x, mask=torch.ones(1, 8, dtype=torch.bool)).reconstruction[0]
    level, var, lat, lon = torch.meshgrid(*(torch.arange(size) for size in (4, 2, 4, 4)), indexing="ij")
    expected = level % 2 * 8 + var * 4 + lat % 2 * 2 + lon % 2
    assert torch.equal(y.transpose(0, 1), expected.double())
    single = model(x[:, :, :1], mask=torch.ones(1, 4, dtype=torch.bool)).reconstruction[0]
    assert torch.equal(single[:, 0], expected[0].double())


def test_static_fields_of_hidden_patches_are_seen_by_the_decoder():
    model = build()
    inputs = inputs_of(model)
    mask = torch.ones(2, 16, dtype=torch.bool)
    other = {**inputs, "static": inputs["static"] + 1}
    assert not torch.allclose(model(**inputs, mask=mask)[0], model(**other, mask=mask)[0])


@pytest.mark.parametrize("attention", ["flash", "metric_bias"])
def test_rolling_longitude_and_mask_rolls_the_reconstruction(attention):
    model = build(attention=attention)
    inputs = inputs_of(model, level=2, lat=6, lon=12)
    mask = mask_of(model, inputs["x"])
    y = model(**inputs, mask=mask).reconstruction
    turned = {name: x.roll(4, -1) if x.ndim > 2 else x for name, x in inputs.items()}
    rolled = model(**turned, mask=mask.unflatten(1, (1, 3, 6)).roll(2, -1).flatten(1)).reconstruction
    torch.testing.assert_close(rolled, y.roll(4, -1), rtol=0, atol=1e-10)


# -- the loss ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("patch_norm", [False, True])
@pytest.mark.parametrize("with_lat", [False, True])
def test_loss_is_the_mean_square_over_hidden_cells(patch_norm, with_lat):
    model = build(patch_norm=patch_norm, patch=2, level_patch=2)
    inputs = inputs_of(model, level=2, lat=6, lon=8)
    lat = torch.linspace(75, -75, 6, dtype=torch.float64)
    parts = model.loss(Batch(inputs=inputs, context={"lat": lat} if with_lat else {}))
    out, x = model(**inputs), inputs["x"]
    total = weight = 0.0
    for sample in range(2):
        for number in out.mask[sample].nonzero()[:, 0].tolist():
            row, column = divmod(number, 4)
            box = (slice(2 * row, 2 * row + 2), slice(2 * column, 2 * column + 2))
            for var in range(2):
                target = x[sample, var, :, box[0], box[1]]
                if patch_norm:
                    target = (target - target.mean()) / (target.var(correction=0) + 1e-6).sqrt()
                area = area_weights(lat)[box[0]][:, None] if with_lat else torch.ones(2, 1).double()
                error = out.reconstruction[sample, var, :, box[0], box[1]] - target
                total = total + (error.square() * area).sum()
                weight = weight + area.expand_as(target).sum()
    torch.testing.assert_close(parts["loss"], total / weight)
    assert parts["hidden"].item() == pytest.approx(out.mask.double().mean().item())


def test_loss_ignores_visible_patches_and_missing_values():
    model = build()
    inputs = inputs_of(model)
    mask = model(**inputs).mask
    hidden = model._of_cells(mask, inputs["x"]).expand_as(inputs["x"])
    gaps = inputs["x"].clone()
    place = hidden.nonzero()[0].tolist()
    gaps[tuple(place)] = torch.nan
    loss = model.loss(Batch(inputs={**inputs, "x": gaps}))["loss"]
    y, x = model(**inputs).reconstruction, inputs["x"]
    keep = hidden & gaps.isfinite()
    torch.testing.assert_close(loss, (y - x)[keep].square().mean())


def test_with_nothing_hidden_the_loss_is_zero():
    model = build(mask_ratio=0.0)
    assert model.loss(Batch(inputs=inputs_of(model)))["loss"] == 0


def test_an_untrained_model_predicts_the_mean_and_loses_the_variance():
    model = build(jitter=False)
    batch = Batch(inputs=inputs_of(model))
    mask = model._of_cells(model(**batch.inputs).mask, batch.inputs["x"]).expand_as(batch.inputs["x"])
    torch.testing.assert_close(model.loss(batch)["loss"], batch.inputs["x"][mask].square().mean())


# -- pretraining -------------------------------------------------------------------------------------------------------


def pair(**overrides):
    """A pretrained `cube_mae` and a `cube_vit` configured alike."""
    pretrained = build(**overrides)
    fields = {name: value for name, value in mae.FAMILY.miniature.items() if not name.startswith("decoder")}
    fields = {**fields, "out_vars": 2, "dropout": 0.0, "drop_path": 0.0, **overrides}
    return pretrained, vit.cube_vit_tiny.build(vit.cube_vit_tiny.config(**fields), dtype=pretrained.dtype).eval()


@pytest.mark.parametrize("attention", ["flash", "linear"])
def test_the_encoder_of_a_vision_transformer_is_the_same_with_nothing_hidden(attention):
    pretrained, model = pair(attention=attention)
    inputs = inputs_of(model, level=3, lat=7, lon=10)
    model.load_encoder(pretrained)
    for name, stage in pretrained.features(**inputs).items():
        assert torch.equal(model.features(**inputs)[name], stage)
    every = torch.arange(2 * 4 * 5).expand(2, -1)
    chosen, whole = (
        encoder(inputs["x"], inputs["static"], encoder.embedded(inputs["condition"]), chosen=chosen)
        for encoder, chosen in ((pretrained.encoder, every), (model.encoder, None))
    )
    torch.testing.assert_close(chosen, whole, rtol=0, atol=1e-12)


def test_taking_over_copies_and_leaves_the_rest():
    pretrained, model = pair()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_encoder(pretrained)
    with torch.no_grad():
        pretrained.encoder.trunk.norm.weight.zero_()
    assert model.encoder.trunk.norm.weight.any()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) != name.startswith("encoder."), name


@pytest.mark.parametrize("size", RANGES)
def test_sizes_of_both_families_fit_each_other(size):
    model = getattr(vit, f"cube_vit_{size}").build(device="meta")
    pretrained = getattr(mae, f"cube_mae_{size}").build(device="meta")
    shapes = [{name: x.shape for name, x in one.encoder.state_dict().items()} for one in (model, pretrained)]
    assert shapes[0] == shapes[1]


def waves(count, seed):
    """Fields of a few travelling waves: what is hidden follows from what is seen."""
    generator = torch.Generator().manual_seed(seed)
    lon = torch.arange(8) * (2 * torch.pi / 8)
    phase = torch.rand(count, 2, 1, 1, 1, generator=generator) * 2 * torch.pi
    number = torch.tensor([1.0, 2.0]).reshape(1, 2, 1, 1, 1)
    return torch.cos(number * lon + phase).expand(-1, -1, -1, 4, -1).contiguous()


def train(model, batches, rate):
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=rate)
    losses = []
    for batch in batches:
        optimizer.zero_grad()
        loss = model.loss(batch)["loss"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_pretraining_and_fine_tuning_both_learn():
    options = {"static_vars": 0, "condition_dim": 0, "mask_ratio": 0.5}
    pretrained = build(jitter=False, dtype=torch.float32, **options)
    losses = train(pretrained, [Batch(inputs={"x": waves(16, seed)}) for seed in range(80)], rate=1e-2)
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    fields = {name: value for name, value in mae.FAMILY.miniature.items() if not name.startswith("decoder")}
    fields = {**fields, "out_vars": 2, "static_vars": 0, "condition_dim": 0}
    model = vit.cube_vit_tiny.build(vit.cube_vit_tiny.config(**fields))
    model.load_encoder(pretrained)
    x = waves(16, seed=10_000)
    tuned = train(model, [Batch(inputs={"x": x}, targets={"y": x.roll(3, -1)})] * 60, rate=3e-3)
    assert tuned[-1] < 0.5 * tuned[0]
    start, end = pretrained.encoder.state_dict(), model.encoder.state_dict()
    assert not any(torch.equal(end[name], start[name]) for name in start if "weight" in name)


# -- configuration -----------------------------------------------------------------------------------------------------


def test_the_input_is_what_comes_out():
    assert mae.CubeMAEConfig(in_vars=7).out_vars == 7
    assert mae.CubeMAEConfig(in_vars=7, out_vars=7).out_vars == 7
    with pytest.raises(ConfigError, match="as many as in_vars, 7"):
        mae.CubeMAEConfig(in_vars=7, out_vars=3)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mask_ratio", 1.0),
        ("mask_seed", -1),
        ("patch_norm", "yes"),
        ("decoder_depth", 0),
        ("decoder_heads", 3),
        ("attention", "axial"),
        ("attention", "sliding_window"),
    ],
)
def test_a_bad_value_names_field_and_value(field, value):
    with pytest.raises(ConfigError, match=f"CubeMAEConfig.{field} is {value!r}; allowed: "):
        build(**{field: value})
