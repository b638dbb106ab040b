"""Batches of random graphs for the tests of graph encodings."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st


def trees_with_rings(sizes, seed=0):
    """`edges` of undirected graphs, both ways: trees with one ring for ten nodes, as molecules are."""
    generator = np.random.default_rng(seed)
    parts, first = [np.empty((2, 0), np.int64)], 0
    for size in sizes:
        child = np.arange(1, size)
        parent = child - 1 - generator.integers(0, np.minimum(child, 4)) if size > 1 else child
        start = np.arange(size // 10)
        ring = np.stack((start, (start + 5) % max(size, 1)))
        one_way = np.concatenate((np.stack((child, parent)), ring), axis=1) + first
        parts += [one_way, one_way[::-1]]
        first += size
    return np.concatenate(parts, axis=1)


@st.composite
def batches(draw, most=9):
    """`edges`, `sizes`: with empty graphs, isolated nodes, loops and parallel edges."""
    sizes = draw(st.lists(st.integers(0, most), max_size=4))
    edges, first = [], 0
    for size in sizes:
        if size:
            node = st.integers(first, first + size - 1)
            edges += draw(st.lists(st.tuples(node, node), max_size=2 * size))
        first += size
    return np.array(edges, np.int64).reshape(-1, 2).T, np.array(sizes, np.int64)


def permuted(edges, size, seed=0):
    """The edges of one graph after node i was renamed order[i]; and the order."""
    order = np.random.default_rng(seed).permutation(size)
    return order[edges], order
