"""State space duality: the chunked form against the recurrence and the dense matrix."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from astrozoo.attention.recurrent import state_space
from astrozoo.attention.recurrent.reference import (
    linear_attention_quadratic,
    state_space_dense,
    state_space_recurrent,
)
from astrozoo.errors import InputError


def draw(length, *, heads=4, groups=2, state=5, value=3, dtype=torch.float64):
    return {
        "x": torch.randn(2, heads, length, value, dtype=dtype),
        "dt": torch.rand(2, heads, length, dtype=dtype),
        "a": -torch.rand(heads, dtype=dtype),
        "b": torch.randn(2, groups, length, state, dtype=dtype),
        "c": torch.randn(2, groups, length, state, dtype=dtype),
        "d": torch.randn(heads, dtype=dtype),
    }


def cut(tensors, start, stop):
    return {name: tensor if name in "ad" else tensor[:, :, start:stop] for name, tensor in tensors.items()}


@pytest.mark.parametrize("length", [1, 7, 64, 65, 300])
def test_chunked_is_recurrent(agree, length):
    agree(state_space, state_space_recurrent, draw(length))


@pytest.mark.parametrize("length", [1, 7, 64, 65, 300])
def test_chunked_is_dense(agree, length):
    agree(lambda **tensors: state_space(**tensors)[0], state_space_dense, draw(length))


def test_initial_state_is_continued_and_gets_a_gradient(agree):
    tensors = {**draw(130), "state": torch.randn(2, 4, 5, 3, dtype=torch.float64)}
    agree(state_space, state_space_recurrent, tensors)


@pytest.mark.parametrize("cuts", [[1, 2, 3], [64], [63, 64, 65, 129], [10, 10, 100]])
def test_any_chunking_is_the_single_pass(agree, cuts):
    def pieces(**tensors):
        state, outs = None, []
        for start, stop in pairwise([0, *cuts, 150]):
            out, state = state_space(**cut(tensors, start, stop), state=state)
            outs.append(out)
        return torch.cat(outs, dim=2), state

    agree(pieces, state_space, draw(150))


def test_masked_tokens_leave_no_trace(agree, padded):
    def with_gaps(**tensors):
        for name in ("x", "dt", "b", "c"):
            gaps = ~padded[:, None]
            tensors[name] = tensors[name].masked_fill(gaps if name == "dt" else gaps[..., None], torch.nan)
        return state_space(**tensors, key_mask=padded)

    agree(with_gaps, lambda **tensors: state_space_recurrent(**tensors, key_mask=padded), draw(75))


def test_padding_is_as_good_as_absent(padded):
    tensors = draw(75)
    out, state = state_space(**tensors, key_mask=padded)
    for row in range(2):
        alone = {
            name: tensor if name in "ad" else tensor[row : row + 1, :, padded[row]] for name, tensor in tensors.items()
        }
        want, last = state_space(**alone)
        torch.testing.assert_close(out[row : row + 1, :, padded[row]], want)
        torch.testing.assert_close(state[row : row + 1], last)
        assert (out[row, :, ~padded[row]] == 0).all()


@pytest.mark.parametrize("lengths", [[75], [10, 65], [64, 64, 1], [1, 1, 1, 100, 30, 2]])
def test_segments_are_separate_calls(agree, lengths):
    ids = torch.cat([torch.full((1, length), 7 - place) for place, length in enumerate(lengths)], dim=1)
    tensors = {**draw(sum(lengths)), "state": torch.randn(2, 4, 5, 3, dtype=torch.float64)}

    def separate(state, **tensors):
        outs, start, last = [], 0, None
        for length in lengths:
            out, last = state_space(**cut(tensors, start, start + length), state=state)
            outs.append(out)
            start, state = start + length, None
        return torch.cat(outs, dim=2), last

    agree(lambda **given: state_space(**given, segments=ids), separate, tensors)


def test_padding_between_segments_neither_starts_nor_ends_one(agree, padded):
    ids = torch.arange(75).div(20, rounding_mode="floor").expand(2, -1).masked_fill(~padded, -1)
    agree(
        lambda **tensors: state_space(**tensors, key_mask=padded, segments=ids),
        lambda **tensors: state_space_recurrent(**tensors, key_mask=padded, segments=ids),
        {**draw(75), "state": torch.randn(2, 4, 5, 3, dtype=torch.float64)},
    )


def test_without_decay_and_with_unit_steps_it_is_unnormalised_linear_attention():
    tensors = draw(100, groups=4)
    tensors = {**tensors, "a": torch.zeros_like(tensors["a"]), "dt": torch.ones_like(tensors["dt"]), "d": None}
    out, _ = state_space(**tensors)
    want = linear_attention_quadratic(tensors["c"], tensors["b"], tensors["x"], causal=True, normalise=False)
    torch.testing.assert_close(out, want)


def test_heads_of_a_group_share_its_maps():
    tensors = draw(80, groups=2)
    expanded = {**tensors, "b": tensors["b"].repeat_interleave(2, 1), "c": tensors["c"].repeat_interleave(2, 1)}
    for got, want in zip(state_space(**tensors), state_space(**expanded), strict=True):
        torch.testing.assert_close(got, want)


def test_fast_decay_over_a_long_chunk_stays_finite():
    """exp of a sum of 64 decays of e^-50 underflows, and its inverse would overflow."""
    tensors = {name: tensor.float() for name, tensor in draw(130).items()}
    tensors = {**tensors, "a": torch.full_like(tensors["a"], -50), "dt": torch.ones_like(tensors["dt"])}
    tensors = {name: tensor.requires_grad_() for name, tensor in tensors.items()}
    out, state = state_space(**tensors)
    want, _ = state_space_recurrent(**{name: tensor.detach().double() for name, tensor in tensors.items()})
    torch.testing.assert_close(out.double(), want, rtol=1e-5, atol=1e-5)
    for grad in torch.autograd.grad(out.sum() + state.sum(), list(tensors.values())):
        assert torch.isfinite(grad).all()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 8e-3), (torch.float16, 1e-3), (torch.float32, 2e-6)])
def test_narrow_dtypes_lose_their_own_rounding_only(dtype, tolerance):
    tensors = {name: tensor.to(dtype) for name, tensor in draw(512, state=32, value=32, dtype=torch.float32).items()}
    out, state = state_space(**tensors)
    want, _ = state_space_recurrent(**{name: tensor.double() for name, tensor in tensors.items()})
    assert out.dtype == dtype
    assert state.dtype == torch.float32
    assert (out.double() - want).norm() <= tolerance * want.norm()


@given(
    length=st.integers(0, 20),
    groups=st.integers(1, 3),
    members=st.integers(1, 3),
    state=st.integers(1, 5),
    value=st.integers(1, 5),
    chunk=st.sampled_from([1, 2, 16]),
    data=st.data(),
)
def test_any_shape_mask_and_segments_are_the_recurrence(length, groups, members, state, value, chunk, data):
    tensors = draw(length, heads=groups * members, groups=groups, state=state, value=value)
    rows = st.lists(st.integers(0, 2), min_size=length, max_size=length)
    options = {
        "key_mask": torch.tensor([data.draw(rows), data.draw(rows)], dtype=torch.int64).reshape(2, length),
        "segments": torch.tensor([data.draw(rows), data.draw(rows)], dtype=torch.int64).reshape(2, length),
    }
    out, last = state_space(**tensors, **options, chunk=chunk)
    want, want_last = state_space_recurrent(**tensors, **options)
    torch.testing.assert_close(out, want)
    torch.testing.assert_close(last, want_last)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.ones(2, 3, 7, 3), "dt": torch.ones(2, 3, 7)}, "a is .4,.; expected one number for each of 3"),
        ({"dt": torch.ones(2, 4)}, "dt is .2, 4."),
        ({"b": torch.ones(2, 2, 8, 5)}, "must be alike"),
        ({"d": torch.ones(3)}, "d is .3,."),
        ({"b": torch.ones(2, 3, 7, 5), "c": torch.ones(2, 3, 7, 5)}, "x has 4 heads"),
        ({"x": torch.ones(2, 7, 3)}, r"Expected \(batch, head, token, dim\)"),
    ],
    ids=["rates", "steps", "maps", "skip", "groups", "rank"],
)
def test_wrong_shapes_are_named(change, message):
    with pytest.raises(InputError, match=message):
        state_space(**{**draw(7, dtype=torch.float32), **change})
