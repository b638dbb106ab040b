import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from astrozoo.nn.budget import Budget
from astrozoo.nn.latitudes import ROWS, latitudes


def physical(fields, mean, std):
    """Fields `[batch, var, level, lat, lon]` in physical units, in double precision, as the data layer does it."""
    levels = fields.shape[2]
    mean, std = (
        np.stack([np.broadcast_to(value, (levels,)) for value in part])[:, :, None, None] for part in (mean, std)
    )
    return fields.detach().double().numpy() * std + mean


def global_means(values, lat_edges, level_mass):
    """Area- and mass-weighted means, cell by cell: masses of levels times areas between edges of rows."""
    areas = np.diff(np.sin(np.deg2rad(lat_edges)))
    weights = np.asarray(level_mass)[:, None, None] * areas[:, None] * np.ones(values.shape[-1])
    return (values * weights).sum((2, 3, 4)) / weights.sum()


@st.composite
def cases(draw):
    levels, lat, lon = (draw(st.integers(1, size)) for size in (4, 20, 30))
    number = st.floats(-50, 50, width=32)
    spread = st.floats(1 / 64, 20, width=32)
    mean = tuple(tuple(draw(number) for _ in range(levels)) for _ in range(4))
    std = tuple(tuple(draw(spread) for _ in range(levels)) for _ in range(4))
    mass = tuple(draw(st.floats(0.01, 10)) for _ in range(levels))
    return {
        "sizes": (levels, lat, lon), "mean": mean, "std": std, "level_mass": mass,
        "size": draw(st.sampled_from([0.0, 1e-3, 1.0, 30.0, 1e4])), "seed": draw(st.integers(0, 9)),
    }  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(cases())
def test_budgets_and_signs_hold_whatever_the_network_says(case):
    # 0: free, 1: conserved, 2: positive, 3: conserved and positive.
    levels, lat, lon = case["sizes"]
    mean, std = case["mean"], case["std"]
    layer = Budget(mean, std, conserved=(1, 3), positive=(2, 3), level_mass=case["level_mass"])
    generator = torch.Generator().manual_seed(case["seed"])
    said = case["size"] * torch.randn(2, 4, levels, lat, lon, generator=generator)
    told = torch.randn(2, 2, generator=generator)
    told = told * torch.tensor([30.0, 3.0]) + torch.tensor([0.0, 1.0])
    y = layer(said, told)
    assert y.dtype == torch.float32
    assert torch.equal(y[:, 0], said[:, 0])
    values = physical(y, mean, std)
    assert (values[:, 2:] >= 0).all()
    means = global_means(values, np.linspace(-90, 90, lat + 1), case["level_mass"])
    expected = np.stack([told[:, 0].numpy(), told[:, 1].clamp_min(0).numpy()], 1)
    # To the rounding of what float32 holds: the normalised field, in units of its standard deviation.
    scale = (np.abs(y.numpy()) * np.stack(std)[:, :, None, None]).max((2, 3, 4))[:, [1, 3]]
    assert (np.abs(means[:, [1, 3]] - expected) <= 4e-7 * scale + 1e-30).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rows", ROWS)
def test_means_are_integrals_over_the_sphere(dtype, rows):
    # 1 + 3 sin^2(lat) has the mean 2, at any longitude.
    layer = Budget(((0.0,),), ((1.0,),), rows=rows)
    sines = torch.from_numpy(np.sin(np.deg2rad(latitudes(rows, 400)))).to(dtype)
    field = (1 + 3 * sines**2)[None, None, None, :, None].expand(1, 1, 2, 400, 8)
    assert layer.means(field, (0,)).item() == pytest.approx(2, abs=1e-4)


