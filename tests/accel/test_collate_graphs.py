import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_checks import assert_agree, assert_releases_the_lock, assert_threads_change_nothing

from astrozoo import accel
from astrozoo.errors import InputError


def graphs(sizes, *, dtype=np.float32, seed=0, edges=3):
    """Arguments of `GraphStore.of`: graphs of these sizes with a few edges for each node."""
    generator = np.random.default_rng(seed)
    return {
        "x": [generator.normal(size=(nodes, 4)).astype(dtype) for nodes in sizes],
        "edges": [generator.integers(0, max(nodes, 1), (2, edges * nodes)) for nodes in sizes],
        "edge_attr": [generator.normal(size=(edges * nodes, 2)).astype(dtype) for nodes in sizes],
        "positions": [generator.normal(size=(nodes, 3)) for nodes in sizes],
        "y": [generator.integers(0, 9, 2) for _ in sizes],
    }


def joined(*lists, **given):
    return accel.collate_graphs(accel.GraphStore.of(*lists, **given))


def test_edges_are_shifted_by_the_nodes_before(provider):
    x = [np.zeros((2, 1)), np.ones((3, 1))]
    found = joined(x, [np.array([[0], [1]]), np.array([[0, 2], [1, 0]])])
    assert found.edges.tolist() == [[0, 2, 4], [1, 3, 2]]
    assert found.batch.tolist() == [0, 0, 1, 1, 1]
    assert found.sizes.tolist() == [2, 3]
    assert found.x[:, 0].tolist() == [0, 0, 1, 1, 1]
    assert (found.edge_attr, found.positions, found.y) == (None, None, None)


@pytest.mark.parametrize("sizes", [[5], [0], [0, 0], [3, 0, 1, 20], [30] * 200])
def test_parts_are_joined_in_order(provider, sizes):
    given = graphs(sizes)
    found = joined(**given)
    for name in ("x", "edge_attr", "positions"):
        expected = np.concatenate(given[name])
        np.testing.assert_array_equal(getattr(found, name), expected)
        assert getattr(found, name).dtype == expected.dtype
    np.testing.assert_array_equal(found.y, np.stack(given["y"]))
    first = np.cumsum(sizes) - sizes
    shifted = [edges + start for edges, start in zip(given["edges"], first, strict=True)]
    np.testing.assert_array_equal(found.edges, np.concatenate(shifted, axis=1))
    assert {found.edges.dtype, found.batch.dtype, found.sizes.dtype} == {np.dtype(np.int64)}


def test_graphs_come_in_the_order_asked_for_and_as_often(provider):
    given = graphs([3, 0, 5, 2])
    found = accel.collate_graphs(accel.GraphStore.of(**given), np.array([2, 0, 2], np.int32))
    taken = {name: [part[graph] for graph in (2, 0, 2)] for name, part in given.items()}
    for one, other in zip(found, joined(**taken), strict=True):
        np.testing.assert_array_equal(one, other)


def test_no_graphs_asked_for_are_a_batch_of_none(provider):
    found = accel.collate_graphs(accel.GraphStore.of(**graphs([3, 4])), [])
    assert (found.x.shape, found.edges.shape, found.y.shape, found.sizes.shape) == ((0, 4), (2, 0), (0, 2), (0,))


@pytest.mark.parametrize("indices", [[0, 4], [-1], [0.5], [[0]], "a"])
def test_graphs_that_are_not_there_are_refused(provider, indices):
    store = accel.GraphStore.of(**graphs([3, 4, 5, 6]))
    with pytest.raises(InputError, match="indices"):
        accel.collate_graphs(store, indices)


@pytest.mark.usefixtures("rust")
def test_a_store_that_was_tampered_with_is_refused_and_not_read_beyond():
    for starts in ([0, 3, 99], [0, 3, -1], [5, 3, 7]):
        store = accel.GraphStore.of(**graphs([3, 4]))
        store.node_starts[:] = starts
        with accel.using("rust"), pytest.raises(ValueError, match="no rows"):
            accel.collate_graphs(store)


def flat(**changes):
    """Arguments of `GraphStore`: three nodes with two edges, no node, two nodes with one edge."""
    return {
        "x": np.ones((5, 2), np.float32),
        "node_starts": np.array([0, 3, 3, 5]),
        "edges": np.array([[0, 1, 1], [2, 0, 0]]),
        "edge_starts": np.array([0, 2, 2, 3]),
        **changes,
    }


