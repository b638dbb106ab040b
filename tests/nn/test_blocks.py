import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from astrozoo.nn import ChannelNorm, Coarsen, DropPath, FiLM, GridConv3d, Refine, half_turn, pad_grid
from astrozoo.nn.resample import fill_up
from astrozoo.nn.sphere import _pad


def initialised(module):
    torch.manual_seed(0)
    for part in reversed(list(module.modules())):  # children first, as models do
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
    return module.double()


def reference_halo(x, rows, columns, longitude, poles):
    """The value beyond the edge, cell by cell, as a person would look it up."""
    lat, lon = x.shape
    out = np.empty((lat + 2 * rows, lon + 2 * columns))
    for row in range(-rows, lat + rows):
        for column in range(-columns, lon + columns):
            c = column % lon if longitude == "periodic" else min(max(column, 0), lon - 1)
            if 0 <= row < lat:
                value = x[row, c]
            elif poles == "edge":
                value = x[min(max(row, 0), lat - 1), c]
            else:
                mirrored = -1 - row if row < 0 else 2 * lat - 1 - row
                value = (x[mirrored, (c - lon // 2) % lon] + x[mirrored, (c - (lon + 1) // 2) % lon]) / 2
            out[row + rows, column + columns] = value
    return out


@pytest.mark.parametrize("lon", [8, 7, 3, 1])
@pytest.mark.parametrize("halo", [(1, 1), (2, 1), (0, 1), (1, 0)], ids=str)
@pytest.mark.parametrize(("longitude", "poles"), [("periodic", "cross"), ("periodic", "edge"), ("regional", "edge")])
def test_halo_matches_looking_up_each_cell(lon, halo, longitude, poles):
    x = torch.randn(2, 3, 4, lon, dtype=torch.float64)
    padded = pad_grid(x, *halo, longitude=longitude, poles=poles)
    expected = reference_halo(x[1, 2].numpy(), *halo, longitude, poles)
    np.testing.assert_allclose(padded[1, 2].numpy(), expected, rtol=1e-14)


@pytest.mark.parametrize(("longitude", "poles"), [("periodic", "cross"), ("periodic", "edge"), ("regional", "edge")])
def test_a_halo_wider_than_the_grid_goes_on_around_the_globe(longitude, poles):
    x = torch.arange(8.0, dtype=torch.float64).reshape(1, 2, 4)
    padded = pad_grid(x, 5, 9, longitude=longitude, poles=poles)[0]
    for row in range(-5, 7):
        for column in range(-9, 13):
            lat, lon = row, column
            if poles == "edge":
                lat = min(max(lat, 0), 1)
            while not 0 <= lat < 2:  # over one pole after the other
                lat, lon = (-1 - lat if lat < 0 else 3 - lat), lon + 2
            lon = lon % 4 if longitude == "periodic" else min(max(lon, 0), 3)
            assert padded[row + 5, column + 9] == x[0, lat, lon]


@pytest.mark.parametrize("lon", [6, 5])
@pytest.mark.parametrize(("longitude", "poles"), [("periodic", "cross"), ("periodic", "edge"), ("regional", "edge")])
def test_gradient_of_halo_is_exact_to_second_order(lon, longitude, poles):
    x = torch.randn(1, 2, 3, lon, dtype=torch.float64, requires_grad=True)

    def function(x):
        return pad_grid(x, 1, 1, longitude=longitude, poles=poles)

    assert torch.autograd.gradcheck(function, x)
    assert torch.autograd.gradgradcheck(function, x)
    plain = torch.autograd.grad(_pad(x, 2, 1, longitude, poles).cos().sum(), x)
    ours = torch.autograd.grad(pad_grid(x, 2, 1, longitude=longitude, poles=poles).cos().sum(), x)
    torch.testing.assert_close(ours, plain)


def test_halo_works_under_vmap_and_functional_gradients():
    x = torch.randn(4, 2, 3, 6, dtype=torch.float64)
    together = torch.func.vmap(torch.func.grad(lambda x: pad_grid(x, 1, 1).square().sum()))(x)
    alone = torch.stack([torch.func.grad(lambda x: pad_grid(x, 1, 1).square().sum())(one) for one in x])
    torch.testing.assert_close(together, alone)


def test_half_a_turn_twice_is_a_whole_turn_for_even_longitudes():
    x = torch.randn(2, 10)
    torch.testing.assert_close(half_turn(half_turn(x)), x)


@pytest.mark.parametrize("level_kernel", [1, 3])
def test_a_single_level_gives_the_same_as_zeros_above_and_below(level_kernel):
    conv = initialised(GridConv3d(3, 4, longitude="periodic", poles="cross", level_kernel=level_kernel))
    x = torch.randn(2, 3, 1, 6, 8, dtype=torch.float64)
    full = F.conv3d(pad_grid(x, 1, 1), conv.weight, conv.bias, padding=(level_kernel // 2, 0, 0))
    torch.testing.assert_close(conv(x), full)


def test_a_single_level_coarsens_as_if_repeated():
    coarsen = initialised(Coarsen(3, 4, (2, 2, 2), longitude="periodic"))
    x = torch.randn(2, 3, 1, 6, 8, dtype=torch.float64)
    torch.testing.assert_close(coarsen(x), coarsen(x.expand(-1, -1, 2, -1, -1)))


def test_a_single_level_refines_to_the_first_of_two():
    refine = initialised(Refine(3, 4, (2, 2, 2)))
    x = torch.randn(2, 3, 1, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(refine(x, (1, 6, 8)), refine(x, (2, 6, 8))[:, :, :1])


@pytest.mark.parametrize("longitude", ["periodic", "regional"])
def test_coarsening_fills_up_with_what_lies_beyond(longitude):
    coarsen = initialised(Coarsen(1, 1, (2, 2, 4), longitude=longitude))
    x = torch.randn(1, 1, 3, 5, 6, dtype=torch.float64)
    east = x[..., :2] if longitude == "periodic" else x[..., -1:].expand(-1, -1, -1, -1, 2)
    filled = torch.cat([x, east], -1)
    filled = torch.cat([filled, filled[..., -1:, :]], -2)
    filled = torch.cat([filled, filled[:, :, -1:]], 2)
    torch.testing.assert_close(coarsen(x), F.conv3d(filled, coarsen.weight, coarsen.bias, stride=(2, 2, 4)))


def test_channel_norm_is_layer_norm_of_each_cell():
    norm = initialised(ChannelNorm(5))
    nn.init.normal_(norm.weight)
    x = torch.randn(2, 5, 3, 4, 6, dtype=torch.float64)
    cell = F.layer_norm(x[1, :, 2, 1, 3], (5,), norm.weight, norm.bias, norm.eps)
    torch.testing.assert_close(norm(x)[1, :, 2, 1, 3], cell)


def test_channel_norm_keeps_the_dtype_under_autocast():
    norm = initialised(ChannelNorm(4)).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert norm(torch.randn(1, 4, 2, 2, 2, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_film_starts_as_the_identity_and_then_scales_and_shifts():
    film = initialised(FiLM(3, 2))
    x, condition = torch.randn(2, 2, 1, 2, 2, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    torch.testing.assert_close(film(x, condition), x)
    nn.init.normal_(film.affine.weight)
    scale, shift = film.affine(condition).chunk(2, -1)
    expected = x * (1 + scale[:, :, None, None, None]) + shift[:, :, None, None, None]
    torch.testing.assert_close(film(x, condition), expected)
    tokens = x.movedim(1, -1)
    torch.testing.assert_close(film(tokens, condition, channels_last=True), expected.movedim(1, -1))


def test_drop_path_keeps_the_mean_and_drops_whole_samples():
    torch.manual_seed(0)
    dropped = DropPath(0.25).train()(torch.ones(4000, 2, 2))
    assert dropped.unique().tolist() == pytest.approx([0, 4 / 3])
    assert (dropped.flatten(1).std(1) == 0).all()
    assert dropped.mean() == pytest.approx(1, abs=0.03)
    assert torch.equal(DropPath(0.25).eval()(torch.ones(3)), torch.ones(3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_gradients_of_few_levels_are_finite(dtype):
    conv = initialised(GridConv3d(16, 16, longitude="periodic", poles="cross")).to(dtype)
    for _ in range(20):
        junk = [torch.full((size,), torch.nan) for size in (1000, 5000, 20000, 100000)]
        del junk  # memory the allocator is likely to hand out again
        conv.zero_grad()
        conv(torch.randn(2, 16, 2, 2, 2, dtype=dtype)).sum().backward()
        assert conv.weight.grad.isfinite().all()


@pytest.mark.parametrize("longitude", ["periodic", "regional"])
def test_filling_up_continues_the_circle_or_repeats_the_edge(longitude):
    x = torch.arange(2 * 3 * 5.0).reshape(1, 1, 2, 3, 5)
    filled = fill_up(x, (2, 2, 4), longitude=longitude)
    assert filled.shape == (1, 1, 2, 4, 8)
    assert torch.equal(filled[..., :3, :5], x)
    assert torch.equal(filled[..., 3, :], filled[..., 2, :])
    east = x[..., :3] if longitude == "periodic" else x[..., -1:].expand(*x.shape[:-1], 3)
    assert torch.equal(filled[..., :3, 5:], east)
