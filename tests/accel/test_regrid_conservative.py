import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_checks import assert_agree, assert_releases_the_lock, assert_threads_change_nothing

from astrozoo import accel
from astrozoo.errors import InputError


def axes(lats, lons, *, poles=False):
    edge = 90.0 if poles else 90.0 - 90.0 / lats
    return np.linspace(-edge, edge, lats), np.arange(lons) * (360.0 / lons)


def bounds(axes):
    """Bounds of the cells of regular global axes, written down once more."""
    lat, lon = axes
    middle = (lat[1:] + lat[:-1]) / 2
    rows = np.concatenate([[-90.0], middle, [90.0]])
    step = 360.0 / len(lon)
    return np.stack([rows[:-1], rows[1:]], 1), np.stack([lon - step / 2, lon + step / 2], 1)


def areas(axes):
    rows, columns = bounds(axes)
    return np.diff(np.sin(np.deg2rad(rows))) * np.diff(columns).T


def brute_force(values, source, target, min_known):
    """Every pair of cells, one at a time."""
    (rows, columns), (to_rows, to_columns) = bounds(source), bounds(target)
    result = np.full((len(to_rows), len(to_columns)), np.nan)
    for i, (south, north) in enumerate(to_rows):
        for j, (west, east) in enumerate(to_columns):
            total = share = 0.0
            for k, (low, high) in enumerate(rows):
                height = np.sin(np.deg2rad(min(high, north))) - np.sin(np.deg2rad(max(low, south)))
                for m, (start, end) in enumerate(columns):
                    for turn in (-360.0, 0.0, 360.0):
                        width = min(end + turn, east) - max(start + turn, west)
                        if height > 0 and width > 1e-9 and not np.isnan(values[k, m]):
                            total += height * width * values[k, m]
                            share += height * width
            whole = (np.sin(np.deg2rad(north)) - np.sin(np.deg2rad(south))) * (east - west)
            if share > max(min_known - 1e-6, 1e-6) * whole:
                result[i, j] = total / share
    return result


@pytest.fixture
def field():
    return np.random.default_rng(0).normal(280.0, 15.0, (19, 36))


def test_it_is_the_mean_over_overlaps(provider, field):
    field[np.random.default_rng(1).random(field.shape) < 0.3] = np.nan
    source = axes(19, 36, poles=True)
    for target in (axes(7, 10), axes(8, 9, poles=True), axes(30, 50)):
        for min_known in (0.0, 0.4, 1.0):
            found = accel.regrid_conservative(field, *source, *target, min_known=min_known)
            np.testing.assert_allclose(found, brute_force(field, source, target, min_known), rtol=1e-12)