def test_the_correction_is_the_smallest_that_meets_the_budget():
    # Against the projection onto the constraint in the weighted norm, solved as a linear system.
    std, mass = np.array([2.0, 0.5]), np.array([0.25, 0.75])
    layer = Budget(((1.0, -1.0),), (tuple(std),), conserved=(0,), level_mass=tuple(mass), rows="gauss")
    said = torch.randn(1, 1, 2, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    told = torch.tensor([[3.0]], dtype=torch.float64)
    areas = np.polynomial.legendre.leggauss(5)[1] / 2
    weights = (mass[:, None, None] * areas[:, None] * np.ones(4) / 4).reshape(-1)
    row = weights * np.repeat(std, 20)
    inverse = 1 / weights
    missing = 3.0 - (weights * np.repeat([1.0, -1.0], 20)).sum() - row @ said.numpy().reshape(-1)
    expected = said.numpy().reshape(-1) + inverse * row * missing / (row @ (inverse * row))
    assert layer(said, told).numpy().reshape(-1) == pytest.approx(expected, abs=1e-12)


def test_one_standard_deviation_adds_one_number():
    layer = Budget(((5.0,),), ((2.0,),), conserved=(0,))
    said = torch.randn(1, 1, 3, 6, 8)
    change = layer(said, torch.tensor([[7.0]])) - said
    torch.testing.assert_close(change, change.mean().expand_as(change))


def test_rescaling_keeps_ratios_between_cells():
    mean, std = ((2.0,),), ((1.5,),)
    free, closed = Budget(mean, std, positive=(0,)), Budget(mean, std, positive=(0,), conserved=(0,))
    said = torch.randn(1, 1, 2, 6, 8, dtype=torch.float64)
    amounts = [physical(layer(said, told), mean, std) for layer, told in ((free, None), (closed, torch.ones(1, 1)))]
    ratio = amounts[1] / amounts[0]
    assert ratio == pytest.approx(np.full_like(ratio, ratio.flat[0]), rel=1e-6)


def test_zero_stays_the_mean_and_large_values_stay_what_they_are():
    layer = Budget(((30.0,), (0.05,), (2.0,)), ((1.0,), (1.0,), (1.0,)), positive=(0, 1, 2))
    y = layer(torch.zeros(1, 3, 1, 4, 4, dtype=torch.float64))
    torch.testing.assert_close(y, torch.zeros_like(y), rtol=0, atol=1e-6)
    y = layer(torch.full((1, 3, 1, 4, 4), 20.0))
    assert (y - 20).abs().max() < 2  # at most a bend away
    assert (layer(torch.tensor([-3.0, 3.0]).expand(1, 3, 1, 4, 2))[:, 0] * torch.tensor([-1, 1]) > 2.9).all()


def test_a_field_that_vanishes_takes_up_the_budget_evenly():
    layer = Budget(((1.0,),), ((1.0,),), positive=(0,), conserved=(0,))
    said = torch.full((1, 1, 2, 6, 8), -1e6, requires_grad=True)
    y = layer(said, torch.tensor([[4.0]]))
    torch.testing.assert_close(y, torch.full_like(y, 3.0))
    y.square().sum().backward()
    assert said.grad.isfinite().all()


def test_a_negative_budget_of_a_positive_quantity_empties_the_field():
    layer = Budget(((1.0,),), ((0.5,),), positive=(0,), conserved=(0,))
    y = layer(torch.randn(1, 1, 1, 6, 8), torch.tensor([[-4.0]]))
    torch.testing.assert_close(y, torch.full_like(y, -2.0))


def test_a_nan_budget_is_not_hidden():
    layer = Budget(((1.0,), (1.0,)), ((1.0,), (1.0,)), conserved=(1,))
    y = layer(torch.randn(2, 2, 1, 6, 8), torch.tensor([[torch.nan], [1.0]]))
    assert y[0, 1].isnan().all()
    assert y[0, 0].isfinite().all()
    assert y[1].isfinite().all()


def test_half_precision_is_converted_first():
    layer = Budget(((300.0,),), ((20.0,),), conserved=(0,))
    said = torch.randn(1, 1, 4, 32, 64).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(said, torch.tensor([[288.0]]))
    assert y.dtype == torch.float32
    assert layer.means(y, (0,)).item() == pytest.approx(288, rel=1e-7)


def test_sums_do_not_lose_what_a_long_grid_adds_up():
    layer = Budget(((0.0,),), ((1.0,),), conserved=(0,))
    said = 1e3 + torch.randn(1, 1, 1, 180, 1440)
    y = layer(said, torch.tensor([[1e3]]))
    means = global_means(y.double().numpy(), np.linspace(-90, 90, 181), (1.0,))
    assert means.item() == pytest.approx(1e3, abs=6e-5)


def test_compiled_with_inductor_gives_the_same():
    layer = Budget(((1.0,), (2.0,)), ((0.5,), (0.7,)), conserved=(0, 1), positive=(1,))
    said, told = torch.randn(2, 2, 2, 6, 8), torch.tensor([[1.0, 2.0], [0.5, 1.0]])
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(layer, fullgraph=True)(said, told), layer(said, told))


def test_gradients_are_those_of_finite_differences():
    layer = Budget(((1.0, 2.0),) * 3, ((0.5, 0.7),) * 3, conserved=(0, 2), positive=(1, 2), level_mass=(1.0, 3.0))
    generator = torch.Generator().manual_seed(0)
    said = torch.randn(1, 3, 2, 3, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    told = torch.tensor([[1.0, 2.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (said, told))
