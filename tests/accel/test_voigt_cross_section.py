import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_checks import assert_agree, assert_releases_the_lock, assert_threads_change_nothing

from astrozoo import accel
from astrozoo.errors import InputError

WIDTHS = [0.0, 1e-12, 1e-6, 1e-4, 0.003, 0.02, 0.1, 0.7, 3.0, 40.0]


def distances():
    """From the centre to the far wing, on both sides, with many points in the core."""
    positive = np.concatenate([np.linspace(0, 0.4, 401), np.geomspace(0.41, 30, 500), np.geomspace(1e-9, 0.4, 200)])
    return np.unique(np.concatenate([-positive, positive]))


@pytest.mark.parametrize(("sigma", "gamma"), [(s, g) for s in WIDTHS for g in WIDTHS if s + g > 0])
def test_a_line_is_the_voigt_profile_of_scipy(provider, sigma, gamma):
    special = pytest.importorskip("scipy.special", reason="scipy is not installed")
    grid = distances()
    found = accel.voigt_cross_section(grid, [0.0], [2.5], sigma, gamma, cutoff=100)
    expected = 2.5 * special.voigt_profile(grid, sigma, gamma)
    if provider == "rust":
        normal = expected > 1e-290  # below, ours is 0
        np.testing.assert_allclose(found[normal], expected[normal], rtol=1e-9)
        assert (found[~normal] <= 1e-290).all()
    else:
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12 * expected.max())


@pytest.mark.usefixtures("rust")
@pytest.mark.parametrize("ratio", [1e-30, 1e-16, 1e-11, 1e-9, 1e-7, 1e-3, 0.3, 7.0, 8.0, 24.0, 26.0, 1e6, 1e9])
def test_the_accelerator_keeps_nine_digits_where_the_profile_has_fallen_far(ratio):
    special = pytest.importorskip("scipy.special", reason="scipy is not installed")
    grid = np.linspace(-45, 45, 9001)
    with accel.using("rust"):
        found = accel.voigt_cross_section(grid, [0.0], [1.0], 1.0, ratio, cutoff=100)
    np.testing.assert_allclose(found, special.voigt_profile(grid, 1.0, ratio), rtol=1e-9)


def test_lines_add_up_and_end_at_their_cutoff(provider):
    special = pytest.importorskip("scipy.special", reason="scipy is not installed")
    generator = np.random.default_rng(0)
    grid = np.cumsum(generator.uniform(0.005, 0.1, 6000))
    centers, strengths = generator.uniform(-5, grid[-1] + 5, 60), generator.lognormal(0, 3, 60)
    sigma, gamma = generator.uniform(0.01, 0.1, 60), generator.uniform(0.01, 0.2, 60)
    expected = np.zeros(6000)
    for center, strength, wide, wing in zip(centers, strengths, sigma, gamma, strict=True):
        distance = grid - center
        near = np.abs(distance) <= 7.5
        expected[near] += strength * special.voigt_profile(distance[near], wide, wing)
    found = accel.voigt_cross_section(grid, centers, strengths, sigma, gamma, cutoff=7.5)
    np.testing.assert_allclose(found, expected, rtol=1e-8)
    assert (found == 0).tolist() == (expected == 0).tolist()


def test_the_area_is_the_strength(provider):
    grid = np.arange(-600, 600, 0.004)
    found = accel.voigt_cross_section(grid, [0.0], [3.0], 0.05, 0.02, cutoff=500)
    assert found.sum() * 0.004 == pytest.approx(3.0 * (1 - 2 / np.pi * 0.02 / 500), rel=1e-6)


def test_the_cutoff_itself_counts(provider):
    found = accel.voigt_cross_section([-2.0, -1.0, 0.0, 1.0, 1.5], [0.0], [1.0], 0.0, 1.0, cutoff=1.0)
    np.testing.assert_allclose(found, np.array([0, 0.5, 1, 0.5, 0]) / np.pi)


