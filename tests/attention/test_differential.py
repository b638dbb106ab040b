from __future__ import annotations

import math

import pytest
import torch

from astrozoo.attention import record_attention
from astrozoo.attention.differential import differential
from astrozoo.attention.flash import flash
from astrozoo.attention.terms import Terms
from astrozoo.errors import ConfigError

DIM, HEADS = 32, 4


def build(**options):
    torch.manual_seed(0)
    attention = differential.build(**{"dim": DIM, "num_heads": HEADS, "dtype": torch.float64, **options}).eval()
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return attention


def tokens(length, batch=2, seed=1):
    return torch.randn(batch, length, DIM, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def set_lambda(attention, first, second):
    """lambda = exp(first) - exp(second) + lambda_init."""
    for name, value in (("q1", first), ("k1", 1.0), ("q2", second), ("k2", 1.0)):
        vector = getattr(attention, f"lambda_{name}")
        torch.nn.init.zeros_(vector)
        with torch.no_grad():
            vector[0] = value


def by_the_paper(attention, x, context, visible):
    """Equations 1 to 4 of the paper, head by head; visible (query, key)."""
    config, weight = attention.config, {name: tensor.double() for name, tensor in attention.state_dict().items()}
    width, v_width = config.head_dim, config.v_head_dim
    group = HEADS // config.num_kv_heads
    dots = [weight[f"lambda_q{i}"] @ weight[f"lambda_k{i}"] for i in (1, 2)]
    start = 0.8 - 0.6 * math.exp(-0.3 * config.depth) if config.lambda_init is None else config.lambda_init
    learned = math.exp(dots[0]) - math.exp(dots[1]) + start
    heads = []
    for head in range(HEADS):
        query = x @ weight["query.weight"][2 * width * head :][: 2 * width].T
        key = context @ weight["key.weight"][2 * width * (head // group) :][: 2 * width].T
        value = context @ weight["value.weight"][v_width * (head // group) :][:v_width].T
        maps = []
        for part in (slice(None, width), slice(width, None)):
            logits = query[..., part] @ key[..., part].transpose(1, 2) / math.sqrt(width)
            maps.append(torch.softmax(logits.masked_fill(~visible, -torch.inf), dim=-1))
        out = (maps[0] - learned * maps[1]) @ value
        out = out / (out.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight["head_norm.weight"]
        heads.append((1 - start) * out)
    return torch.cat(heads, dim=-1) @ weight["output.weight"].T


def with_gradients(attention, x, context=None, **terms):
    leaves = [tensor.clone().requires_grad_() for tensor in (x, context) if tensor is not None]
    y = attention(*leaves, **terms)
    return [y, *torch.autograd.grad(y.square().sum(), [*leaves, *attention.parameters()])]


@pytest.mark.parametrize(
    "options",
    [{}, {"num_kv_heads": 2}, {"head_dim": 5}, {"head_dim": 6, "v_head_dim": 3, "depth": 7}, {"lambda_init": 0.3}],
    ids=str,
)
@pytest.mark.parametrize("keys", [9, 14])
def test_equals_the_equations_of_the_paper(options, keys):
    attention = build(**options)
    x, context = tokens(9), tokens(keys, seed=2)
    visible = torch.rand(9, keys, generator=torch.Generator().manual_seed(3)) > 0.4
    visible[:, 0] = True
    want = by_the_paper(attention, x, context, visible)
    torch.testing.assert_close(attention(x, context, mask=visible), want, rtol=0, atol=1e-12)
    torch.testing.assert_close(attention.forward_reference(x, context, mask=visible), want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"num_kv_heads": 1, "rope": True, "qk_norm": True, "bias": True}], ids=str)
def test_gradients_equal_those_of_the_equations(options):
    attention = build(**options)
    x, key_mask = tokens(11), torch.arange(11)[None] < torch.tensor([[11], [6]])
    found = []
    for compute in (attention.forward, attention.forward_reference):
        leaf = x.clone().requires_grad_()
        y = compute(leaf, causal=True, key_mask=key_mask)
        found.append([y, *torch.autograd.grad(y.square().sum(), [leaf, *attention.parameters()])])
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kv_heads", [1, 2, HEADS])
def test_lambda_0_gives_the_heads_of_flash(kv_heads):
    """Before the norm of each head, and after it with the same division on both sides."""
    attention = build(lambda_init=0.0, num_kv_heads=kv_heads)
    set_lambda(attention, 0.0, 0.0)
    assert attention.subtracted() == 0
    full = flash.build(
        dim=DIM, num_heads=HEADS, num_kv_heads=kv_heads, head_dim=4, v_head_dim=8, dtype=torch.float64
    ).eval()
    with torch.no_grad():
        for name, heads in (("query", HEADS), ("key", kv_heads)):
            both = attention.get_submodule(name).weight.unflatten(0, (heads, 2, 4))
            full.get_submodule(name).weight.copy_(both[:, 0].flatten(0, 1))
        full.value.weight.copy_(attention.value.weight)
        full.output.weight.copy_(attention.output.weight)
        attention.head_norm.weight.fill_(1)
    (y, ours), (_, theirs) = (
        module.forward_with(tokens(9), causal=True, want=("heads",)) for module in (attention, full)
    )
    torch.testing.assert_close(ours["heads"], theirs["heads"], rtol=0, atol=1e-12)
    normed = theirs["heads"] / (theirs["heads"].square().mean(-1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(y, full.merge(normed), rtol=0, atol=1e-12)


def test_equal_maps_leave_one_minus_lambda_of_either():
    attention = build()
    with torch.no_grad():
        for name in ("query", "key"):
            weight = attention.get_submodule(name).weight.unflatten(0, (HEADS, 2, 4))
            weight[:, 1] = weight[:, 0]
    x = tokens(9)
    query, key, value = attention.project(x)
    maps = torch.softmax(query[:, ::2] @ key[:, ::2].transpose(2, 3) / 2, dim=-1)
    heads = attention.forward_with(x, want=("heads",))[1]["heads"]
    torch.testing.assert_close(heads, (1 - attention.subtracted()) * maps @ value, rtol=0, atol=1e-12)


def test_noise_that_both_maps_see_alike_cancels():
    """The second map sees the keys of the first with keys 2 and 5 exchanged: at lambda 1 all others have no weight."""
    attention = build(lambda_init=0.0)
    set_lambda(attention, math.log(2), 0.0)
    query, key, value = (part.detach() for part in attention.project(tokens(9)))
    exchanged = torch.tensor([0, 1, 5, 3, 4, 2, 6, 7, 8])
    query[:, 1::2] = query[:, 0::2]
    key[:, 1::2] = key[:, 0::2, exchanged]
    loud = value.clone()
    loud[:, :, [0, 1, 3, 4, 6, 7, 8]] += 1000 * torch.randn(7, 8, dtype=torch.float64)

    out = attention.attend(query, key, value, Terms())
    torch.testing.assert_close(attention.attend(query, key, loud, Terms()), out, rtol=0, atol=1e-10)
    assert out.abs().mean() > 1e-2
    set_lambda(attention, 0.0, 0.0)  # a single softmax lets the noise through
    assert (
        attention.attend(query, key, loud, Terms()) - attention.attend(query, key, value, Terms())
    ).abs().mean() > 10


@pytest.mark.parametrize("depth", [0, 1, 4, 31])
def test_lambda_starts_near_what_depth_says(depth):
    attention = differential.build(dim=DIM, num_heads=HEADS, depth=depth)
    for vector in (attention.lambda_q1, attention.lambda_q2):
        torch.nn.init.zeros_(vector)
    assert attention.subtracted().item() == pytest.approx(0.8 - 0.6 * math.exp(-0.3 * depth))
    set_lambda(attention, 0.4, -0.2)
    assert attention.subtracted().item() == pytest.approx(
        0.8 - 0.6 * math.exp(-0.3 * depth) + math.exp(0.4) - math.exp(-0.2)
    )


def test_there_are_as_many_parameters_as_in_flash():
    """But for lambda and the norm: two queries and keys of half the width."""
    ours, theirs = (
        implementation.build(dim=64, num_heads=4, device="meta") for implementation in (differential, flash)
    )
    own = sum(parameter.numel() for name, parameter in ours.named_parameters() if name.endswith(".weight"))
    assert own - ours.head_norm.weight.numel() == sum(parameter.numel() for parameter in theirs.parameters())


@pytest.mark.parametrize("max_len", [None, 15])
@pytest.mark.parametrize("options", [{"rope": True}, {"num_kv_heads": 2, "v_head_dim": 6}], ids=str)
def test_decoding_from_the_cache_equals_one_pass(max_len, options):
    attention = build(**options)
    x, cache = tokens(12), attention.new_cache(2, max_len)
    steps = [attention(part, causal=True, cache=cache) for part in x.split((5, 1, 1, 5), dim=1)]
    torch.testing.assert_close(torch.cat(steps, 1), attention(x, causal=True), rtol=0, atol=1e-12)
    held, kv_heads = cache.tensors(), attention.config.num_kv_heads
    assert held["key"].shape[1] == 2 * kv_heads
    assert held["value"].shape[1] == kv_heads


@pytest.mark.parametrize("junk", [float("nan"), float("inf")])
def test_junk_in_masked_tokens_reaches_no_output_and_no_gradient(junk):
    attention = build(bias=True)
    key_mask = torch.arange(9)[None] < torch.tensor([[9], [5]])
    clean = tokens(9).masked_fill(~key_mask[..., None], 0)
    dirty = clean.masked_fill(~key_mask[..., None], junk)
    found = [with_gradients(attention, x, key_mask=key_mask) for x in (clean, dirty)]
    for got, want in zip(*found, strict=True):
        assert torch.equal(got, want)


def test_query_that_sees_no_key_gives_zero_and_finite_gradients():
    attention = build()
    mask = torch.ones(9, 9, dtype=torch.bool)
    mask[3] = False
    y, *gradients = with_gradients(attention, tokens(9), mask=mask)
    assert not y[:, 3].any()
    assert y[:, [2, 4]].any()
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_weights_are_those_of_the_output_and_sum_to_one_minus_lambda():
    attention = build(num_kv_heads=2)
    y, seen = attention.forward_with(tokens(9), causal=True, want=("weights", "heads", "lse"))
    assert torch.equal(y, attention(tokens(9), causal=True))
    rows = (1 - attention.subtracted()).expand(2, HEADS, 9)
    torch.testing.assert_close(seen["weights"].sum(-1), rows)
    value = attention.project(tokens(9))[2].repeat_interleave(2, dim=1)
    torch.testing.assert_close(seen["weights"] @ value, seen["heads"], rtol=0, atol=1e-12)
    assert (seen["weights"] < 0).any()


def test_values_twice_as_wide_as_keys_still_run_on_the_fused_kernel():
    with record_attention() as log:
        build()(tokens(9))
    assert [choice.backend for choice in log] == ["sdpa", "sdpa"]


def test_cost_is_that_of_two_maps():
    from torch.utils.flop_counter import FlopCounterMode

    attention = build(backend="math", head_dim=8, v_head_dim=8)
    flops = []
    for length in (64, 128, 256):
        with FlopCounterMode(display=False) as counter:
            attention.attend(*attention.project(tokens(length, batch=1)), Terms())
        projections = 2 * length * DIM * HEADS * 8 * (2 + 2 + 1)
        flops.append(counter.get_total_flops() - projections)
    assert flops == [2 * (2 * 2 * HEADS * length**2 * 8) for length in (64, 128, 256)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 36}, "dim 36 is not divisible by twice num_heads 4"),
        ({"depth": -1}, "depth is -1"),
        ({"lambda_init": 1.5}, "lambda_init is 1.5"),
        ({"num_heads": 0}, "num_heads is 0"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        differential.build(**{"dim": DIM, "num_heads": HEADS, **options})


def test_lengths_under_compilation_share_a_graph():
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    attention = build(rope=True).float()
    compiled = torch.compile(attention, fullgraph=True, backend=counter)
    for length in (16, 23, 37, 64, 100):
        x = tokens(length).float()
        torch.testing.assert_close(compiled(x, causal=True), attention(x, causal=True))
    assert counter.frame_count <= 2
