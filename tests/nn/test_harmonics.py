import numpy as np
import pytest
import torch

pytest.importorskip("torch_harmonics")
from scipy.special import eval_legendre, sph_harm_y

from astrozoo.nn.harmonics import DegreeFilter, Harmonics, zonal_harmonics
from astrozoo.nn.latitudes import ROWS, latitudes

GRIDS = [(rows, lat, lon) for rows in ROWS for lat, lon in ((12, 24), (13, 25), (9, 40))]


def directions(rows, lat, lon):
    """Unit vectors `[lat, lon, 3]` of the cells."""
    north = np.deg2rad(latitudes(rows, lat))[:, None]
    east = 2 * np.pi * np.arange(lon) / lon
    z = np.sin(north) * np.ones(lon)
    return np.stack([np.cos(north) * np.cos(east), np.cos(north) * np.sin(east), z], -1)


def random_unit(generator):
    axis = generator.normal(size=3)
    return axis / np.linalg.norm(axis)


@pytest.mark.parametrize(("rows", "lat", "lon"), GRIDS)
def test_analysis_finds_the_harmonics_of_scipy(rows, lat, lon):
    harmonics = Harmonics.of(rows, lat, lon, 99)
    theta = np.pi / 2 - np.deg2rad(latitudes(rows, lat))[:, None]
    phi = 2 * np.pi * np.arange(lon) / lon
    for degree in range(harmonics.degrees):
        for order in range(degree + 1):
            field = torch.from_numpy(sph_harm_y(degree, order, theta, phi))
            spectrum = harmonics.analysis(torch.stack([field.real, field.imag], -1))
            # The conjugate of the harmonic of order m is that of -m: its real part holds half of each.
            expected = torch.zeros_like(spectrum)
            expected[degree, order, 0, 0] = 0.5 if order else 1.0
            expected[degree, order, 1, 1] = -0.5 if order else 0.0
            torch.testing.assert_close(spectrum, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("rows", "lat", "lon"), GRIDS)
def test_synthesis_undoes_analysis_of_what_the_grid_holds(rows, lat, lon):
    harmonics = Harmonics.of(rows, lat, lon, 99)
    torch.manual_seed(0)
    field = harmonics.synthesis(torch.randn(harmonics.degrees, harmonics.degrees, 2, 3, dtype=torch.float64))
    spectrum = harmonics.analysis(field)
    torch.testing.assert_close(harmonics.synthesis(spectrum), field, rtol=0, atol=1e-12)
    assert not spectrum[0, 1:].any()  # no order above the degree


@pytest.mark.parametrize(("rows", "grid"), [("poles", "equiangular"), ("gauss", "legendre-gauss")])
def test_transforms_are_those_of_torch_harmonics(rows, grid):
    import torch_harmonics

    harmonics = Harmonics.of(rows, 17, 36, 99)
    sizes = {"lmax": harmonics.degrees, "mmax": harmonics.degrees, "grid": grid}
    torch.manual_seed(0)
    field = torch.randn(17, 36, 2, dtype=torch.float64)
    northern_first = field.permute(2, 0, 1).flip(1)
    spectrum = torch_harmonics.RealSHT(17, 36, **sizes).double()(northern_first)
    got = torch.view_as_complex(harmonics.analysis(field).permute(3, 0, 1, 2).contiguous())
    torch.testing.assert_close(got, spectrum, rtol=0, atol=1e-12)
    back = torch_harmonics.InverseRealSHT(17, 36, **sizes).double()(spectrum).flip(1)
    torch.testing.assert_close(harmonics.synthesis(harmonics.analysis(field)).permute(2, 0, 1), back)


@pytest.mark.parametrize(("rows", "lat", "lon"), GRIDS)
def test_isotropic_filter_is_the_convolution_theorem_about_any_axis(rows, lat, lon):
    # P_l(a . x) is a harmonic of degree l about the axis a: the filter multiplies it by its matrix, whatever the axis.
    generator = np.random.default_rng(0)
    torch.manual_seed(0)
    layer = DegreeFilter(2, 99).double()
    layer.reset_parameters()
    harmonics = Harmonics.of(rows, lat, lon, 99)
    points = directions(rows, lat, lon)
    for degree in range(harmonics.degrees):
        waves = np.stack([eval_legendre(degree, points @ random_unit(generator)) for _ in range(2)], -1)
        waves = torch.from_numpy(waves)
        torch.testing.assert_close(layer(waves, harmonics), waves @ layer.weight[degree], rtol=0, atol=1e-12)


