from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from astrozoo.attention.dilated import dilated
from astrozoo.attention.flash import flash
from astrozoo.errors import ConfigError


def build(segments=(4, 8, 16), dilations=(1, 2, 4), **options):
    torch.manual_seed(0)
    given = {"dim": 16, "num_heads": 4, "num_kv_heads": 4, "dtype": torch.float64, **options}
    return dilated.build(segments=segments, dilations=dilations, **given)


def tokens(length=37, batch=2):
    return torch.randn(batch, length, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("length", [1, 3, 16, 37])
@pytest.mark.parametrize("branches", [((4, 8, 16), (1, 2, 4)), ((8,), (1,)), ((4, 12), (1, 3))], ids=str)
def test_merged_branches_equal_the_multiplicity_bias_with_gradients(causal, masked, kv_heads, length, branches):
    attention, x = build(*branches, num_kv_heads=kv_heads), tokens(length).requires_grad_()
    terms = {"causal": causal}
    if masked:
        terms["key_mask"] = torch.rand(2, length, generator=torch.Generator().manual_seed(2)) > 0.4
    outs = [call(x, **terms) for call in (attention, attention.forward_reference)]
    torch.testing.assert_close(*outs, rtol=0, atol=1e-12)
    for ours, theirs in zip(*(torch.autograd.grad(out.square().sum(), x) for out in outs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)


@pytest.mark.parametrize("causal", [False, True])
def test_one_undilated_segment_is_plain_attention(causal):
    attention = build((64,), (1,), rope=True)
    plain = flash.build(dim=16, num_heads=4, rope=True, dtype=torch.float64)
    plain.load_state_dict(attention.state_dict())
    torch.testing.assert_close(attention(tokens(), causal=causal), plain(tokens(), causal=causal))


def test_reach_is_the_longest_segment_and_heads_share_its_tokens():
    attention = build((2, 16), (1, 4), num_heads=4)
    weights = attention.forward_with(tokens(32))[1]["weights"][0]
    segment = torch.arange(32) // 16
    assert not weights[:, segment[:, None] != segment].any()
    seen = (weights > 0).any(dim=1)  # (head, key): by a query elsewhere or near
    far = (weights > 0) & ((torch.arange(32)[:, None] - torch.arange(32)).abs() > 1)
    for head in range(4):
        kept = far[head].any(dim=0).nonzero().flatten() % 16 % 4
        assert set(kept.tolist()) == {head}
    assert seen.all()


def test_pair_in_two_branches_counts_twice():
    attention = build((2, 4), (1, 1))
    weights = attention.forward_with(torch.zeros(1, 4, 16, dtype=torch.float64))[1]["weights"][0, 0]
    expected = torch.tensor([[2.0, 2.0, 1.0, 1.0]] * 2 + [[1.0, 1.0, 2.0, 2.0]] * 2, dtype=torch.float64) / 6
    torch.testing.assert_close(weights, expected)


def test_cost_is_linear_in_the_length():
    flops = []
    for length in (2048, 8192):
        attention = dilated.build(dim=32, num_heads=2, segments=(64, 256), dilations=(1, 4), backend="math")
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            attention(torch.randn(1, length, 32))
        flops.append(counter.get_total_flops())
    assert flops[1] / flops[0] == pytest.approx(4, rel=0.01)


@pytest.mark.parametrize(
    ("segments", "dilations"), [((4, 8), (2, 4)), ((4, 9), (1, 2)), ((4,), (1, 2)), ((4, 0), (1, 2)), ((), ())]
)
def test_branches_that_cannot_be_are_refused(segments, dilations):
    with pytest.raises(ConfigError):
        build(segments, dilations)


def test_segments_longer_than_the_sequence_compile_for_several_lengths():
    torch._dynamo.reset()
    attention = dilated.build(dim=16, num_heads=2, causal=True)
    compiled = torch.compile(attention, fullgraph=True, backend="eager")
    for length in (30, 51, 70):
        x = torch.randn(1, length, 16)
        torch.testing.assert_close(compiled(x), attention(x))
