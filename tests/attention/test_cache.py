from __future__ import annotations

import pytest
import torch

from astrozoo.attention import KVCache, StateCache, StaticKVCache, WindowKVCache
from astrozoo.attention.flash import flash
from astrozoo.errors import InputError

CHUNKS = [[(0, 9)], [(0, 3), (3, 4), (4, 9)], [(i, i + 1) for i in range(9)]]


@pytest.fixture
def attention():
    torch.manual_seed(0)
    return flash.build(dim=32, num_heads=4, num_kv_heads=2, rope=True, qk_norm=True, dtype=torch.float64)


@pytest.fixture
def x():
    return torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def make(attention, kind, batch=2):
    return attention.new_cache(batch, 16 if kind == "static" else None)


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("chunks", CHUNKS, ids=["whole", "uneven", "one by one"])
def test_chunks_equal_one_pass(attention, x, kind, chunks):
    cache = make(attention, kind)
    got = [attention(x[:, start:end], causal=True, cache=cache) for start, end in chunks]
    torch.testing.assert_close(torch.cat(got, 1), attention(x, causal=True), rtol=0, atol=1e-12)
    assert cache.lengths.tolist() == [9, 9]


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("side", ["left", "right", "middle"])
def test_padding_of_chunks_does_not_matter(attention, x, kind, side):
    """Row 1 has four tokens less, padded on some side of its chunks; its real tokens see what they see alone."""
    real = {
        "left": [[False, False, True], [False, False, True], [True, True, True]],
        "right": [[True, False, False], [True, False, False], [True, True, True]],
        "middle": [[True, False, True], [False, False, True], [True, False, True]],
    }[side]
    key_mask = torch.tensor(real).flatten()
    cache = make(attention, kind)
    got = []
    for chunk in range(3):
        part = slice(3 * chunk, 3 * chunk + 3)
        both = torch.stack((torch.ones(3, dtype=torch.bool), key_mask[part]))
        poisoned = x[:, part].masked_fill(~both[..., None], float("nan"))
        got.append(attention(poisoned, causal=True, cache=cache, key_mask=both))
    out = torch.cat(got, 1)
    torch.testing.assert_close(out[0], attention(x[:1], causal=True)[0], rtol=0, atol=1e-12)
    alone = attention(x[1:, key_mask], causal=True)
    torch.testing.assert_close(out[1, key_mask], alone[0], rtol=0, atol=1e-12)
    assert cache.lengths.tolist() == [9, int(key_mask.sum())]


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_cropped_cache_goes_on_as_if_the_rest_had_never_been(attention, x, kind):
    cache = make(attention, kind)
    attention(x[:, :7], causal=True, cache=cache)
    cache.crop(4)
    torch.testing.assert_close(
        attention(x[:, 4:], causal=True, cache=cache), attention(x, causal=True)[:, 4:], rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_reordered_rows_go_on_from_the_row_they_were_given(attention, x, kind):
    cache = make(attention, kind)
    attention(x[:, :5], causal=True, cache=cache)
    cache.reorder(torch.tensor([1, 1, 0]))
    got = attention(x[[0, 1, 0], 5:], causal=True, cache=cache)
    for row, (before, after) in enumerate(((1, 0), (1, 1), (0, 0))):
        want = attention(torch.cat((x[before, :5], x[after, 5:]))[None], causal=True)[0, 5:]
        torch.testing.assert_close(got[row], want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_saved_cache_goes_on_elsewhere_and_a_reset_one_from_the_start(attention, x, kind):
    cache, other = make(attention, kind), make(attention, kind)
    attention(x[:, :5], causal=True, cache=cache)
    other.load_state_dict(cache.state_dict())
    want = attention(x, causal=True)
    torch.testing.assert_close(attention(x[:, 5:], causal=True, cache=other), want[:, 5:], rtol=0, atol=1e-12)
    cache.reset()
    torch.testing.assert_close(attention(x, causal=True, cache=cache), want, rtol=0, atol=1e-12)


def test_cache_holds_key_heads_only(attention, x):
    cache = attention.new_cache(2)
    attention(x, causal=True, cache=cache)
    held = cache.tensors()
    assert (
        held["key"].nbytes + held["value"].nbytes == 2 * 2 * 9 * 2 * 8 * 8
    )  # k and v, batch, token, head, dim, float64


def test_static_cache_that_is_full_says_so(attention, x):
    cache = attention.new_cache(2, 10)
    attention(x, causal=True, cache=cache)
    with pytest.raises(InputError, match="max_len 10 cannot take 9 tokens more"):
        attention(x, causal=True, cache=cache)
    assert cache.lengths.tolist() == [9, 9]


def test_padding_takes_no_room_in_a_static_cache(attention, x):
    cache = attention.new_cache(2, 10)
    hidden = torch.zeros(2, 9, dtype=torch.bool)
    for _ in range(3):
        attention(x, causal=True, cache=cache, key_mask=hidden)
    attention(x, causal=True, cache=cache)
    assert cache.lengths.tolist() == [9, 9]


def test_static_cache_under_compilation_keeps_its_graph(attention, x):
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("inductor")
    attention.eval()

    def step(token, cache):
        return attention(token, causal=True, cache=cache)

    compiled = torch.compile(step, fullgraph=True, backend=counter)
    cache = attention.new_cache(2, 16)
    with torch.no_grad():
        got = [compiled(x[:, i : i + 1], cache) for i in range(9)]
        torch.testing.assert_close(torch.cat(got, 1), attention(x, causal=True), rtol=0, atol=1e-12)
    assert counter.frame_count <= 2


@pytest.mark.parametrize("sinks", [0, 2])
def test_window_cache_keeps_the_window_and_the_sinks(sinks):
    cache = WindowKVCache(1, 4, sinks=sinks)
    tokens = torch.arange(10.0)
    for start, end in ((0, 1), (1, 6), (6, 7), (7, 10)):
        part = tokens[None, None, start:end, None]
        cache.append(part, part)
    kept = cache.tensors()["key"].flatten().tolist()
    assert kept == [*range(sinks), 7, 8, 9]
    with pytest.raises(InputError, match="a window cache cannot go back"):
        cache.crop(3)


def test_window_cache_forgets_padding_first():
    cache = WindowKVCache(1, 3)
    part = torch.tensor([1.0, 2.0, 99.0, 99.0])[None, None, :, None]
    cache.append(part, part, key_mask=torch.tensor([[True, True, False, False]]))
    assert cache.tensors()["key"].flatten().tolist() == [1, 2]


def test_state_cannot_go_back():
    cache = StateCache(2)
    cache.update(3, None, state=torch.ones(2, 4))
    assert cache.lengths.tolist() == [3, 3]
    assert cache.nbytes == 2 * 4 * 4 + 2 * 8
    with pytest.raises(InputError, match="Keep a copy to go back"):
        cache.crop(1)


def test_bytes_are_those_of_all_tensors():
    cache = StaticKVCache(2, 3, 7, 4, 5, dtype=torch.bfloat16)
    assert cache.nbytes == 2 * 3 * 8 * (4 + 5) * 2 + 2 * 8
    assert KVCache(2).nbytes == 2 * 8


def test_positions_of_the_caller_replace_those_of_the_cache(attention, x):
    """Tokens two apart: what counts is the distance that the caller says."""
    positions = torch.arange(9) * 2
    want = attention(x, causal=True, positions=positions)
    cache = attention.new_cache(2)
    got = [attention(x[:, s:e], causal=True, positions=positions[s:e], cache=cache) for s, e in ((0, 4), (4, 9))]
    torch.testing.assert_close(torch.cat(got, 1), want, rtol=0, atol=1e-12)
    assert not torch.allclose(want, attention(x, causal=True))


def test_mask_with_a_cache_is_refused(attention, x):
    with pytest.raises(InputError, match="With a cache only key_mask is taken"):
        attention(x, cache=attention.new_cache(2), mask=torch.ones(9, 9, dtype=torch.bool))
