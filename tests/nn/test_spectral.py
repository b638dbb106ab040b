import numpy as np
import pytest
import torch

from astrozoo.nn import half_turn
from astrozoo.nn.spectral import AxisConv, PlaneConv, WavePosition, Waves, analysis, plane_table, synthesis, wave_table

AXES = {"circle": 3, "meridian": 2, "segment": 2}


def initialised(module):
    torch.manual_seed(0)
    for part in reversed(list(module.modules())):
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
    return module.double()


def fields(*, level=1, lat=8, lon=10, channels=3):
    torch.manual_seed(1)
    return torch.randn(2, level, lat, lon, channels, dtype=torch.float64)


def smooth(lat, lon, channels=1):
    """A polynomial in the Cartesian coordinates of a sphere, at cell centres."""
    theta = torch.pi * (torch.arange(lat, dtype=torch.float64)[:, None] + 0.5) / lat
    phi = 2 * torch.pi * torch.arange(lon, dtype=torch.float64) / lon
    x, y, z = theta.sin() * phi.cos(), theta.sin() * phi.sin(), theta.cos().expand(lat, lon)
    terms = [1 + x - z, y * z, x * y + z, x * x * z - y, z**3 + x]
    return torch.stack([terms[index % 5] for index in range(channels)], -1)[None, None]


def axis_conv(kind, modes, **options):
    return initialised(AxisConv(3, 4, modes, axis=AXES[kind], kind=kind, **options))


def closed(x, kind):
    """The axis continued to a closed line."""
    if kind == "circle":
        return x
    image = half_turn(x, dim=3) if kind == "meridian" else x
    return torch.cat([x, image.flip(2)], 2)


