import numpy as np
import pytest
import torch

from astrozoo import create_attention
from astrozoo.data import distance_graph, encode_graphs
from astrozoo.errors import ConfigError, InputError

SIZES = torch.tensor([6, 1, 9])


def edges_of(sizes):
    """Rings with a tail, both ways."""
    parts, first = [], 0
    for size in sizes.tolist():
        node = torch.arange(first, first + size)
        one_way = torch.stack((node[:-1], node[1:]))
        if size > 4:
            one_way = torch.cat((one_way, torch.tensor([[first], [first + 4]])), dim=1)
        parts += [one_way, one_way.flip(0)]
        first += size
    return torch.cat(parts, dim=1)


def test_encodings_have_the_shapes_and_dtypes_that_models_take():
    found = encode_graphs(edges_of(SIZES), SIZES, steps=5, eigenvectors=7)
    assert {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in found.items()} == {
        "random_walk": (torch.float32, (16, 5)),
        "laplacian": (torch.float32, (16, 7)),
        "shortest_path": (torch.int64, (3, 9, 9)),
    }
    assert list(encode_graphs(edges_of(SIZES).numpy(), SIZES.tolist(), ["laplacian"])) == ["laplacian"]


def test_permuting_nodes_permutes_encodings():
    size = torch.tensor([9])
    edges, order = edges_of(size), torch.randperm(9, generator=torch.Generator().manual_seed(0))
    before, after = (encode_graphs(links, size, eigenvectors=3) for links in (edges, order[edges]))
    torch.testing.assert_close(after["random_walk"][order], before["random_walk"])
    assert torch.equal(after["shortest_path"][0][order][:, order], before["shortest_path"][0])
    turned = (after["laplacian"][order] * before["laplacian"]).sum(dim=0)
    torch.testing.assert_close(turned.abs(), torch.ones(3))


def test_they_agree_with_the_transforms_of_pytorch_geometric():
    pytest.importorskip("torch_geometric", reason="torch_geometric is not installed")
    from torch_geometric.data import Data
    from torch_geometric.transforms import AddLaplacianEigenvectorPE, AddRandomWalkPE

    size = torch.tensor([9])
    data = Data(edge_index=edges_of(size), num_nodes=9)
    found = encode_graphs(data.edge_index, size, steps=8, eigenvectors=3)
    torch.testing.assert_close(found["random_walk"], AddRandomWalkPE(8)(data).random_walk_pe)
    theirs = AddLaplacianEigenvectorPE(3, is_undirected=True)(data).laplacian_eigenvector_pe
    torch.testing.assert_close(found["laplacian"].abs(), theirs.abs().float(), atol=1e-5, rtol=0)


def test_signs_of_eigenvectors_are_flipped_at_random_by_graph():
    sizes = torch.full((200,), 7)
    edges = edges_of(sizes)
    plain = encode_graphs(edges, sizes, ["laplacian"], eigenvectors=2)["laplacian"]
    one, same, other = (
        encode_graphs(edges, sizes, ["laplacian"], eigenvectors=2, flip=torch.Generator().manual_seed(seed))[
            "laplacian"
        ]
        for seed in (0, 0, 1)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(one.abs(), plain.abs())
    signs = (one * plain).view(200, 7, 2).sum(dim=1).sign()
    assert 60 < (signs > 0)[:, 0].sum() < 140


def test_an_attention_reads_the_hops():
    found = encode_graphs(edges_of(SIZES), SIZES, ["shortest_path"], max_hops=3)
    geometry = distance_graph(found["shortest_path"], SIZES)
    assert geometry.edge_index.shape == (2, 36 + 1 + 81)
    assert set(geometry.edge_distance.tolist()) == {-1, 0, 1, 2, 3}
    attention = create_attention("graph", dim=16, num_heads=2, max_hops=3)
    torch.nn.init.normal_(attention.hop_bias)
    rows = torch.randn(3, 9, 16)
    out = attention(rows, geometry=geometry)
    assert out.shape == rows.shape
    hidden = rows.clone()
    hidden[0, 6:] = 100.0  # padding
    torch.testing.assert_close(attention(hidden, geometry=geometry)[0, :6], out[0, :6])


def test_an_unknown_encoding_is_refused_with_a_hint():
    with pytest.raises(ConfigError, match="laplacian"):
        encode_graphs(edges_of(SIZES), SIZES, ["laplace"])


@pytest.mark.parametrize("hops", [torch.zeros(3, 9, 9), torch.zeros(3, 8, 8, dtype=torch.int64)])
def test_hops_of_other_graphs_are_refused(hops):
    with pytest.raises(InputError, match="hops is"):
        distance_graph(hops, SIZES)


def test_no_graphs_have_no_encodings():
    found = encode_graphs(np.empty((2, 0), int), np.empty(0, int))
    assert [tuple(tensor.shape) for tensor in found.values()] == [(0, 16), (0, 8), (0, 0, 0)]
    assert distance_graph(found["shortest_path"], []).edge_index.shape == (2, 0)
