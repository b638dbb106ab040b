"""The gated delta rule: the chunked form against the recurrence, and what the rule promises."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from astrozoo.attention.recurrent import gated_delta
from astrozoo.attention.recurrent.reference import gated_delta_recurrent, linear_attention_quadratic
from astrozoo.errors import InputError


def draw(length, *, heads=4, groups=2, key=5, value=3, dtype=torch.float64):
    return {
        "q": torch.randn(2, heads, length, key, dtype=dtype),
        "k": F.normalize(torch.randn(2, groups, length, key, dtype=dtype), dim=-1),
        "v": torch.randn(2, groups, length, value, dtype=dtype),
        "log_decay": -0.3 * torch.rand(2, groups, length, dtype=dtype),
        "beta": torch.rand(2, groups, length, dtype=dtype),
    }


def cut(tensors, start, stop):
    return {name: tensor[:, :, start:stop] for name, tensor in tensors.items()}


@pytest.mark.parametrize("erase", [True, False], ids=["delta", "gated"])
@pytest.mark.parametrize("length", [1, 7, 64, 65, 300])
def test_chunked_is_recurrent(agree, length, erase):
    agree(
        lambda **tensors: gated_delta(**tensors, erase=erase),
        lambda **tensors: gated_delta_recurrent(**tensors, erase=erase),
        draw(length),
    )


@pytest.mark.parametrize("erase", [True, False], ids=["delta", "gated"])
def test_more_chunks_than_a_group_of_the_scan(agree, erase):
    """300 tokens in chunks of 4 are 75 chunks: three levels of the scan."""
    agree(
        lambda **tensors: gated_delta(**tensors, erase=erase, chunk=4),
        lambda **tensors: gated_delta_recurrent(**tensors, erase=erase),
        draw(300),
    )


@pytest.mark.parametrize("erase", [True, False], ids=["delta", "gated"])
def test_initial_state_is_continued_and_gets_a_gradient(agree, erase):
    tensors = {**draw(130), "state": torch.randn(2, 2, 5, 3, dtype=torch.float64)}
    agree(
        lambda **given: gated_delta(**given, erase=erase),
        lambda **given: gated_delta_recurrent(**given, erase=erase),
        tensors,
    )


@pytest.mark.parametrize("erase", [True, False], ids=["delta", "gated"])
@pytest.mark.parametrize("cuts", [[1, 2, 3], [64], [63, 64, 65, 129], [10, 10, 100]])
def test_any_chunking_is_the_single_pass(agree, cuts, erase):
    def pieces(**tensors):
        state, outs = None, []
        for start, stop in pairwise([0, *cuts, 150]):
            out, state = gated_delta(**cut(tensors, start, stop), erase=erase, state=state)
            outs.append(out)
        return torch.cat(outs, dim=2), state

    agree(pieces, lambda **tensors: gated_delta(**tensors, erase=erase), draw(150))


@pytest.mark.parametrize("erase", [True, False], ids=["delta", "gated"])
def test_masked_tokens_leave_no_trace(agree, padded, erase):
    def with_gaps(**tensors):
        gaps = ~padded[:, None]
        for name, tensor in tensors.items():
            hidden = gaps if tensor.ndim == 3 else gaps[..., None]
            tensors[name] = tensor.masked_fill(hidden, torch.nan)
        return gated_delta(**tensors, erase=erase, key_mask=padded)

    agree(with_gaps, lambda **tensors: gated_delta_recurrent(**tensors, erase=erase, key_mask=padded), draw(75))


@pytest.mark.parametrize("erase", [True, False], ids=["delta", "gated"])
def test_padding_is_as_good_as_absent(padded, erase):
    tensors = draw(75)
    out, state = gated_delta(**tensors, erase=erase, key_mask=padded)
    for row in range(2):
        alone = {name: tensor[row : row + 1, :, padded[row]] for name, tensor in tensors.items()}
        want, last = gated_delta(**alone, erase=erase)
        torch.testing.assert_close(out[row : row + 1, :, padded[row]], want)
        torch.testing.assert_close(state[row : row + 1], last)
        assert (out[row, :, ~padded[row]] == 0).all()


@pytest.mark.parametrize("erase", [True, False], ids=["delta", "gated"])
@pytest.mark.parametrize("lengths", [[75], [10, 65], [64, 64, 1], [1, 1, 1, 100, 30, 2]])
def test_segments_are_separate_calls(agree, lengths, erase):
    ids = torch.cat([torch.full((1, length), 7 - place) for place, length in enumerate(lengths)], dim=1)
    tensors = {**draw(sum(lengths)), "state": torch.randn(2, 2, 5, 3, dtype=torch.float64)}

    def separate(state, **tensors):
        outs, start = [], 0
        for length in lengths:
            out, state = gated_delta(**cut(tensors, start, start + length), erase=erase, state=state)
            outs.append(out)
            start, last, state = start + length, state, None
        return torch.cat(outs, dim=2), last

    agree(lambda **given: gated_delta(**given, erase=erase, segments=ids), separate, tensors)


@pytest.mark.parametrize("erase", [True, False], ids=["delta", "gated"])
def test_padding_between_segments_neither_starts_nor_ends_one(agree, padded, erase):
    ids = torch.arange(75).div(20, rounding_mode="floor").expand(2, -1).masked_fill(~padded, -1)
    agree(
        lambda **tensors: gated_delta(**tensors, erase=erase, key_mask=padded, segments=ids),
        lambda **tensors: gated_delta_recurrent(**tensors, erase=erase, key_mask=padded, segments=ids),
        {**draw(75), "state": torch.randn(2, 2, 5, 3, dtype=torch.float64)},
    )


def test_orthonormal_keys_are_recalled_exactly():
    k = torch.linalg.qr(torch.randn(2, 2, 64, 64, dtype=torch.float64))[0]
    v = torch.randn(2, 2, 64, 7, dtype=torch.float64)
    _, state = gated_delta(k, k, v)
    recalled, _ = gated_delta(k, torch.zeros_like(k), torch.zeros_like(v), beta=torch.zeros(1), state=state)
    assert (recalled - v).abs().max() < 1e-13


@pytest.mark.parametrize(("erase", "expected"), [(True, "second"), (False, "sum")])
def test_a_key_written_twice_returns_the_second_value(erase, expected):
    key = F.normalize(torch.randn(1, 1, 1, 8, dtype=torch.float64), dim=-1).expand(1, 1, 2, 8)
    v = torch.randn(1, 1, 2, 4, dtype=torch.float64)
    out, _ = gated_delta(key, key, v, erase=erase)
    torch.testing.assert_close(out[:, :, 1], v[:, :, 1] if expected == "second" else v.sum(2))


def test_without_erasing_or_forgetting_it_is_unnormalised_linear_attention():
    tensors = draw(100)
    out, _ = gated_delta(tensors["q"], tensors["k"], tensors["v"], erase=False)
    want = linear_attention_quadratic(tensors["q"], tensors["k"], tensors["v"], causal=True, normalise=False)
    torch.testing.assert_close(out, want)


def test_constant_gate_is_retention():
    """RetNet's parallel form: (q k' * gamma^(i - j)) v."""
    tensors = draw(100, heads=2)
    gamma = torch.tensor([0.9, 0.97], dtype=torch.float64)
    out, _ = gated_delta(tensors["q"], tensors["k"], tensors["v"], gamma.log()[:, None], erase=False)
    distance = torch.arange(100)[:, None] - torch.arange(100)
    weights = (gamma[:, None, None] ** distance.clamp(min=0)) * (distance >= 0)
    want = (tensors["q"] @ tensors["k"].transpose(-1, -2) * weights) @ tensors["v"]
    torch.testing.assert_close(out, want)


@pytest.mark.parametrize("erase", [True, False], ids=["delta", "gated"])
def test_a_gate_of_zero_forgets_all_that_came_before(erase):
    tensors = {name: tensor.requires_grad_() for name, tensor in draw(100).items()}
    shut = torch.zeros(100, dtype=torch.float64).index_fill(0, torch.tensor([70]), -torch.inf)
    tensors["log_decay"] = tensors["log_decay"] + shut
    out, state = gated_delta(**tensors, erase=erase)
    want, last = gated_delta(**cut(tensors, 70, 100), erase=erase)
    torch.testing.assert_close(out[:, :, 70:], want)
    torch.testing.assert_close(state, last)
    for grad in torch.autograd.grad(out.sum(), [tensors["q"], tensors["k"], tensors["v"], tensors["beta"]]):
        assert torch.isfinite(grad).all()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 8e-3), (torch.float16, 1e-3), (torch.float32, 2e-6)])
@pytest.mark.parametrize("erase", [True, False], ids=["delta", "gated"])
def test_narrow_dtypes_lose_their_own_rounding_only(dtype, tolerance, erase):
    tensors = {name: tensor.to(dtype) for name, tensor in draw(512, key=32, value=32, dtype=torch.float32).items()}
    out, state = gated_delta(**tensors, erase=erase)
    want, _ = gated_delta_recurrent(**{name: tensor.double() for name, tensor in tensors.items()}, erase=erase)
    assert out.dtype == dtype
    assert state.dtype == torch.float32
    assert (out.double() - want).norm() <= tolerance * want.norm()


def test_autocast_does_not_reach_the_sums():
    tensors = draw(200, dtype=torch.float32)
    plain, _ = gated_delta(**tensors)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside, _ = gated_delta(**tensors)
    assert torch.equal(plain, inside)


@given(
    length=st.integers(0, 20),
    groups=st.integers(1, 3),
    members=st.integers(1, 3),
    key=st.integers(1, 5),
    value=st.integers(1, 5),
    chunk=st.sampled_from([1, 2, 16]),
    erase=st.booleans(),
    data=st.data(),
)
def test_any_shape_mask_and_segments_are_the_recurrence(length, groups, members, key, value, chunk, erase, data):
    tensors = draw(length, heads=groups * members, groups=groups, key=key, value=value)
    rows = st.lists(st.integers(0, 2), min_size=length, max_size=length)
    options = {
        "erase": erase,
        "key_mask": torch.tensor([data.draw(rows), data.draw(rows)], dtype=torch.int64).reshape(2, length),
        "segments": torch.tensor([data.draw(rows), data.draw(rows)], dtype=torch.int64).reshape(2, length),
    }
    out, state = gated_delta(**tensors, **options, chunk=chunk)
    want, last = gated_delta_recurrent(**tensors, **options)
    torch.testing.assert_close(out, want)
    torch.testing.assert_close(state, last)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.ones(2, 3, 7, 5)}, "q has 3 heads"),
        ({"q": torch.ones(2, 4, 8, 5)}, "q has 8 tokens and k 7"),
        ({"v": torch.ones(2, 4, 7, 3)}, "k and v must agree"),
        ({"beta": torch.ones(2, 4, 7)}, "beta .2, 4, 7. does not broadcast"),
        ({"segments": torch.ones(2, 7)}, "segments is torch.float32"),
        ({"v": torch.ones(2, 7, 3)}, r"expected \(batch, head, token, dim\)"),
    ],
    ids=["heads", "queries", "values", "gate", "float segments", "rank"],
)
def test_wrong_shapes_are_named(change, message):
    with pytest.raises(InputError, match=message):
        gated_delta(**{**draw(7, dtype=torch.float32), **change})
