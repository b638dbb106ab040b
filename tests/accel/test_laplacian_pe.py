import numpy as np
import pytest
from graph_batches import batches, permuted, trees_with_rings
from hypothesis import given
from hypothesis import strategies as st
from kernel_checks import assert_releases_the_lock, assert_threads_change_nothing, both

from astrozoo import accel
from astrozoo.errors import InputError


def laplacian(edges, size):
    """By its definition; for edges within one graph."""
    adjacency = np.zeros((size, size))
    np.add.at(adjacency, tuple(edges[:, edges[0] != edges[1]]), 1)
    adjacency = np.maximum(adjacency, adjacency.T)
    degree = adjacency.sum(axis=1)
    scale = np.where(degree > 0, 1 / np.sqrt(np.maximum(degree, 1)), 0)
    return np.eye(size) - scale[:, None] * adjacency * scale


def assert_encodes(edges, sizes, k, found, tolerance=1e-12):
    """Residuals vanish, vectors are orthonormal, values are the smallest but the first, signs follow the rule."""
    first = 0
    for graph, size in enumerate(sizes):
        mine = edges[:, (edges[0] >= first) & (edges[0] < first + size)] - first
        matrix, count = laplacian(mine, size), min(k, max(size - 1, 0))
        vectors, values = found.vectors[first : first + size].astype(float), found.values[graph].astype(float)
        np.testing.assert_allclose(values[:count], np.linalg.eigvalsh(matrix)[1 : count + 1], atol=tolerance)
        assert np.isnan(values[count:]).all()
        assert not vectors[:, count:].any()
        vectors, values = vectors[:, :count], values[:count]
        np.testing.assert_allclose(matrix @ vectors, vectors * values, atol=tolerance)
        np.testing.assert_allclose(vectors.T @ vectors, np.eye(count), atol=tolerance)
        for column in vectors.T:
            assert column[np.argmax(np.abs(column) >= (1 - 1e-6) * np.abs(column).max())] > 0
        first += size


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-6), (np.float64, 1e-12)])
def test_vectors_are_eigenvectors_of_the_laplacian(provider, dtype, tolerance):
    sizes = [40, 1, 0, 60, 5, 2, 200]
    edges = trees_with_rings(sizes)
    found = accel.laplacian_pe(edges, sizes, 8, dtype=dtype)
    assert found.vectors.dtype == found.values.dtype == dtype
    assert (found.vectors.shape, found.values.shape) == ((sum(sizes), 8), (7, 8))
    assert_encodes(edges, sizes, 8, found, tolerance)


def test_graphs_with_equal_eigenvalues_have_orthonormal_vectors(provider):
    star = np.stack((np.zeros(9, int), np.arange(1, 10)))
    complete = np.stack(np.nonzero(~np.eye(12, dtype=bool))) + 10
    parts = np.array([[22, 24, 26], [23, 25, 27]])
    edges, sizes = np.concatenate((star, complete, parts), axis=1), [10, 12, 8]
    found = accel.laplacian_pe(edges, sizes, 7, dtype=np.float64)
    assert_encodes(edges, sizes, 7, found)
    np.testing.assert_allclose(found.values[1], np.full(7, 12 / 11))
    np.testing.assert_allclose(found.values[2], [0, 0, 1, 1, 2, 2, 2], atol=1e-12)


def test_a_path_has_the_vectors_of_a_path(provider):
    """Cosines, scaled by the root of the degree."""
    node = np.arange(11)
    found = accel.laplacian_pe([node[:-1], node[1:]], [11], 3, dtype=np.float64)
    np.testing.assert_allclose(found.values[0], 1 - np.cos(np.pi * np.arange(1, 4) / 10))
    degree = np.where((node == 0) | (node == 10), 1, 2)
    exact = np.sqrt(degree)[:, None] * np.cos(np.pi * node[:, None] * np.arange(1, 4) / 10)
    cosine = np.abs((exact / np.linalg.norm(exact, axis=0) * found.vectors).sum(axis=0))
    np.testing.assert_allclose(cosine, 1)