def test_zonal_filter_is_bound_to_the_polar_axis_and_tells_east_from_west():
    torch.manual_seed(0)
    harmonics = Harmonics.of("gauss", 12, 24, 99)
    layer = DegreeFilter(1, 12, kind="zonal").double()
    layer.reset_parameters()
    field = torch.randn(12, 24, 1, dtype=torch.float64)
    turned = layer(field.roll(5, 1), harmonics)
    torch.testing.assert_close(turned, layer(field, harmonics).roll(5, 1), rtol=0, atol=1e-12)
    assert not torch.allclose(layer(field.flip(1), harmonics), layer(field, harmonics).flip(1))
    # Against complex arithmetic.
    spectrum = torch.view_as_complex(harmonics.analysis(field).movedim(2, -1).contiguous())  # [degree, order, 1]
    weight = torch.complex(*layer.weight[:, 0].unbind(-1))[:, None, None]
    filtered = torch.view_as_real(spectrum * weight).movedim(-1, 2)
    torch.testing.assert_close(layer(field, harmonics), harmonics.synthesis(filtered))


def test_turning_the_globe_upside_down_turns_the_filtered_field():
    torch.manual_seed(0)
    for kind in ("isotropic", "zonal"):
        layer = DegreeFilter(2, 8, kind=kind).double()
        layer.reset_parameters()
        field = torch.randn(15, 20, 2, dtype=torch.float64)
        harmonics = Harmonics.of("centres", 15, 20, 8)
        torch.testing.assert_close(layer(field.flip(0), harmonics), layer(field, harmonics).flip(0))


def test_one_filter_acts_alike_on_coarse_and_fine_grids():
    torch.manual_seed(0)
    layer = DegreeFilter(2, 6).double()
    layer.reset_parameters()
    coarse, fine = Harmonics.of("centres", 12, 24, 6), Harmonics.of("gauss", 31, 60, 6)
    spectrum = torch.randn(6, 6, 2, 2, dtype=torch.float64)
    spectrum = coarse.analysis(coarse.synthesis(spectrum))
    filtered = [grid.analysis(layer(grid.synthesis(spectrum), grid)) for grid in (coarse, fine)]
    torch.testing.assert_close(filtered[0], filtered[1], rtol=0, atol=1e-12)


def test_zonal_harmonics_are_legendre_polynomials_of_unit_mean_square():
    got = zonal_harmonics("gauss", 16, 3, like=torch.zeros(1, dtype=torch.float64))
    sines = np.sin(np.deg2rad(latitudes("gauss", 16)))
    for degree in (1, 2, 3):
        assert got[degree - 1].numpy() == pytest.approx(np.sqrt(2 * degree + 1) * eval_legendre(degree, sines))


def test_transforms_stay_in_single_precision_under_autocast():
    torch.manual_seed(0)
    harmonics = Harmonics.of("gauss", 32, 64, 32)
    field = torch.randn(32, 64, 4)
    expected = harmonics.synthesis(harmonics.analysis(field))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(harmonics.synthesis(harmonics.analysis(field)), expected)


def test_gradients_are_those_of_finite_differences():
    torch.manual_seed(0)
    harmonics = Harmonics.of("centres", 5, 7, 3)
    for kind in ("isotropic", "zonal"):
        layer = DegreeFilter(2, 4, kind=kind).double()
        layer.reset_parameters()
        field = torch.randn(5, 7, 1, 2, dtype=torch.float64, requires_grad=True)

        def filtered(x, weight, layer=layer):
            return torch.func.functional_call(layer, {"weight": weight}, (x, harmonics))

        assert torch.autograd.gradcheck(filtered, (field, layer.weight))
