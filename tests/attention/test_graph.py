"""`graph`: attention along edges, on both of its paths, against a loop over nodes, PyTorch Geometric and `flash`."""

from __future__ import annotations

import dataclasses
import warnings

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from astrozoo.attention import Graph
from astrozoo.attention.edge_products import edge_products, edge_sums
from astrozoo.attention.edges import edge_softmax, find_edges
from astrozoo.attention.flash import flash
from astrozoo.attention.graph import graph
from astrozoo.errors import BackendRefused, ConfigError, InputError, UnsupportedArgument

PATHS = ("sparse", "dense")
FORMS = [("dot", "sparse"), ("dot", "dense"), ("additive", "sparse"), ("dynamic", "sparse")]


def build(**options):
    torch.manual_seed(1)
    attention = graph.build(**{"dim": 16, "num_heads": 4, "dtype": torch.float64, **options})
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return attention.eval()


def tokens(batch=2, nodes=9, dim=16):
    return torch.randn(batch, nodes, dim, dtype=torch.float64)


def random_graph(batch=2, queries=9, keys=None, edges=30, heads=4, **fields):
    """Edges within each element, with a bias for each head; some are parallel."""
    keys = queries if keys is None else keys
    element = torch.randint(batch, (edges,))
    edge_index = torch.stack(
        (element * keys + torch.randint(keys, (edges,)), element * queries + torch.randint(queries, (edges,)))
    )
    edge_index[:, -3:] = edge_index[:, :3]
    bias = torch.randn(edges, heads, dtype=torch.float64)
    return Graph(edge_index, bias, **fields)


def complete(nodes, batch=1):
    node = torch.arange(nodes)
    pairs = torch.stack((node.repeat(nodes), node.repeat_interleave(nodes)))
    return Graph(torch.cat([pairs + element * nodes for element in range(batch)], dim=1))


def agree(got, expected, tolerance=1e-12):
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


def gradients(run, attention, x, geometry, *others):
    leaves = [x, *others, *attention.parameters()]
    if geometry.edge_bias is not None:
        leaves.append(geometry.edge_bias)
    for leaf in leaves:
        leaf.requires_grad_()
    y = run(x, *others, geometry=geometry)
    return [y, *torch.autograd.grad(y.square().sum(), leaves)]


@pytest.mark.parametrize(("score", "path"), FORMS)
@pytest.mark.parametrize("num_kv_heads", [4, 2, 1])
def test_value_and_gradients_equal_the_loop_over_nodes(score, path, num_kv_heads):
    attention = build(score=score, path=path, num_kv_heads=num_kv_heads, v_head_dim=3)
    x, geometry = tokens(), random_graph()
    fast = gradients(attention.forward, attention, x, geometry)
    slow = gradients(attention.forward_reference, attention, x, geometry)
    for got, expected in zip(fast, slow, strict=True):
        agree(got, expected, 1e-10)


@pytest.mark.parametrize(("score", "path"), FORMS)
def test_bipartite_graph_with_masked_keys_equals_the_loop_over_nodes(score, path):
    attention = build(score=score, path=path, context_dim=5)
    x, context = tokens(2, 6), tokens(2, 11, 5)
    key_mask = torch.rand(2, 11) < 0.6
    geometry = random_graph(2, 6, 11, node_graph=(torch.randint(2, (2, 6)), torch.randint(2, (2, 11))))
    for terms in ({}, {"key_mask": key_mask}, {"key_mask": key_mask[:1]}):
        y = attention(x, context, geometry=geometry, **terms)
        agree(y, attention.forward_reference(x, context, geometry=geometry, **terms))


@pytest.mark.parametrize(("score", "path"), FORMS)
def test_every_learned_bias_equals_the_loop_over_nodes_and_has_a_gradient(score, path):
    attention = build(score=score, path=path, edge_dim=3, max_hops=2, max_degree=3, self_loops=True)
    geometry = random_graph(
        edge_features=torch.randn(30, 3, dtype=torch.float64), edge_distance=torch.randint(-1, 5, (30,))
    )
    x = tokens()
    fast = gradients(attention.forward, attention, x, geometry)
    slow = gradients(attention.forward_reference, attention, x, geometry)
    for got, expected in zip(fast, slow, strict=True):
        agree(got, expected, 1e-10)
    for name in ("edge_weight.weight", "hop_bias", "degree_bias"):
        index = [name for name, _ in attention.named_parameters()].index(name)
        assert fast[2 + index].abs().max() > 0


