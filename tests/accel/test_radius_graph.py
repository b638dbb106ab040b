import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from kernel_checks import assert_agree, assert_releases_the_lock, assert_threads_change_nothing

from astrozoo import accel
from astrozoo.errors import InputError


def cube(points, dtype=np.float64, extent=1.0, seed=0):
    return (np.random.default_rng(seed).random((points, 3)) * extent).astype(dtype)


def brute_force(positions, radius, *, sizes=None, loop=False, most=None):
    """Edges and distances by the definition, one pair after the other in order."""
    exact = np.asarray(positions, np.float64)
    cloud = np.repeat(np.arange(len(sizes)), sizes) if sizes is not None else np.zeros(len(exact), int)
    apart = exact[None] - exact[:, None]
    squares = apart[..., 0] ** 2 + apart[..., 1] ** 2 + apart[..., 2] ** 2
    near = (squares <= radius * radius) & (cloud[None] == cloud[:, None])
    if not loop:
        np.fill_diagonal(near, False)
    if most is not None:
        for target, row in enumerate(near):
            order = sorted(np.flatnonzero(row), key=lambda source, target=target: (squares[target, source], source))
            row[order[most:]] = False
    target, source = np.nonzero(near)
    return np.stack((source, target)), np.sqrt(squares[target, source]).astype(np.asarray(positions).dtype)


def test_points_on_a_lattice_have_the_six_nearest_as_neighbors(provider):
    lattice = np.array(list(itertools.product(range(5), repeat=3)), float)
    found = accel.radius_graph(lattice, 1.0)
    middle = found.edges[0, found.edges[1] == 62]
    assert middle.tolist() == [37, 57, 61, 63, 67, 87]
    assert (found.distances == 1.0).all()
    assert found.edges.shape == (2, 2 * 3 * 4 * 25)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("options", [{}, {"loop": True}, {"most": 3}, {"most": 3, "loop": True}])
@pytest.mark.parametrize("sizes", [None, [0, 20, 0, 300, 1, 79]])
def test_edges_are_those_of_the_definition(provider, dtype, options, sizes):
    positions = cube(400, dtype)
    edges, distances = brute_force(positions, 0.2, sizes=sizes, **options)
    found = accel.radius_graph(
        positions, 0.2, sizes=sizes, loop=options.get("loop", False), max_neighbors=options.get("most")
    )
    np.testing.assert_array_equal(found.edges, edges)
    np.testing.assert_array_equal(found.distances, distances)
    assert (found.edges.dtype, found.distances.dtype) == (np.int64, dtype)


def test_edges_are_those_of_scipy(provider):
    spatial = pytest.importorskip("scipy.spatial", reason="SciPy is not installed")
    positions = cube(3000)
    pairs = spatial.cKDTree(positions).query_pairs(0.1, output_type="ndarray")
    expected = np.concatenate((pairs, pairs[:, ::-1])).T
    expected = expected[:, np.lexsort(expected)]
    np.testing.assert_array_equal(accel.radius_graph(positions, 0.1).edges, expected)


def test_the_ball_is_closed(provider):
    points = [[0.0, 0.0, 0.0], [3.0, 4.0, 0.0], [0.0, 0.0, np.nextafter(5.0, 6.0)]]
    assert accel.radius_graph(points, 5.0).edges.tolist() == [[1, 0], [0, 1]]


def test_radius_zero_joins_equal_points(provider):
    positions = np.concatenate((cube(200), cube(200)))
    source, target = accel.radius_graph(positions, 0.0).edges
    np.testing.assert_array_equal(target, np.arange(400))
    np.testing.assert_array_equal(source, (np.arange(400) + 200) % 400)


def test_of_equally_near_points_the_lowest_numbers_are_kept(provider):
    points = np.array([[0, 0, 0], [1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0]], float)
    source, target = accel.radius_graph(points, 1.0, max_neighbors=2).edges
    assert source[target == 0].tolist() == [1, 2]


def test_clouds_that_lie_in_one_place_are_not_joined(provider):
    one = cube(150)
    both = accel.radius_graph(np.concatenate((one, one)), 0.2, sizes=[150, 150])
    alone = accel.radius_graph(one, 0.2).edges
    np.testing.assert_array_equal(both.edges, np.concatenate((alone, alone + 150), axis=1))