def test_direction_and_loops_do_not_matter(provider):
    edges = trees_with_rings([30])
    one_way = edges[:, edges[0] > edges[1]]
    loops = np.concatenate((one_way, [[3, 3], [3, 3]]), axis=1)
    expected = accel.laplacian_pe(edges, [30], 4, dtype=np.float64)
    for other in (one_way, loops):
        np.testing.assert_allclose(accel.laplacian_pe(other, [30], 4, dtype=np.float64).values, expected.values)


def test_permuting_nodes_permutes_the_projector(provider):
    edges = trees_with_rings([40], seed=3)
    moved, order = permuted(edges, 40)
    projectors = []
    for links in (edges, moved):
        found = accel.laplacian_pe(links, [40], 6, dtype=np.float64)
        values, vectors = found.values[0], found.vectors
        whole = vectors[:, : 1 + int(np.argmax(np.diff(values)))]  # not within equal values
        projectors.append(whole @ whole.T)
    np.testing.assert_allclose(projectors[1][np.ix_(order, order)], projectors[0], atol=1e-9)


def test_it_spans_what_pytorch_geometric_gives(provider):
    torch = pytest.importorskip("torch")
    pytest.importorskip("torch_geometric", reason="torch_geometric is not installed")
    from torch_geometric.data import Data
    from torch_geometric.transforms import AddLaplacianEigenvectorPE

    edges = np.unique(trees_with_rings([33]), axis=1)
    found = accel.laplacian_pe(edges, [33], 32)
    data = Data(edge_index=torch.from_numpy(edges), num_nodes=33)
    theirs = AddLaplacianEigenvectorPE(32, is_undirected=True)(data).laplacian_eigenvector_pe.numpy()
    ends = np.flatnonzero(np.diff(found.values[0]) > 1e-3) + 1  # where a space of equal values is complete
    for end in ends:
        np.testing.assert_allclose(
            found.vectors[:, :end] @ found.vectors[:, :end].T, theirs[:, :end] @ theirs[:, :end].T, atol=1e-4
        )


@pytest.mark.usefixtures("rust")
@given(batch=batches(most=14), k=st.integers(1, 9))
def test_providers_agree_on_values_and_both_encode(batch, k):
    edges, sizes = batch
    expected, found = both(lambda: accel.laplacian_pe(np.asfortranarray(edges), sizes, k, dtype=np.float64))
    np.testing.assert_allclose(found.values, expected.values, atol=1e-13)
    for one in (expected, found):
        assert_encodes(edges, sizes, k, one, 1e-11)


@pytest.mark.usefixtures("rust")
def test_providers_agree_on_vectors_of_different_eigenvalues():
    sizes = [20, 30]
    edges = trees_with_rings(sizes, seed=5)
    expected, found = both(lambda: accel.laplacian_pe(edges, sizes, 3, dtype=np.float64))
    assert np.diff(expected.values, axis=1).min() > 1e-3
    np.testing.assert_allclose(found.vectors, expected.vectors, atol=1e-11)


@pytest.mark.usefixtures("rust")
def test_threads_change_nothing():
    sizes = np.arange(80) % 60
    edges = trees_with_rings(sizes)
    assert_threads_change_nothing(lambda threads: tuple(accel.laplacian_pe(edges, sizes, 8, threads=threads)))


@pytest.mark.usefixtures("rust")
def test_the_interpreter_lock_is_released():
    sizes = [60] * 60
    edges = trees_with_rings(sizes)
    assert_releases_the_lock(lambda: accel.laplacian_pe(edges, sizes, 8))


@pytest.mark.parametrize(
    ("k", "dtype", "message"), [(0, None, "k is 0"), (1.5, None, "k is 1.5"), (2, int, "dtype is")]
)
def test_what_is_no_number_of_vectors_is_refused(k, dtype, message):
    with pytest.raises(InputError, match=message):
        accel.laplacian_pe([[0], [1]], [2], k, dtype=dtype or np.float32)
