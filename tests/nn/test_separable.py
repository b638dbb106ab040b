import pytest
import torch
import torch.nn.functional as F
from torch import nn

from astrozoo.errors import ConfigError
from astrozoo.nn import (
    DepthwiseCoarsen,
    DepthwiseGridConv3d,
    DepthwiseRefine,
    SelectiveDepthwise,
    area_mean,
    pad_grid,
    upkern,
)

EDGES = [("periodic", "cross"), ("periodic", "edge"), ("regional", "edge")]
GLOBE = {"longitude": "periodic", "poles": "cross"}


def initialised(module, *, jitter=0.3):
    torch.manual_seed(0)
    for part in reversed(list(module.modules())):  # children first, as models do
        if hasattr(part, "reset_parameters"):
            with torch.no_grad():
                part.reset_parameters()
    module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=jitter)
    return module


def fields(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def product_kernel(conv):
    """The 3-D kernel `[channel, 1, level, lat, lon]` that the two factors stand for."""
    planar = conv.weight[:, :, None]
    return planar if conv.level_weight is None else planar * conv.level_weight[:, None, :, None, None]


@pytest.mark.parametrize(("longitude", "poles"), EDGES)
@pytest.mark.parametrize("level_kernel", [1, 3, 5])
@pytest.mark.parametrize("levels", [1, 2, 6])
def test_is_the_depthwise_3d_convolution_with_the_product_of_its_kernels(longitude, poles, level_kernel, levels):
    conv = initialised(DepthwiseGridConv3d(3, kernel=5, level_kernel=level_kernel, longitude=longitude, poles=poles))
    x = fields(2, 3, levels, 6, 7)
    padded = pad_grid(x, 2, 2, longitude=longitude, poles=poles)
    expected = F.conv3d(padded, product_kernel(conv), conv.bias, padding=(level_kernel // 2, 0, 0), groups=3)
    torch.testing.assert_close(conv(x), expected)


def test_a_kernel_wider_than_the_globe_goes_round():
    conv = initialised(DepthwiseGridConv3d(1, kernel=7, level_kernel=1, longitude="periodic", poles="edge"))
    x = fields(1, 1, 1, 1, 2)
    columns = torch.stack([x[0, 0, 0, 0, (torch.arange(-3, 4) + lon) % 2] for lon in range(2)])
    torch.testing.assert_close(conv(x).flatten(), columns @ conv.weight.sum((0, 1, 2)) + conv.bias)


@pytest.mark.parametrize("kernel", [3, 5, 7])
def test_reaches_half_a_kernel_and_no_further(kernel):
    conv = initialised(DepthwiseGridConv3d(1, kernel=kernel, level_kernel=3, **GLOBE))
    x = torch.zeros(1, 1, 7, 16, 32, dtype=torch.float64)
    x[0, 0, 3, 8, 16] = 1
    touched = (conv(x) - conv.bias).abs().gt(1e-12)[0, 0].nonzero()
    half = kernel // 2
    assert touched.amin(0).tolist() == [2, 8 - half, 16 - half]
    assert touched.amax(0).tolist() == [4, 8 + half, 16 + half]


@pytest.mark.parametrize(("longitude", "poles"), EDGES)
@pytest.mark.parametrize("stride", [(2, 2), (1, 2), (2, 4), (3, 1)], ids=str)
@pytest.mark.parametrize("sizes", [(4, 8, 12), (1, 8, 8), (5, 7, 9)], ids=str)
def test_coarsening_is_a_strided_convolution_centred_on_the_coarse_cell(longitude, poles, stride, sizes):
    conv = initialised(DepthwiseCoarsen(2, stride, kernel=5, level_kernel=3, longitude=longitude, poles=poles))
    x = fields(2, 2, *sizes)
    level, space = stride
    coarse = [-(-size // step) for size, step in zip(sizes, (level, space, space), strict=True)]
    padded = pad_grid(
        x, 2 + space, 2 + space, longitude=longitude, poles=poles
    )  # more than enough to the south and east
    padded = F.pad(padded, (0, 0, 0, 0, 1, 1 + coarse[0] * level - sizes[0]))
    padded = padded[..., space : space + 4 + coarse[1] * space, space : space + 4 + coarse[2] * space]
    expected = F.conv3d(padded, product_kernel(conv), conv.bias, stride=(level, space, space), groups=2)
    assert list(expected.shape[2:]) == coarse
    torch.testing.assert_close(conv(x), expected)


@pytest.mark.parametrize("stride", [(2, 2), (1, 2), (2, 4), (3, 1)], ids=str)
@pytest.mark.parametrize("kernel", [3, 5, 7])
def test_refining_is_the_transpose_of_coarsening(stride, kernel):
    # <coarsen(x), y> = <x, refine(y)>, away from the poles, where halos are mirrored and kernels are not.
    down = initialised(DepthwiseCoarsen(2, stride, kernel=kernel, level_kernel=3, **GLOBE))
    up = initialised(DepthwiseRefine(2, stride, kernel=kernel, level_kernel=3, **GLOBE))
    up.load_state_dict(down.state_dict())
    with torch.no_grad():
        down.bias.zero_()
        up.bias.zero_()
    level, space = stride
    x, y = fields(1, 2, 2 * level, 12 * space, 4 * space), fields(1, 2, 2, 12, 4)
    y[..., :4, :] = y[..., -4:, :] = 0
    torch.testing.assert_close((down(x) * y).sum(), (x * up(y, x.shape[2:])).sum())


@pytest.mark.parametrize("sizes", [(1, 7, 9), (5, 8, 11)], ids=str)
def test_refining_crops_to_the_sizes_wanted_and_a_single_level_stays_one(sizes):
    up = initialised(DepthwiseRefine(3, (2, 2), kernel=5, level_kernel=3, **GLOBE))
    x = fields(2, 3, *(-(-size // 2) for size in sizes))
    y = up(x, sizes)
    assert y.shape == (2, 3, *sizes)
    if sizes[0] == 1:  # as the first of two levels, above and below which lie zeros
        torch.testing.assert_close(y, up(x, (2, *sizes[1:]))[:, :, :1])


@pytest.mark.parametrize("make", [DepthwiseCoarsen, DepthwiseRefine])
def test_north_and_south_east_and_west_are_treated_alike(make):
    conv = initialised(make(2, (1, 2), kernel=5, level_kernel=1, **GLOBE))
    mirrored = initialised(make(2, (1, 2), kernel=5, level_kernel=1, **GLOBE))
    with torch.no_grad():
        mirrored.weight.copy_(conv.weight.flip((2, 3)))
    x = fields(1, 2, 1, 6, 8)
    sizes = () if make is DepthwiseCoarsen else ((1, 12, 16),)
    torch.testing.assert_close(mirrored(x.flip((3, 4)), *sizes).flip((3, 4)), conv(x, *sizes))


@pytest.mark.parametrize("module", [DepthwiseGridConv3d, DepthwiseCoarsen, DepthwiseRefine])
def test_an_even_kernel_is_refused_with_its_size(module):
    stride = () if module is DepthwiseGridConv3d else ((2, 2),)
    with pytest.raises(ConfigError, match=f"kernel of {module.__name__} is 4; allowed: an odd"):
        module(3, *stride, kernel=4, level_kernel=3, **GLOBE)


# -- kernels chosen for each sample ------------------------------------------------------------------------------------


def selective(**options):
    return initialised(SelectiveDepthwise(4, kernels=(7, 5, 3), level_kernel=3, **GLOBE), **options)


def test_selective_kernel_is_one_kernel_per_sample_mixed_by_a_softmax():
    module = selective()
    x = fields(3, 4, 2, 6, 10)
    y = module(x)
    for sample in range(3):
        one = x[sample : sample + 1]
        seen = sum(area_mean(branch(one), poles="cross").mean(-1)[0] for branch in module.branches)
        hidden = (module.squeeze.weight @ seen + module.squeeze.bias).clamp(min=0)
        logits = (module.choose.weight @ hidden + module.choose.bias).reshape(3, 4)
        shares = logits.exp() / logits.exp().sum(0)  # [branch, channel]
        kernel = sum(
            share[:, None, None, None, None] * F.pad(product_kernel(branch), (pad, pad, pad, pad))
            for share, branch, pad in zip(shares, module.branches, (0, 1, 2), strict=True)
        )
        bias = sum(share * branch.bias for share, branch in zip(shares, module.branches, strict=True))
        expected = F.conv3d(pad_grid(one, 3, 3), kernel, bias, padding=(1, 0, 0), groups=4)
        torch.testing.assert_close(y[sample : sample + 1], expected)


def test_a_fresh_selective_kernel_is_the_mean_of_its_branches():
    module = selective(jitter=0)
    x = fields(2, 4, 1, 6, 8)
    torch.testing.assert_close(module(x), sum(branch(x) for branch in module.branches) / 3)


def test_samples_choose_for_themselves_and_shares_sum_to_one():
    module = selective()
    x = torch.cat([fields(1, 4, 2, 6, 8), 3 + fields(1, 4, 2, 6, 8)])
    shares = module.shares([branch(x) for branch in module.branches])
    assert shares.shape == (2, 3, 4)
    torch.testing.assert_close(shares.sum(1), torch.ones(2, 4, dtype=torch.float64))
    assert not torch.allclose(shares[0], shares[1], atol=1e-2)


# -- larger kernels from smaller ones ----------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [DepthwiseGridConv3d, DepthwiseCoarsen, DepthwiseRefine])
def test_upkern_is_the_trilinear_stretch_of_the_3d_kernel(make):
    stride = () if make is DepthwiseGridConv3d else ((2, 2),)
    small, large = (
        initialised(make(3, *stride, kernel=kernel, level_kernel=level_kernel, **GLOBE))
        for kernel, level_kernel in ((3, 3), (7, 5))
    )
    large.load_state_dict(upkern(large, small.state_dict()))
    old = product_kernel(small)
    new = product_kernel(large)
    stretched = F.interpolate(old, new.shape[2:], mode="trilinear") * (old[0].numel() / new[0].numel())
    torch.testing.assert_close(new, stretched)
    torch.testing.assert_close(large.bias, small.bias)


def test_upkern_answers_smooth_fields_much_as_before():
    small, large = (initialised(DepthwiseGridConv3d(8, kernel=kernel, level_kernel=1, **GLOBE)) for kernel in (5, 7))
    with torch.no_grad():  # averages with some structure
        small.weight.copy_(1 + 0.3 * torch.randn_like(small.weight))
    large.load_state_dict(upkern(large, small.state_dict()))
    lon = torch.arange(64, dtype=torch.float64) * (2 * torch.pi / 64)
    x = (lon.cos() + 2).expand(1, 8, 1, 32, 64)
    before, after = small(x), large(x)
    assert ((after - before).square().mean() / before.square().mean()).sqrt() < 0.05


def test_upkern_takes_over_what_has_no_kernel_and_grows_every_branch():
    def model(kernels):
        depthwise = SelectiveDepthwise(4, kernels=kernels, level_kernel=3, **GLOBE)
        return initialised(nn.ModuleDict({"depthwise": depthwise, "conv": nn.Conv3d(4, 2, 1)}))

    small, large = model((5, 3)), model((9, 5))
    grown = upkern(large, small.state_dict())
    large.load_state_dict(grown)
    assert grown["depthwise.branches.1.weight"].shape == (4, 1, 5, 5)
    assert torch.equal(large.conv.weight, small.conv.weight)
    assert torch.equal(large.depthwise.branches[0].level_weight, small.depthwise.branches[0].level_weight)


def test_upkern_refuses_models_that_differ_in_more():
    small = initialised(DepthwiseGridConv3d(4, kernel=3, level_kernel=3, **GLOBE))
    large = initialised(DepthwiseGridConv3d(4, kernel=5, level_kernel=3, **GLOBE))
    wider = initialised(DepthwiseGridConv3d(6, kernel=5, level_kernel=3, **GLOBE))
    planar = initialised(DepthwiseGridConv3d(4, kernel=5, level_kernel=1, **GLOBE))
    for model, state, named in ((wider, small, "weight"), (planar, small, "level_weight"), (small, large, "weight")):
        with pytest.raises(ConfigError, match=f"first '{named}'"):
            upkern(model, state.state_dict())
