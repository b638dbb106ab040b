import numpy as np
import pytest
from graph_batches import batches, permuted, trees_with_rings
from hypothesis import given
from hypothesis import strategies as st
from kernel_checks import assert_agree, assert_releases_the_lock, assert_threads_change_nothing

from astrozoo import accel
from astrozoo.errors import InputError


def test_a_ring_returns_as_a_ring_does(provider):
    nodes = np.arange(6)
    edges = np.concatenate(([nodes, (nodes + 1) % 6], [(nodes + 1) % 6, nodes]), axis=1)
    found = accel.random_walk_pe(edges, [6], 6)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.tile(np.float32([0, 1 / 2, 0, 3 / 8, 0, 22 / 64]), (6, 1)))


def test_it_is_the_diagonal_of_powers_of_the_transition_matrix(provider):
    edges = trees_with_rings([50])[:, 7:]
    weights = np.random.default_rng(0).uniform(0.1, 2, edges.shape[1])
    matrix = np.zeros((50, 50))
    np.add.at(matrix, tuple(edges), weights)
    total = matrix.sum(axis=1, keepdims=True)
    matrix = np.divide(matrix, total, out=np.zeros_like(matrix), where=total > 0)
    powers = [np.diag(np.linalg.matrix_power(matrix, step + 1)) for step in range(9)]
    found = accel.random_walk_pe(edges, [50], 9, weights=weights, dtype=np.float64)
    np.testing.assert_allclose(found, np.stack(powers, axis=1), rtol=1e-12, atol=1e-15)


def test_it_is_what_pytorch_geometric_gives(provider):
    torch = pytest.importorskip("torch")
    pytest.importorskip("torch_geometric", reason="torch_geometric is not installed")
    from torch_geometric.data import Data
    from torch_geometric.transforms import AddRandomWalkPE

    sizes, first = [30, 1, 47, 5], 0
    edges = np.unique(trees_with_rings(sizes), axis=1)
    found = accel.random_walk_pe(edges, sizes, 16)
    for size in sizes:
        mine = edges[:, (edges[0] >= first) & (edges[0] < first + size)] - first
        theirs = AddRandomWalkPE(16)(Data(edge_index=torch.from_numpy(mine), num_nodes=size)).random_walk_pe
        np.testing.assert_allclose(found[first : first + size], theirs.numpy(), atol=1e-6)
        first += size


def test_a_node_that_no_edge_leaves_never_returns(provider):
    found = accel.random_walk_pe([[0, 2], [1, 2]], [2, 1, 1], 2, dtype=np.float64)
    assert found.tolist() == [[0, 0], [0, 0], [1, 1], [0, 0]]
    assert not accel.random_walk_pe([[0, 1], [1, 0]], [2], 4, weights=[0, 0]).any()


def test_parallel_edges_add_up(provider):
    twice = accel.random_walk_pe([[0, 0, 0, 1, 2], [1, 1, 2, 0, 0]], [3], 5)
    weighted = accel.random_walk_pe([[0, 0, 1, 2], [1, 2, 0, 0]], [3], 5, weights=[4, 2, 1, 1])
    np.testing.assert_allclose(twice, weighted, rtol=1e-6)


def test_permuting_nodes_permutes_it(provider):
    edges = trees_with_rings([80])
    moved, order = permuted(edges, 80)
    found = accel.random_walk_pe(moved, [80], 12, dtype=np.float64)
    np.testing.assert_allclose(found[order], accel.random_walk_pe(edges, [80], 12, dtype=np.float64), rtol=1e-12)


@pytest.mark.usefixtures("rust")
@given(batch=batches(most=20), steps=st.integers(1, 6), single=st.booleans(), data=st.data())
def test_providers_agree(batch, steps, single, data):
    edges, sizes = batch
    count = edges.shape[1]
    weights = data.draw(st.none() | st.lists(st.floats(0, 9, width=32), min_size=count, max_size=count))
    dtype, rtol = (np.float32, 1e-6) if single else (np.float64, 1e-12)
    assert_agree(
        lambda: accel.random_walk_pe(np.asfortranarray(edges), sizes, steps, weights=weights, dtype=dtype),
        rtol=rtol,
        atol=1e-15,
    )


@pytest.mark.usefixtures("rust")
def test_threads_change_nothing():
    sizes = np.arange(100) % 60
    edges = trees_with_rings(sizes)
    assert_threads_change_nothing(lambda threads: accel.random_walk_pe(edges, sizes, 16, threads=threads))


@pytest.mark.usefixtures("rust")
def test_the_interpreter_lock_is_released():
    sizes = [150] * 60
    edges = trees_with_rings(sizes)
    assert_releases_the_lock(lambda: accel.random_walk_pe(edges, sizes, 16))


@pytest.mark.parametrize(
    ("steps", "options", "message"),
    [
        (0, {}, "steps is 0"),
        (2.0, {}, "steps is 2.0"),
        (True, {}, "steps is True"),
        (2, {"dtype": np.int32}, "dtype is int32"),
        (2, {"weights": [np.inf]}, "infinite"),
        (2, {"weights": [-2.0]}, "weights has -2"),
    ],
)
def test_what_is_no_walk_is_refused(steps, options, message):
    with pytest.raises(InputError, match=message):
        accel.random_walk_pe([[0], [1]], [2], steps, **options)
