import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Subset

from astrozoo.data import Graph, GraphDataset, collate_graphs, connect, graph_geometry
from astrozoo.errors import InputError


def make(nodes, edges, *, seed=0, tensors=False):
    generator = np.random.default_rng(seed)
    parts = {
        "x": generator.normal(size=(nodes, 3)).astype(np.float32),
        "edges": generator.integers(0, max(nodes, 1), (2, edges)),
        "edge_attr": generator.normal(size=(edges, 2)).astype(np.float32),
        "y": generator.normal(size=2),
        "positions": generator.normal(size=(nodes, 3)),
    }
    return Graph(**{name: torch.from_numpy(part) if tensors else part for name, part in parts.items()})


GRAPHS = [make(5, 9, seed=1), make(1, 0, seed=2), make(0, 0, seed=3), make(30, 100, seed=4, tensors=True)]


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_a_batch_is_that_of_pytorch_geometric():
    data = pytest.importorskip("torch_geometric.data", reason="PyTorch Geometric is not installed")
    batch = collate_graphs(GRAPHS)
    theirs = data.Batch.from_data_list(
        [
            data.Data(
                x=torch.from_numpy(graph.x),
                edge_index=torch.from_numpy(graph.edges),
                edge_attr=torch.from_numpy(graph.edge_attr),
                y=torch.from_numpy(graph.y)[None],
                pos=torch.from_numpy(graph.positions),
            )
            for graph in GRAPHS
        ]
    )
    names = {"x": "x", "edges": "edge_index", "edge_attr": "edge_attr", "positions": "pos", "batch": "batch"}
    for ours, other in names.items():
        torch.testing.assert_close(batch.inputs[ours], theirs[other], rtol=0, atol=0)
    torch.testing.assert_close(batch.targets["y"], theirs.y, rtol=0, atol=0)
    assert batch.inputs["sizes"].tolist() == theirs.ptr.diff().tolist() == [5, 1, 0, 30]


def test_a_loader_makes_batches_of_graphs():
    batches = list(DataLoader(GRAPHS, batch_size=3, collate_fn=collate_graphs))
    assert [len(batch) for batch in batches] == [3, 1]
    assert batches[1].inputs["x"].dtype == torch.float32
    assert batches[0].inputs["edges"].max() < 6


def test_a_dataset_gives_graphs_and_whole_batches():
    dataset = GraphDataset(GRAPHS)
    assert len(dataset) == 4
    one = dataset[-1]
    for name in ("x", "edges", "edge_attr", "y", "positions"):
        np.testing.assert_array_equal(getattr(one, name), getattr(GRAPHS[3], name))
    with pytest.raises(IndexError):
        dataset[4]
    taken = dataset.__getitems__([3, 0])
    for name, part in collate_graphs([GRAPHS[3], GRAPHS[0]]).inputs.items():
        assert torch.equal(taken.inputs[name], part)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # forking beside threads, from Python 3.12 on
def test_a_loader_of_a_dataset_sees_every_graph_once(workers):
    loader = DataLoader(
        GraphDataset(GRAPHS), batch_size=3, shuffle=True, collate_fn=collate_graphs, num_workers=workers
    )
    sizes = torch.cat([batch.inputs["sizes"] for batch in loader])
    assert sorted(sizes.tolist()) == [0, 1, 5, 30]


def test_a_part_of_a_data_set_takes_whole_batches_too():
    part = Subset(GraphDataset(GRAPHS), [3, 1])
    (batch,) = DataLoader(part, batch_size=2, collate_fn=collate_graphs)
    expected = collate_graphs([GRAPHS[3], GRAPHS[1]])
    assert batch.inputs.keys() == expected.inputs.keys()
    for name, tensor in expected.inputs.items():
        assert torch.equal(batch.inputs[name], tensor)
    assert torch.equal(batch.targets["y"], expected.targets["y"])


def test_one_graph_is_a_batch_of_itself():
    batch = collate_graphs([GRAPHS[0]])
    np.testing.assert_array_equal(batch.inputs["edges"], GRAPHS[0].edges)
    assert batch.inputs["batch"].tolist() == [0] * 5


