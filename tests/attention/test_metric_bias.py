"""`metric_bias`: what falls off with distance, weighed by quadrature, against formulas, limits and symmetries."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

from astrozoo.attention import KVCache, Points, explain_attention
from astrozoo.attention import metric_bias as module
from astrozoo.attention.flash import flash
from astrozoo.attention.metric_bias import metric_bias
from astrozoo.attention.metric_flex import distance_rule
from astrozoo.attention.metric_reference import reference_bias
from astrozoo.attention.placement import place_points
from astrozoo.errors import BackendRefused, ConfigError, InputError

METRICS = ("great_circle", "euclidean", "periodic", "wavelength", "time")


def build(**options):
    torch.manual_seed(1)
    return metric_bias.build(**{"dim": 16, "num_heads": 4, "dtype": torch.float64, **options}).eval()


def tokens(batch=2, count=9, dim=16):
    return torch.randn(batch, count, dim, dtype=torch.float64)


def points(metric, count=9, batch=2, *, weighted=True):
    axes = {"wavelength": 1, "time": 1, "great_circle": 2}.get(metric, 3)
    coords = torch.rand(batch, count, axes, dtype=torch.float64) * 3 + 0.2
    if metric == "great_circle":
        coords = (coords - 1.7) * torch.tensor([50.0, 120.0])
    period = (1.0, 2.0, 2.5) if metric == "periodic" else ()
    weights = torch.rand(batch, count, dtype=torch.float64) + 0.1 if weighted else None
    return Points(coords, metric=metric, weights=weights, period=period)


def agree(got, expected, tolerance=1e-10):
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


def masks(batch, queries, keys):
    return {
        "mask": torch.rand(batch, 4, queries, keys) < 0.8,
        "key_mask": torch.rand(batch, keys) < 0.8,
        "bias": torch.randn(batch, 4, queries, keys, dtype=torch.float64),
        "segments": (torch.randint(2, (batch, queries)), torch.randint(2, (batch, keys))),
    }


# -- values ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("slopes", ["learned", "geometric"])
def test_value_and_gradients_equal_the_reference(metric, causal, slopes):
    attention = build(slopes=slopes, length_scale=0.3, max_distance=1.2, num_kv_heads=2)
    x, where = tokens(), points(metric)
    leaves = [where.coords, where.weights, x, *attention.parameters()]
    for leaf in leaves:
        leaf.requires_grad_()
    terms = {"geometry": where, "causal": causal, **masks(2, 9, 9)}
    found = []
    for run in (attention.forward, attention.forward_reference):
        y = run(x, **terms)
        found.append([y, *torch.autograd.grad(y.square().sum(), leaves)])
    for got, expected in zip(*found, strict=True):
        agree(got, expected, 1e-8)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("queries", "keys"), [(5, 12), (12, 5), (1, 1)])
def test_pair_of_points_places_a_context(metric, queries, keys):
    attention = build(context_dim=3)
    x, context = tokens(2, queries), tokens(2, keys, 3)
    pair = points(metric, queries, weighted=False), points(metric, keys)
    for terms in ({}, {"causal": True}, masks(2, queries, keys)):
        y = attention(x, context, geometry=pair, **terms)
        agree(y, attention.forward_reference(x, context, geometry=pair, **terms))
    shared = tuple(
        dataclasses.replace(part, coords=part.coords[:1], weights=None if part.weights is None else part.weights[:1])
        for part in pair
    )
    agree(attention(x, context, geometry=shared)[:1], attention(x, context, geometry=pair)[:1])


def test_formula_written_out():
    attention = build(num_heads=1, head_dim=4, slopes=0.7, length_scale=2.0)
    x = tokens(1, 5)
    where = Points(torch.randn(1, 5, 2).double(), weights=torch.rand(1, 5).double())
    q, k, v = (layer(x[0]) for layer in (attention.query, attention.key, attention.value))
    gap = (where.coords[0, :, None] - where.coords[0, None]).norm(dim=-1)
    weights = where.weights[0] * (q @ k.T / 2 - 0.7 * gap / 2.0).exp()
    agree(attention(x, geometry=where)[0], attention.output(weights / weights.sum(dim=1, keepdim=True) @ v))


@pytest.mark.parametrize("causal", [False, True])
def test_alibi_is_the_distance_of_token_numbers(causal):
    """Slopes 1/4, 1/16, ... for four heads, as in the paper; on plain attention with the bias made by hand."""
    attention = build(metric="index", slopes="geometric")
    plain = flash.build(dim=16, num_heads=4, dtype=torch.float64)
    plain.load_state_dict(attention.state_dict())
    number = torch.arange(9)
    gap = (number[:, None] - number).abs().double()
    bias = -torch.tensor([1 / 4, 1 / 16, 1 / 64, 1 / 256]).double()[:, None, None] * gap
    x = tokens()
    agree(attention(x, causal=causal), plain(x, bias=bias[None], causal=causal))
    later = torch.arange(9) * 2 + 5
    agree(attention(x, causal=causal, positions=later), plain(x, bias=2 * bias[None], causal=causal))
    assert metric_bias.aliases["alibi"] == {"metric": "index", "slopes": "geometric"}


def test_distance_of_token_numbers_aligns_the_last_query_with_the_last_key():
    attention, x = build(metric="index", slopes="geometric"), tokens(1, 9)
    agree(attention(x[:, 4:], x, causal=True), attention(x, causal=True)[:, 4:])


@pytest.mark.parametrize("causal", [False, True])
def test_slopes_of_zero_and_weights_of_one_equal_flash(causal):
    attention = build(slopes=0.0, num_kv_heads=2, rope=True)
    plain = flash.build(dim=16, num_heads=4, num_kv_heads=2, rope=True, dtype=torch.float64)
    plain.load_state_dict(attention.state_dict())
    x, key_mask = tokens(), torch.rand(2, 9) < 0.7
    where = points("great_circle", weighted=False)
    for given in (where, dataclasses.replace(where, weights=torch.ones(2, 9).double())):
        y = attention(x, geometry=given, causal=causal, key_mask=key_mask)
        agree(y, plain(x, causal=causal, key_mask=key_mask), 1e-13)


def test_a_steeper_head_looks_nearer():
    attention = build(num_heads=2, head_dim=4, slopes=(8.0, 0.0))
    with torch.no_grad():
        attention.query.weight.zero_()
    where = Points(torch.arange(5.0).double()[None, :, None], metric="time")
    weights = attention.forward_with(tokens(1, 5), geometry=where)[1]["weights"][0]
    assert (weights[0].diagonal() > 0.99).all()
    agree(weights[1], torch.full((5, 5), 0.2, dtype=torch.float64))


# -- the sphere --------------------------------------------------------------------------------------------------------


def test_rotating_all_points_on_the_sphere_changes_nothing():
    attention, x = build(max_distance=2.0), tokens()
    where = points("great_circle")
    lat, lon = torch.deg2rad(where.coords).unbind(dim=-1)
    vectors = torch.stack((lat.cos() * lon.cos(), lat.cos() * lon.sin(), lat.sin()), dim=-1)
    rotation = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q
    for turned in (vectors @ rotation, vectors @ -rotation):
        lat, lon = turned[..., 2].asin(), torch.atan2(turned[..., 1], turned[..., 0])
        moved = dataclasses.replace(where, coords=torch.rad2deg(torch.stack((lat, lon), dim=-1)))
        agree(attention(x, geometry=moved), attention(x, geometry=where), 1e-11)


def test_all_longitudes_of_a_pole_are_one_place():
    attention, x = build(), tokens(1, 4)
    poles = torch.tensor([[90.0, 0.0], [90.0, 77.0], [-90.0, 12.0], [10.0, 350.0]]).double()
    other = torch.tensor([[90.0, -120.0], [90.0, 5.0], [-90.0, 170.0], [10.0, -10.0]]).double()
    first, second = (Points(coords[None], metric="great_circle") for coords in (poles, other))
    agree(attention(x, geometry=first), attention(x, geometry=second), 1e-12)


@pytest.mark.parametrize("weighted", [True, False])
def test_uniform_attention_is_the_integral_over_the_sphere_with_area_weights_only(weighted):
    """The mean of sin^2(lat) is 1/3; the plain mean over an equiangular grid of 33 x 64 is 0.515."""
    lat, lon = torch.meshgrid(
        torch.linspace(-90, 90, 33, dtype=torch.float64), torch.arange(64).double() * 5.625, indexing="ij"
    )
    coords = torch.stack((lat, lon), dim=-1).reshape(1, -1, 2)
    area = torch.deg2rad(coords[..., 0]).cos() if weighted else None
    attention = build(dim=1, num_heads=1, slopes=0.0)
    with torch.no_grad():
        attention.query.weight.zero_()
        attention.value.weight.fill_(1)
        attention.output.weight.fill_(1)
    field = torch.deg2rad(coords[..., :1]).sin().square()
    mean = attention(field, geometry=Points(coords, metric="great_circle", weights=area))
    assert mean.std() < 1e-12
    assert (abs(mean.mean().item() - 1 / 3) < 1e-3) == weighted


# -- weights -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
def test_splitting_a_key_into_halves_of_its_weight_changes_nothing(metric):
    attention, x, context = build(), tokens(2, 6), tokens(2, 8)
    own, keys = points(metric, 6), points(metric, 8)
    split = torch.tensor([0, 1, 2, 3, 3, 4, 5, 6, 7])
    share = torch.tensor([1, 1, 1, 0.5, 0.5, 1, 1, 1, 1]).double()
    parts = dataclasses.replace(keys, coords=keys.coords[:, split], weights=keys.weights[:, split] * share)
    agree(attention(x, context[:, split], geometry=(own, parts)), attention(x, context, geometry=(own, keys)), 1e-13)
    doubled = dataclasses.replace(keys, coords=keys.coords[:, split], weights=keys.weights[:, split])
    other = attention(x, context[:, split], geometry=(own, doubled))
    assert not torch.allclose(other, attention(x, context, geometry=(own, keys)), atol=1e-4)


@pytest.mark.parametrize("slopes", ["learned", 0.0])
def test_weight_zero_hides_a_key_whatever_is_in_it(slopes):
    attention = build(slopes=slopes)
    x, context = tokens(2, 6), tokens(2, 8)
    own, keys = points("great_circle", 6), points("great_circle", 8)
    keys.weights[:, 3] = 0
    rest = [0, 1, 2, 4, 5, 6, 7]
    fewer = dataclasses.replace(keys, coords=keys.coords[:, rest], weights=keys.weights[:, rest])
    expected = attention(x, context[:, rest], geometry=(own, fewer))
    agree(attention(x, context, geometry=(own, keys)), expected)
    agree(attention.forward_reference(x, context, geometry=(own, keys)), expected)
    keys.weights.zero_()
    assert (attention(x, context, geometry=(own, keys)) == 0).all()


def test_only_ratios_of_weights_matter():
    attention, x, where = build(), tokens(), points("euclidean")
    larger = dataclasses.replace(where, weights=where.weights * 7.5)
    agree(attention(x, geometry=larger), attention(x, geometry=where), 1e-13)


# -- cut-off, time and causality ---------------------------------------------------------------------------------------


def influence(attention, x, **terms):
    """Whether each token moves each output: bool (query, token)."""
    x = x.requires_grad_()
    y = attention(x, **terms)
    rows = [torch.autograd.grad(y[0, row].sum(), x, retain_graph=True)[0][0] for row in range(y.shape[1])]
    return torch.stack(rows).abs().amax(dim=-1) > 0


@pytest.mark.parametrize("slopes", ["learned", 0.0])
def test_keys_beyond_the_cut_off_have_no_influence(slopes):
    attention = build(slopes=slopes, max_distance=2.5)
    where = Points(torch.tensor([0.0, 1.0, 2.5, 4.0, 9.0]).double()[None, :, None])
    gap = (where.coords[0] - where.coords[0].T).abs()
    assert (influence(attention, tokens(1, 5), geometry=where) == (gap <= 2.5)).all()


def test_query_with_all_keys_beyond_the_cut_off_gives_zero_and_finite_gradients():
    attention = build(max_distance=1.0)
    own, keys = Points(torch.tensor([[[0.0], [50.0]]]).double()), Points(torch.tensor([[[0.1], [0.5]]]).double())
    x = tokens(1, 2).requires_grad_()
    y = attention(x, tokens(1, 2), geometry=(own, keys))
    assert (y[0, 1] == 0).all()
    assert (y[0, 0] != 0).any()
    for gradient in torch.autograd.grad(y.square().sum(), [x, *attention.parameters()]):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("causal", [False, True])
def test_light_cone_in_time(causal):
    """A region of radius 6 and signals of speed 2: more than 3 away in time nothing matters, nor does the future."""
    attention = build(metric="time", max_distance=6.0, speed=2.0)
    time = torch.tensor([0.0, 1.0, 2.0, 3.5, 9.0, 11.0]).double()
    seen = influence(attention, tokens(1, 6), geometry=Points(time[None, :, None], metric="time"), causal=causal)
    gap = time[:, None] - time
    assert (seen == ((gap.abs() <= 3) & ((gap >= 0) | (not causal)))).all()


def test_causal_in_time_never_sees_a_later_time_even_out_of_order():
    attention = build(slopes=0.0)
    time = torch.tensor([3.0, 1.0, 2.0, 2.0, 0.0]).double()
    seen = influence(attention, tokens(1, 5), geometry=Points(time[None, :, None], metric="time"), causal=True)
    assert (seen == ((time[:, None] >= time) & torch.ones(5, 5).tril().bool())).all()


@pytest.mark.parametrize("metric", METRICS)
def test_causal_sees_itself_and_nothing_later(metric):
    where = points(metric, 7, 1)
    where = dataclasses.replace(where, coords=where.coords.sort(dim=1).values)
    assert (influence(build(), tokens(1, 7), geometry=where, causal=True) == torch.ones(7, 7).tril().bool()).all()


# -- caches ------------------------------------------------------------------------------------------------------------


def chunk(where, part):
    weights = None if where.weights is None else where.weights[:, part]
    return dataclasses.replace(where, coords=where.coords[:, part], weights=weights)


@pytest.mark.parametrize("max_len", [None, 12])
@pytest.mark.parametrize("metric", ["great_circle", "wavelength", "time"])
@pytest.mark.parametrize("sizes", [[1] * 12, [5, 1, 6], [11, 1]])
def test_any_chunks_with_their_points_equal_one_pass(max_len, metric, sizes):
    attention = build(num_kv_heads=2, rope=True, max_distance=1.5)
    x, where = tokens(2, 12), points(metric, 12)
    if metric == "time":
        where = dataclasses.replace(where, coords=where.coords.sort(dim=1).values)
    cache = attention.new_cache(2, max_len)
    assert isinstance(cache, KVCache) == (max_len is None)
    parts = torch.arange(12).split(sizes)
    outs = [attention(x[:, part], geometry=chunk(where, part), cache=cache, causal=True) for part in parts]
    agree(torch.cat(outs, dim=1), attention(x, geometry=where, causal=True))


@pytest.mark.parametrize("max_len", [None, 12])
@pytest.mark.parametrize("side", ["left", "right"])
def test_chunks_with_padding_equal_one_pass(max_len, side):
    attention = build(rope=True)
    x, where = tokens(2, 12), points("wavelength", 12)
    key_mask = torch.ones(2, 12, dtype=torch.bool)
    key_mask[1, :4] = False
    if side == "right":
        key_mask = key_mask.flip(1)
    where.coords[~key_mask] = torch.nan
    cache = attention.new_cache(2, max_len)
    outs = []
    for part in torch.arange(12).split([5, 1, 6]):
        given = {"geometry": chunk(where, part), "key_mask": key_mask[:, part]}
        outs.append(attention(x[:, part], cache=cache, causal=True, **given))
    expected = attention(x, geometry=where, key_mask=key_mask, causal=True)
    agree(torch.cat(outs, dim=1)[key_mask], expected[key_mask])


@pytest.mark.parametrize("max_len", [None, 12])
def test_cache_can_be_reordered_cropped_saved_and_reset(max_len):
    attention = build()
    x, where = tokens(2, 12), points("euclidean", 12)
    cache = attention.new_cache(2, max_len)
    first, last = torch.arange(8), torch.arange(5, 9)
    attention(x[:, first], geometry=chunk(where, first), cache=cache, causal=True)
    cache.crop(5)
    copy = attention.new_cache(2, max_len)
    copy.load_state_dict({name: tensor.clone() for name, tensor in cache.state_dict().items()})
    expected = attention(x[:, :9], geometry=chunk(where, torch.arange(9)), causal=True)[:, 5:]
    agree(attention(x[:, last], geometry=chunk(where, last), cache=copy, causal=True), expected)
    cache.reorder(torch.tensor([1, 0]))
    turned = dataclasses.replace(where, coords=where.coords.flip(0), weights=where.weights.flip(0))
    y = attention(x.flip(0)[:, last], geometry=chunk(turned, last), cache=cache, causal=True)
    agree(y, expected.flip(0))
    cache.reset()
    y = attention(x[:, first], geometry=chunk(where, first), cache=cache, causal=True)
    agree(y, attention(x[:, first], geometry=chunk(where, first), causal=True))


@pytest.mark.parametrize("max_len", [None, 12])
def test_cache_without_points_counts_tokens(max_len):
    attention, x = build(metric="index"), tokens(2, 12)
    cache = attention.new_cache(2, max_len)
    outs = [attention(part, cache=cache, causal=True) for part in x.split([4, 1, 7], dim=1)]
    agree(torch.cat(outs, dim=1), attention(x, causal=True))


# -- large biases, NaN, dtypes, compilation ----------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["great_circle", "index"])
@pytest.mark.parametrize("causal", [False, True])
def test_large_biases_are_made_in_blocks(metric, causal, monkeypatch):
    attention, x = build(), tokens(2, 37)
    where = None if metric == "index" else points(metric, 37)
    terms = {"causal": causal, **masks(2, 37, 37)}
    leaves = [x.requires_grad_(), *attention.parameters()]
    found, calls = [], []
    original = attention._bias
    monkeypatch.setattr(attention, "_bias", lambda query, *rest: calls.append(query.shape[2]) or original(query, *rest))
    for limit in (2**24, 1):
        monkeypatch.setattr(module, "BIAS", limit)
        monkeypatch.setattr(module, "BLOCK", 5)
        y = attention(x, geometry=where, **terms)
        found.append([y, *torch.autograd.grad(y.square().sum(), leaves)])
    assert calls[:2] == [37, 5]
    for got, expected in zip(*found, strict=True):
        agree(got, expected, 1e-12)


def test_nan_coordinates_of_padding_reach_neither_outputs_nor_gradients():
    attention, x, where = build(), tokens(), points("great_circle")
    key_mask = torch.rand(2, 9) < 0.6
    where.coords[~key_mask] = torch.nan
    where.weights[~key_mask] = torch.nan
    y = attention(x, geometry=where, key_mask=key_mask)
    agree(y, attention.forward_reference(x, geometry=where, key_mask=key_mask))
    for gradient in torch.autograd.grad(y.square().sum(), list(attention.parameters())):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_keeps_exact_distances(dtype):
    """Times in days of the Julian count, a second apart: only float64 coordinates hold them."""
    attention = build(slopes=1.0, length_scale=1e-5, metric="time")
    time = 2460000.5 + torch.rand(1, 9, 1, dtype=torch.float64) * 1e-4
    where, x = Points(time, metric="time"), tokens(1)
    expected = attention(x, geometry=where)
    y = attention.to(dtype)(x.to(dtype), geometry=where)
    assert y.dtype == dtype
    agree(y.double(), expected, 1e-4 if dtype == torch.float32 else 5e-2)


def test_learned_slopes_start_from_the_geometric_ones_and_stay_above_zero():
    attention = build()
    agree(attention.slopes(), torch.tensor([1 / 4, 1 / 16, 1 / 64, 1 / 256]).double())
    with torch.no_grad():
        attention.raw_slopes.fill_(-5)
    assert (attention.slopes() > 0).all()
    assert "fixed_slopes" not in build(slopes="geometric").state_dict()


def test_learned_slopes_are_served_where_gradients_of_a_bias_are_and_fixed_ones_by_a_fused_kernel():
    x, where = tokens(), points("euclidean")
    learned, fixed = build(), build(slopes="geometric")
    learned(x, geometry=where)
    assert learned.last_choice.backend == "math"
    assert "it gives no gradient of a bias" in str(learned.last_choice.refused["sdpa"])
    fixed(x, geometry=where)
    assert fixed.last_choice.backend == "sdpa"
    with torch.no_grad():
        learned(x, geometry=where)
    assert learned.last_choice.backend == "sdpa"


@pytest.mark.parametrize("metric", ["great_circle", "index"])
def test_compiles_in_one_graph_for_many_lengths(metric):
    torch._dynamo.reset()
    attention = build(slopes="geometric", max_distance=2.0)
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    torch._dynamo.utils.counters.clear()
    for length in (3, 5, 8, 13, 21):
        x, where = tokens(2, length), None if metric == "index" else points(metric, length)
        key_mask = torch.rand(2, length) < 0.8
        y = compiled(x, geometry=where, causal=True, key_mask=key_mask)
        agree(y, attention(x, geometry=where, causal=True, key_mask=key_mask))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2


# -- the kernel that computes distances itself -------------------------------------------------------------------------


@pytest.mark.parametrize("metric", [*METRICS, "index"])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_rule_of_the_kernel_is_the_bias(metric):
    """What FlexAttention is given, run by its plain form on CPU, against the bias made by other formulas."""
    query, key, value = (torch.randn(2, 4, 16, 8, dtype=torch.float64) for _ in range(3))
    if metric == "index":
        number = torch.arange(16.0, dtype=torch.float64)[None, :, None]
        where = place_points(points("time", 16), batch=2, queries=16, keys=16, key_mask=None)
        where = where._replace(query=number, key=number, metric="index", weights=None)
    else:
        pair = points(metric, 16), points(metric, 16)
        where = place_points(pair, batch=2, queries=16, keys=16, key_mask=None)
    slopes = torch.rand(4, dtype=torch.float64)
    rule = distance_rule(where, slopes, 1.5, past=True)
    with torch.no_grad():
        out = flex_attention(query, key, value, score_mod=rule)
    bias = reference_bias(where, slopes, 1.5, past=True)
    logits = query @ key.transpose(2, 3) / math.sqrt(8) + bias
    agree(out, logits.softmax(dim=-1).nan_to_num() @ value, 1e-9)


def test_kernel_refuses_politely_without_a_gpu():
    with pytest.raises(BackendRefused, match="flex: on cpu it has no gradients"):
        build(backend="flex")(tokens(), geometry=points("euclidean"))


def test_explains_what_would_run():
    table = explain_attention(build(), tokens(), geometry=points("great_circle"))
    assert "math" in table
    assert "no gradient of a bias" in table


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "manhattan"}, "metric is 'manhattan'"),
        ({"slopes": "steep"}, "slopes is 'steep'"),
        ({"slopes": -1.0}, "a number of at least 0"),
        ({"slopes": (1.0, 2.0)}, "or 4 such numbers"),
        ({"length_scale": 0}, "length_scale is 0"),
        ({"max_distance": -2}, "max_distance is -2"),
        ({"speed": 3.0}, "for the metric 'time' with a max_distance"),
        ({"speed": 3.0, "max_distance": 2.0, "metric": "euclidean"}, "for the metric 'time'"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        build(**options)


@pytest.mark.parametrize(
    ("options", "geometry", "message"),
    [
        ({"metric": "time"}, None, r"pass geometry=Points\(\.\.\.\)"),
        ({"metric": "time"}, points("euclidean"), "it got Points of 'euclidean'"),
        ({"metric": "index"}, points("euclidean"), "made for the metric 'index'"),
        ({"max_distance": 1.0, "speed": 1.0}, points("euclidean"), "speed is for the metric 'time'"),
        ({}, points("euclidean", 8), r"Points.coords of the queries has shape \(2, 8, 3\)"),
        ({}, points("euclidean", 9, 3), r"expected \(batch=2 \| 1, token=9"),
        ({}, (points("euclidean"), points("time")), "metric 'euclidean' with 3 coordinates"),
        ({}, torch.zeros(2), "expected astrozoo.attention.Points"),
    ],
)
def test_geometry_that_does_not_fit_is_refused(options, geometry, message):
    with pytest.raises(InputError, match=message):
        build(**options)(tokens(), geometry=geometry)


def test_context_of_another_length_asks_for_a_pair():
    with pytest.raises(InputError, match="give a pair, Points of the queries and Points of the keys"):
        build()(tokens(2, 9), tokens(2, 5), geometry=points("euclidean"))