@pytest.mark.parametrize("path", PATHS)
def test_degrees_are_counted_where_the_graph_has_none(path):
    attention = build(path=path, max_degree=5)
    geometry, x = random_graph(1, 8, edges=25), tokens(1, 8)
    counted = torch.bincount(geometry.edge_index[0], minlength=8)[None]
    given = dataclasses.replace(geometry, node_degree=counted)
    agree(attention(x, geometry=geometry), attention(x, geometry=given), 0)
    other = dataclasses.replace(geometry, node_degree=counted.flip(1))
    assert not torch.allclose(attention(x, geometry=other), attention(x, geometry=given))


@pytest.mark.parametrize("path", PATHS)
def test_hop_bias_is_one_number_for_each_distance(path):
    """Graphormer's spatial encoding: on a complete graph a bias by distance, added by hand to plain attention."""
    attention, x = build(path=path, max_hops=2), tokens(1, 6)
    hops = torch.tensor([[abs(i - j) if abs(i - j) < 5 else -1 for j in range(6)] for i in range(6)])
    geometry = dataclasses.replace(complete(6), edge_distance=hops.flatten())
    plain = flash.build(dim=16, num_heads=4, dtype=torch.float64)
    plain.load_state_dict(attention.state_dict(), strict=False)
    rows = torch.where(hops < 0, 3, hops.clamp(max=2))
    agree(attention(x, geometry=geometry), plain(x, bias=attention.hop_bias[rows].permute(2, 0, 1)[None]))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("num_kv_heads", [4, 2])
def test_complete_graph_equals_flash(path, num_kv_heads):
    attention = build(path=path, num_kv_heads=num_kv_heads, rope=True, qk_norm=True, bias=True)
    plain = flash.build(
        dim=16, num_heads=4, num_kv_heads=num_kv_heads, rope=True, qk_norm=True, bias=True, dtype=torch.float64
    )
    plain.load_state_dict(attention.state_dict())
    x = tokens(3, 7)
    key_mask = torch.rand(3, 7) < 0.7
    for geometry in (complete(7, 3), dataclasses.replace(complete(7), shared=True)):
        agree(attention(x, geometry=geometry, key_mask=key_mask), plain(x, key_mask=key_mask))


@pytest.mark.parametrize("path", PATHS)
def test_dense_masked_softmax_with_directed_edges(path):
    """Source is the key, target the query; written out without any code of ours."""
    attention = build(path=path, num_heads=1)
    x = tokens(1, 5)
    edge_index = torch.tensor([[0, 1, 4, 2], [3, 3, 1, 2]])
    q, k, v = (layer(x[0]) for layer in (attention.query, attention.key, attention.value))
    adjacency = torch.zeros(5, 5, dtype=torch.bool)
    adjacency[edge_index[1], edge_index[0]] = True
    weights = (q @ k.T / 4).masked_fill(~adjacency, -torch.inf).softmax(dim=1).nan_to_num()
    agree(attention(x, geometry=Graph(edge_index))[0], attention.output(weights @ v))


@pytest.mark.parametrize(("score", "path"), FORMS)
def test_permuting_nodes_permutes_outputs(score, path):
    attention = build(score=score, path=path)
    x, geometry = tokens(1, 9), random_graph(1)
    order = torch.randperm(9)
    place = order.argsort()  # new number of each node
    moved = dataclasses.replace(geometry, edge_index=place[geometry.edge_index])
    agree(attention(x[:, order], geometry=moved), attention(x, geometry=geometry)[:, order])


@pytest.mark.parametrize(("score", "path"), FORMS)
def test_order_of_edges_does_not_matter(score, path):
    attention, x, geometry = build(score=score, path=path), tokens(), random_graph()
    order = torch.randperm(30)
    other = Graph(geometry.edge_index[:, order], geometry.edge_bias[order])
    agree(attention(x, geometry=other), attention(x, geometry=geometry))


@pytest.mark.parametrize(("score", "path"), FORMS)
def test_isolated_node_gives_zero_with_finite_gradients(score, path):
    attention = build(score=score, path=path)
    x = tokens(1, 4).requires_grad_()
    y = attention(x, geometry=Graph(torch.tensor([[0, 1], [1, 0]])))
    assert (y[0, 2:] == 0).all()
    assert (y[0, :2].abs().amax(dim=-1) > 0).all()
    for gradient in torch.autograd.grad(y.square().sum(), [x, *attention.parameters()]):
        assert gradient.isfinite().all()


