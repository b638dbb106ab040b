import numpy as np
import pytest
from graph_batches import batches, permuted, trees_with_rings
from hypothesis import given
from hypothesis import strategies as st
from kernel_checks import assert_agree, assert_releases_the_lock, assert_threads_change_nothing

from astrozoo import accel
from astrozoo.errors import InputError

SIZES = [70, 1, 0, 12, 150, 3]


def by_scipy(edges, sizes, weights, directed):
    csgraph = pytest.importorskip("scipy.sparse.csgraph", reason="scipy is not installed")
    nodes, most = sum(sizes), max(sizes)
    matrix = np.full((nodes, nodes), np.inf)
    np.minimum.at(matrix, tuple(edges), weights)
    full = csgraph.shortest_path(csgraph.csgraph_from_dense(matrix, null_value=np.inf), directed=directed, method="D")
    padded = np.full((len(sizes), most, most), np.inf)
    for graph, (first, size) in enumerate(zip(np.cumsum(sizes) - sizes, sizes, strict=True)):
        padded[graph, :size, :size] = full[first : first + size, first : first + size]
    return padded


@pytest.mark.parametrize("directed", [False, True], ids=["undirected", "directed"])
def test_hops_and_lengths_are_what_scipy_finds(provider, directed):
    edges = trees_with_rings(SIZES)
    edges = edges[:, np.random.default_rng(1).permutation(edges.shape[1])[: edges.shape[1] * 4 // 5]]
    hops = by_scipy(edges, SIZES, np.ones(edges.shape[1]), directed)
    found = accel.shortest_paths(edges, SIZES, directed=directed)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, np.where(np.isinf(hops), -1, hops))
    weights = np.random.default_rng(2).uniform(0.1, 2.0, edges.shape[1])
    lengths = accel.shortest_paths(edges, SIZES, weights=weights, directed=directed)
    np.testing.assert_allclose(lengths, by_scipy(edges, SIZES, weights, directed), rtol=1e-12)


def test_a_path_is_as_long_as_it_has_edges(provider):
    nodes = np.arange(700)
    hops = accel.shortest_paths([nodes[:-1], nodes[1:]], [700])[0]
    np.testing.assert_array_equal(hops, np.abs(nodes[:, None] - nodes))
    ahead = accel.shortest_paths([nodes[:-1], nodes[1:]], [700], directed=True)[0]
    np.testing.assert_array_equal(ahead, np.where(nodes >= nodes[:, None], nodes - nodes[:, None], -1))


def test_what_is_not_connected_and_the_padding_are_told(provider):
    edges, sizes = [[0, 2], [1, 2]], [3, 1]
    assert accel.shortest_paths(edges, sizes).tolist() == [
        [[0, 1, -1], [1, 0, -1], [-1, -1, 0]],
        [[0, -1, -1], [-1, -1, -1], [-1, -1, -1]],
    ]
    inf = np.inf
    lengths = accel.shortest_paths(edges, sizes, weights=np.float32([2.5, 1]))
    assert lengths.dtype == np.float32
    assert lengths.tolist() == [
        [[0, 2.5, inf], [2.5, 0, inf], [inf, inf, 0]],
        [[0, inf, inf], [inf, inf, inf], [inf, inf, inf]],
    ]


def test_longer_paths_than_the_largest_distance_count_as_none(provider):
    edges = trees_with_rings([40])
    for weights, none in ((None, -1), (np.full(edges.shape[1], 0.5), np.inf)):
        full = accel.shortest_paths(edges, [40], weights=weights)
        for most in (0, 3, 3.5):
            near = accel.shortest_paths(edges, [40], weights=weights, max_distance=most)
            np.testing.assert_array_equal(near, np.where(full <= most, full, none))


def test_the_triangle_inequality_holds_and_permuting_nodes_permutes_it(provider):
    edges = trees_with_rings([90])
    weights = np.random.default_rng(0).integers(0, 9, edges.shape[1]).astype(float)
    moved, order = permuted(edges, 90)
    for chosen in (None, weights):
        lengths = accel.shortest_paths(edges, [90], weights=chosen)[0]
        assert (lengths[:, None] <= lengths[:, :, None] + lengths[None]).all()
        np.testing.assert_array_equal(
            accel.shortest_paths(moved, [90], weights=chosen)[0][np.ix_(order, order)], lengths
        )


def test_an_infinite_weight_is_no_edge_and_the_lightest_of_parallel_edges_counts(provider):
    lengths = accel.shortest_paths([[0, 0, 1], [1, 1, 2]], [3], weights=[3.0, 2.0, np.inf])
    assert lengths[0, 0].tolist() == [0.0, 2.0, np.inf]


def test_no_graphs_and_no_edges_are_fine(provider):
    assert accel.shortest_paths(np.empty((2, 0), int), []).shape == (0, 0, 0)
    assert accel.shortest_paths(np.empty((2, 0), int), [0, 2], weights=[]).shape == (2, 2, 2)


@pytest.mark.usefixtures("rust")
@given(batch=batches(), directed=st.booleans(), most=st.none() | st.integers(0, 4), data=st.data())
def test_providers_agree(batch, directed, most, data):
    edges, sizes = batch
    count = edges.shape[1]
    weight = st.floats(0, 9, width=32) | st.just(np.inf)
    weights = data.draw(st.none() | st.lists(weight, min_size=count, max_size=count))
    if weights is not None:
        weights = np.array(weights, data.draw(st.sampled_from([np.float32, np.float64, ">f8"])))
    edges = np.asfortranarray(edges).astype(data.draw(st.sampled_from([np.int64, np.int32, ">i8"])))
    assert_agree(
        lambda: accel.shortest_paths(edges, sizes, weights=weights, directed=directed, max_distance=most), rtol=0
    )


@pytest.mark.usefixtures("rust")
def test_threads_change_nothing():
    sizes = np.arange(150) % 100
    edges = trees_with_rings(sizes)
    weights = np.random.default_rng(0).random(edges.shape[1])
    for chosen in (None, weights):
        assert_threads_change_nothing(
            lambda threads, chosen=chosen: accel.shortest_paths(edges, sizes, weights=chosen, threads=threads)
        )


@pytest.mark.usefixtures("rust")
def test_the_interpreter_lock_is_released():
    sizes = [200] * 100
    edges = trees_with_rings(sizes)
    assert_releases_the_lock(lambda: accel.shortest_paths(edges, sizes))


@pytest.mark.parametrize(
    ("edges", "sizes", "message"),
    [
        ([[0, 1]], [2], r"edges has shape \(1, 2\)"),
        ([[0.0], [1.0]], [2], "edges has dtype float64"),
        ([[0], [1]], [[2]], "sizes has shape"),
        ([[0], [1]], [2.0], "sizes has dtype"),
        ([[0], [1]], [-1, 3], "sizes has -1"),
        ([[0], [2]], [2], "edges has node 2"),
        ([[-1], [1]], [2], "edges has node -1"),
        ([[0], [1]], [1, 1], "from node 0 of graph 0 to node 1 of graph 1"),
    ],
)
@pytest.mark.parametrize(
    "kernel",
    [
        accel.shortest_paths,
        lambda edges, sizes: accel.random_walk_pe(edges, sizes, 2),
        lambda edges, sizes: accel.laplacian_pe(edges, sizes, 2),
    ],
    ids=["shortest_paths", "random_walk_pe", "laplacian_pe"],
)
def test_what_is_no_batch_of_graphs_is_refused(kernel, edges, sizes, message):
    with pytest.raises(InputError, match=message):
        kernel(edges, sizes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": [1.0, 2.0]}, "weights has shape"),
        ({"weights": [-1.0]}, "weights has -1"),
        ({"weights": [np.nan]}, "weights has nan"),
        ({"weights": ["a"]}, "weights has dtype"),
        ({"max_distance": -1}, "max_distance is -1"),
        ({"max_distance": np.nan}, "max_distance is nan"),
        ({"max_distance": "far"}, "max_distance is 'far'"),
    ],
)
def test_lengths_that_are_none_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        accel.shortest_paths([[0], [1]], [2], **options)
