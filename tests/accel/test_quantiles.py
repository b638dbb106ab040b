import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from kernel_checks import assert_agree, assert_releases_the_lock, assert_threads_change_nothing

from astrozoo import accel
from astrozoo.errors import InputError


def test_quantiles_of_known_values_are_between_their_neighbours(provider):
    found = accel.quantiles([[4.0, np.nan, 1.0, 2.0], [np.nan] * 4], [0.0, 0.25, 0.5, 1.0])
    assert found[:, 0].tolist() == [1.0, 1.5, 2.0, 4.0]
    assert np.isnan(found[:, 1]).all()


def test_one_quantile_has_no_dimension_of_its_own(provider):
    assert accel.quantiles(np.arange(12.0).reshape(2, 2, 3), 0.5, axis=-1).shape == (2, 2)
    assert accel.quantiles(np.empty((2, 0)), 0.5).shape == (2,)


def test_infinities_are_values(provider):
    found = accel.quantiles([[-np.inf, 1.0, 2.0, np.inf, np.inf]], [0.0, 0.1, 0.25, 0.7, 0.8, 1.0])
    assert found[:, 0].tolist() == [-np.inf, -np.inf, 1.0, np.inf, np.inf, np.inf]
    assert np.isnan(accel.quantiles([[-np.inf, np.inf]], 0.5)[0])


@pytest.mark.parametrize("axis", [None, 0, (0, 2)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16])
def test_it_is_what_numpy_computes_in_float64(provider, axis, dtype):
    """Groups of 40 to 180,000 values: short ones, and long ones, of which a sample is taken first."""
    cube = np.random.default_rng(0).normal(0, 300, (40, 3, 4500)).astype(dtype)
    if cube.dtype.kind == "f":
        cube[cube > 500] = np.nan
    wanted = [0.0, 0.003, 0.5, 0.77, 1.0]
    exact = np.nanquantile(cube.astype(np.float64), wanted, axis=(1, 2) if axis is None else axis)
    np.testing.assert_allclose(accel.quantiles(cube, wanted, axis=axis), exact, rtol=1e-12)


@pytest.mark.parametrize(
    "make",
    [
        lambda noise: noise * 1e-300,
        lambda noise: np.floor(noise * 3),
        lambda noise: np.where(noise > 0, 1e30, -0.0),
        lambda noise: 1.0 + noise * 1e-12,
    ],
    ids=["tiny", "ties", "two values", "one binade"],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_hard_distributions_are_exact(provider, make, dtype):
    values = make(np.random.default_rng(0).normal(size=(1, 70_000))).astype(dtype)
    wanted = [0.0, 1e-4, 0.5, 0.9, 1.0]
    np.testing.assert_array_equal(
        accel.quantiles(values, wanted)[:, 0],
        [np.quantile(values.astype(np.float64), q) for q in wanted],
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_many_quantiles_of_many_values_are_exact(provider, dtype):
    values = np.random.default_rng(0).standard_cauchy((2, 200_000)).astype(dtype)
    values[:, ::7] = np.nan
    wanted = np.linspace(0, 1, 501)
    exact = np.nanquantile(values.astype(np.float64), wanted, axis=1)
    np.testing.assert_allclose(accel.quantiles(values, wanted), exact, rtol=1e-12)


def test_values_next_to_each_other_of_different_groups_are_kept_apart(provider):
    """`[time, variable]`: long groups without two values side by side."""
    values = np.random.default_rng(0).normal(np.arange(20) * 10, 1, (70_000, 20))
    np.testing.assert_array_equal(
        accel.quantiles(values, [0.2, 0.5], axis=0), accel.quantiles(values.T.copy(), [0.2, 0.5])
    )


@pytest.mark.usefixtures("rust")
@given(
    cube=hnp.arrays(
        st.sampled_from([np.float32, np.float64, ">f4"]),
        hnp.array_shapes(min_dims=2, max_dims=4, min_side=0, max_side=7),
        elements=st.one_of(st.floats(-1e6, 1e6, width=32), st.sampled_from([np.nan, np.inf, -np.inf])),
    ),
    q=st.lists(st.floats(0, 1), max_size=4),
    data=st.data(),
)
def test_providers_agree(cube, q, data):
    axis = data.draw(st.none() | st.integers(0, cube.ndim - 1))
    step = data.draw(st.sampled_from([1, 2, -1]))
    assert_agree(lambda: accel.quantiles(cube[::step].T, q, axis=axis))


@pytest.mark.usefixtures("rust")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_threads_change_nothing(dtype):
    cube = np.random.default_rng(0).normal(size=(3, 100_001)).astype(dtype)
    for axis in (0, 1):
        assert_threads_change_nothing(
            lambda threads, axis=axis: accel.quantiles(cube, [0.1, 0.5], axis=axis, threads=threads)
        )


@pytest.mark.usefixtures("rust")
def test_the_interpreter_lock_is_released():
    cube = np.random.default_rng(0).normal(size=(1, 1_000_000))
    assert_releases_the_lock(lambda: accel.quantiles(cube, 0.5))


@pytest.mark.parametrize("bad", [1.5, -0.1, np.nan, [[0.5]], [0.2, 2.0]])
def test_what_is_no_quantile_is_refused(bad):
    with pytest.raises(InputError, match="q is"):
        accel.quantiles(np.ones((2, 3)), bad)
