from __future__ import annotations

import pytest
import torch

from astrozoo.attention.flash import flash
from astrozoo.attention.grouped_query import grouped_query
from astrozoo.errors import ConfigError, InputError

DIM, HEADS, HEAD_DIM = 32, 8, 4


def build(**options):
    return grouped_query.build(**{"dim": DIM, "num_heads": HEADS, "dtype": torch.float64, **options}).eval()


def repeated(attention):
    """Multi-head attention with the key and value weights of each group written out for every query head."""
    full = flash.build(dim=DIM, num_heads=HEADS, bias=attention.config.bias, dtype=torch.float64).eval()
    groups = HEADS // attention.config.num_kv_heads
    state = attention.state_dict()
    for name in [name for name in state if name.startswith(("key.", "value."))]:
        rows = [state[name][HEAD_DIM * (head // groups) :][:HEAD_DIM] for head in range(HEADS)]
        state[name] = torch.cat(rows)
    full.load_state_dict(state)
    return full


@pytest.mark.parametrize(
    ("heads", "kv_heads"), [(1, 1), (2, 1), (4, 1), (6, 1), (8, 2), (12, 3), (14, 2), (16, 4), (32, 8), (40, 10)]
)
def test_default_groups_at_least_four_heads_where_there_are_as_many(heads, kv_heads):
    config = build(dim=4 * heads, num_heads=heads).config
    assert config.num_kv_heads == kv_heads
    assert heads % kv_heads == 0
    assert heads < 4 or heads // kv_heads >= 4


@pytest.mark.parametrize("kv_heads", [None, 1, 2, 4, HEADS])
@pytest.mark.parametrize("causal", [False, True])
def test_equals_flash_with_repeated_heads_and_so_do_the_gradients(kv_heads, causal):
    attention = build(num_kv_heads=kv_heads, bias=True)
    full = repeated(attention)
    x = torch.randn(2, 11, DIM, dtype=torch.float64, requires_grad=True)
    key_mask = torch.rand(2, 11) > 0.3
    found = []
    for module in (attention, full):
        y = module(x, causal=causal, key_mask=key_mask)
        found.append((y, *torch.autograd.grad(y.square().sum(), [x, *module.parameters()])))
    names = ["output", "x", *dict(attention.named_parameters())]
    for name, got, want in zip(names, *found, strict=True):
        if name.startswith(("key.", "value.")):  # what reaches one shared head is the sum over its group
            want = want.unflatten(0, (attention.config.num_kv_heads, -1, HEAD_DIM)).sum(dim=1).flatten(0, 1)
        torch.testing.assert_close(got, want, rtol=0, atol=1e-11)


def test_as_many_key_heads_as_queries_is_flash():
    attention = build(num_kv_heads=HEADS)
    x = torch.randn(2, 7, DIM, dtype=torch.float64)
    assert torch.equal(attention(x), repeated(attention)(x))


def test_multi_query_has_one_key_head():
    attention = build(**grouped_query.aliases["multi_query"])
    assert attention.key.out_features == attention.value.out_features == HEAD_DIM


@pytest.mark.parametrize("max_len", [None, 9])
def test_cache_holds_key_heads_only(max_len):
    attention = build(rope=True)
    x = torch.randn(3, 9, DIM, dtype=torch.float64)
    cache = attention.new_cache(3, max_len)
    steps = [attention(x[:, i : i + 1], causal=True, cache=cache) for i in range(9)]
    torch.testing.assert_close(torch.cat(steps, 1), attention(x, causal=True), rtol=0, atol=1e-12)
    held = cache.tensors()
    slots = 9 if max_len is None else max_len + 1  # one takes padding
    per_token = 2 * attention.config.num_kv_heads * HEAD_DIM  # 2 Hkv d, where flash keeps 2 H d
    assert held["key"].numel() + held["value"].numel() == 3 * slots * per_token
    assert attention.config.num_kv_heads == HEADS // 4


def test_multi_head_weights_become_the_mean_of_their_groups():
    full = flash.build(dim=DIM, num_heads=HEADS, bias=True, qk_norm=True, v_head_dim=6, dtype=torch.float64)
    attention = build(bias=True, qk_norm=True, v_head_dim=6)
    attention.load_multi_head(full.state_dict())
    for name, width in (("key", HEAD_DIM), ("value", 6)):
        want = torch.stack([full.get_submodule(name).weight[width * head :][:width] for head in range(HEADS)])
        torch.testing.assert_close(
            attention.get_submodule(name).weight[:width], want[:4].mean(dim=0), rtol=0, atol=1e-15
        )
    assert torch.equal(attention.query.weight, full.query.weight)


def test_multi_head_weights_that_agree_within_groups_lose_nothing():
    grouped = build()
    again = build()
    again.load_multi_head(repeated(grouped).state_dict())
    x = torch.randn(2, 7, DIM, dtype=torch.float64)
    torch.testing.assert_close(again(x), grouped(x), rtol=0, atol=1e-12)


def test_multi_head_weights_of_too_few_heads_are_refused():
    few = flash.build(dim=DIM, num_heads=HEADS, num_kv_heads=1, dtype=torch.float64)
    with pytest.raises(InputError, match=r"holds 1 heads of 4; expected a multiple of num_kv_heads=2"):
        build().load_multi_head(few.state_dict())


def test_key_heads_that_divide_no_group_are_refused():
    with pytest.raises(ConfigError, match="num_kv_heads is 3; allowed: a divisor of num_heads, 8"):
        build(num_kv_heads=3)
    with pytest.raises(ConfigError, match="num_heads is 0"):
        build(num_heads=0)


def test_lengths_under_compilation_share_a_graph():
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    attention = build(rope=True, dtype=torch.float32)
    compiled = torch.compile(attention, fullgraph=True, backend=counter)
    for length in (16, 23, 37, 64, 100):
        x = torch.randn(2, length, DIM)
        torch.testing.assert_close(compiled(x, causal=True), attention(x, causal=True))
    assert counter.frame_count <= 2
