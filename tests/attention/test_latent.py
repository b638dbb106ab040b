from __future__ import annotations

import pytest
import torch

from astrozoo.attention import LatentCache, record_attention
from astrozoo.attention.flash import flash
from astrozoo.attention.latent import latent
from astrozoo.errors import ConfigError, UnsupportedArgument

DIM, HEADS = 32, 4
OPTIONS = {
    "plain": {},
    "low-rank queries": {"query_rank": 10},
    "rotary": {"rope": True, "rope_dim": 6},
    "all": {"query_rank": 10, "rope": {"base": 100.0, "fraction": 0.5}, "rope_dim": 8, "v_head_dim": 5, "bias": True},
    "no norm": {"latent_norm": False, "rope": True, "scale": 0.4},
}
_OWN = ("rank", "query_rank", "rope", "rope_dim", "v_head_dim", "bias", "latent_norm", "scale")


def build(form="auto", **options):
    torch.manual_seed(0)
    options = {"dim": DIM, "num_heads": HEADS, "rank": 12, "dtype": torch.float64, **options}
    attention = latent.build(form=form, **options).eval()
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return attention


def twin(attention, form, **options):
    """The same weights in another form."""
    other = build(form, **{name: getattr(attention.config, name) for name in _OWN}, **options)
    other.load_state_dict(attention.state_dict())
    return other


