from __future__ import annotations

import pytest
import torch

from astrozoo.attention.cache import ContextCache
from astrozoo.attention.flash import flash
from astrozoo.attention.perceiver import perceiver
from astrozoo.errors import ConfigError, InputError, UnsupportedArgument

DIM, HEADS, CONTEXT = 32, 4, 20


def build(**options):
    torch.manual_seed(0)
    options = {"dim": DIM, "num_heads": HEADS, "context_dim": CONTEXT, "dtype": torch.float64, **options}
    return perceiver.build(**options).eval()


def tokens(length, dim=DIM, batch=2, seed=1):
    return torch.randn(batch, length, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def context():
    return tokens(13, CONTEXT, seed=2)


def by_the_formula(attention, x, context, hidden=None):
    """Head by head; hidden (batch, key)."""
    weight, heads, width = attention.state_dict(), [], DIM // HEADS
    group = HEADS // attention.config.num_kv_heads
    for head in range(HEADS):
        query = x @ weight["query.weight"][width * head :][:width].T
        key, value = (
            context @ weight[f"{name}.weight"][width * (head // group) :][:width].T for name in ("key", "value")
        )
        logits = query @ key.transpose(1, 2) / width**0.5
        if hidden is not None:
            logits = logits.masked_fill(hidden[:, None], -torch.inf)
        heads.append(torch.softmax(logits, dim=-1) @ value)
    return torch.cat(heads, dim=-1) @ weight["output.weight"].T


@pytest.mark.parametrize("kv_heads", [1, 2, HEADS])
@pytest.mark.parametrize("queries", [1, 5, 13, 20])
def test_equals_the_formula_for_rows_of_unequal_length(context, kv_heads, queries):
    attention = build(num_kv_heads=kv_heads)
    key_mask = torch.arange(13)[None] < torch.tensor([[13], [6]])
    want = by_the_formula(attention, tokens(queries), context, ~key_mask)
    for compute in (attention, attention.forward_reference):
        torch.testing.assert_close(compute(tokens(queries), context, key_mask=key_mask), want, rtol=0, atol=1e-12)


def test_equals_flash_on_the_same_context(context):
    attention = build(rope=True, qk_norm=True, bias=True)
    other = flash.build(
        dim=DIM, num_heads=HEADS, context_dim=CONTEXT, rope=True, qk_norm=True, bias=True, dtype=torch.float64
    ).eval()
    other.load_state_dict(attention.state_dict())
    bias = torch.randn(5, 13, dtype=torch.float64)
    assert torch.equal(attention(tokens(5), context, bias=bias), other(tokens(5), context, bias=bias))


def test_order_of_the_context_does_not_matter(context):
    attention, order = build(), torch.randperm(13)
    key_mask = torch.rand(2, 13) > 0.3
    y = attention(tokens(5), context, key_mask=key_mask)
    torch.testing.assert_close(
        attention(tokens(5), context[:, order], key_mask=key_mask[:, order]), y, rtol=0, atol=1e-13
    )


def test_queries_do_not_see_each_other(context):
    attention, x = build(), tokens(5)
    changed = torch.cat((x[:, :2], 10 * x[:, 2:]), dim=1)
    torch.testing.assert_close(attention(changed, context)[:, :2], attention(x, context)[:, :2], rtol=0, atol=1e-13)


@pytest.mark.parametrize("junk", [float("nan"), float("inf")])
def test_junk_in_masked_context_reaches_no_output_and_no_gradient(context, junk):
    attention = build(bias=True)
    key_mask = torch.arange(13)[None] < torch.tensor([[13], [0]])  # the second row sees nothing at all
    found = []
    for fill in (0.0, junk):
        leaf = context.masked_fill(~key_mask[..., None], fill).requires_grad_()
        y = attention(tokens(5), leaf, key_mask=key_mask)
        found.append([y, *torch.autograd.grad(y.square().sum(), [leaf, *attention.parameters()])])
    for got, want in zip(*found, strict=True):
        assert torch.isfinite(got).all()
        assert torch.equal(got, want)
    torch.testing.assert_close(found[0][0][1], attention.output.bias.expand(5, -1))


# -- learned latents ---------------------------------------------------------------------------------------------------


def test_latents_read_the_context_and_learn(context):
    attention = build(num_latents=6)
    y = attention(attention.latents(2), context)
    assert y.shape == (2, 6, DIM)
    torch.testing.assert_close(y, by_the_formula(attention, attention.learned.expand(2, -1, -1), context))
    y.square().sum().backward()
    assert attention.learned.grad.abs().min() > 0


def test_latents_start_small_and_differ():
    attention = perceiver.build(dim=64, num_heads=4, num_latents=512)
    assert attention.latents(3).shape == (3, 512, 64)
    assert attention.learned.std().item() == pytest.approx(0.02, rel=0.02)


def test_latents_are_none_unless_asked_for():
    attention = build()
    assert "learned" not in dict(attention.named_parameters())
    with pytest.raises(InputError, match="make it with num_latents above 0"):
        attention.latents(2)
    with pytest.raises(ConfigError, match="num_latents is -1"):
        build(num_latents=-1)


def test_cost_is_linear_in_the_context():
    from torch.utils.flop_counter import FlopCounterMode

    attention, flops = build(num_latents=8, backend="math", context_dim=DIM), []
    for length in (256, 512, 1024):
        with FlopCounterMode(display=False) as counter:
            attention(attention.latents(1), tokens(length, batch=1))
        flops.append(counter.get_total_flops())
    assert flops[2] - flops[1] == 2 * (flops[1] - flops[0])
    assert flops[2] / flops[1] == pytest.approx(2, rel=0.02)


# -- the cache of the context ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rope", [None, True])
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
def test_cached_context_gives_what_the_context_gives(context, rope, masked):
    attention, cache = build(rope=rope, num_kv_heads=2), build().new_cache(2)
    key_mask = torch.arange(13)[None] < torch.tensor([[13], [6]]) if masked else None
    first = attention(tokens(5), context, key_mask=key_mask, cache=cache)
    assert torch.equal(first, attention(tokens(5), context, key_mask=key_mask))
    for queries in (5, 1, 20):
        x = tokens(queries, seed=queries)
        want = attention(x, context, key_mask=key_mask)
        torch.testing.assert_close(attention(x, cache=cache), want, rtol=0, atol=1e-13)
        torch.testing.assert_close(attention.forward_reference(x, cache=cache), want, rtol=0, atol=1e-12)
    assert cache.lengths.tolist() == ([13, 6] if masked else [13, 13])


def test_cached_context_is_projected_once(context):
    attention = build()
    calls = []
    attention.key.register_forward_hook(lambda *_: calls.append("key"))
    cache = attention.new_cache(2)
    attention(tokens(5), context, cache=cache)
    for _ in range(3):
        attention(tokens(5), cache=cache)
    assert calls == ["key"]


def test_cache_holds_key_heads_only(context):
    attention = build(num_kv_heads=2, v_head_dim=6)
    cache = attention.new_cache(2)
    attention(tokens(5), context, cache=cache)
    held = cache.tensors()
    assert (held["key"].shape, held["value"].shape) == ((2, 2, 13, 8), (2, 2, 13, 6))


def test_positions_of_the_caller_meet_a_cached_context(context):
    attention = build(rope=True)
    places, own, cache = torch.arange(13) * 3.0, torch.tensor([4.0, 17.5]), attention.new_cache(2)
    attention(tokens(1), context, positions=torch.zeros(1), context_positions=places, cache=cache)
    want = attention(tokens(2), context, positions=own, context_positions=places)
    torch.testing.assert_close(attention(tokens(2), positions=own, cache=cache), want, rtol=0, atol=1e-13)
    assert not torch.allclose(attention(tokens(2), cache=cache), want)


def test_another_context_replaces_the_one_that_is_held(context):
    attention, cache = build(), ContextCache(2)
    hidden = torch.zeros(2, 13, dtype=torch.bool)
    attention(tokens(5), context, key_mask=hidden, cache=cache)
    other = tokens(7, CONTEXT, seed=5)
    attention(tokens(5), other, cache=cache)
    assert torch.equal(attention(tokens(5), cache=cache), attention(tokens(5), other))


def test_rows_of_a_cached_context_are_reordered_cropped_copied_and_forgotten(context):
    attention, cache, copy = build(), ContextCache(2), ContextCache(2)
    attention(tokens(5), context, cache=cache)
    copy.load_state_dict(cache.state_dict())
    rows = torch.tensor([1, 1, 0])
    copy.reorder(rows)
    x = tokens(5, batch=3)
    torch.testing.assert_close(attention(x, cache=copy), attention(x, context[rows]), rtol=0, atol=1e-13)
    copy.crop(4)
    torch.testing.assert_close(attention(x, cache=copy), attention(x, context[rows, :4]), rtol=0, atol=1e-13)
    copy.reset()
    with pytest.raises(InputError, match="the cache holds no context yet"):
        attention(x, cache=copy)


def test_calls_that_a_cached_context_cannot_serve_are_refused(context):
    attention = build()
    cache = attention.new_cache(2)
    attention(tokens(5), context, cache=cache)
    with pytest.raises(InputError, match="The cache keeps the key_mask of its context"):
        attention(tokens(5), cache=cache, key_mask=torch.ones(2, 5, dtype=torch.bool))
    with pytest.raises(InputError, match=r"x has 3 rows; expected a cache from new_cache\(3\)"):
        attention(tokens(5, batch=3), cache=cache)
    with pytest.raises(InputError, match=r"expected a cache from new_cache\(2\)"):
        attention(tokens(5), context, cache=flash.build(dim=DIM, num_heads=HEADS).new_cache(2))
    with pytest.raises(InputError, match="attends to another sequence; pass context"):
        attention(tokens(5))
    with pytest.raises(UnsupportedArgument, match="causal"):
        attention(tokens(5), context, causal=True)


@pytest.mark.parametrize("cached", [False, True])
def test_lengths_under_compilation_share_a_graph(cached):
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    attention = build(rope=True).float()
    compiled = torch.compile(attention, fullgraph=True, backend=counter)
    context, cache = tokens(13, CONTEXT).float(), attention.new_cache(2)
    with torch.no_grad():
        attention(tokens(1).float(), context, cache=cache)
        for length in (16, 23, 37, 64, 100):
            x = tokens(length).float()
            given = {"cache": cache} if cached else {"context": tokens(length + 5, CONTEXT).float()}
            torch.testing.assert_close(compiled(x, **given), attention(x, **given))
    assert counter.frame_count <= 2
