from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from astrozoo.attention.block_layout import in_layout, key_table, listed_layout
from astrozoo.attention.block_sparse import block_sparse
from astrozoo.attention.flash import flash
from astrozoo.attention.terms import Terms
from astrozoo.errors import ConfigError, InputError

RING = tuple(((row - 1) % 6, row, (row + 2) % 6) for row in range(6))
PATTERNS = {
    "local_global": {"local_blocks": 1, "global_blocks": 2},
    "global only": {"local_blocks": 0, "global_blocks": 1},
    "strided": {"pattern": "strided", "stride": 2, "strided_blocks": 1, "local_blocks": 0},
    "random": {"pattern": "random", "random_blocks": 2, "local_blocks": 0},
    "custom": {"pattern": "custom", "layout": RING},
}
EACH = pytest.mark.parametrize("pattern", PATTERNS)


def build(pattern="local_global", **options):
    torch.manual_seed(0)
    given = {"dim": 16, "num_heads": 4, "num_kv_heads": 2, "block": 4, "dtype": torch.float64, **PATTERNS[pattern]}
    return block_sparse.build(**{**given, **options})


def tokens(length=22, batch=2):
    return torch.randn(batch, length, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def rand(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@EACH
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("terms", ["none", "key_mask", "mask", "bias", "segments"])
def test_gathered_blocks_equal_the_expanded_mask_with_gradients(pattern, causal, terms):
    attention, x = build(pattern, rope=True), tokens().requires_grad_()
    given = {
        "none": {},
        "key_mask": {"key_mask": rand(2, 22) > 0.3},
        "mask": {"mask": rand(1, 4, 22, 22) > 0.3},
        "bias": {"bias": rand(2, 1, 22, 22).masked_fill(rand(22, 22) > 0.8, -torch.inf)},
        "segments": {"segments": (torch.arange(22) // 5)[None].expand(2, -1)},
    }[terms]
    outs = [call(x, causal=causal, **given) for call in (attention, attention.forward_reference)]
    torch.testing.assert_close(*outs, rtol=0, atol=1e-12)
    for ours, theirs in zip(*(torch.autograd.grad(out.square().sum(), x) for out in outs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)


@EACH
@pytest.mark.parametrize("causal", [False, True])
def test_table_question_and_list_agree(pattern, causal):
    config, rows = build(pattern).config, 6
    row = torch.arange(rows)
    table, counts = key_table(config, row, rows, causal=causal)
    from_table = torch.zeros(rows, rows, dtype=torch.int64)
    from_table.scatter_add_(1, table, counts.long())
    assert from_table.max() <= 1  # nothing is listed twice
    if pattern == "local_global":
        from_table[: config.global_blocks] = 1  # global rows see all
        from_table = from_table.tril() if causal else from_table
    elif pattern == "global only":
        from_table[:1] = 1
        from_table = from_table.tril() if causal else from_table
    expected = listed_layout(config, rows, causal=causal)
    assert torch.equal(from_table.bool(), expected)
    assert torch.equal(in_layout(config, row[:, None], row[None], rows, causal=causal), expected)


def test_all_blocks_are_plain_attention():
    attention = build(local_blocks=6)
    plain = flash.build(dim=16, num_heads=4, num_kv_heads=2, dtype=torch.float64)
    plain.load_state_dict(attention.state_dict())
    for causal in (False, True):
        torch.testing.assert_close(attention(tokens(), causal=causal), plain(tokens(), causal=causal))


@EACH
def test_gradient_is_zero_outside_the_layout(pattern):
    attention, x = build(pattern), tokens(batch=1)
    context = x.requires_grad_()
    seen = listed_layout(attention.config, 6, causal=False)
    out = attention(context)
    for row in range(6):
        gradient = torch.autograd.grad(out[0, 4 * row].sum(), context, retain_graph=True)[0][0]
        reached = torch.nn.functional.pad(gradient.abs().sum(-1), (0, 2)).unflatten(0, (6, 4)).sum(-1) > 0
        assert torch.equal(reached, seen[row])


def test_seed_fixes_the_random_blocks():
    def layout(seed):
        return listed_layout(build("random", seed=seed).config, 40, causal=False)

    assert torch.equal(layout(0), layout(0))
    assert not torch.equal(layout(0), layout(1))
    per_column = listed_layout(build("random", random_blocks=8).config, 200, causal=False).sum(0).double()
    assert per_column.std() < 1.3 * 8**0.5  # spread like independent draws, none favoured
    assert per_column.max() < 25


@EACH
@pytest.mark.parametrize("chunks", [[(0, 22)], [(0, 5), (5, 6), (6, 22)], [(i, i + 1) for i in range(22)]], ids=len)
def test_chunks_of_a_causal_sequence_equal_one_pass(pattern, chunks):
    attention, x = build(pattern), tokens()
    cache = attention.new_cache(2)
    got = [attention(x[:, start:end], causal=True, cache=cache) for start, end in chunks]
    torch.testing.assert_close(torch.cat(got, 1), attention(x, causal=True))
    static = attention.new_cache(2, max_len=24)
    got = [attention(x[:, start:end], causal=True, cache=static) for start, end in chunks]
    torch.testing.assert_close(torch.cat(got, 1), attention(x, causal=True))


@EACH
def test_padding_in_a_cache_is_nothing(pattern):
    attention, x = build(pattern, rope=True), tokens()
    whole, cache = attention(x, causal=True), attention.new_cache(2)
    real = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 0, 0, 0]]).bool()
    first = torch.zeros(2, 8, 16, dtype=torch.float64)
    first[real] = x[:, :5].flatten(0, 1)
    got = attention(first, causal=True, cache=cache, key_mask=real)[real].view(2, 5, 16)
    torch.testing.assert_close(got, whole[:, :5])
    torch.testing.assert_close(attention(x[:, 5:], causal=True, cache=cache), whole[:, 5:])


def test_cost_follows_the_number_of_blocks():
    def flops(length, **options):
        attention = block_sparse.build(dim=32, num_heads=2, block=32, backend="math", **options)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            attention(torch.randn(1, length, 32))
        projections = 4 * 2 * length * 32 * 32
        return counter.get_total_flops() - projections

    assert flops(4096) / flops(1024) == pytest.approx(4, rel=0.1)
    none, two = flops(2048, global_blocks=0, local_blocks=0), flops(2048, global_blocks=0, local_blocks=1)
    assert two / none == pytest.approx(3)


def test_layout_is_for_as_many_tokens_as_it_has_blocks_for_or_fewer():
    attention, short = build("custom"), tokens(10)
    torch.testing.assert_close(attention(short), attention.forward_reference(short))
    with pytest.raises(InputError, match="up to 24 tokens, not 25"):
        attention(tokens(25))


def test_layout_may_be_a_table_of_booleans():
    seen = torch.zeros(6, 6, dtype=torch.bool)
    for row, blocks in enumerate(RING):
        seen[row, list(blocks)] = True
    assert build("custom", layout=seen).config.layout == tuple(tuple(sorted(row)) for row in RING)
    with pytest.raises(ConfigError, match="square bool tensor"):
        build("custom", layout=seen[:3])


@pytest.mark.parametrize("hide", ["key_mask", "mask", "bias"])
def test_nan_in_hidden_keys_reaches_nothing(hide):
    attention, hidden = build(), torch.zeros(2, 22, dtype=torch.bool)
    hidden[0, 9] = hidden[1, :3] = True
    terms = {
        "key_mask": Terms(key_mask=~hidden),
        "mask": Terms(mask=~hidden[:, None, None].expand(-1, 1, 22, -1)),
        "bias": Terms(bias=torch.zeros(2, 1, 22, 22).double().masked_fill(hidden[:, None, None], -torch.inf)),
    }[hide]
    found = []
    for junk in (0.0, torch.nan, torch.inf):
        heads = [torch.randn(2, count, 22, 4, generator=torch.Generator().manual_seed(count)) for count in (4, 2, 2)]
        heads[1:] = [part.masked_fill(hidden[:, None, :, None], junk) for part in heads[1:]]
        leaves = [part.double().requires_grad_() for part in heads]
        out = attention.attend(*leaves, terms)
        found.append([out.detach(), *torch.autograd.grad(out.square().sum(), leaves)])
    for got in found[1:]:
        for one, other in zip(got, found[0], strict=True):
            assert one.isfinite().all()
            assert torch.equal(one, other)


@EACH
def test_compiles_for_all_lengths_at_once(pattern):
    from torch._dynamo.testing import CompileCounterWithBackend

    attention = build(pattern, dtype=torch.float32, **({"layout": RING * 5} if pattern == "custom" else {}))
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(attention, fullgraph=True, backend=counter)
    with torch.no_grad():
        for length in (37, 46, 64, 65, 100):
            x, key_mask = tokens(length).float(), rand(2, length) > 0.3
            given = {"causal": True, "key_mask": key_mask}
            torch.testing.assert_close(compiled(x, **given), attention(x, **given), rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()
    assert counter.frame_count <= 3  # the first length, all others, and multiples of a block


@pytest.mark.parametrize(
    "options",
    [
        {"pattern": "diagonal"},
        {"pattern": "custom"},
        {"layout": RING},
        {"pattern": "custom", "layout": ((0,), (2,))},
        {"pattern": "custom", "layout": (0, 1)},
        {"block": 0},
        {"stride": 0},
    ],
)
def test_pattern_that_cannot_be_is_refused(options):
    with pytest.raises(ConfigError):
        block_sparse.build(dim=16, num_heads=4, **options)
