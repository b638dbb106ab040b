"""Linear attention: the chunked form against the step-by-step and the quadratic one."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from astrozoo.attention.recurrent import LinearState, elu_features, linear_attention
from astrozoo.attention.recurrent.reference import linear_attention_quadratic, linear_attention_recurrent
from astrozoo.errors import InputError


def draw(length, *, keys=None, heads=4, groups=2, feature=5, value=3, dtype=torch.float64):
    keys = length if keys is None else keys
    return {
        "q": elu_features(torch.randn(2, heads, length, feature, dtype=dtype)),
        "k": elu_features(torch.randn(2, groups, keys, feature, dtype=dtype)),
        "v": torch.randn(2, groups, keys, value, dtype=dtype),
    }


def with_state(tensors, groups=2, feature=5, value=3):
    state = {
        "kv": torch.rand(2, groups, feature, value, dtype=torch.float64),
        "z": torch.rand(2, groups, feature, dtype=torch.float64) + 0.1,
    }
    return {**tensors, **state}


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("length", [1, 7, 64, 65, 300])
def test_chunked_is_recurrent_is_quadratic(agree, length, normalise):
    tensors = draw(length)

    def chunked(q, k, v):
        return linear_attention(q, k, v, causal=True, normalise=normalise)

    def recurrent(q, k, v):
        return linear_attention_recurrent(q, k, v, normalise=normalise)

    def quadratic(q, k, v):
        return linear_attention_quadratic(q, k, v, causal=True, normalise=normalise)

    agree(chunked, recurrent, tensors)
    agree(lambda q, k, v: chunked(q, k, v)[0], quadratic, tensors)


@pytest.mark.parametrize(("queries", "keys"), [(5, 70), (70, 5), (66, 66), (3, 0), (0, 3), (0, 0)])
@pytest.mark.parametrize("causal", [True, False])
def test_unequal_lengths_align_the_last_query_with_the_last_key(agree, queries, keys, causal):
    agree(
        lambda q, k, v: linear_attention(q, k, v, causal=causal)[0],
        lambda q, k, v: linear_attention_quadratic(q, k, v, causal=causal),
        draw(queries, keys=keys),
    )


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kind", [torch.bool, torch.int64, torch.uint8])
def test_masked_keys_are_never_read(agree, padded, causal, kind):
    tensors = draw(75)

    def with_gaps(q, k, v):
        gaps = ~padded[:, None, :, None]
        k, v = k.masked_fill(gaps, torch.nan), v.masked_fill(gaps, torch.inf)
        return linear_attention(q, k, v, causal=causal, key_mask=padded.to(kind))[0]

    agree(with_gaps, lambda q, k, v: linear_attention_quadratic(q, k, v, causal=causal, key_mask=padded), tensors)


def test_state_after_padding_is_that_of_the_real_tokens(agree, padded):
    agree(
        lambda q, k, v: linear_attention(q, k, v, causal=True, key_mask=padded),
        lambda q, k, v: linear_attention_recurrent(q, k, v, key_mask=padded),
        draw(75),
    )


def test_initial_state_is_seen_and_gets_a_gradient(agree):
    agree(
        lambda q, k, v, kv, z: linear_attention(q, k, v, causal=True, state=LinearState(kv, z)),
        lambda q, k, v, kv, z: linear_attention_recurrent(q, k, v, state=LinearState(kv, z)),
        with_state(draw(130)),
    )


@pytest.mark.parametrize("cuts", [[1, 2, 3], [64], [63, 64, 65, 129], [10, 10, 100]])
def test_any_chunking_is_the_single_pass(agree, cuts):
    def pieces(q, k, v):
        state, outs = None, []
        for start, stop in pairwise([0, *cuts, 150]):
            part = (tensor[:, :, start:stop] for tensor in (q, k, v))
            out, state = linear_attention(*part, causal=True, state=state)
            outs.append(out)
        return torch.cat(outs, dim=2), state

    agree(pieces, lambda q, k, v: linear_attention(q, k, v, causal=True), draw(150))


def test_states_of_two_contexts_add_up():
    tensors = draw(20, keys=50)
    q, k, v = tensors.values()
    _, first = linear_attention(q, k[:, :, :30], v[:, :, :30], causal=False)
    got, _ = linear_attention(q, k[:, :, 30:], v[:, :, 30:], causal=False, state=first)
    torch.testing.assert_close(got, linear_attention(q, k, v, causal=False)[0])


@pytest.mark.parametrize("causal", [True, False])
def test_query_that_sees_nothing_is_zero_with_finite_gradients(causal):
    tensors = {name: tensor.requires_grad_() for name, tensor in draw(70).items()}
    out, _ = linear_attention(**tensors, causal=causal, key_mask=torch.zeros(2, 70, dtype=torch.bool))
    assert (out == 0).all()
    for grad in torch.autograd.grad(out.sum(), list(tensors.values())):
        assert torch.isfinite(grad).all()


@pytest.mark.parametrize("causal", [True, False])
def test_rows_of_weights_sum_to_one(causal):
    tensors = draw(100)
    tensors["v"] = torch.ones_like(tensors["v"])
    out, _ = linear_attention(**tensors, causal=causal)
    torch.testing.assert_close(out, torch.ones_like(out))


def test_later_tokens_change_nothing_earlier_but_their_own_row():
    tensors = draw(90)
    before, _ = linear_attention(**tensors, causal=True)
    tensors["k"][:, :, 70] += 1
    after, _ = linear_attention(**tensors, causal=True)
    assert torch.equal(before[:, :, :70], after[:, :, :70])
    assert (before[:, :, 70:] != after[:, :, 70:]).any(-1).all()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 8e-3), (torch.float16, 1e-3), (torch.float32, 2e-6)])
@pytest.mark.parametrize("causal", [True, False])
def test_narrow_dtypes_lose_their_own_rounding_only(dtype, tolerance, causal):
    tensors = draw(512, feature=32, value=32, dtype=torch.float32)
    tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    out, state = linear_attention(**tensors, causal=causal)
    want = linear_attention_quadratic(**{name: tensor.double() for name, tensor in tensors.items()}, causal=causal)
    assert out.dtype == dtype
    assert state.kv.dtype == state.z.dtype == torch.float32
    assert (out.double() - want).norm() <= tolerance * want.norm()


def test_autocast_does_not_reach_the_sums():
    tensors = draw(300, dtype=torch.float32)
    plain, _ = linear_attention(**tensors, causal=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside, _ = linear_attention(**tensors, causal=True)
    assert torch.equal(plain, inside)


@given(
    queries=st.integers(0, 20),
    keys=st.integers(0, 20),
    groups=st.integers(1, 3),
    members=st.integers(1, 3),
    feature=st.integers(1, 5),
    value=st.integers(1, 5),
    chunk=st.sampled_from([1, 4, 16]),
    causal=st.booleans(),
)
def test_any_shape_is_the_quadratic_form(queries, keys, groups, members, feature, value, chunk, causal):
    tensors = draw(queries, keys=keys, heads=groups * members, groups=groups, feature=feature, value=value)
    out, state = linear_attention(**tensors, causal=causal, chunk=chunk)
    torch.testing.assert_close(out, linear_attention_quadratic(**tensors, causal=causal))
    torch.testing.assert_close(state.kv, tensors["k"].transpose(-1, -2) @ tensors["v"])
    torch.testing.assert_close(state.z, tensors["k"].sum(-2))


def test_inputs_are_not_modified(padded):
    tensors = draw(75)
    kept = {name: tensor.clone() for name, tensor in tensors.items()}
    linear_attention(**tensors, causal=True, key_mask=padded)
    for name, tensor in tensors.items():
        assert torch.equal(tensor, kept[name])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.ones(2, 3, 7, 5)}, "q has 3 heads"),
        ({"q": torch.ones(2, 4, 7, 6)}, "q and k must agree in batch and dim"),
        ({"v": torch.ones(2, 7, 3)}, r"expected \(batch, head, token, dim\)"),
        ({"key_mask": torch.ones(2, 8)}, "torch.float32"),
        ({"key_mask": torch.ones(2, 8, dtype=torch.bool)}, "for 8 tokens, but there are 7"),
        ({"key_mask": torch.ones(3, 7, dtype=torch.bool)}, r"\(3, 7\)"),
    ],
    ids=["heads", "feature", "rank", "float mask", "mask length", "mask batch"],
)
def test_wrong_shapes_are_named(change, message):
    with pytest.raises(InputError, match=message):
        linear_attention(**{**draw(7, dtype=torch.float32), **change}, causal=True)
