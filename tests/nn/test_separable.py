import pytest
import torch
import torch.nn.functional as F

from astrozoo.nn import DepthwiseGridConv3d, pad_grid

EDGES = [("periodic", "cross"), ("periodic", "edge"), ("regional", "edge")]


def initialised(module, *, jitter=True):
    torch.manual_seed(0)
    for part in reversed(list(module.modules())):  # children first, as models do
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
    module.double()
    if jitter:
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return module


@pytest.mark.parametrize(("longitude", "poles"), EDGES)
@pytest.mark.parametrize("level_kernel", [1, 3, 5])
@pytest.mark.parametrize("levels", [1, 2, 6])
def test_is_the_depthwise_3d_convolution_with_the_product_of_its_kernels(longitude, poles, level_kernel, levels):
    conv = initialised(DepthwiseGridConv3d(3, kernel=5, level_kernel=level_kernel, longitude=longitude, poles=poles))
    x = torch.randn(2, 3, levels, 6, 7, dtype=torch.float64)
    taps = torch.ones(3, 1, dtype=torch.float64) if conv.level_weight is None else conv.level_weight
    product = taps[:, None, :, None, None] * conv.weight[:, :, None]
    padded = pad_grid(x, 2, 2, longitude=longitude, poles=poles)
    expected = F.conv3d(padded, product, conv.bias, padding=(level_kernel // 2, 0, 0), groups=3)
    torch.testing.assert_close(conv(x), expected)


def test_a_kernel_wider_than_the_globe_goes_round():
    conv = initialised(DepthwiseGridConv3d(1, kernel=7, level_kernel=1, longitude="periodic", poles="edge"))
    x = torch.randn(1, 1, 1, 1, 2, dtype=torch.float64)
    columns = torch.stack([x[0, 0, 0, 0, (torch.arange(-3, 4) + lon) % 2] for lon in range(2)])
    torch.testing.assert_close(conv(x).flatten(), columns @ conv.weight.sum((0, 1, 2)) + conv.bias)
