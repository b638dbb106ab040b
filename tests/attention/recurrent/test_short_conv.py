"""The short causal convolution: against F.conv1d, and with padding, cuts and segments."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from astrozoo.attention.recurrent import causal_conv
from astrozoo.errors import InputError


def draw(length, *, channels=3, taps=4, batch=2):
    return {
        "x": torch.randn(batch, length, channels, dtype=torch.float64),
        "weight": torch.randn(channels, taps, dtype=torch.float64),
        "bias": torch.randn(channels, dtype=torch.float64),
    }


def dense(x, weight, bias, tail=None):
    """PyTorch's own convolution, and the last inputs."""
    kept = weight.shape[1] - 1
    before = x.new_zeros(x.shape[0], kept, x.shape[2]) if tail is None else tail
    known = torch.cat((before, x), dim=1)
    if not x.shape[1]:
        return x, known  # conv1d takes no input shorter than its kernel
    out = F.conv1d(known.transpose(1, 2), weight[:, None], bias, groups=x.shape[2]).transpose(1, 2)
    return out, known[:, known.shape[1] - kept :]


@pytest.mark.parametrize("taps", [1, 2, 4])
@pytest.mark.parametrize("length", [1, 2, 3, 7, 100])
def test_it_is_a_depthwise_convolution(agree, length, taps):
    agree(causal_conv, dense, draw(length, taps=taps))


def test_tail_is_continued_and_gets_a_gradient(agree):
    agree(causal_conv, dense, {**draw(2), "tail": torch.randn(2, 3, 3, dtype=torch.float64)})


def test_no_token_leaves_the_tail():
    tail = torch.randn(2, 3, 3, dtype=torch.float64)
    out, after = causal_conv(**draw(0), tail=tail)
    assert out.shape == (2, 0, 3)
    assert torch.equal(after, tail)


@pytest.mark.parametrize("cuts", [[1, 2, 3], [2, 2, 30], [33]])
def test_any_chunking_is_the_single_pass(agree, cuts):
    def pieces(x, weight, bias):
        tail, outs = None, []
        for start, stop in pairwise([0, *cuts, 50]):
            out, tail = causal_conv(x[:, start:stop], weight, bias, tail=tail)
            outs.append(out)
        return torch.cat(outs, dim=1), tail

    agree(pieces, causal_conv, draw(50))


def test_padding_is_as_good_as_absent(padded):
    tensors = draw(75)
    tail = torch.randn(2, 3, 3, dtype=torch.float64)
    gaps = tensors["x"].masked_fill(~padded[..., None], torch.nan)
    out, after = causal_conv(gaps, tensors["weight"], tensors["bias"], tail=tail, key_mask=padded.long())
    for row in range(2):
        alone = tensors["x"][row : row + 1, padded[row]]
        want, last = dense(alone, tensors["weight"], tensors["bias"], tail[row : row + 1])
        torch.testing.assert_close(out[row : row + 1, padded[row]], want)
        torch.testing.assert_close(after[row : row + 1], last)
        assert (out[row, ~padded[row]] == 0).all()


def test_gradients_pass_masked_tokens_by(padded):
    tensors = {name: tensor.requires_grad_() for name, tensor in draw(75).items()}
    gaps = tensors["x"].masked_fill(~padded[..., None], torch.inf)
    out, tail = causal_conv(gaps, tensors["weight"], tensors["bias"], key_mask=padded)
    grad, *others = torch.autograd.grad(out.sum() + tail.sum(), list(tensors.values()))
    assert all(torch.isfinite(other).all() for other in others)
    assert (grad[~padded] == 0).all()
    assert (grad[padded] != 0).all()


@pytest.mark.parametrize("lengths", [[20], [1, 1, 1, 1], [2, 9, 3], [9, 2]])
def test_segments_are_separate_calls(agree, lengths):
    ids = torch.cat([torch.full((1, length), 7 - place) for place, length in enumerate(lengths)], dim=1)

    def separate(x, weight, bias, tail):
        parts = []
        for part in x.split(lengths, dim=1):
            out, last = dense(part, weight, bias, tail)
            parts.append(out)
            tail = None
        return torch.cat(parts, dim=1), last

    tensors = {**draw(sum(lengths)), "tail": torch.randn(2, 3, 3, dtype=torch.float64)}
    agree(lambda **given: causal_conv(**given, segments=ids), separate, tensors)


@given(
    length=st.integers(0, 15),
    taps=st.integers(1, 5),
    channels=st.integers(1, 3),
    cut=st.integers(0, 15),
    data=st.data(),
)
def test_padding_segments_and_cuts_together(length, taps, channels, cut, data):
    """A row alone, without its padding and cut into its segments, is the truth."""
    tensors = draw(length, taps=taps, channels=channels)
    rows = st.lists(st.integers(0, 1), min_size=length, max_size=length)
    mask = torch.tensor([data.draw(rows), data.draw(rows)], dtype=torch.bool).reshape(2, length)
    ids = torch.tensor([data.draw(rows), data.draw(rows)], dtype=torch.int64).reshape(2, length)
    options = {"weight": tensors["weight"], "bias": tensors["bias"]}
    out, tail = causal_conv(tensors["x"], **options, key_mask=mask, segments=ids)
    for row in range(2):
        alone, own_ids = tensors["x"][row, mask[row]], ids[row, mask[row]]
        last = torch.zeros(1, taps - 1, channels, dtype=torch.float64)
        starts = [place for place in range(len(own_ids)) if place == 0 or own_ids[place] != own_ids[place - 1]]
        outs = [alone[:0]]
        for start, stop in pairwise([*starts, len(own_ids)]):
            piece, last = dense(alone[None, start:stop], **options)
            outs.append(piece[0])
        torch.testing.assert_close(out[row, mask[row]], torch.cat(outs))
        torch.testing.assert_close(tail[row], last[0])
    first, middle = causal_conv(tensors["x"][:, :cut], **options, key_mask=mask[:, :cut])
    second, end = causal_conv(tensors["x"][:, cut:], **options, key_mask=mask[:, cut:], tail=middle)
    whole, whole_end = causal_conv(tensors["x"], **options, key_mask=mask)
    torch.testing.assert_close(torch.cat((first, second), dim=1), whole)
    torch.testing.assert_close(end, whole_end)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_dtype_of_the_tokens_is_kept(dtype):
    tensors = {name: tensor.to(dtype) for name, tensor in draw(40).items()}
    out, tail = causal_conv(**tensors)
    want, _ = dense(**{name: tensor.double() for name, tensor in tensors.items()})
    assert out.dtype == tail.dtype == dtype
    assert (out.double() - want).norm() <= torch.finfo(dtype).eps * want.norm()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.ones(2, 7)}, "x is .2, 7."),
        ({"weight": torch.ones(4, 4)}, "weight is .4, 4.; expected .3 channels"),
        ({"bias": torch.ones(4)}, "bias is .4,."),
        ({"tail": torch.ones(2, 4, 3)}, "tail is .2, 4, 3.; expected .2, 3, 3."),
    ],
    ids=["rank", "weight", "bias", "tail"],
)
def test_wrong_shapes_are_named(change, message):
    with pytest.raises(InputError, match=message):
        causal_conv(**{**draw(7), **change})
