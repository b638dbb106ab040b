import itertools
import math

import pytest
import torch
from torch import nn

from astrozoo.nn import CBAM3d, ChannelGate, LevelGate, SpatialGate, area_mean, pad_grid

EDGES = [("periodic", "cross"), ("periodic", "edge"), ("regional", "edge")]


def initialised(module, *, jitter=0.5):
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


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


def band_areas(lat):
    """Share of the sphere's area between two circles of latitude, north to south, from the area of spherical caps."""
    caps = [(1 - math.cos(math.pi * edge / lat)) / 2 for edge in range(lat + 1)]
    return [south - north for north, south in itertools.pairwise(caps)]


def statistics(x, poles):
    """Mean and maximum over the surface of one `[lat, lon]` field, cell by cell."""
    lat, lon = x.shape
    areas = band_areas(lat) if poles == "cross" else [1 / lat] * lat
    mean = sum(float(x[row, column]) * areas[row] / lon for row in range(lat) for column in range(lon))
    return mean, max(x.flatten().tolist())


def linear(layer, values):
    weight = layer.weight.tolist()
    bias = [0.0] * len(weight) if layer.bias is None else layer.bias.tolist()
    return [sum(w * v for w, v in zip(row, values, strict=True)) + b for row, b in zip(weight, bias, strict=True)]


# -- means over area ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("poles", ["cross", "edge"])
@pytest.mark.parametrize("lat", [1, 7, 32])
def test_mean_of_a_constant_is_the_constant(poles, lat):
    torch.testing.assert_close(area_mean(torch.full((2, lat, 5), 3.0), poles=poles), torch.full((2,), 3.0))


def test_area_mean_of_sine_squared_of_latitude_is_a_third():
    latitude = (torch.arange(512, dtype=torch.float64) + 0.5) / 512 * math.pi - math.pi / 2
    x = latitude.sin().square()[:, None].expand(512, 4)
    assert area_mean(x, poles="cross").item() == pytest.approx(1 / 3, abs=1e-5)
    assert area_mean(x, poles="edge").item() == pytest.approx(1 / 2, abs=1e-5)


def test_half_precision_is_summed_in_full():
    x = torch.ones(64, 4096, dtype=torch.bfloat16)
    assert area_mean(x, poles="cross").dtype == torch.float32
    assert area_mean(x, poles="cross").item() == pytest.approx(1, abs=1e-6)


# -- each gate against its formula, written out ------------------------------------------------------------------------


@pytest.mark.parametrize("poles", ["cross", "edge"])
def test_channel_gate_is_the_formula_of_the_paper(poles):
    gate = initialised(ChannelGate(6, poles=poles, reduction=2))
    x = fields(2, 6, 3, 4, 5)
    levels = [[statistics(x[1, channel, level], poles) for level in range(3)] for channel in range(6)]
    mean = [sum(m for m, _ in of_channel) / 3 for of_channel in levels]
    peak = [max(p for _, p in of_channel) for of_channel in levels]
    both = [linear(gate.excite, [max(v, 0) for v in linear(gate.squeeze, part)]) for part in (mean, peak)]
    bias = gate.excite.bias.tolist()  # one perceptron for both, whose sum has the last bias once
    expected = [2 * sigmoid(a + b - c) for a, b, c in zip(*both, bias, strict=True)]
    torch.testing.assert_close(gate(x)[1], x[1] * torch.tensor(expected, dtype=x.dtype)[:, None, None, None])


@pytest.mark.parametrize("poles", ["cross", "edge"])
@pytest.mark.parametrize("levels", [1, 2, 5])
def test_level_gate_is_its_formula(poles, levels):
    gate = initialised(LevelGate(5, poles=poles, reduction=1))
    x = fields(2, 5, levels, 3, 4)
    hidden = []
    for level in range(levels):
        height = (level + 0.5) / levels  # 0 at the top of the first level, 1 at the bottom of the last
        waves = linear(gate.height, [math.cos(math.pi * k * height) for k in (1, 2, 3, 4)])
        pairs = [statistics(x[1, channel, level], poles) for channel in range(5)]
        of_mean, of_peak = (linear(gate.squeeze, list(part)) for part in zip(*pairs, strict=True))
        hidden.append([max(a + w, 0) + max(b + w, 0) for a, b, w in zip(of_mean, of_peak, waves, strict=True)])
    for level in range(levels):
        logit = gate.excite.bias.item()
        for offset in (-1, 0, 1):
            if 0 <= level + offset < levels:
                kernel = gate.excite.weight[0, :, offset + 1].tolist()
                logit += sum(w * h for w, h in zip(kernel, hidden[level + offset], strict=True))
        torch.testing.assert_close(gate(x)[1, :, level], x[1, :, level] * 2 * sigmoid(logit))


