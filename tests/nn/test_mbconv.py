import pytest
import torch
import torch.nn.functional as F

from astrozoo.nn import MBConv, ResidualBlock, SqueezeExcitation

GLOBE = {"longitude": "periodic", "poles": "cross"}


def made(block, *, alpha=0.3):
    torch.manual_seed(0)
    block = block.double().eval()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.copy_(torch.randn_like(parameter) * alpha)
    return block


@pytest.mark.parametrize("poles", ["cross", "edge"])
def test_squeeze_and_excitation_scales_by_a_function_of_the_means(poles):
    block = made(SqueezeExcitation(6, 3, poles=poles))
    x = torch.randn(2, 6, 2, 4, 5, dtype=torch.float64)
    edges = torch.linspace(-torch.pi / 2, torch.pi / 2, 5, dtype=torch.float64).sin()
    shares = edges.diff() / 2 if poles == "cross" else torch.full((4,), 0.25, dtype=torch.float64)
    means = torch.einsum("bclyx,y->bc", x, shares) / (2 * 5)
    hidden = F.silu(means @ block.squeeze.weight.T + block.squeeze.bias)
    scale = torch.sigmoid(hidden @ block.excite.weight.T + block.excite.bias)
    torch.testing.assert_close(block(x), torch.einsum("bclyx,bc->bclyx", x, scale))


@pytest.mark.parametrize("levels", [1, 3])
def test_inverted_bottleneck_is_what_its_formula_says(levels):
    block = made(MBConv(8, **GLOBE, expansion=2, condition_width=5))
    x, condition = torch.randn(2, 8, levels, 6, 8, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)
    normed = F.layer_norm(x.movedim(1, -1), (8,), block.norm.weight, block.norm.bias, block.norm.eps)
    scale, shift = block.film.affine(condition)[:, None, None, None].chunk(2, -1)
    hidden = F.gelu(block.widen(normed * (1 + scale) + shift)).movedim(-1, 1)
    hidden = block.excitation(F.gelu(block.depthwise(hidden)))
    expected = x + block.narrow(hidden.movedim(1, -1)).movedim(-1, 1)
    torch.testing.assert_close(block(x, condition), expected, rtol=0, atol=1e-12)


def test_depthwise_convolution_crosses_the_pole_and_the_dateline():
    block = made(MBConv(4, **GLOBE))
    block.excitation = torch.nn.Identity()  # which would carry anything anywhere
    x = torch.randn(1, 4, 1, 6, 8, dtype=torch.float64)
    moved = x.clone()
    moved[:, 0, :, 0, 0] += 1  # one channel: the norm would not see a change of all
    reached = (block(moved) - block(x)).abs().amax((0, 1, 2)) > 0
    expected = torch.zeros(6, 8, dtype=torch.bool)
    for lat, lon in ((0, 7), (0, 0), (0, 1), (1, 7), (1, 0), (1, 1), (0, 3), (0, 4), (0, 5)):
        expected[lat, lon] = True
    assert torch.equal(reached, expected)


@pytest.mark.parametrize("make", [MBConv, ResidualBlock])
def test_block_starts_as_the_identity(make):
    block = make(8, **GLOBE, condition_width=3)
    for child in block.modules():
        if child is not block and hasattr(child, "reset_parameters"):
            child.reset_parameters()
    block.reset_parameters()
    x = torch.randn(2, 8, 2, 4, 6)
    torch.testing.assert_close(block.eval()(x, torch.randn(2, 3)), x)


def test_bottleneck_keeps_channels_last():
    x = torch.randn(2, 8, 3, 4, 6).contiguous(memory_format=torch.channels_last_3d)
    assert made(MBConv(8, **GLOBE)).float()(x).is_contiguous(memory_format=torch.channels_last_3d)