def test_no_lines_or_no_grid_give_nothing(provider):
    assert accel.voigt_cross_section([1.0, 2.0], [], [], 1.0, 1.0).tolist() == [0.0, 0.0]
    assert accel.voigt_cross_section([], [1.0], [1.0], 1.0, 1.0).shape == (0,)


def test_lines_may_take_away(provider):
    found = accel.voigt_cross_section(np.arange(5.0), [1.0, 1.0], [2.0, -2.0], [0.1, 0.1], [0.3, 0.3])
    assert found.tolist() == [0.0] * 5


@pytest.mark.usefixtures("rust")
@given(data=st.data())
def test_providers_agree(data):
    count = data.draw(st.integers(0, 6))
    column = lambda low, high: data.draw(st.lists(st.floats(low, high), min_size=count, max_size=count))  # noqa: E731
    dtype = data.draw(st.sampled_from([np.float64, np.float32, np.dtype(">f8")]))
    grid = np.cumsum(data.draw(st.lists(st.floats(0.0625, 2.0, width=16), max_size=60))).astype(dtype)
    strengths, sigma, gamma = column(0.0, 5.0), column(0.01, 2.0), column(0.001, 3.0)
    cutoff = data.draw(st.floats(0.1, 50.0))
    call = lambda: accel.voigt_cross_section(grid, centers, strengths, sigma, gamma, cutoff=cutoff)  # noqa: E731
    centers = column(-10.0, 60.0)
    assert_agree(call, rtol=1e-8, atol=1e-10)


@pytest.mark.usefixtures("rust")
def test_threads_and_the_order_of_lines_change_nothing():
    generator = np.random.default_rng(0)
    grid, centers = 1000 + 0.01 * np.arange(30_000), generator.uniform(990, 1310, 400)
    strengths, gamma = generator.lognormal(0, 2, 400), generator.uniform(0, 0.1, 400)

    def call(threads, order=slice(None)):
        return accel.voigt_cross_section(grid, centers[order], strengths[order], 0.01, gamma[order], threads=threads)

    assert_threads_change_nothing(call)
    with accel.using("rust"):
        np.testing.assert_array_equal(call(2), call(2, generator.permutation(400)))


@pytest.mark.usefixtures("rust")
def test_the_interpreter_lock_is_released():
    grid, centers = 0.01 * np.arange(50_000), np.linspace(0, 500, 1000)
    assert_releases_the_lock(lambda: accel.voigt_cross_section(grid, centers, np.ones(1000), 0.01, 0.05))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"wavenumber": [1.0, 1.0]}, "wavenumber goes from 1.0 to 1.0"),
        ({"wavenumber": [[1.0, 2.0]]}, "wavenumber has shape"),
        ({"centers": 1.0}, "centers has shape"),
        ({"centers": [1.0, np.inf]}, "centers has inf"),
        ({"strengths": [1.0, 2.0, 3.0]}, r"strengths has shape \(3,\); expected one number, or one for each of 2"),
        ({"strengths": [1.0, np.nan]}, "strengths has nan"),
        ({"sigma": -0.1}, "sigma has -0.1; expected 0, or widths"),
        ({"gamma": [0.1, 1e-200]}, "gamma has 1e-200"),
        ({"sigma": [0.1, 0.0], "gamma": 0.0}, "sigma and gamma of line 1 are both 0"),
        ({"cutoff": 0.0}, "cutoff is 0.0"),
        ({"cutoff": np.inf}, "cutoff is inf"),
    ],
)
def test_what_is_no_line_is_refused(change, message):
    arguments = {"wavenumber": [1.0, 2.0], "centers": [1.0, 2.0], "strengths": [1.0, 1.0], "sigma": 0.1, "gamma": 0.1}
    with pytest.raises(InputError, match=message):
        accel.voigt_cross_section(**{**arguments, **change})
