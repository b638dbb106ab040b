import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_checks import assert_agree, assert_releases_the_lock, assert_threads_change_nothing

from astrozoo import accel
from astrozoo.errors import InputError


def light_curve(cadences=6000, seed=0, dtype=np.float64):
    generator = np.random.default_rng(seed)
    time = 131.5 + 0.0204344 * np.sort(generator.choice(2 * cadences, cadences, replace=False))
    flux = 1.0 + 1e-4 * generator.normal(size=cadences)
    flux[np.abs((time - 133.0 + 3.65) % 7.3 - 3.65) < 0.15] -= 2e-3
    return time, flux.astype(dtype)


def view_by_the_paper(time, flux, period, epoch, *, half, width, bins):
    """Bin by bin, over phases in order; edges are summed up as AstroNet's are."""
    phase = np.mod(time + (period / 2 - epoch), period) - period / 2
    spacing = (2 * half - width) / (bins - 1)
    view, low = [], -half
    for _ in range(bins):
        inside = flux[(phase >= low) & (phase < low + width)]
        view.append(np.median(inside if len(inside) else flux))
        low += spacing
    view = np.array(view)
    view -= np.median(view)
    return view / abs(view.min())


@pytest.mark.parametrize("period", [1.7, 7.3, 60.0])
def test_views_are_those_of_the_paper(provider, period):
    time, flux = light_curve()
    found = accel.fold_views(time, flux, period, 133.0, 0.3, global_bins=301, local_bins=61)
    half = min(1.2, period / 2)
    expected = [
        view_by_the_paper(time, flux, period, 133.0, half=period / 2, width=period / 301, bins=301),
        view_by_the_paper(time, flux, period, 133.0, half=half, width=0.16 * 0.3, bins=61),
    ]
    for view, one in zip(found, expected, strict=True):
        # A cadence within rounding of an edge may fall on either side of it.
        assert np.mean(np.abs(view - one) < 1e-9) > 0.99


def test_a_transit_is_in_the_middle(provider):
    time, flux = light_curve()
    found = accel.fold_views(time, flux, 7.3, 133.0, 0.3)
    assert (found.global_view.shape, found.local_view.shape) == ((2001,), (201,))
    assert np.abs(np.arange(201)[found.local_view < -0.5] - 100).max() < 201 / 8 / 2 + 1
    assert np.abs(np.arange(2001)[found.global_view < -0.5] - 1000).max() < 2001 * 0.15 / 7.3 + 2


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_normalised_view_has_median_zero_and_minimum_minus_one(provider, dtype):
    time, flux = light_curve(dtype=dtype)
    for view in accel.fold_views(time, flux, [7.3, 2.2], 133.0, 0.3):
        assert view.dtype == dtype
        np.testing.assert_allclose(np.median(view, axis=1), 0.0, atol=1e-7)
        assert (view.min(axis=1) == -1.0).all()


def test_real_views_have_the_same_median_and_minimum(shared_data):
    file = shared_data / "light_curves" / "kepler_dr24_global_val_official_full.npz"
    if not file.is_file():
        pytest.skip(f"{file.name} is not there")
    with np.load(file) as archive:
        views = archive["global_view"]
    # Laid out as a light curve of one period, a cadence in each bin, a view is its own view.
    period, time = 2001.0, np.arange(2001) + 0.5
    for view in views[:50]:
        assert np.median(view) == pytest.approx(0.0, abs=1e-6)
        assert view.min() == -1.0
        found = accel.fold_views(time, view, period, period / 2, 100.0).global_view
        np.testing.assert_allclose(found, view, atol=1e-6)


def test_a_bin_without_cadences_takes_the_median_of_all(provider):
    time, flux = np.array([0.1, 0.2, 0.3, 5.1]), np.array([4.0, 6.0, 5.0, 1.0])
    view = accel.fold_views(time, flux, 10.0, 5.0, 1.0, global_bins=10, local_bins=4, normalise=False).global_view
    assert view.tolist() == [5.0, 4.5, 4.5, 4.5, 4.5, 1.0, 4.5, 4.5, 4.5, 4.5]


def test_a_constant_light_curve_is_zero(provider):
    for view in accel.fold_views(np.arange(100.0), np.full(100, 0.7), 3.3, 0.0, 0.5):
        assert (view == 0).all()