@pytest.mark.parametrize(("score", "path"), FORMS)
@pytest.mark.parametrize("shared", [True, False])
def test_graph_without_edges_gives_zero(score, path, shared):
    attention = build(score=score, path=path)
    x = tokens().requires_grad_()
    y = attention(x, geometry=Graph(torch.zeros(2, 0, dtype=torch.int64), shared=shared))
    assert (y == 0).all()
    assert (torch.autograd.grad(y.sum(), x)[0] == 0).all()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("bias", [torch.zeros(3).double(), torch.tensor([0.5, -1.0, 2.0]).double()])
def test_parallel_edges_count_as_often_as_they_are_given(path, bias):
    attention, x = build(path=path, num_heads=1), tokens(1, 3)
    edge_index = torch.tensor([[0, 0, 1], [2, 2, 2]])
    once = Graph(edge_index[:, 1:], torch.stack((bias[:2].logsumexp(dim=0), bias[2])))
    agree(attention(x, geometry=Graph(edge_index, bias)), attention(x, geometry=once))


@pytest.mark.parametrize(("score", "path"), FORMS)
def test_batched_graphs_never_mix(score, path):
    """By batch element and by `node_graph`; along edges not even NaN of one graph reaches another."""
    attention, x = build(score=score, path=path), tokens(2, 8)
    geometry = random_graph(2, 8, edges=60, node_graph=torch.tensor([[0, 0, 0, 1, 1, 1, 2, 2]]))
    between = torch.tensor([[0, 12, 0, 3, 5], [15, 1, 3, 0, 7]])  # elements 0 and 1, then graphs of one element
    mixed = dataclasses.replace(
        geometry,
        edge_index=torch.cat((geometry.edge_index, between), dim=1),
        edge_bias=torch.cat((geometry.edge_bias, torch.ones(5, 4, dtype=torch.float64))),
    )
    clean = attention(x, geometry=geometry)
    agree(attention(x, geometry=mixed), clean)
    broken = x.clone()
    broken[:, 3:6] = torch.nan
    if path == "sparse":  # kernels on all pairs read every key that some query sees
        agree(attention(broken, geometry=mixed)[:, :3], clean[:, :3])
    alone = [attention(x[:, :3], geometry=_part(geometry, element)) for element in range(2)]
    agree(torch.cat([y[element : element + 1] for element, y in enumerate(alone)]), clean[:, :3])


def _part(geometry, element):
    """The edges among the first three of eight nodes of one element, for a batch of which only that element counts."""
    index = geometry.edge_index - element * 8
    inside = ((index >= 0) & (index < 3)).all(dim=0)
    return Graph(index[:, inside] + element * 3, geometry.edge_bias[inside])


@pytest.mark.parametrize("path", PATHS)
def test_shared_graph_equals_its_copies(path):
    attention, x = build(path=path, self_loops=True), tokens(3, 9)
    one = random_graph(1)
    shared = dataclasses.replace(one, shared=True)
    copies = Graph(torch.cat([one.edge_index + 9 * element for element in range(3)], dim=1), one.edge_bias.repeat(3, 1))
    key_mask = torch.rand(3, 9) < 0.7
    agree(attention(x, geometry=shared, key_mask=key_mask), attention(x, geometry=copies, key_mask=key_mask))
    agree(attention(x, geometry=shared), attention.forward_reference(x, geometry=shared))


@pytest.mark.parametrize(("score", "path"), FORMS)
@pytest.mark.parametrize("padding", ["negative nodes", "infinite bias"])
def test_padded_edges_are_nothing(score, path, padding):
    attention, x, geometry = build(score=score, path=path, edge_dim=2), tokens(), random_graph()
    features = torch.randn(30, 2, dtype=torch.float64)
    plain = dataclasses.replace(geometry, edge_features=features)
    negative = padding == "negative nodes"
    extra = torch.full((2, 4), -1) if negative else torch.tensor([[0, 1, 2, 3], [1, 2, 3, 4]])
    padded = Graph(
        torch.cat((geometry.edge_index, extra), dim=1),
        torch.cat((geometry.edge_bias, torch.full((4, 4), torch.nan if negative else -torch.inf).double())),
        edge_features=torch.cat((features, torch.full((4, 2), torch.nan).double())),
    )
    fast, expected = (gradients(attention.forward, attention, x, each) for each in (padded, plain))
    for got, want in zip(fast[:-1], expected[:-1], strict=True):
        agree(got, want)
    agree(fast[-1][:30], expected[-1])
    assert (fast[-1][30:] == 0).all()