@pytest.mark.parametrize("size", [(8, 10), (7, 9), (1, 1), (2, 3)], ids=str)
@pytest.mark.parametrize("modes", [1, 4, 20])
@pytest.mark.parametrize("kind", AXES)
def test_convolution_along_an_axis_matches_fft_of_the_closed_line(kind, modes, size):
    x, conv, dim = fields(lat=size[0], lon=size[1]), axis_conv(kind, modes), AXES[kind]
    line = torch.fft.rfft(closed(x, kind), dim=dim).movedim(dim, 0)
    kept = min(modes, -(-closed(x, kind).shape[dim] // 2))
    weight = torch.complex(conv.weight[0], -conv.weight[1])[:kept]
    mixed = torch.zeros(*line.shape[:-1], 4, dtype=torch.complex128)
    mixed[:kept] = torch.einsum("kblxi,kio->kblxo", line[:kept], weight)
    expected = torch.fft.irfft(mixed.movedim(0, dim), n=closed(x, kind).shape[dim], dim=dim)
    table = wave_table(x.shape[dim], modes, kind, x)
    torch.testing.assert_close(conv(x, table), expected.narrow(dim, 0, x.shape[dim]), rtol=0, atol=1e-12)


def test_plane_convolution_matches_fft_of_the_double_fourier_sphere():
    lat, lon, modes = 6, 10, (4, 4)
    x, conv = fields(lat=lat, lon=lon, channels=2), initialised(PlaneConv(2, modes, kinds=("meridian", "circle")))
    waves = torch.fft.fft2(closed(x, "meridian"), dim=(2, 3)).numpy()
    cosine, sine = (conv.weight[:, 0] + 1j * conv.weight[:, 1]).detach().numpy()
    mixed = np.zeros_like(waves)
    for k in range(modes[0]):
        for m in range(modes[1]):
            # Cosines in lat go with even waves of lon, sines with odd ones; both come out with phases of their own.
            w0, w1 = (cosine[k, m], sine[k, m]) if m else (cosine[k, m].real, sine[k, m].real)
            for sign in (1, -1) if k else (0,):
                even, odd = w0 - 1j * sign * w1, w1 + 1j * sign * w0
                matrix = (even if m % 2 == 0 else odd) if k else (w0 if m % 2 == 0 else 0 * w0)
                for i, j, factor in ((sign * k, -m, matrix), (-sign * k, m, matrix.conj())):
                    mixed[:, :, i, j] = waves[:, :, i, j] @ factor
    expected = np.fft.ifft2(mixed, axes=(2, 3)).real[:, :, :lat]
    grid = Waves((1, *modes), longitude="periodic", poles="cross")
    tables = grid.tables(x)
    np.testing.assert_allclose(conv(x, tables, plane_table(tables, "meridian")).detach(), expected, atol=1e-12)


@pytest.mark.parametrize(("longitude", "poles"), [("periodic", "cross"), ("periodic", "edge"), ("regional", "edge")])
def test_tucker_is_a_dense_convolution_of_low_rank(longitude, poles):
    grid = Waves((1, 3, 4), longitude=longitude, poles=poles)
    x, kinds = fields(lat=7, lon=9), (grid.kinds[1], grid.kinds[2])
    tucker = initialised(PlaneConv(3, (3, 4), kinds=kinds, rank=(2, 2, 3)))
    dense = initialised(PlaneConv(3, (3, 4), kinds=kinds))
    with torch.no_grad():
        whole = torch.einsum(
            "ia,zwklab,bo->zwklio", tucker.project.weight.mT, tucker.matrices(3, 4), tucker.expand.weight.mT
        )
        dense.weight.copy_(whole)
    tables = grid.tables(x)
    plane = plane_table(tables, kinds[0])
    torch.testing.assert_close(tucker(x, tables, plane), dense(x, tables, plane), rtol=0, atol=1e-12)


def test_a_smooth_field_of_the_sphere_has_few_waves_along_its_meridians():
    x = smooth(24, 48)[..., 0]
    closing = closed(x[..., None], "meridian")[0, 0, ..., 0]
    amplitude = torch.fft.rfft(closing, dim=0).abs().amax(1)
    assert amplitude[4:].max() < 1e-12 * amplitude.max()
    as_if_periodic = torch.fft.rfft(x[0, 0], dim=0).abs().amax(1)
    assert as_if_periodic[4:].max() > 1e-3 * as_if_periodic.max()


@pytest.mark.parametrize("kind", ["circle", "meridian"])
def test_convolution_is_the_same_operator_on_a_finer_grid(kind):
    conv, dim = axis_conv(kind, 40), AXES[kind]
    coarse, fine = smooth(12, 24, 3), smooth(36, 72, 3)
    y, y_fine = (conv(x, wave_table(x.shape[dim], 40, kind, x)) for x in (coarse, fine))
    # The centre of a coarse cell is that of every third fine one.
    torch.testing.assert_close(y_fine[:, :, 1::3, ::3], y, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["circle", "segment"])
@pytest.mark.parametrize("size", [1, 5, 12])
def test_waves_of_a_grid_are_orthonormal(kind, size):
    table = wave_table(size, 99, kind, torch.zeros((), dtype=torch.float64))
    rows = table[:, :1] if kind == "segment" else table
    rows = rows.flatten(0, 1)
    rows = rows[rows.abs().amax(1) > 0]  # the sine of wave 0
    torch.testing.assert_close(rows @ rows.mT / size, torch.eye(len(rows), dtype=torch.float64), rtol=0, atol=1e-13)


def test_all_cosines_of_a_segment_give_the_field_back():
    x = fields(lat=9).flatten(3)[:, 0]
    table = wave_table(9, 9, "segment", x)[:, :1]
    torch.testing.assert_close(synthesis(analysis(x, table), table), x, rtol=0, atol=1e-12)


def test_large_tables_are_exact_in_single_precision():
    for kind in ("circle", "segment"):
        single = wave_table(4096, 2048, kind, torch.zeros(()))
        double = wave_table(4096, 2048, kind, torch.zeros((), dtype=torch.float64))
        torch.testing.assert_close(single.double(), double, rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", AXES)
def test_half_precision_of_any_size_stays_near_double(kind, dtype):
    x, conv = fields(lat=45, lon=91) * 100, axis_conv(kind, 16)
    table = wave_table(x.shape[AXES[kind]], 16, kind, x)
    expected = conv(x, table)
    got = conv.to(dtype)(x.to(dtype), table)
    assert got.dtype == dtype
    assert (got - expected).square().mean().sqrt() < 0.02 * expected.square().mean().sqrt()


def test_an_axis_of_one_cell_contributes_nothing_without_its_mean():
    conv = initialised(AxisConv(3, 3, 4, axis=1, kind="segment", mean=False))
    one = fields()
    assert not conv(one, wave_table(1, 4, "segment", one)).any()
    repeated = one.expand(-1, 5, -1, -1, -1)
    assert conv(repeated, wave_table(5, 4, "segment", one)).abs().max() < 1e-14


@pytest.mark.parametrize("kind", AXES)
def test_gradients_of_a_convolution_are_exact(kind):
    x, conv = fields(lat=4, lon=5)[:1].requires_grad_(), axis_conv(kind, 2)
    table = wave_table(x.shape[AXES[kind]], 2, kind, x)

    def convolve(x, weight):
        return torch.func.functional_call(conv, {"weight": weight}, (x, table))

    assert torch.autograd.gradcheck(convolve, (x, conv.weight))


def test_position_is_the_same_function_on_a_finer_grid():
    position = initialised(WavePosition(4, 3, longitude="regional"))
    coarse, fine = (position(torch.zeros(1, size, size, size, 4, dtype=torch.float64)) for size in (4, 12))
    torch.testing.assert_close(fine[:, 1::3, 1::3, 1::3], coarse, rtol=0, atol=1e-13)


def test_position_on_a_circle_does_not_know_longitude():
    y = initialised(WavePosition(4, 3, longitude="periodic"))(torch.zeros(1, 2, 4, 6, 4, dtype=torch.float64))
    assert (y == y[:, :, :, :1]).all()
    assert y.std() > 0
