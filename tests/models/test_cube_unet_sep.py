from functools import partial

import pytest
import torch
from miniatures import inputs_of, miniature

from astrozoo.errors import ConfigError, InputError
from astrozoo.models.cube import unet_sep
from astrozoo.nn import SelectiveDepthwise, pad_grid

RANGES = {"tiny": (1.5, 8), "small": (8, 35), "base": (35, 130), "large": (130, 450)}
ONE = {
    "widths": (8,), "depths": (1,), "decoder_depths": (), "strides": (), "level_strides": (), "expansions": (2,),
}  # fmt: skip
DEEP = {
    "widths": (8, 12, 16),
    "depths": (1, 1, 1),
    "decoder_depths": (1, 1),
    "strides": (2, 2),
    "level_strides": (2, 1),
    "kernels": (5, 7, 5),
    "branches": (1, 2, 2),
    "expansions": (2, 2, 3),
}


build = partial(miniature, unet_sep.cube_unet_sep_tiny)


@pytest.mark.parametrize("size", RANGES)
def test_parameters_are_in_the_range_of_the_size(size):
    low, high = RANGES[size]
    assert low <= getattr(unet_sep, f"cube_unet_sep_{size}").build(device="meta").num_parameters() / 1e6 <= high


@pytest.mark.parametrize("lat", [16, 13])
@pytest.mark.parametrize("lon", [24, 12])
@pytest.mark.parametrize("steps", [1, -1])
def test_rolling_longitude_rolls_output(lat, lon, steps):
    model = build(**DEEP)
    inputs = inputs_of(model, level=5, lat=lat, lon=lon)
    rolled = {name: x.roll(4 * steps, -1) if x.ndim > 2 else x for name, x in inputs.items()}
    torch.testing.assert_close(model(**rolled), model(**inputs).roll(4 * steps, -1), rtol=0, atol=1e-10)


def test_a_regional_grid_has_edges():
    model = build(longitude="regional", poles="edge")
    inputs = inputs_of(model, level=2, lat=8, lon=16)
    rolled = {name: x.roll(4, -1) if x.ndim > 2 else x for name, x in inputs.items()}
    assert not torch.allclose(model(**rolled), model(**inputs).roll(4, -1))


@pytest.mark.parametrize(("level", "lat", "lon"), [(1, 4, 4), (1, 7, 9), (3, 5, 32), (8, 17, 25)])
def test_any_grid_comes_back_at_its_size(level, lat, lon):
    model = build(**DEEP)
    y = model(**inputs_of(model, level=level, lat=lat, lon=lon))
    assert y.shape == (2, 2, level, lat, lon)
    assert y.isfinite().all()


def test_a_grid_below_the_minimum_names_the_dimension():
    with pytest.raises(InputError, match="lat is 8, the smallest accepted is 16"):
        unet_sep.cube_unet_sep_small.build()(torch.zeros(1, 5, 1, 8, 32))


def test_untrained_model_predicts_the_climatology():
    model = build(jitter=False)
    assert not model(**inputs_of(model, level=2, lat=8, lon=16)).any()


@pytest.mark.parametrize("kernel", [3, 5, 9])
def test_one_block_sees_as_far_as_half_its_kernel(kernel):
    model = build(**ONE, kernels=(kernel,), branches=(1,))
    inputs = inputs_of(model, level=1, lat=16, lon=32)
    moved = {**inputs, "x": inputs["x"].clone()}
    moved["x"][0, :, 0, 8, 16] += 1
    near = ((model(**moved) - model(**inputs)).abs()[0].amax(0)[0] > 1e-12).nonzero()
    half = kernel // 2 + 1  # and one cell of the stem
    assert (near.amin(0).tolist(), near.amax(0).tolist()) == ([8 - half, 16 - half], [8 + half, 16 + half])


def test_a_wider_kernel_costs_next_to_no_parameters():
    sizes = [
        unet_sep.cube_unet_sep_small.build(
            unet_sep.cube_unet_sep_small.config(kernels=(kernel,) * 5), device="meta"
        ).num_parameters()
        for kernel in (5, 9)
    ]
    assert sizes[1] < 1.05 * sizes[0]


def test_blocks_choose_among_kernels_where_branches_say_so():
    model = build(**DEEP)
    chosen = {
        name: [branch.weight.shape[-1] for branch in module.branches]
        for name, module in model.named_modules()
        if isinstance(module, SelectiveDepthwise)
    }
    assert chosen == {
        "encoder.1.0.depthwise": [7, 5],
        "encoder.2.0.depthwise": [5, 3],
        "decoder.0.0.depthwise": [7, 5],
    }


def test_a_model_with_larger_kernels_starts_from_a_trained_one_with_smaller():
    small = build(**{**DEEP, "kernels": (3, 5, 5)})
    large = build(**{**DEEP, "kernels": (5, 7, 7)})
    inputs = inputs_of(small, level=2, lat=16, lon=32)
    for name in ("x", "static"):  # smooth, as fields of a planet are: means of 9 x 9 cells
        inputs[name] = 9 * pad_grid(inputs[name], 4, 4).unfold(-2, 9, 1).unfold(-2, 9, 1).mean((-1, -2))
    before = small(**inputs)
    same = {name: tensor for name, tensor in small.state_dict().items() if "depthwise" not in name}
    large.load_state_dict(same, strict=False)
    drawn = large(**inputs)  # all as in the small model, but kernels drawn anew
    large.load_smaller_kernels(small.state_dict())
    torch.testing.assert_close(large.stem.fields.weight, small.stem.fields.weight, rtol=0, atol=0)
    assert (large(**inputs) - before).square().mean() < 0.5 * (drawn - before).square().mean()


def test_starting_from_larger_kernels_or_another_width_is_refused():
    small, large, wide = build(), build(kernels=(7, 5)), build(widths=(8, 24))
    for model, state in ((small, large), (wide, small)):
        with pytest.raises(ConfigError, match="upkern grows depthwise kernels"):
            model.load_smaller_kernels(state.state_dict())


def test_condition_acts_in_every_block():
    model = build()
    model(**inputs_of(model, level=2, lat=8, lon=16)).sum().backward()
    blocks = [module for module in model.modules() if isinstance(module, unet_sep.SeparableBlock)]
    assert len(blocks) == 3
    assert all(block.perceptron.film.affine.weight.grad.any() for block in blocks)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kernels", (5, 4)),
        ("kernels", (5,)),
        ("kernels", 5),
        ("branches", (3, 1)),
        ("branches", (0, 1)),
        ("expansions", (2, 0)),
        ("expansions", (2, 2, 2)),
        ("widths", ()),
        ("level_kernel", 5),
    ],
)
def test_a_bad_value_names_field_and_value(field, value):
    with pytest.raises(ConfigError, match="allowed: ") as error:
        build(**{field: value})
    assert f"CubeUNetSepConfig.{field} is {value!r}" in str(error.value)