@pytest.mark.parametrize("path", PATHS)
def test_infinite_bias_hides_an_edge_from_one_head_only(path):
    attention, x, geometry = build(path=path), tokens(), random_graph()
    bias = geometry.edge_bias.clone()
    bias[torch.rand(bias.shape) < 0.4] = -torch.inf
    hidden = Graph(geometry.edge_index, bias)
    fast = gradients(attention.forward, attention, x, hidden)
    agree(fast[0], attention.forward_reference(x, geometry=hidden))
    assert all(gradient.isfinite().all() for gradient in fast)


@pytest.mark.parametrize(("score", "path"), FORMS)
def test_nan_in_masked_nodes_reaches_nothing(score, path):
    attention, x, geometry = build(score=score, path=path), tokens(), random_graph()
    key_mask = torch.rand(2, 9) < 0.6
    clean, dirty = (
        attention(x.masked_fill(~key_mask[..., None], fill), geometry=geometry, key_mask=key_mask)
        for fill in (0.0, torch.nan)
    )
    agree(dirty[key_mask], clean[key_mask], 0)
    found = torch.autograd.grad(dirty[key_mask].sum(), [*attention.parameters()])
    assert all(gradient.isfinite().all() for gradient in found)


@pytest.mark.parametrize(("score", "path"), FORMS)
def test_self_loops_are_added_where_there_are_none(score, path):
    attention, plain = (build(score=score, path=path, self_loops=loops) for loops in (True, False))
    x = tokens(1, 4)
    some = torch.tensor([[0, 1, 1], [1, 1, 2]])
    bias = torch.tensor([0.3, -0.7, 0.2]).double()
    every = torch.cat((some, torch.tensor([[0, 2, 3], [0, 2, 3]])), dim=1)
    expected = plain(x, geometry=Graph(every, torch.cat((bias, torch.zeros(3).double()))))
    agree(attention(x, geometry=Graph(some, bias)), expected)


@pytest.mark.parametrize(("score", "path"), FORMS)
@pytest.mark.parametrize("nodes", [1, 2, 37, 65])
def test_example_geometry_of_any_size_equals_the_loop_over_nodes(score, path, nodes):
    attention, x, geometry = build(score=score, path=path), tokens(1, nodes), graph.example_geometry(nodes)
    geometry = dataclasses.replace(geometry, edge_bias=geometry.edge_bias.double())
    agree(attention(x, geometry=geometry), attention.forward_reference(x, geometry=geometry), 1e-10)


@pytest.mark.parametrize("path", PATHS)
def test_weights_sum_to_one_and_lie_on_the_edges(path):
    attention, x, geometry = build(path=path), tokens(1), random_graph(1)
    y, aux = attention.forward_with(x, geometry=geometry, want=("weights", "lse", "heads"))
    weights = aux["weights"]
    adjacency = torch.zeros(9, 9, dtype=torch.bool)
    adjacency[geometry.edge_index[1], geometry.edge_index[0]] = True
    assert ((weights > 0) == adjacency).all()
    agree(weights.sum(dim=-1), adjacency.any(dim=-1).double().expand(1, 4, 9))
    value = attention.split(attention.value(x), 4)
    agree(weights @ value, aux["heads"])
    assert ((aux["lse"] == -torch.inf) == ~adjacency.any(dim=-1)).all()
    agree(y, attention(x, geometry=geometry), 0)


def test_large_logits_are_finite_in_half_precision():
    attention = build(path="sparse").to(torch.float16)
    x = (tokens() * 100).to(torch.float16)
    geometry = random_graph()
    assert attention(x, geometry=dataclasses.replace(geometry, edge_bias=geometry.edge_bias * 1e4)).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_paths_agree_in_low_precision(dtype):
    sparse, dense = (build(path=path).to(dtype) for path in PATHS)
    x, geometry = tokens().to(dtype), random_graph()
    y = sparse(x, geometry=geometry)
    assert y.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    agree(y, dense(x, geometry=geometry), tolerance)


def test_cost_of_the_sparse_path_is_linear_in_nodes_and_memory_never_holds_all_pairs():
    attention = build(path="auto")

    def flops(nodes):
        with FlopCounterMode(display=False) as counter:
            attention(tokens(1, nodes), geometry=graph.example_geometry(nodes))
        return counter.get_total_flops()

    assert flops(4096) == 8 * flops(512)
    assert attention.last_choice is None