def test_wide_bins_overlap(provider):
    time, flux = np.arange(8) + 0.5, np.arange(8.0)
    view = accel.fold_views(time, flux, 8.0, 4.0, 1.0, global_bins=4, global_width=0.625, normalise=False).global_view
    assert view.tolist() == [2.0, 3.0, 4.0, 5.0]


def test_candidates_of_a_batch_are_those_alone(provider):
    time, flux = light_curve(dtype=np.float32)
    periods, durations = np.array([1.7, 7.3, 60.0]), np.array([0.1, 0.3, 1.0])
    batch = accel.fold_views(time, flux, periods, 133.0, durations)
    for i in range(3):
        alone = accel.fold_views(time, flux, periods[i], 133.0, durations[i])
        for view, one in zip(batch, alone, strict=True):
            np.testing.assert_array_equal(view[i], one)


def test_no_candidates_have_no_views(provider):
    found = accel.fold_views([0.0, 1.0], [1.0, 1.0], [], [], [])
    assert (found.global_view.shape, found.local_view.shape) == ((0, 2001), (0, 201))


def test_unknown_cadences_are_left_out_and_order_does_not_matter(provider):
    time, flux = light_curve(500)
    expected = accel.fold_views(time, flux, 7.3, 133.0, 0.3, global_bins=50)
    order = np.random.default_rng(0).permutation(503)
    longer = np.append(time, [np.nan, np.inf, 140.0])[order], np.append(flux, [1.0, 1.0, np.nan])[order]
    for one, other in zip(expected, accel.fold_views(*longer, 7.3, 133.0, 0.3, global_bins=50), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.usefixtures("rust")
@given(
    seed=st.integers(0, 1000),
    cadences=st.integers(1, 400),
    dtype=st.sampled_from([np.float32, np.float64, np.float16, ">f4", np.int16]),
    step=st.sampled_from([1, 2, -1]),
    bins=st.tuples(st.integers(2, 60), st.integers(2, 60)),
    period=st.floats(0.3, 50.0),
    share=st.floats(0.05, 1.0),
    normalise=st.booleans(),
)
def test_providers_agree(seed, cadences, dtype, step, bins, period, share, normalise):
    generator = np.random.default_rng(seed)
    time = generator.integers(0, 1000, cadences) * 0.25  # phases coincide with each other, and with edges
    flux = generator.integers(-50, 50, cadences).astype(dtype)
    assert_agree(
        lambda: accel.fold_views(
            time[::step],
            flux[::step],
            [period, 2 * period],
            0.3 * seed,
            share * period,
            global_bins=bins[0],
            local_bins=bins[1],
            normalise=normalise,
        )
    )


@pytest.mark.usefixtures("rust")
def test_threads_change_nothing():
    time, flux = light_curve(dtype=np.float32)
    periods = np.geomspace(0.5, 100.0, 13)
    assert_threads_change_nothing(lambda threads: accel.fold_views(time, flux, periods, 133.0, 0.2, threads=threads))


@pytest.mark.usefixtures("rust")
def test_the_interpreter_lock_is_released():
    time, flux = light_curve(20_000)
    assert_releases_the_lock(lambda: accel.fold_views(time, flux, np.geomspace(0.5, 100.0, 30), 133.0, 0.2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"flux": np.ones(4)}, "expected one length"),
        ({"time": np.ones((3, 1))}, "time has shape"),
        ({"flux": np.full(3, np.nan)}, "expected one or more"),
        ({"flux": np.ones(3, complex)}, "flux has dtype"),
        ({"period": 0.0}, r"period has 0\.0"),
        ({"period": [np.inf]}, "period has inf"),
        ({"epoch": np.nan}, "epoch has nan"),
        ({"duration": -1.0}, r"duration has -1\.0"),
        ({"duration": 3.0}, "longer than its period"),
        ({"period": [2.0, 3.0], "epoch": [1.0, 2.0, 3.0]}, "shapes are"),
        ({"period": [[2.0]]}, "shapes are"),
        ({"global_bins": 1}, "global_bins is 1"),
        ({"local_bins": 2.0}, r"local_bins is 2\.0"),
        ({"num_durations": 0.0}, r"num_durations is 0\.0"),
        ({"global_width": 1.0}, "as wide as their view"),
        ({"local_width": 9.0}, "as wide as their view"),
    ],
)
def test_wrong_input_is_refused(change, message):
    arguments = {"time": np.arange(3.0), "flux": np.ones(3), "period": 2.0, "epoch": 0.0, "duration": 0.5, **change}
    with pytest.raises(InputError, match=message):
        accel.fold_views(**arguments)