def test_a_store_keeps_arrays_that_are_right_and_converts_others():
    given = flat()
    store = accel.GraphStore(**given)
    assert all(getattr(store, name) is array for name, array in given.items())
    wide = np.ones((5, 4), ">f4")
    store = accel.GraphStore(
        **flat(x=wide[:, ::2], edges=given["edges"].astype(np.int32), edge_attr=np.ones((3, 1), int))
    )
    assert (store.x.dtype, store.edges.dtype, store.edge_attr.dtype) == (np.float32, np.int64, np.int64)
    assert store.x.flags.c_contiguous
    assert store.x.dtype.isnative
    assert len(store) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": np.ones(5)}, r"x has shape \(5,\); expected \(node, feature\)"),
        ({"x": np.full((5, 2), "a")}, "x has dtype"),
        ({"node_starts": np.array([0.0, 3.0, 3.0, 5.0])}, "node_starts is float64"),
        ({"node_starts": np.array([], int)}, r"node_starts is int64 \(0,\)"),
        ({"node_starts": np.array([0, 3, 3, 6])}, "node_starts goes from 0 to 6; expected 0 to 5"),
        ({"node_starts": np.array([1, 3, 3, 5])}, "node_starts goes from 1"),
        ({"node_starts": np.array([0, 3, 2, 5])}, "node_starts of graph 1 is 3, and 2 of the next"),
        ({"edge_starts": np.array([0, 2, 3])}, "edge_starts has 3 entries; expected 4"),
        ({"edge_starts": np.array([0, 1, 2, 3])}, "edges of graph 1 lead to node 1; expected .* it has 0 nodes"),
        ({"edges": np.array([[0, 1, 1], [2, 0, 2]])}, "edges of graph 2 lead to node 2; expected numbers from 0 to 1"),
        ({"edges": np.array([[0, -1, 1], [2, 0, 0]])}, "edges of graph 0 lead to node -1"),
        ({"edges": np.zeros((3, 2), int)}, r"edges is int64 \(3, 2\)"),
        ({"edge_attr": np.ones((2, 1))}, "edge_attr has 2 rows; expected 3, one for each edge"),
        ({"positions": np.ones((6, 3))}, "positions has 6 rows; expected 5, one for each node"),
        ({"y": np.ones((2, 1))}, "y has 2 rows; expected 3, one for each graph"),
        ({"y": np.ones(3)}, "y has shape"),
    ],
)
def test_a_store_of_arrays_that_do_not_fit_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        accel.GraphStore(**flat(**changes))


def test_results_own_their_memory(provider):
    given = graphs([3])
    found = joined(**given)
    assert not any(np.shares_memory(getattr(found, name), given[name][0]) for name in given)
    assert all(part.flags.writeable and part.flags.c_contiguous for part in found)


@pytest.mark.parametrize(
    ("dtype", "becomes"),
    [(np.float16, np.float32), (np.int32, np.int64), (bool, np.int64), (">f8", np.float64), (np.int64, np.int64)],
)
def test_other_numbers_are_converted(provider, dtype, becomes):
    found = joined([np.ones((2, 3), dtype)], [np.zeros((2, 1), np.int32)])
    assert found.x.dtype == becomes
    assert (found.x == 1).all()


def test_lists_of_lists_and_views_are_taken(provider):
    x = np.arange(24.0).reshape(2, 3, 4)
    found = joined([x[0].T, x[1, :, :3]], ([[0], [1]], []), y=[[1.0], [2.0]])
    np.testing.assert_array_equal(found.x, np.concatenate((x[0].T, x[1, :, :3])))
    assert found.edges.tolist() == [[0], [1]]
    assert found.y.tolist() == [[1.0], [2.0]]


def test_missing_values_pass(provider):
    found = joined([np.full((1, 2), np.nan)], [np.empty((2, 0), int)])
    assert np.isnan(found.x).all()


@pytest.mark.usefixtures("rust")
@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(0, 12), min_size=1, max_size=90),
    dtype=st.sampled_from([np.float32, np.float64, np.int64, np.int8, np.dtype(">f4")]),
    left_out=st.sets(st.sampled_from(["edge_attr", "positions", "y"])),
    edges=st.integers(0, 3),
    step=st.sampled_from([1, -1]),
    data=st.data(),
)
def test_providers_agree(sizes, dtype, left_out, edges, step, data):
    given = {name: part for name, part in graphs(sizes, dtype=dtype, edges=edges).items() if name not in left_out}
    given = {name: [array[::step] for array in part] for name, part in given.items()}
    store = accel.GraphStore.of(**given)
    indices = data.draw(st.none() | st.lists(st.integers(0, len(sizes) - 1), max_size=40))
    assert_agree(lambda: accel.collate_graphs(store, indices), rtol=0.0)


@pytest.mark.usefixtures("rust")
def test_threads_change_nothing():
    store = accel.GraphStore.of(**graphs([400] * 300))
    assert_threads_change_nothing(lambda threads: accel.collate_graphs(store, threads=threads))


@pytest.mark.usefixtures("rust")
def test_the_interpreter_lock_is_released():
    store = accel.GraphStore.of(**graphs([400] * 300))
    assert_releases_the_lock(lambda: accel.collate_graphs(store))


def changed(name, graph, value):
    given = graphs([3, 4, 5])
    given[name][graph] = value
    return given


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (changed("edges", 1, np.full((2, 12), 4)), "edges of graph 1 lead to node 4; expected .* 0 to 3"),
        (changed("edges", 2, np.full((2, 15), -1)), "edges of graph 2 lead to node -1"),
        (changed("edges", 1, np.zeros((3, 2), int)), "edges of graph 1 is int64"),
        (changed("edges", 1, np.zeros((2, 2))), "edges of graph 1 is float64"),
        (changed("x", 2, np.zeros((5, 4))), "x of graph 2 is float64 .* expected float32"),
        (changed("x", 1, np.zeros((4, 3), np.float32)), r"x of graph 1 is float32 \(..., 3\)"),
        (changed("x", 1, np.zeros(4, np.float32)), r"x of graph 1 has shape \(4,\)"),
        (changed("x", 1, np.full((4, 4), "a")), "x of graph 1 has dtype"),
        (changed("edge_attr", 1, np.zeros((3, 2), np.float32)), "edge_attr of graph 1 has 3 rows; expected 12"),
        (changed("positions", 0, np.zeros((2, 3))), "positions of graph 0 has 2 rows; expected 3"),
        (changed("y", 1, np.zeros(3, int)), r"y of graph 1 is int64 \(..., 3\)"),
        ({**graphs([2, 2]), "y": [np.zeros(1)]}, "y has 1 graphs; expected 2"),
        ({"x": [], "edges": []}, "x is empty"),
    ],
)
def test_graphs_that_do_not_fit_are_refused_by_number(provider, given, message):
    with pytest.raises(InputError, match=message):
        joined(**given)