def test_auto_takes_kernels_on_all_pairs_for_small_dense_graphs_only():
    attention = build()
    attention(tokens(1, 12), geometry=complete(12))
    assert attention.last_choice is not None
    attention(tokens(1, 600), geometry=graph.example_geometry(600))
    assert attention.last_choice is None


def test_forced_backend_on_all_pairs_is_honoured():
    with pytest.raises(BackendRefused):
        build(path="dense", backend="flex")(tokens(1), geometry=random_graph(1))


@pytest.mark.parametrize(("score", "path"), FORMS)
def test_compiles_in_one_graph_for_many_sizes(score, path):
    torch._dynamo.reset()
    attention = build(score=score, path=path, self_loops=True, max_degree=3)
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    torch._dynamo.utils.counters.clear()
    for nodes in (5, 8, 13, 21, 34):
        x, geometry = tokens(2, nodes), random_graph(2, nodes, edges=3 * nodes)
        agree(compiled(x, geometry=geometry), attention(x, geometry=geometry))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 3


def test_dropout_is_active_in_training_only():
    attention = build(path="sparse", dropout=0.5)
    x, geometry = tokens(), random_graph()
    agree(attention(x, geometry=geometry), attention(x, geometry=geometry), 0)
    attention.train()
    assert not torch.equal(attention(x, geometry=geometry), attention(x, geometry=geometry))


@pytest.mark.parametrize(
    ("geometry", "message"),
    [
        (Graph(torch.tensor([[0, 18], [0, 1]])), r"has source 18; expected numbers below 18"),
        (Graph(torch.tensor([[0, 1], [0, 9]]), shared=True), r"has target 9; expected numbers below 9: there are 9"),
        (Graph(torch.zeros(2, 1).long(), torch.zeros(1, 3)), "edge_bias has 3 heads; expected 4"),
        (Graph(torch.zeros(2, 1).long(), node_graph=torch.zeros(2, 8).long()), r"expected \(batch=2 \| 1, node=9\)"),
        (Graph(torch.zeros(2, 1).long(), node_graph=torch.zeros(2, 9).long(), shared=True), "the graph is shared"),
        (Graph(torch.zeros(2, 1).long(), edge_features=torch.zeros(1, 3)), "edge_features is given"),
        (Graph(torch.zeros(2, 1).long(), edge_distance=torch.zeros(1).long()), "without max_hops"),
        (None, "expected astrozoo.attention.Graph"),
    ],
)
def test_geometry_that_does_not_fit_is_refused(geometry, message):
    with pytest.raises(InputError, match=message):
        build()(tokens(), geometry=geometry)


@pytest.mark.parametrize("path", PATHS)
def test_missing_learned_terms_are_refused(path):
    with pytest.raises(InputError, match="edge_features is missing"):
        build(path=path, edge_dim=2)(tokens(), geometry=random_graph())
    with pytest.raises(InputError, match="has 3 features; expected 2"):
        build(path=path, edge_dim=2)(tokens(), geometry=random_graph(edge_features=torch.zeros(30, 3)))


@pytest.mark.parametrize("terms", [{"mask": torch.ones(9, 9).bool()}, {"bias": torch.zeros(9, 9)}, {"causal": True}])
def test_what_edges_replace_is_refused(terms):
    with pytest.raises(UnsupportedArgument, match="cannot honour"):
        build()(tokens(), geometry=random_graph(), **terms)


def test_self_loops_with_a_context_are_refused():
    with pytest.raises(InputError, match="self_loops with a context"):
        build(self_loops=True)(tokens(), tokens(), geometry=random_graph())


@pytest.mark.parametrize(
    "options",
    [{"score": "cosine"}, {"path": "fast"}, {"score": "additive", "path": "dense"}, {"edge_dim": 0}, {"max_hops": -1}],
)
def test_options_that_cannot_be_are_refused(options):
    with pytest.raises(ConfigError):
        build(**options)


@pytest.fixture(scope="module")
def geometric():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own imports
        return pytest.importorskip("torch_geometric")


