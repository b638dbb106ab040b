import pytest
import torch
import torch.nn.functional as F

from astrozoo.nn import GatedLargeKernel, GatedSpatiotemporalBlock, pad_grid

EDGES = {"longitude": "periodic", "poles": "cross"}


def initialised(module, jitter=0.1):
    torch.manual_seed(0)
    for part in reversed(list(module.modules())):
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=jitter)
    return module.double()


def test_the_attention_is_the_papers_on_a_plane():
    module = initialised(GatedLargeKernel(3, **EDGES, level_kernel=1))
    x = torch.randn(2, 3, 1, 12, 20, dtype=torch.float64)

    def pointwise(conv, features):
        return F.conv2d(features, conv.weight[:, :, 0], conv.bias)

    y = F.gelu(pointwise(module.expand, x[:, :, 0]))
    y = F.conv2d(pad_grid(y, 2, 2), module.dense.weight, module.dense.bias, groups=3)
    y = F.conv2d(pad_grid(y, 9, 9), module.dilated.weight, module.dilated.bias, dilation=3, groups=3)
    features, gate = pointwise(module.gate, y).split(3, 1)
    expected = x[:, :, 0] + pointwise(module.project, torch.sigmoid(gate) * features)
    torch.testing.assert_close(module(x)[:, :, 0], expected)


def test_a_cell_sees_eleven_cells_in_every_direction_and_no_further():
    module = initialised(GatedLargeKernel(2, longitude="regional", poles="edge"))
    x = torch.zeros(1, 2, 1, 40, 40, dtype=torch.float64, requires_grad=True)
    seen = torch.autograd.grad(module(x)[0, :, 0, 20, 20].sum(), x)[0].abs().sum((0, 1, 2)) > 0
    rows, columns = seen.nonzero().T
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (9, 31, 9, 31)


def test_a_fresh_block_is_near_the_identity():
    block = initialised(GatedSpatiotemporalBlock(8, **EDGES), jitter=0.0)
    x = torch.randn(2, 8, 2, 6, 10, dtype=torch.float64)
    assert 0 < (block(x) - x).abs().max() < 0.2


def test_a_block_grows_no_wider_than_told_and_takes_a_condition():
    block = initialised(GatedSpatiotemporalBlock(4, **EDGES, mlp_ratio=2.5, condition_width=3))
    assert block.expand.out_channels == 10
    x, condition = torch.randn(2, 4, 1, 6, 10, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    assert not torch.allclose(block(x, condition), block(x, condition + 1))


@pytest.mark.parametrize("levels", [1, 3])
def test_rolling_longitude_rolls_the_block(levels):
    block = initialised(GatedSpatiotemporalBlock(4, **EDGES))
    x = torch.randn(2, 4, levels, 6, 8, dtype=torch.float64)
    torch.testing.assert_close(block(x.roll(3, -1)), block(x).roll(3, -1), rtol=0, atol=1e-10)