@pytest.mark.parametrize("coordinates", [1, 2])
def test_missing_coordinates_are_zero(provider, coordinates):
    positions = cube(300)[:, :coordinates]
    full = np.pad(positions, ((0, 0), (0, 3 - coordinates)))
    np.testing.assert_array_equal(accel.radius_graph(positions, 0.05).edges, accel.radius_graph(full, 0.05).edges)


@pytest.mark.parametrize("extent", [(1e9, 1e9, 1e9), (1e-12, 1.0, 1e140), (0.0, 0.0, 50.0), (50.0, 0.0, 0.0)])
def test_clouds_of_any_extent_are_searched(provider, extent):
    positions = np.concatenate((cube(150) * extent, cube(150)))
    np.testing.assert_array_equal(accel.radius_graph(positions, 0.3).edges, brute_force(positions, 0.3)[0])


@pytest.mark.parametrize("sizes", [None, [], [0, 0]])
def test_no_points_have_no_edges(provider, sizes):
    found = accel.radius_graph(np.empty((0, 3), np.float32), 1.0, sizes=sizes)
    assert found.edges.shape == (2, 0)
    assert found.distances.dtype == np.float32


@pytest.mark.usefixtures("rust")
@settings(deadline=None)
@given(data=st.data())
def test_providers_agree(data):
    dtype = data.draw(st.sampled_from([np.float32, np.float64, np.dtype(">f4"), np.int32]))
    # A coarse grid among the values makes ties and equal points.
    values = st.integers(-3, 3) if dtype == np.int32 else st.floats(-3, 3, width=32) | st.integers(-3, 3).map(float)
    sizes = data.draw(st.lists(st.sampled_from([0, 1, 5, 40, 100]), max_size=3))
    positions = data.draw(hnp.arrays(dtype, (sum(sizes), data.draw(st.integers(1, 3))), elements=values))
    positions = np.asfortranarray(positions) if data.draw(st.booleans()) else positions[::-1]
    radius = data.draw(st.sampled_from([0.0, 0.3, 1.0, 2.5, 1e-170, 100.0]))
    most, loop = data.draw(st.none() | st.integers(1, 10)), data.draw(st.booleans())
    assert_agree(lambda: accel.radius_graph(positions, radius, sizes=sizes, loop=loop, max_neighbors=most), rtol=0.0)


@pytest.mark.usefixtures("rust")
def test_threads_change_nothing():
    positions = cube(20_000, np.float32)
    assert_threads_change_nothing(lambda threads: accel.radius_graph(positions, 0.06, threads=threads))
    sizes = [60] * 300 + [2000]
    assert_threads_change_nothing(lambda threads: accel.radius_graph(positions, 0.2, sizes=sizes, threads=threads))


@pytest.mark.usefixtures("rust")
def test_the_interpreter_lock_is_released():
    positions = cube(20_000)
    assert_releases_the_lock(lambda: accel.radius_graph(positions, 0.05))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e200])
def test_positions_that_are_not_finite_are_refused(bad):
    positions = cube(5)
    positions[3, 1] = bad
    with pytest.raises(InputError, match=r"positions\[3\] is .* expected finite"):
        accel.radius_graph(positions, 1.0)
    if not np.isfinite(bad):
        with pytest.raises(InputError, match=r"positions\[3\]"):
            accel.radius_graph(positions.astype(np.float32), 1.0)


@pytest.mark.parametrize(
    ("positions", "options", "message"),
    [
        (np.ones(3), {}, r"positions has shape \(3,\)"),
        (np.ones((2, 4)), {}, "one to three coordinates"),
        ([["a", "b"]], {}, "positions has dtype"),
        (np.ones((2, 3)), {"radius": -1.0}, r"radius is -1\.0"),
        (np.ones((2, 3)), {"radius": np.nan}, "radius is nan"),
        (np.ones((2, 3)), {"max_neighbors": 0}, "max_neighbors is 0"),
        (np.ones((2, 3)), {"sizes": [1]}, "sizes are"),
        (np.ones((2, 3)), {"sizes": [3, -1]}, "sizes are"),
        (np.ones((2, 3)), {"sizes": [1.0, 1.0]}, "sizes is float64"),
    ],
)
def test_what_cannot_be_searched_is_refused(positions, options, message):
    with pytest.raises(InputError, match=message):
        accel.radius_graph(positions, **{"radius": 1.0, **options})
