import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from kernel_checks import assert_agree, assert_releases_the_lock, assert_threads_change_nothing

from astrozoo import accel
from astrozoo.errors import InputError


def cubes(dtype):
    values = st.one_of(st.floats(-1e6, 1e6, width=32), st.just(np.nan))
    return hnp.arrays(dtype, hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=7), elements=values)


def test_known_values_are_counted_averaged_and_bounded(provider):
    found = accel.nan_stats([[1.0, np.nan, 3.0, 8.0], [2.0, 2.0, 2.0, 2.0]])
    assert found.count.tolist() == [3, 4]
    assert found.mean.tolist() == [4.0, 2.0]
    assert found.std == pytest.approx([np.sqrt(26 / 3), 0.0])
    assert (found.min.tolist(), found.max.tolist()) == ([1.0, 2.0], [8.0, 2.0])


def test_nothing_known_gives_nan_and_a_count_of_zero(provider):
    for cube in (np.full((2, 3), np.nan), np.empty((2, 0))):
        found = accel.nan_stats(cube)
        assert found.count.tolist() == [0, 0]
        assert all(np.isnan(part).all() for part in found[1:])


@pytest.mark.parametrize("axis", [None, 0, -1, (0, 2), (1, 3), (0, 1, 2, 3)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.int16])
def test_it_is_what_numpy_computes_in_float64(provider, axis, dtype):
    cube = np.random.default_rng(0).normal(100, 30, (6, 5, 40, 9)).astype(dtype)
    if cube.dtype.kind == "f":
        cube[cube > 130] = np.nan
    exact, axes = cube.astype(np.float64), (1, 2, 3) if axis is None else axis
    found = accel.nan_stats(cube, axis=axis)
    np.testing.assert_array_equal(found.count, np.isfinite(exact).sum(axis=axes))
    for part, function in zip(found[1:], (np.nanmean, np.nanstd, np.nanmin, np.nanmax), strict=True):
        np.testing.assert_allclose(part, function(exact, axis=axes), rtol=1e-12)


def test_a_large_mean_costs_no_digits(provider):
    small = np.random.default_rng(0).normal(size=(2, 50_000))
    found = accel.nan_stats(small + 1e9)
    np.testing.assert_allclose(found.std, np.std((small + 1e9) - 1e9, axis=1), rtol=1e-9)


def test_an_infinite_value_is_a_value(provider):
    found = accel.nan_stats([[1.0, np.inf, np.nan]])
    assert (found.count[0], found.mean[0], found.max[0]) == (2, np.inf, np.inf)
    assert np.isnan(found.std[0])


@pytest.mark.usefixtures("rust")
@given(cube=st.one_of(cubes(np.float32), cubes(np.float64)), data=st.data())
def test_providers_agree(cube, data):
    axis = data.draw(st.none() | st.integers(0, cube.ndim - 1))
    step = data.draw(st.sampled_from([1, 2, -1]))
    assert_agree(lambda: accel.nan_stats(cube[::step].T, axis=axis), rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("rust")
@pytest.mark.parametrize("shape", [(3, 400_001), (2000, 301)])
def test_threads_change_nothing(shape):
    cube = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    for axis in (0, 1):
        assert_threads_change_nothing(lambda threads, axis=axis: accel.nan_stats(cube, axis=axis, threads=threads))


@pytest.mark.usefixtures("rust")
def test_the_interpreter_lock_is_released():
    cube = np.ones((2, 3_000_000))
    assert_releases_the_lock(lambda: accel.nan_stats(cube))


@pytest.mark.parametrize("bad", [["a"], np.ones(3, complex), np.array(["2020"], "M8[D]")])
def test_what_is_no_number_is_refused(bad):
    with pytest.raises(InputError, match="values has dtype"):
        accel.nan_stats(bad)


@pytest.mark.parametrize("axis", [2, -3, (0, 0), (0, -2)])
def test_an_axis_that_is_not_there_is_refused(axis):
    with pytest.raises(InputError, match="axis is"):
        accel.nan_stats(np.ones((2, 3)), axis=axis)
