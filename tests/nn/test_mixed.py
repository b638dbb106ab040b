import pytest
import torch

from astrozoo.nn.mixed import OPERATIONS, MixedOperation, Node

CHANNELS = 4
WEIGHTED = ("conv3", "sep3", "sep5", "sep7", "dil3", "dil5", "column")


def mixed(*names):
    torch.manual_seed(0)
    operation = MixedOperation(names, CHANNELS, 3).double()
    for module in operation.values():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return operation


def node(levels=3, *, planes=None):
    planes = torch.randn(2 * levels, CHANNELS, 6, 12, dtype=torch.float64) if planes is None else planes
    return Node(planes, levels, longitude="periodic", poles="cross")


def impulse(levels):
    """One cell of one channel at a time: what an operation makes of it is its kernel."""
    planes = torch.zeros(CHANNELS, levels, CHANNELS, 25, 25, dtype=torch.float64)
    for channel in range(CHANNELS):
        planes[channel, levels // 2, channel, 12, 12] = 1
    return node(levels, planes=planes.flatten(0, 1))


@pytest.mark.parametrize("levels", [1, 3])
def test_a_mixture_is_the_sum_of_its_candidates_times_their_shares(levels):
    names = tuple(OPERATIONS)
    operation, x = mixed(*names), node(levels)
    shares = torch.rand(len(names), dtype=torch.float64)
    alone = {name: operation[name](x, None) for name in names if name != "none"}
    expected = sum(share * alone[name] for name, share in zip(names, shares, strict=True) if name != "none")
    torch.testing.assert_close(operation(x, shares.unbind()), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("levels", [1, 9])
@pytest.mark.parametrize("name", WEIGHTED)
def test_kernels_have_norm_one_into_every_channel(name, levels):
    kernel = mixed(name)(impulse(levels), None).unflatten(0, (CHANNELS, levels))  # [in, level, out, lat, lon]
    norm = kernel.square().sum((0, 1, 3, 4)).sqrt()
    torch.testing.assert_close(norm, torch.ones_like(norm), rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", WEIGHTED)
def test_weights_cannot_make_up_for_a_small_share(name):
    operation, x = mixed(name), node()
    before = operation(x, None)
    with torch.no_grad():
        for weight in operation.parameters():
            weight.mul_(7)
    torch.testing.assert_close(operation(x, None), before, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "reach"),
    [
        ("identity", 0),
        ("mean3", 1),
        ("max3", 1),
        ("conv3", 1),
        ("sep3", 1),
        ("sep5", 2),
        ("sep7", 3),
        ("dil3", 2),
        ("dil5", 4),
        ("column", 0),
    ],
)
def test_an_operation_reads_as_far_as_its_name_says(name, reach):
    touched = mixed(name)(impulse(1), None).abs().amax((0, 1)) > 0  # [lat, lon]
    rows, columns = touched.nonzero().unbind(1)
    assert (rows - 12).abs().max() == (columns - 12).abs().max() == reach


@pytest.mark.parametrize("name", ["mean3", "max3"])
def test_pools_of_a_constant_are_that_constant_at_the_poles_too(name):
    x = node(planes=torch.full((6, CHANNELS, 6, 12), 2.5, dtype=torch.float64))
    torch.testing.assert_close(mixed(name)(x, None), x.planes)


def test_a_halo_is_made_once_per_reach():
    x = node()
    assert x.padded(2) is x.padded(2)
    assert x.padded(0) is x.planes
    assert x.padded(3).shape[-2:] == (12, 18)