@pytest.mark.parametrize(("longitude", "poles"), EDGES)
@pytest.mark.parametrize("levels", [1, 3])
def test_spatial_gate_is_the_formula_of_the_paper(longitude, poles, levels):
    gate = initialised(SpatialGate(longitude=longitude, poles=poles, kernel=5))
    x = fields(2, 4, levels, 6, 7)
    seen = torch.stack([x.mean(1), x.amax(1)], 1)  # [batch, 2, level, lat, lon]
    padded = pad_grid(seen, 2, 2, longitude=longitude, poles=poles)
    for row, column in ((0, 0), (2, 6), (5, 3)):
        window = padded[1, :, levels - 1, row : row + 5, column : column + 5]
        logit = (window * gate.conv.weight[0, :, 0]).sum() + gate.conv.bias
        expected = x[1, :, levels - 1, row, column] * 2 / (1 + (-logit).exp())
        torch.testing.assert_close(gate(x)[1, :, levels - 1, row, column], expected)


# -- what gates are for ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "module",
    [
        ChannelGate(8, poles="cross"),
        LevelGate(8, poles="cross"),
        SpatialGate(longitude="periodic", poles="cross"),
        CBAM3d(8, longitude="periodic", poles="cross"),
    ],
    ids=lambda module: type(module).__name__,
)
def test_a_fresh_gate_changes_nothing(module):
    x = fields(2, 8, 3, 8, 8)
    torch.testing.assert_close(initialised(module, jitter=0)(x), x, rtol=0, atol=0)


def test_level_gate_knows_up_from_down():
    gate = initialised(LevelGate(4, poles="cross"))
    x = fields(1, 4, 6, 4, 8)
    assert not torch.allclose(gate(x.flip(2)).flip(2), gate(x))
    layers = fields(1, 4, 1, 4, 8).expand(-1, -1, 6, -1, -1)  # alike but for where they are
    assert (gate(layers) / layers).flatten(3)[0, 0, :, 0].unique().numel() == 6


def test_level_gate_can_single_out_a_level_of_any_number_of_them():
    gate = initialised(LevelGate(1, poles="edge"), jitter=0)
    with torch.no_grad():
        for parameter in gate.parameters():
            parameter.zero_()
        gate.squeeze.weight[0] = 1
        gate.excite.weight[0, 0] = torch.tensor([0, 5.0, 0])
    for levels in (1, 4, 9):
        x = torch.zeros(1, 1, levels, 4, 4, dtype=torch.float64)
        x[:, :, levels // 2] = 1
        factor = (gate(x + 1e-9) / (x + 1e-9))[0, 0, :, 0, 0]
        assert factor.argmax() == levels // 2
        assert factor[levels // 2] > 1.99


def test_spatial_gate_does_not_mix_levels():
    gate = initialised(SpatialGate(longitude="periodic", poles="cross"))
    x = fields(1, 3, 4, 8, 8)
    other = x.clone()
    other[:, :, 2] += 1
    changed = (gate(other) - gate(x)).abs().amax((0, 1, 3, 4)) > 0
    assert changed.tolist() == [False, False, True, False]


@pytest.mark.parametrize("gates", [("channel", "level", "spatial"), ("level", "spatial"), ("channel",), ("spatial",)])
def test_cbam_is_its_gates_one_after_the_other(gates):
    cbam = initialised(CBAM3d(8, longitude="periodic", poles="cross", reduction=2, kernel=5, gates=gates))
    x = fields(2, 8, 3, 6, 8)
    expected = x
    for gate in (cbam.channel, cbam.level, cbam.spatial):
        expected = expected if gate is None else gate(expected)
    assert [gate is not None for gate in (cbam.channel, cbam.level, cbam.spatial)] == [
        name in gates for name in ("channel", "level", "spatial")
    ]
    torch.testing.assert_close(cbam(x), expected)


@pytest.mark.parametrize("steps", [1, -3])
def test_rolling_longitude_rolls_gated_features(steps):
    cbam = initialised(CBAM3d(4, longitude="periodic", poles="cross"))
    x = fields(1, 4, 2, 5, 9)
    torch.testing.assert_close(cbam(x.roll(steps, -1)), cbam(x).roll(steps, -1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_stays_near_and_keeps_its_dtype(dtype):
    cbam = initialised(CBAM3d(8, longitude="periodic", poles="cross"), jitter=0.1).float()
    x = fields(2, 8, 3, 6, 8).float()
    with torch.autocast("cpu", dtype=dtype):
        y = cbam(x.to(dtype))
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), cbam(x), rtol=0.05, atol=0.05)
    assert cbam.to(dtype)(x.to(dtype)).dtype == dtype


def test_gates_learn_which_level_matters():
    torch.manual_seed(0)
    gate = initialised(LevelGate(3, poles="cross"), jitter=0).float()
    optimizer = torch.optim.Adam(gate.parameters(), lr=0.05)
    x = torch.randn(16, 3, 5, 4, 8)
    target = x.clone()
    target[:, :, [0, 4]] = 0
    for _ in range(100):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(gate(x), target)
        loss.backward()
        optimizer.step()
    assert loss < 0.05 * nn.functional.mse_loss(x, target)