def tokens(length, batch=2, seed=1):
    return torch.randn(batch, length, DIM, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotated(heads, positions, base, pairs):
    """Each pair (i, i + pairs) as a complex number, times exp(i position base^(-i / pairs))."""
    angle = positions[:, None] * base ** -(torch.arange(pairs, dtype=torch.float64) / pairs)
    turned = torch.complex(heads[..., :pairs], heads[..., pairs : 2 * pairs]) * torch.polar(
        torch.ones_like(angle), angle
    )
    return torch.cat((turned.real, turned.imag, heads[..., 2 * pairs :]), dim=-1)


def by_the_paper(attention, x, visible):
    """Equations 9 to 19 of the paper, one head at a time, for tokens at 0, 1, 2, ...; visible (query, key)."""
    weights = {name: tensor.double() for name, tensor in attention.state_dict().items()}
    config = attention.config

    def linear(name, tokens):
        return tokens @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0)

    def norm(name, tokens):
        if not config.latent_norm:
            return tokens
        return tokens / (tokens.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weights[f"{name}.weight"]

    queries = norm("query_norm", linear("query_down", x)) if config.query_rank else x
    queries = linear("query", queries)
    down = linear("down", x)
    joint = norm("latent_norm", down[..., : config.rank])
    turned = down[..., config.rank :]
    positions = torch.arange(x.shape[1], dtype=torch.float64)
    if config.rope is not None:
        pairs = config.rope.pairs(config.rope_dim)
        turned = rotated(turned, positions, config.rope.base, pairs)
    width, v_width, outputs = config.head_dim, config.v_head_dim, []
    for head in range(HEADS):
        own = queries[..., (width + config.rope_dim) * head :][..., : width + config.rope_dim]
        content, rotary = own[..., :width], own[..., width:]
        if config.rope is not None:
            rotary = rotated(rotary, positions, config.rope.base, pairs)
        key = joint @ weights["key_up.weight"][width * head :][:width].T
        value = joint @ weights["value_up.weight"][v_width * head :][:v_width].T
        logits = content @ key.transpose(1, 2) + rotary @ turned.transpose(1, 2)
        logits = logits * ((width + config.rope_dim) ** -0.5 if config.scale is None else config.scale)
        outputs.append(torch.softmax(logits.masked_fill(~visible, -torch.inf), dim=-1) @ value)
    return linear("output", torch.cat(outputs, dim=-1))


def with_gradients(attention, x, context=None, **terms):
    leaves = [tensor.clone().requires_grad_() for tensor in (x, context) if tensor is not None]
    y = attention(*leaves, **terms)
    return [y, *torch.autograd.grad(y.square().sum(), [*leaves, *attention.parameters()])]


@pytest.mark.parametrize("form", ["auto", "expanded", "absorbed"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("causal", [False, True])
def test_equals_the_equations_of_the_paper(form, options, causal):
    attention = build(form, **options)
    visible = torch.ones(9, 9, dtype=torch.bool)
    want = by_the_paper(attention, tokens(9), visible.tril() if causal else visible)
    torch.testing.assert_close(attention(tokens(9), causal=causal), want, rtol=0, atol=1e-12)
    torch.testing.assert_close(attention.forward_reference(tokens(9), causal=causal), want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", [OPTIONS["low-rank queries"], OPTIONS["all"]], ids=["no rotary", "rotary"])
@pytest.mark.parametrize("queries", [1, 5, 13])
@pytest.mark.parametrize("kind", ["none", "causal", "key_mask", "mask", "bias", "segments", "all"])
def test_absorbed_form_equals_expanded_form_with_all_gradients(options, queries, kind):
    expanded = build("expanded", **options)
    absorbed = twin(expanded, "absorbed")
    generator = torch.Generator().manual_seed(2)
    mask = torch.rand(2, HEADS, queries, 13, generator=generator) > 0.4
    mask[0, 1, 0] = False  # a dead row
    bias = torch.randn(2, 1, queries, 13, generator=generator).double()
    known = {
        "causal": {"causal": True},
        "key_mask": {"key_mask": torch.rand(2, 13, generator=generator) > 0.4},
        "mask": {"mask": mask},
        "bias": {"bias": bias.masked_fill(~mask[:, :1], -torch.inf)},
        "segments": {"segments": (torch.arange(queries)[None] // 4, torch.arange(13)[None] // 4)},
    }
    known["all"] = {name: term for part in known.values() for name, term in part.items()}
    terms = known.get(kind, {})
    cases = [with_gradients(module, tokens(queries), tokens(13, seed=3), **terms) for module in (expanded, absorbed)]
    for got, want in zip(*cases, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-10)
    want = expanded.forward_reference(tokens(queries), tokens(13, seed=3), **terms)
    torch.testing.assert_close(cases[1][0], want, rtol=0, atol=1e-11)


@pytest.mark.parametrize("form", ["expanded", "absorbed"])
def test_full_rank_with_identity_projections_is_flash(form):
    attention = build(form, rank=DIM, latent_norm=False)
    full = flash.build(dim=DIM, num_heads=HEADS, dtype=torch.float64).eval()
    with torch.no_grad():
        attention.down.weight.copy_(torch.eye(DIM))
        for name, up in (("key", attention.key_up), ("value", attention.value_up)):
            full.get_submodule(name).weight.copy_(up.weight)
        full.query.weight.copy_(attention.query.weight)
        full.output.weight.copy_(attention.output.weight)
    key_mask = torch.arange(11)[None] < torch.tensor([[11], [7]])
    got, want = (module(tokens(11), causal=True, key_mask=key_mask) for module in (attention, full))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("max_len", [None, 20])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_decoding_from_the_cache_equals_one_pass(max_len, options):
    attention = build(**options)
    cache = attention.new_cache(2, max_len)
    x = tokens(17)
    steps = [attention(part, causal=True, cache=cache) for part in x.split((9, 1, 4, 3), dim=1)]
    torch.testing.assert_close(torch.cat(steps, 1), attention(x, causal=True), rtol=0, atol=1e-12)


@pytest.mark.parametrize("rope_dim", [0, 6])
def test_cache_holds_rank_and_rope_dim_numbers_for_a_token(rope_dim):
    attention = build(**({"rope": True, "rope_dim": rope_dim} if rope_dim else {}))
    cache = attention.new_cache(2)
    assert isinstance(cache, LatentCache)
    attention(tokens(17), causal=True, cache=cache)
    held = cache.tensors()
    assert held["latent"].shape == (2, 1, 17, 12)
    assert held["rope_key"].shape == (2, 1, 17, rope_dim)
    assert held["latent"].numel() + held["rope_key"].numel() == 2 * 17 * (12 + rope_dim)


def test_training_expands_and_decoding_absorbs():
    """The width of the heads that reach the kernel tells the form."""
    attention = build(rank=24, rope=True, rope_dim=6)
    x, cache = tokens(40), attention.new_cache(2)
    with record_attention() as log:
        attention(x)
        attention(x[:, :39], causal=True, cache=cache)
        attention(x[:, 39:], causal=True, cache=cache)
    widths = [choice.request.head_dim for choice in log]
    assert widths == [8 + 6, 8 + 6, 24 + 6]
    assert log[2].request.heads == 1  # no head repeats the latents


@pytest.mark.parametrize(("queries", "keys"), [(1, 64), (4, 64), (12, 64), (32, 64), (48, 64), (64, 64), (64, 8)])
def test_auto_takes_the_form_with_fewer_operations(queries, keys):
    from torch.utils.flop_counter import FlopCounterMode

    attention = build(rank=24, rope=True, rope_dim=6)
    flops = {}
    for form in ("auto", "expanded", "absorbed"):
        module = twin(attention, form, backend="math")
        with FlopCounterMode(display=False) as counter:
            module(tokens(queries), tokens(keys))
        flops[form] = counter.get_total_flops()
    assert flops["auto"] == min(flops["expanded"], flops["absorbed"])


@pytest.mark.parametrize("form", ["expanded", "absorbed"])
@pytest.mark.parametrize("junk", [float("nan"), float("inf")])
def test_junk_in_masked_tokens_reaches_no_output_and_no_gradient(form, junk):
    attention = build(form, rope=True, bias=True)
    key_mask = torch.arange(9)[None] < torch.tensor([[9], [5]])
    clean = tokens(9).masked_fill(~key_mask[..., None], 0)
    dirty = clean.masked_fill(~key_mask[..., None], junk)
    found = [with_gradients(attention, x, key_mask=key_mask, causal=True) for x in (clean, dirty)]
    for got, want in zip(*found, strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("form", ["expanded", "absorbed"])
def test_query_that_sees_no_key_gives_zero_and_finite_gradients(form):
    attention = build(form, rope=True)
    mask = torch.ones(9, 9, dtype=torch.bool)
    mask[3] = False
    y, *gradients = with_gradients(attention, tokens(9), mask=mask)
    assert not y[:, 3].any()
    assert y[:, [2, 4]].any()
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_only_differences_of_positions_matter():
    attention = build(rope=True, rope_dim=8)
    places = torch.tensor([0, 3, 4, 9, 20, 21, 22, 30, 41])
    y = attention(tokens(9), positions=places)
    torch.testing.assert_close(attention(tokens(9), positions=places + 57), y, rtol=0, atol=1e-11)
    assert not torch.allclose(attention(tokens(9)), y)


def test_weights_are_those_of_the_output():
    attention = build(rope=True, rope_dim=6)
    y, seen = attention.forward_with(tokens(9), causal=True, want=("weights", "heads", "lse"))
    assert torch.equal(y, attention(tokens(9), causal=True))
    torch.testing.assert_close(seen["weights"].sum(-1), torch.ones(2, HEADS, 9, dtype=torch.float64))
    value = attention.split(attention.value_up(attention.project(tokens(9))[2][:, 0]), HEADS)
    torch.testing.assert_close(seen["weights"] @ value, seen["heads"], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rope_dim": 4}, "rope_dim is 4 without rope"),
        ({"rope": True, "rope_dim": 0}, "rope_dim is 0"),
        ({"rope": True, "rope_dim": 1}, "too narrow for rotary positions"),
        ({"rank": 0}, "rank is 0"),
        ({"query_rank": 0}, "query_rank is 0"),
        ({"form": "absorb"}, "form is 'absorb'.*absorbed"),
        ({"qk_norm": True}, "qk_norm is True; allowed: False; keys are linear in the latent"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        latent.build(**{"dim": DIM, "num_heads": HEADS, **options})


def test_there_is_one_latent_for_all_heads():
    with pytest.raises(UnsupportedArgument, match="num_kv_heads"):
        latent.build(dim=DIM, num_heads=HEADS, num_kv_heads=2)


@pytest.mark.parametrize(
    ("sizes", "rank", "rope_dim"),
    [
        ({"dim": 5120, "num_heads": 128, "head_dim": 128, "rope": True}, 512, 64),  # DeepSeek-V2
        ({"dim": 64, "num_heads": 4}, 32, 0),
        ({"dim": 8, "num_heads": 8, "rope": True, "head_dim": 2}, 8, 2),
        ({"dim": 1, "num_heads": 1}, 1, 0),
    ],
)
def test_default_widths(sizes, rank, rope_dim):
    config = latent.build(**sizes, device="meta").config
    assert (config.rank, config.rope_dim) == (rank, rope_dim)


@pytest.mark.parametrize("form", ["expanded", "absorbed"])
def test_lengths_under_compilation_share_a_graph(form):
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    attention = build(form, rope=True, query_rank=8).float()
    compiled = torch.compile(attention, fullgraph=True, backend=counter)
    for length in (16, 23, 37, 64, 100):
        x = tokens(length).float()
        torch.testing.assert_close(compiled(x, causal=True), attention(x, causal=True))
    assert counter.frame_count <= 2


def test_decoding_under_compilation_keeps_its_graph():
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    attention = build(rope=True)
    compiled = torch.compile(
        lambda token, cache: attention(token, causal=True, cache=cache), fullgraph=True, backend=counter
    )
    x, cache = tokens(9), attention.new_cache(2, 16)
    with torch.no_grad():
        steps = [compiled(x[:, i : i + 1], cache) for i in range(9)]
        torch.testing.assert_close(torch.cat(steps, 1), attention(x, causal=True), rtol=0, atol=1e-12)
    assert counter.frame_count <= 2