class TestAgainstPyTorchGeometric:
    """Independent layers with our weights: edges source to target, parallel edges counted as given."""

    def inputs(self):
        geometry = random_graph(1, edges=40)
        return tokens(1)[0], Graph(geometry.edge_index), geometry.edge_index

    def test_softmax(self, geometric):
        geometry = random_graph(1, edges=40)
        edges = find_edges(geometry, batch=1, targets=9, sources=9)
        logits = torch.randn(40, 1, 4, dtype=torch.float64) * 30
        expected = geometric.utils.softmax(logits, geometry.edge_index[1], num_nodes=9)
        agree(edge_softmax(logits, edges), expected)

    @pytest.mark.parametrize("path", PATHS)
    def test_transformer_convolution(self, geometric, path):
        x, geometry, edge_index = self.inputs()
        layer = geometric.nn.TransformerConv(16, 4, heads=4, root_weight=False, bias=False).double()
        attention = build(path=path)
        with torch.no_grad():
            for name, other in (("query", "lin_query"), ("key", "lin_key"), ("value", "lin_value")):
                getattr(attention, name).weight.copy_(getattr(layer, other).weight)
                getattr(layer, other).bias = None
            attention.output.weight.copy_(torch.eye(16))
        agree(attention(x[None], geometry=geometry)[0], layer(x, edge_index))

    def test_additive_score_is_that_of_graph_attention_networks(self, geometric):
        x, geometry, edge_index = self.inputs()
        layer = geometric.nn.GATConv(16, 4, heads=4, add_self_loops=False, bias=False).double()
        attention = build(score="additive")
        with torch.no_grad():
            for projection in (attention.query, attention.key, attention.value):
                projection.weight.copy_(layer.lin.weight)
            attention.query_vector.copy_(layer.att_dst[0])
            attention.key_vector.copy_(layer.att_src[0])
            attention.output.weight.copy_(torch.eye(16))
        agree(attention(x[None], geometry=geometry)[0], layer(x, edge_index))

    def test_dynamic_score_is_that_of_their_second_version(self, geometric):
        x, geometry, edge_index = self.inputs()
        layer = geometric.nn.GATv2Conv(16, 4, heads=4, add_self_loops=False, bias=False).double()
        attention = build(score="dynamic")
        with torch.no_grad():
            attention.query.weight.copy_(layer.lin_r.weight)
            attention.key.weight.copy_(layer.lin_l.weight)
            attention.value.weight.copy_(layer.lin_l.weight)
            layer.lin_l.bias, layer.lin_r.bias = None, None
            attention.query_vector.copy_(layer.att[0])
            attention.output.weight.copy_(torch.eye(16))
        agree(attention(x[None], geometry=geometry)[0], layer(x, edge_index))


class TestProductsAlongEdges:
    def inputs(self):
        target, source = torch.randint(5, (20,)), torch.randint(7, (20,))
        own = torch.randn(5, 2, 3, 2, 4, dtype=torch.float64, requires_grad=True)
        other = torch.randn(7, 2, 3, 1, 4, dtype=torch.float64, requires_grad=True)
        weights = torch.randn(20, 2, 3, 2, dtype=torch.float64, requires_grad=True)
        return own, other, weights, target, source

    def test_equal_gathering_and_have_right_gradients_of_both_orders(self):
        own, other, weights, target, source = self.inputs()
        agree(edge_products(own, other, target, source), (own[target] * other[source]).sum(dim=-1))
        total = torch.zeros_like(own)
        for edge in range(20):
            total[target[edge]] += weights[edge][..., None] * other[source[edge]]
        agree(edge_sums(weights, other, target, source, 5), total)
        for function, inputs in (
            (lambda a, b: edge_products(a, b, target, source), (own, other)),
            (lambda a, b: edge_sums(a, b, target, source, 5), (weights, other)),
        ):
            assert torch.autograd.gradcheck(function, inputs)
            assert torch.autograd.gradgradcheck(function, inputs)

    def test_nothing_of_the_size_of_edges_times_features_is_kept(self):
        own, other, _, target, source = self.inputs()
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.shape) or tensor, lambda x: x):
            edge_sums(edge_products(own, other, target, source), other, target, source, 5)
        assert all(len(shape) < 5 or shape[0] != 20 for shape in kept)


def test_forced_backend_along_the_edges_is_an_error_and_on_all_pairs_it_runs():
    x, index = torch.randn(1, 5, 16), torch.tensor([[0, 1, 2], [1, 2, 3]])
    for options in ({"path": "sparse"}, {"score": "additive"}):
        with pytest.raises(BackendRefused, match="works along the edges of a graph"):
            graph.build(dim=16, num_heads=2, backend="math", **options)(x, geometry=Graph(index))
    attention = graph.build(dim=16, num_heads=2, backend="math")
    attention(x, geometry=Graph(index))
    assert attention.last_choice.backend == "math"