def test_graphs_without_edges_have_a_batch_without_edges():
    batch = collate_graphs([Graph(np.ones((2, 1)), np.empty((2, 0), int))] * 2)
    assert batch.inputs["edges"].shape == (2, 0)
    assert list(batch.inputs) == ["sizes", "x", "edges", "batch"]
    assert batch.targets == {}


def test_tensors_share_memory_with_the_graph():
    x = torch.ones(4, 2)
    x[0, 0] = 7.0
    graph = Graph(x, torch.zeros(2, 1, dtype=torch.int64))
    assert np.shares_memory(graph.x, x.numpy())


def test_a_number_is_one_target():
    graphs = [Graph(np.ones((1, 1)), np.zeros((2, 1), int), y=value) for value in (1.5, torch.tensor(2.5))]
    with pytest.raises(InputError, match="y of graph 1 is float32"):
        collate_graphs(graphs)
    assert collate_graphs(graphs[:1] * 2).targets["y"].tolist() == [[1.5], [1.5]]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"x": np.ones(3)}, r"Graph\.x has shape \(3,\)"),
        ({"edges": np.zeros((2, 1))}, r"Graph\.edges is float64"),
        ({"edges": np.array([[0], [3]])}, r"Graph\.edges lead to nodes from 0 to 3"),
        ({"edges": np.array([[0], [-1]])}, r"Graph\.edges lead to nodes from -1"),
        ({"edge_attr": np.ones((2, 1))}, r"Graph\.edge_attr has 2 rows; expected one for each edge: 1"),
        ({"positions": np.ones((2, 3))}, r"Graph\.positions has 2 rows"),
        ({"y": np.ones((1, 2))}, r"Graph\.y has shape"),
        ({"x": np.array([["a"]])}, r"Graph\.x has dtype"),
    ],
)
def test_parts_that_do_not_fit_are_refused(parts, message):
    with pytest.raises(InputError, match=message):
        Graph(**{"x": np.ones((3, 2)), "edges": np.zeros((2, 1), int), **parts})


def test_graphs_of_different_kinds_are_refused():
    single, double = (Graph(np.ones((2, 1), dtype), np.zeros((2, 1), int)) for dtype in (np.float32, np.float64))
    with pytest.raises(InputError, match="x of graph 1 is float64"):
        collate_graphs([single, double])
    with pytest.raises(InputError, match="graph 0 has no y, graph 1 has"):
        collate_graphs([single, Graph(single.x, single.edges, y=1.0)])
    with pytest.raises(InputError, match="graphs is empty"):
        collate_graphs([])


def test_turning_a_cloud_changes_no_edge():
    generator = np.random.default_rng(0)
    positions = generator.normal(size=(400, 3))
    turn, _ = np.linalg.qr(generator.normal(size=(3, 3)))
    graph, turned = connect(positions, 0.5), connect(positions @ turn.T + 10.0, 0.5)
    assert np.abs(graph.edge_attr - 0.5).min() > 1e-9  # no pair near enough to the radius for rounding to matter
    np.testing.assert_array_equal(graph.edges, turned.edges)
    np.testing.assert_allclose(graph.edge_attr, turned.edge_attr, rtol=1e-9)


def test_a_connected_cloud_keeps_what_it_is_given():
    positions = torch.rand(20, 3)
    graph = connect(positions, 0.4, y=3.0, max_neighbors=2)
    assert graph.x.tolist() == [[1.0]] * 20
    assert graph.x.dtype == graph.edge_attr.dtype == np.float32
    assert np.bincount(graph.edges[1], minlength=20).max() <= 2
    features = np.arange(40).reshape(20, 2)
    np.testing.assert_array_equal(connect(positions, 0.4, x=features).x, features)


def test_attention_sees_no_edge_between_graphs():
    from astrozoo import create_attention

    graphs = [connect(np.random.default_rng(seed).normal(size=(6, 3)), 1.5, loop=True) for seed in range(3)]
    attention = create_attention("graph", dim=8, num_heads=2).double()
    x = torch.randn(1, 18, 8, dtype=torch.float64)
    geometry = graph_geometry(collate_graphs([Graph(graph.x, graph.edges) for graph in graphs]))
    whole = attention(x, geometry=geometry)
    changed = x.clone()
    changed[:, 6:] += 1.0
    torch.testing.assert_close(attention(changed, geometry=geometry)[:, :6], whole[:, :6])
