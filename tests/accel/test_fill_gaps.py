import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from kernel_checks import assert_agree, assert_releases_the_lock, assert_threads_change_nothing

from astrozoo import accel
from astrozoo.errors import InputError

nan = np.nan


def test_gaps_are_filled_on_a_line_and_the_ends_stay(provider):
    found = accel.fill_gaps([nan, 1.0, nan, nan, 7.0, nan])
    np.testing.assert_array_equal(found, [nan, 1.0, 3.0, 5.0, 7.0, nan])


def test_uneven_times_count(provider):
    found = accel.fill_gaps([0.0, nan, 8.0], times=[0.0, 1.0, 4.0])
    assert found.tolist() == [0.0, 2.0, 8.0]


def test_a_gap_is_as_long_as_the_time_between_its_known_neighbours(provider):
    series = [0.0, nan, 8.0, nan, nan, 2.0]
    np.testing.assert_array_equal(accel.fill_gaps(series, max_gap=2.0), [0.0, 4.0, 8.0, nan, nan, 2.0])
    np.testing.assert_array_equal(accel.fill_gaps(series, max_gap=3.0), [0.0, 4.0, 8.0, 6.0, 4.0, 2.0])


def test_the_input_is_left_alone_and_nothing_known_is_nothing_filled(provider):
    series = np.array([1.0, nan, 3.0])
    accel.fill_gaps(series)
    np.testing.assert_array_equal(series, [1.0, nan, 3.0])
    assert np.isnan(accel.fill_gaps(np.full((4, 2), nan))).all()
    assert accel.fill_gaps(np.empty((0, 3))).shape == (0, 3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("max_gap", [None, 2.5])
def test_it_is_what_xarray_does(provider, dtype, axis, max_gap):
    xarray = pytest.importorskip("xarray")
    generator = np.random.default_rng(0)
    cube = generator.normal(size=(30, 17, 300)).astype(dtype)
    cube[generator.random(cube.shape) < 0.4] = nan
    times = np.cumsum(generator.uniform(0.2, 1.5, cube.shape[axis]))
    dims = ["a", "b", "c"]
    fields = xarray.DataArray(cube, dims=dims, coords={dims[axis]: times})
    expected = fields.interpolate_na(dims[axis], max_gap=max_gap).values
    found = accel.fill_gaps(cube, axis=axis, times=times, max_gap=max_gap)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, expected, atol=1e-6 if dtype == np.float32 else 1e-13)


@pytest.mark.usefixtures("rust")
@given(
    cube=hnp.arrays(
        st.sampled_from([np.float32, np.float64, ">f4", np.int16]),
        st.tuples(st.integers(0, 9), st.integers(1, 4), st.sampled_from([1, 2, 9, 300])),
        elements=st.integers(-99, 99),
    ),
    seed=st.integers(0, 2**32 - 1),
    axis=st.integers(0, 2),
    max_gap=st.none() | st.floats(0, 5),
)
def test_providers_agree(cube, seed, axis, max_gap):
    generator = np.random.default_rng(seed)
    if cube.dtype.kind == "f":
        cube = np.where(generator.random(cube.shape) < 0.4, nan, cube).astype(cube.dtype)
    times = np.cumsum(generator.uniform(0.1, 2.0, cube.shape[axis]))
    for values in (cube, np.asfortranarray(cube), cube[::-1]):
        assert_agree(lambda values=values: accel.fill_gaps(values, axis=axis, times=times, max_gap=max_gap), rtol=1e-6)


@pytest.mark.usefixtures("rust")
def test_threads_change_nothing():
    generator = np.random.default_rng(0)
    cube = generator.normal(size=(50, 4000))
    cube[generator.random(cube.shape) < 0.3] = nan
    for axis in (0, 1):
        assert_threads_change_nothing(lambda threads, axis=axis: accel.fill_gaps(cube, axis=axis, threads=threads))


@pytest.mark.usefixtures("rust")
def test_the_interpreter_lock_is_released():
    cube = np.ones((500, 4000))
    assert_releases_the_lock(lambda: accel.fill_gaps(cube))


@pytest.mark.parametrize("times", [[0.0, 0.0, 1.0], [2.0, 1.0, 0.0], [0.0, 1.0], [0.0, nan, 1.0]])
def test_times_that_do_not_increase_are_refused(times):
    with pytest.raises(InputError, match="times has shape"):
        accel.fill_gaps(np.ones(3), times=times)


def test_other_nonsense_is_refused():
    with pytest.raises(InputError, match="axis is 2"):
        accel.fill_gaps(np.ones((3, 2)), axis=2)
    with pytest.raises(InputError, match="max_gap is"):
        accel.fill_gaps(np.ones(3), max_gap=-1.0)
