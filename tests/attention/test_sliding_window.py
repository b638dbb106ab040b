from __future__ import annotations

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from astrozoo.attention.choice import use_backend
from astrozoo.attention.flash import flash
from astrozoo.attention.sliding_window import sliding_window
from astrozoo.attention.terms import Terms
from astrozoo.errors import ConfigError, UnsupportedArgument

DIM, HEADS = 32, 4


def build(**options):
    torch.manual_seed(0)
    return sliding_window.build(**{"dim": DIM, "num_heads": HEADS, "dtype": torch.float64, **options}).eval()


def tokens(count, *, batch=2):
    return torch.randn(batch, count, DIM, dtype=torch.float64)


def results(run, x, attention, **terms):
    """Output and gradients of input, parameters and bias."""
    leaves = [x.detach().clone().requires_grad_(), *attention.parameters()]
    if "bias" in terms:
        terms = {**terms, "bias": terms["bias"].clone().requires_grad_()}
        leaves.append(terms["bias"])
    y = run(leaves[0], **terms)
    probe = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype)
    return [y.detach(), *torch.autograd.grad((y * probe).sum(), leaves, allow_unused=True, materialize_grads=True)]


def assert_equal(found, expected, tolerance=1e-11):
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=tolerance)


def some_terms(name, count):
    generator = torch.Generator().manual_seed(3)
    bias = torch.randn(2, HEADS, count, count, generator=generator, dtype=torch.float64)
    hole = torch.rand(count, count, generator=generator) < 0.2
    key_mask = torch.rand(2, count, generator=generator) < 0.6
    key_mask[1, : count // 2] = False
    return {
        "none": {},
        "key_mask": {"key_mask": key_mask},
        "one key_mask": {"key_mask": key_mask[:1]},
        "bias": {"bias": bias},
        "one bias with holes": {"bias": bias[0, 0].masked_fill(hole, -torch.inf)},
        "both": {"bias": bias[:1], "key_mask": key_mask},
    }[name]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("terms", ["none", "key_mask", "one key_mask", "bias", "one bias with holes", "both"])
@pytest.mark.parametrize(
    "options",
    [
        {"window": 5},
        {"window": 5, "global_tokens": 3},
        {"window": 12, "global_tokens": 1, "relative_bias": True},
        {"window": 1, "global_tokens": 2, "relative_bias": True},
    ],
    ids=str,
)
def test_equals_the_dense_formula_with_gradients(causal, terms, options):
    attention = build(num_kv_heads=2, **options)
    for count in (1, 7, 83):
        x, given = tokens(count), {**some_terms(terms, count), "causal": causal}
        found, expected = (results(run, x, attention, **given) for run in (attention, attention.forward_reference))
        assert_equal(found, expected)


@pytest.mark.parametrize("causal", [False, True])
def test_segments_hide_neighbours_of_another(causal):
    attention = build(window=5)
    x = tokens(40)
    segments = (torch.arange(40) // 7)[None]
    found, expected = (
        results(run, x, attention, segments=segments, causal=causal) for run in (attention, attention.forward_reference)
    )
    assert_equal(found, expected)
    alone = torch.cat([attention(part, causal=causal) for part in x.split(7, dim=1)], dim=1)
    assert_equal([found[0]], [alone])


def test_segments_with_global_tokens_are_refused():
    attention = build(window=5, global_tokens=1)
    with pytest.raises(UnsupportedArgument, match="segments"):
        attention(tokens(8), segments=torch.zeros(2, 8, dtype=torch.int64))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [30, 1000])
def test_window_of_all_tokens_is_flash(causal, window):
    attention = build(window=window, global_tokens=2)
    other = flash.build(dim=DIM, num_heads=HEADS, dtype=torch.float64).eval()
    other.load_state_dict(attention.state_dict())
    x = tokens(30)
    assert_equal(*(results(module, x, module, causal=causal) for module in (attention, other)))


@pytest.mark.parametrize("causal", [False, True])
def test_key_at_the_distance_of_the_window_has_no_gradient_and_one_nearer_has(causal):
    attention = build(window=6)
    x = tokens(60, batch=1).requires_grad_()
    gradient = torch.autograd.grad(attention(x, causal=causal)[0, 30].sum(), x)[0][0].norm(dim=-1)
    expected = torch.zeros(60, dtype=torch.bool)
    expected[25 : 31 if causal else 36] = True
    assert torch.equal(gradient > 0, expected)


def test_global_token_sees_all_and_all_see_it():
    attention = build(window=3, global_tokens=2)
    x = tokens(60, batch=1).requires_grad_()
    y = attention(x)
    seen = torch.stack([torch.autograd.grad(y[0, at].sum(), x, retain_graph=True)[0][0].norm(dim=-1) for at in (1, 50)])
    expected = torch.ones(2, 60, dtype=torch.bool)
    expected[1, 2:48] = expected[1, 53:] = False
    assert torch.equal(seen > 0, expected)


def test_global_token_sees_nothing_later_under_causal():
    attention = build(window=3, global_tokens=2)
    x = tokens(60, batch=1).requires_grad_()
    y = attention(x, causal=True)
    assert not torch.autograd.grad(y[0, 1].sum(), x, retain_graph=True)[0][0, 2:].any()
    seen = torch.autograd.grad(y[0, 50].sum(), x)[0][0].norm(dim=-1) > 0
    assert torch.equal(seen.nonzero().flatten(), torch.tensor([0, 1, 48, 49, 50]))


def test_global_tokens_are_the_first_real_ones():
    attention = build(window=3, global_tokens=2)
    x, padding = tokens(40), tokens(5)
    y = attention(torch.cat((padding, x), dim=1), key_mask=(torch.arange(45) >= 5).expand(2, -1))
    assert_equal([y[:, 5:]], [attention(x)])


def test_relative_bias_is_indexed_by_offset():
    attention = build(window=3, relative_bias=True)
    query, key, value = (torch.randn(1, HEADS, 40, 8, dtype=torch.float64) for _ in range(3))
    table = attention.relative_bias
    row = attention.attend(query, key, value, Terms())[0, :, 20]
    logits = torch.einsum("hd,hkd->hk", query[0, :, 20], key[0, :, 18:23]) / math.sqrt(8) + table
    expected = torch.einsum("hk,hkd->hd", logits.softmax(dim=-1), value[0, :, 18:23])
    assert_equal([row], [expected])


@pytest.mark.parametrize("what", ["key_mask", "bias"])
@pytest.mark.parametrize("global_tokens", [0, 2])
def test_nan_in_hidden_keys_reaches_nothing(what, global_tokens):
    attention = build(window=4, global_tokens=global_tokens)
    hidden = torch.zeros(2, 50, dtype=torch.bool)
    hidden[0, 20] = hidden[1, :3] = hidden[1, 49] = True
    heads = [torch.randn(2, HEADS, 50, 8, dtype=torch.float64) for _ in range(3)]
    found = []
    for junk in (0.0, torch.nan, torch.inf):
        query, key, value = heads[0], *(part.masked_fill(hidden[:, None, :, None], junk) for part in heads[1:])
        leaves = [part.clone().requires_grad_() for part in (query, key, value)]
        bias = torch.zeros(2, 1, 50, 50, dtype=torch.float64).masked_fill(hidden[:, None, None], -torch.inf)
        out = attention.attend(*leaves, Terms(key_mask=~hidden) if what == "key_mask" else Terms(bias=bias))
        found.append([out.detach(), *torch.autograd.grad(out.square().sum(), leaves)])
    assert all(part.isfinite().all() for part in found[0])
    assert_equal(found[1], found[0], 0)
    assert_equal(found[2], found[0], 0)


def test_row_without_a_key_is_zero():
    attention = build(window=3)
    key_mask = torch.ones(2, 40, dtype=torch.bool)
    key_mask[0, 10:15] = False
    y, gradient, *others = results(attention, tokens(40), attention, key_mask=key_mask)
    assert not y[0, 12].any()
    assert y[0, 11].any()
    assert all(part.isfinite().all() for part in (gradient, *others))


@pytest.mark.parametrize("global_tokens", [0, 3])
@pytest.mark.parametrize("relative_bias", [False, True])
@pytest.mark.parametrize("chunks", [[1] * 20, [7, 1, 30, 1, 21], [60], [2, 58], [40, 20]], ids=len)
def test_any_chunking_equals_one_pass(global_tokens, relative_bias, chunks):
    attention = build(window=6, global_tokens=global_tokens, relative_bias=relative_bias, rope=True, causal=True)
    x = tokens(sum(chunks))
    cache = attention.new_cache(2)
    parts = [attention(part, cache=cache) for part in x.split(chunks, dim=1)]
    assert_equal([torch.cat(parts, dim=1)], [attention(x)])
    assert cache.held[0].shape[2] == 5 + global_tokens


@pytest.mark.parametrize("global_tokens", [0, 3])
@pytest.mark.parametrize("relative_bias", [False, True])
def test_padding_anywhere_between_cached_chunks_is_nothing(global_tokens, relative_bias):
    attention = build(window=6, global_tokens=global_tokens, relative_bias=relative_bias, rope=True, causal=True)
    x = tokens(90, batch=3)
    whole = attention(x)
    cache, taken, generator = (
        attention.new_cache(3),
        torch.zeros(3, dtype=torch.int64),
        torch.Generator().manual_seed(0),
    )
    for length in (40, 3, 70, 1):
        real = torch.rand(3, length, generator=generator) < 0.6
        at = taken[:, None] + real.long().cumsum(dim=1) - 1
        chunk = x.gather(1, at.clamp(0, 89)[..., None].expand(-1, -1, DIM)).masked_fill(~real[..., None], torch.nan)
        y = attention(chunk, cache=cache, key_mask=real)
        expected = whole.gather(1, at.clamp(0, 89)[..., None].expand(-1, -1, DIM))
        assert_equal([y[real]], [expected[real]])
        taken = taken + real.sum(dim=1)


def test_long_chunk_after_a_cache_equals_the_dense_formula_without_causality():
    attention = build(window=6, global_tokens=3, relative_bias=True)
    found = []
    for name in ("forward", "forward_reference"):
        cache = attention.new_cache(2)
        torch.manual_seed(4)
        found.append([getattr(attention, name)(tokens(count), cache=cache) for count in (2, 50, 45)])
    assert_equal(*found)


@pytest.mark.parametrize("causal", [False, True])
def test_positions_of_the_caller_decide(causal):
    attention = build(window=4, global_tokens=2, relative_bias=True)
    x, order = tokens(50), torch.randperm(50)
    y = attention(x[:, order], positions=order, causal=causal)
    assert_equal([y], [attention(x, causal=causal)[:, order]])
    spread = {"positions": torch.arange(50) * 1.5, "causal": causal}
    assert_equal([attention(x, **spread)], [attention.forward_reference(x, **spread)])


@pytest.mark.parametrize("causal", [False, True])
def test_operations_grow_with_the_number_of_tokens(causal):
    attention = build(dim=8, num_heads=1, device="meta", dtype=torch.float32, causal=causal)
    counted = []
    for count in (1024, 8192):
        heads = [torch.empty(1, 1, count, 8, device="meta") for _ in range(3)]
        with FlopCounterMode(display=False) as counter, use_backend("math"):
            attention.attend(*heads, Terms(causal=causal))
        counted.append(counter.get_total_flops())
    assert abs(math.log(counted[1] / counted[0], 8) - 1) < 0.1
    assert counted[1] < 4 * 8192 * 8 * (1 if causal else 2) * 1.6 * 512  # of window keys, little beside is computed


@pytest.mark.parametrize("options", [{}, {"global_tokens": 2, "relative_bias": True}], ids=str)
def test_compiles_for_all_lengths_at_once(options):
    from torch._dynamo.testing import CompileCounterWithBackend

    attention = build(window=5, dtype=torch.float32, **options)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(attention, fullgraph=True, backend=counter)
    for count in (40, 47, 64, 65, 100, 128, 16):
        x, key_mask = tokens(count).float().requires_grad_(), torch.rand(2, count) < 0.7
        found, expected = (results(run, x, attention, causal=True, key_mask=key_mask) for run in (compiled, attention))
        assert_equal(found, expected, 1e-4)
    torch._dynamo.reset()
    assert counter.frame_count <= 3  # the first length, all others, and multiples of a block


def test_kernels_of_a_window_are_not_asked_for_on_cpu():
    attention = build(window=5)
    attention(tokens(40))
    assert attention.last_choice.backend in ("sdpa", "math")
    assert not attention.last_choice.request.window


@pytest.mark.parametrize("options", [{"window": 0}, {"global_tokens": -1}, {"window": 2.5}], ids=str)
def test_impossible_options_are_refused(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        build(**options)
