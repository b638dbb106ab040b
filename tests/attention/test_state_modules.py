"""What the modules add to the recurrent kernels: gates, convolutions, states. The kernels are tested in recurrent/."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from astrozoo.attention.gated_delta import gated_delta
from astrozoo.attention.linear import linear
from astrozoo.attention.mamba2 import mamba2
from astrozoo.attention.performer import performer
from astrozoo.errors import ConfigError, InputError

ALL = [linear, performer, gated_delta, mamba2]
LATER = pytest.mark.parametrize("implementation", ALL, ids=lambda item: item.spec.name)


def build(implementation, **options):
    torch.manual_seed(0)
    given = {"dim": 32, "num_heads": 4, "dtype": torch.float64, **implementation.example, **options}
    return implementation.build(**given)


def tokens(length=40, batch=2, dim=32):
    return torch.randn(batch, length, dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@LATER
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_fast_form_equals_the_readable_one_with_gradients(implementation, kv_heads):
    attention = build(implementation, num_kv_heads=kv_heads)
    x = tokens(70).requires_grad_()
    terms = {"causal": True, "key_mask": torch.rand(2, 70, generator=torch.Generator().manual_seed(2)) > 0.3}
    if "segments" in attention.spec.masks:
        terms["segments"] = (torch.arange(70) // 13)[None].expand(2, -1)
    outs = [call(x, **terms) for call in (attention, attention.forward_reference)]
    torch.testing.assert_close(*outs, rtol=0, atol=1e-10)
    parameters = [x, *attention.parameters()]
    for ours, theirs in zip(*(torch.autograd.grad(out.square().sum(), parameters) for out in outs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-9)


@LATER
def test_state_has_one_size_for_any_length(implementation):
    attention = build(implementation)
    sizes = []
    for length in (5, 50):
        cache = attention.new_cache(2)
        attention(tokens(length), causal=True, cache=cache)
        sizes.append(cache.nbytes)
    assert sizes[0] == sizes[1]


@LATER
def test_cost_grows_with_the_length(implementation):
    attention = build(implementation, dtype=torch.float32)
    flops = []
    for length in (1024, 4096):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            attention(torch.randn(1, length, 32), causal=True)
        flops.append(counter.get_total_flops())
    assert flops[1] / flops[0] == pytest.approx(4, rel=0.15)  # exponent 1.0 within 0.1


@LATER
def test_rotary_positions_are_refused(implementation):
    with pytest.raises(ConfigError, match="it turns no features"):
        build(implementation, rope=True)


@LATER
def test_backend_of_softmax_is_refused(implementation):
    with pytest.raises(ConfigError, match="allowed: 'auto', 'torch', 'fla'"):
        build(implementation, backend="sdpa")


@pytest.mark.parametrize("implementation", [linear, performer], ids=lambda item: item.spec.name)
def test_state_without_causality_is_refused(implementation):
    attention = build(implementation)
    with pytest.raises(InputError, match="with a cache the call must be causal"):
        attention(tokens(), causal=False, cache=attention.new_cache(2))


def test_linear_is_a_weighted_mean_of_values():
    """Weights sum to one, so constant values come back."""
    attention = build(linear)
    query, key, value = attention.project(tokens())
    from astrozoo.attention.terms import Terms

    out = attention.attend(query, key, torch.ones_like(value), Terms(causal=True))
    torch.testing.assert_close(out, torch.ones_like(out))


def test_performer_features_are_those_of_its_seed_until_redrawn():
    first, second, other = build(performer), build(performer), build(performer, seed=1)
    assert torch.equal(first.projection, second.projection)
    assert not torch.equal(first.projection, other.projection)
    x = tokens()
    before = first.eval()(x)
    assert torch.equal(first(x), before)
    first.redraw(torch.Generator().manual_seed(5))
    assert not torch.equal(first(x), before)
    assert "projection" in first.state_dict()


def test_performer_comes_near_softmax_with_many_features_and_small_logits():
    from astrozoo.attention.flash import flash

    attention = build(performer, num_features=4096)
    exact = flash.build(dim=32, num_heads=4, dtype=torch.float64)
    exact.load_state_dict({name: tensor for name, tensor in attention.state_dict().items() if name != "projection"})
    x = tokens() * 0.5
    error = (attention(x) - exact(x)).norm() / exact(x).norm()
    assert error < 0.1


def test_gated_delta_overwrites_where_linear_attention_adds():
    """The same key twice, strength 1, no decay: the second value comes back, or with erasing off the sum."""
    from astrozoo.attention.recurrent import gated_delta as rule

    key = torch.zeros(1, 1, 2, 4, dtype=torch.float64)
    key[..., 0] = 1
    value = torch.tensor([[[[1.0, 2.0], [30.0, 40.0]]]], dtype=torch.float64)
    assert rule(key, key, value)[0][0, 0, 1].tolist() == [30, 40]
    assert rule(key, key, value, erase=False)[0][0, 0, 1].tolist() == [31, 42]


@pytest.mark.parametrize(
    ("gate", "kept"), [("none", [1.0] * 4), ("constant", [1 - 2.0 ** -(5 + head) for head in range(4)])]
)
def test_fixed_gates_keep_what_the_paper_says(gate, kept):
    attention = build(gated_delta, gate=gate, erase=False)
    decay = attention._log_decay(torch.zeros(1, 1, 4, dtype=torch.float64)).exp()
    torch.testing.assert_close(decay.flatten(), torch.tensor(kept, dtype=torch.float64))
    assert not any("decay" in name for name, _ in attention.named_parameters())
    x = tokens()
    torch.testing.assert_close(attention(x), attention.forward_reference(x))


def test_gates_start_with_a_spread_of_time_scales():
    for attention in (build(gated_delta, dim=256, num_heads=64), build(mamba2, dim=256, num_heads=64)):
        steps = torch.nn.functional.softplus(
            (attention.decay if hasattr(attention, "decay") else attention.step).bias.detach()
        )
        assert 9e-4 < float(steps.min()) < 5e-3 < 0.02 < float(steps.max()) < 0.101
        rates = attention.log_rate.detach().exp()
        assert 1 <= float(rates.min()) < 4 < 12 < float(rates.max()) <= 16


def test_mamba2_reads_its_input_through_the_skip_when_the_state_is_empty():
    attention = build(mamba2, conv_size=1)
    torch.nn.init.zeros_(attention.key.weight)  # nothing is written
    torch.nn.init.zeros_(attention.conv.bias)
    _, _, value, _, gate = attention.project(tokens())
    silu = torch.nn.functional.silu
    mixed = silu(value * attention.conv.weight[-value.shape[-1] :, 0])
    want = attention.output(attention.output_norm(mixed * silu(gate)))
    torch.testing.assert_close(attention(tokens()), want)


def test_mamba2_state_is_not_changed_by_right_padding():
    attention = build(mamba2)
    x = tokens(12)
    long, short = attention.new_cache(2), attention.new_cache(2)
    attention(x, cache=long, key_mask=torch.arange(12)[None].expand(2, -1) < 8)
    attention(x[:, :8], cache=short)
    for name, tensor in short.tensors().items():
        torch.testing.assert_close(long.tensors()[name], tensor)