@pytest.mark.parametrize("target", [axes(7, 10), axes(9, 12, poles=True), axes(64, 128)], ids=["7", "9", "64"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_integral_over_the_sphere_is_kept(provider, field, target, dtype):
    source = axes(19, 36, poles=True)
    field = field.astype(dtype)
    found = accel.regrid_conservative(field, *source, *target)
    assert found.dtype == dtype
    assert np.sum(found * areas(target)) == pytest.approx(np.sum(field * areas(source)), rel=1e-6)


def test_a_constant_stays_constant_with_gaps_too(provider, field):
    constant = np.full((19, 36), 273.15, dtype=np.float32)
    assert np.all(accel.regrid_conservative(constant, *axes(19, 36), *axes(8, 11)) == np.float32(273.15))
    constant[field > 285] = np.nan
    found = accel.regrid_conservative(constant, *axes(19, 36), *axes(8, 11), min_known=0)
    assert np.all(found == np.float32(273.15))


def test_its_own_grid_gives_the_field_back(provider, field):
    field[3:5, 7] = np.nan
    np.testing.assert_allclose(accel.regrid_conservative(field, *axes(19, 36), *axes(19, 36)), field, rtol=1e-12)


def test_rolling_longitude_rolls_the_result(provider, field):
    source, target = axes(19, 36), axes(8, 9)
    found = accel.regrid_conservative(field, *source, *target)
    rolled = accel.regrid_conservative(np.roll(field, 8, axis=1), *source, *target)
    np.testing.assert_allclose(rolled, np.roll(found, 2, axis=1), rtol=1e-12)


def test_origin_and_direction_of_the_axes_change_nothing(provider, field):
    (lat, lon), target = axes(19, 36), axes(8, 10)
    found = accel.regrid_conservative(field, lat, lon, *target)
    west = np.where(lon >= 180, lon - 360, lon)  # 0 to 180, -170 to -10: a seam amid the axis
    for values, source_lat, source_lon in (
        (field[::-1], lat[::-1], lon),
        (field[:, ::-1], lat, lon[::-1]),
        (field, lat, west),
        (np.roll(field, 18, axis=1), lat, np.roll(west, 18)),
        (np.roll(field[:, ::-1], 5, axis=1), lat, np.roll(west[::-1], 5) + 720),
    ):
        again = accel.regrid_conservative(values, source_lat, source_lon, *target)
        np.testing.assert_allclose(again, found, rtol=1e-12)
    mirrored = accel.regrid_conservative(field, lat, lon, target[0][::-1], target[1][::-1] - 360)
    np.testing.assert_allclose(mirrored, found[::-1, ::-1], rtol=1e-12)


def test_bounds_say_the_same_as_the_centres_between_them(provider, field):
    source, target = axes(19, 36, poles=True), axes(8, 10)
    found = accel.regrid_conservative(field, *source, *target)
    (rows, columns), to_bounds = bounds(source), bounds(target)
    np.testing.assert_allclose(accel.regrid_conservative(field, rows, columns % 360, *to_bounds), found, rtol=1e-12)
    flipped = accel.regrid_conservative(field, rows[:, ::-1], columns[:, ::-1], *to_bounds)
    np.testing.assert_allclose(flipped, found, rtol=1e-12)


def test_one_cell_around_the_sphere_is_the_global_mean(provider, field):
    source = axes(19, 36)
    for west in (0.0, 3.0, -180.0):
        mean = accel.regrid_conservative(field, *source, [[-90.0, 90.0]], [[west, west + 360.0]])
        assert mean.item() == pytest.approx(np.average(field, weights=areas(source)), rel=1e-12)


def test_cells_outside_a_region_are_missing(provider):
    region = np.ones((5, 6))
    lat, lon = 42.5 + 5 * np.arange(5), 352.5 + 5 * np.arange(6)  # 40 to 65 north, 350 to 20 east
    found = accel.regrid_conservative(region, lat, lon, *axes(18, 36))
    expected = np.zeros((18, 36), bool)
    expected[13:15, [0, 1, 35]] = True  # rows at 45 and 55; half of that at 65 is known
    expected[15, [0, 1, 35]] = True
    centres = axes(18, 36)[0]
    assert np.array_equal(~np.isnan(found).all(axis=1), expected.any(axis=1)), centres
    assert np.array_equal(np.isfinite(found[13]), expected[13] | (np.arange(36) == 2))


def test_a_share_of_the_cell_must_be_known(provider):
    field = np.array([[1.0, np.nan, np.nan, np.nan, 5.0, 6.0, 7.0, np.nan]])
    rows, columns = [[-30.0, 30.0]], np.stack([np.arange(8) * 45.0, np.arange(8) * 45.0 + 45], 1)
    to_columns = np.stack([np.arange(4) * 90.0, np.arange(4) * 90.0 + 90], 1)
    for min_known, expected in (
        (0.0, [1, np.nan, 5.5, 7]),
        (0.5, [1, np.nan, 5.5, 7]),
        (0.6, [np.nan] * 2 + [5.5, np.nan]),
    ):
        found = accel.regrid_conservative(field, rows, columns, rows, to_columns, min_known=min_known)
        np.testing.assert_allclose(found[0], expected)


def test_a_gaussian_grid_reaches_the_poles(provider):
    lat = np.rad2deg(np.arcsin(np.polynomial.legendre.leggauss(32)[0]))
    found = accel.regrid_conservative(np.ones((32, 64)), lat, axes(32, 64)[1], *axes(180, 360), min_known=1.0)
    assert np.all(found == 1.0)


def test_an_infinity_is_a_value_that_stays_in_its_cell(provider, field):
    field[9, 17] = np.inf
    found = accel.regrid_conservative(field, *axes(19, 36), *axes(19, 18))
    assert (
        np.isinf(found).sum() == 2
    )  # a cell of 20 degrees around 160, and one around 180: both take part of 165 to 175
    assert not np.isnan(found).any()


def test_leading_dimensions_stay(provider, field):
    cube = np.stack([field, field + 1] * 3).reshape(2, 3, 19, 36)
    found = accel.regrid_conservative(cube, *axes(19, 36), *axes(4, 8))
    one = accel.regrid_conservative(field, *axes(19, 36), *axes(4, 8))
    assert found.shape == (2, 3, 4, 8)
    np.testing.assert_allclose(found[0, 1], one + 1, rtol=1e-12)
    assert accel.regrid_conservative(cube[:0], *axes(19, 36), *axes(4, 8)).shape == (0, 3, 4, 8)


def test_a_sparse_matrix_over_all_cells_gives_the_same(provider):
    sparse = pytest.importorskip("scipy.sparse", reason="scipy makes the independent product")
    field = np.random.default_rng(0).normal(size=(36, 72))
    source, target = axes(36, 72), axes(9, 18)
    (rows, columns), (to_rows, to_columns) = bounds(source), bounds(target)

    def overlaps(low_high, to, period):
        shifts = (-period, 0.0, period) if period else (0.0,)
        return sum(
            np.maximum(np.minimum(low_high[:, 1] + s, to[:, 1:]) - np.maximum(low_high[:, 0] + s, to[:, :1]), 0.0)
            for s in shifts
        )

    sines = [np.sin(np.deg2rad(b)) for b in (rows, to_rows)]
    weights = sparse.kron(
        sparse.csr_matrix(overlaps(*sines, None)), sparse.csr_matrix(overlaps(columns, to_columns, 360.0))
    )
    expected = (weights @ field.ravel()) / np.asarray(weights.sum(axis=1)).ravel()
    np.testing.assert_allclose(
        accel.regrid_conservative(field, *source, *target).ravel(), expected, rtol=1e-10, atol=1e-12
    )


@pytest.mark.usefixtures("rust")
@given(
    sizes=st.tuples(st.integers(2, 20), st.integers(2, 90), st.integers(2, 20), st.integers(2, 90)),
    fields=st.integers(0, 3),
    gaps=st.sampled_from([0.0, 0.1, 0.9]),
    dtype=st.sampled_from([np.float32, np.float64, np.int16, ">f4", np.float16]),
    seed=st.integers(0, 99),
)
def test_providers_agree(sizes, fields, gaps, dtype, seed):
    generator = np.random.default_rng(seed)
    cube = generator.normal(0, 100, (sizes[1], sizes[0], fields)).astype(dtype).T  # not contiguous
    if cube.dtype.kind == "f":
        cube[generator.random(cube.shape) < gaps] = np.nan
        cube[generator.random(cube.shape) < 0.01] = np.inf
    source, target = axes(*sizes[:2], poles=seed % 2 == 0), axes(*sizes[2:])
    tolerance = 1e-10 if cube.dtype.itemsize == 8 or cube.dtype.kind == "i" else 1e-5
    assert_agree(
        lambda: accel.regrid_conservative(cube, *source, *target, min_known=0.37), rtol=tolerance, atol=100 * tolerance
    )


@pytest.mark.usefixtures("rust")
def test_threads_change_nothing():
    cube = np.random.default_rng(0).normal(size=(9, 181, 360)).astype(np.float32)
    cube[:, 40:90, 30:200] = np.nan
    source, target = axes(181, 360, poles=True), axes(60, 90)
    assert_threads_change_nothing(lambda threads: accel.regrid_conservative(cube, *source, *target, threads=threads))


@pytest.mark.usefixtures("rust")
def test_the_interpreter_lock_is_released():
    cube = np.ones((20, 181, 360))
    assert_releases_the_lock(lambda: accel.regrid_conservative(cube, *axes(181, 360), *axes(90, 180)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source_lat": np.linspace(-80, 80, 9)}, "source_lat has 9 cells"),
        ({"source_lon": np.arange(9.0)}, "source_lon has 9 cells"),
        ({"source_lat": np.linspace(-100, 90, 19)}, "source_lat reaches -100"),
        ({"source_lat": np.r_[0:18, 17]}, "source_lat is neither strictly ascending"),
        ({"source_lon": np.linspace(0, 360, 36)}, "source_lon runs from 0 to 360"),
        ({"target_lon": np.full(4, 5.0)}, "target_lon is neither strictly ascending"),
        ({"target_lat": [1.0]}, "target_lat has 1 cells"),
        ({"target_lat": [1.0, np.nan]}, "target_lat holds NaN"),
        ({"target_lat": [["a", "b"]]}, "target_lat has shape"),
        ({"target_lat": np.ones((2, 3))}, "target_lat has shape"),
        ({"target_lat": [[4.0, 4.0]]}, "target_lat has cells without area"),
        ({"target_lon": [[0.0, 400.0]]}, "target_lon has cells without width"),
        ({"min_known": 1.5}, "min_known is 1.5"),
        ({"values": np.ones(5)}, "values has shape"),
        ({"values": np.ones((19, 36), complex)}, "values has dtype"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    (source_lat, source_lon), (target_lat, target_lon) = axes(19, 36), axes(4, 8)
    arguments = {
        "values": np.ones((19, 36)), "source_lat": source_lat, "source_lon": source_lon, "target_lat": target_lat,
        "target_lon": target_lon, "min_known": 0.5, **change,
    }  # fmt: skip
    with pytest.raises(InputError, match=message):
        accel.regrid_conservative(**arguments)
