"""States between chunks, decays within them, and the numbering of segments, against loops."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from astrozoo.attention.recurrent.chunks import fold, grouped, segment_runs, sum_dtype, unfold
from astrozoo.attention.recurrent.decay import chunk_decay
from astrozoo.attention.recurrent.scan import states_between
from astrozoo.errors import InputError


@given(chunks=st.integers(1, 140), key=st.integers(1, 4), scalar=st.booleans())
def test_scan_is_the_loop(chunks, key, scalar):
    wide = 1 if scalar else key
    transition = 0.5 * torch.randn(2, 1, chunks, wide, wide, dtype=torch.float64)
    update = torch.randn(2, 3, chunks, key, 2, dtype=torch.float64)
    state = torch.randn(2, 3, key, 2, dtype=torch.float64)
    before, last = states_between(transition, update, state)
    for chunk in range(chunks):
        torch.testing.assert_close(before[:, :, chunk], state)
        step = transition[:, :, chunk]
        state = (step * state if scalar else step @ state) + update[:, :, chunk]
    torch.testing.assert_close(last, state)


@given(length=st.integers(0, 40), size=st.integers(1, 16), dim=st.integers(1, 3))
def test_unfolding_undoes_folding(length, size, dim):
    tokens = torch.randn(2, length, dim)
    folded = fold(tokens, size, -2)
    assert folded.shape == (2, max(1, -(-length // size)), size, dim)
    assert torch.equal(unfold(folded, length), tokens)
    assert torch.equal(fold(tokens.transpose(1, 2), size, -1), folded.permute(0, 3, 1, 2))


@given(ids=st.lists(st.integers(0, 3), max_size=20), size=st.sampled_from([1, 4, 8]))
def test_decays_are_products_within_segments(ids, size):
    log_decay = -torch.rand(1, len(ids), dtype=torch.float64)
    runs = segment_runs(torch.tensor([ids], dtype=torch.int64).reshape(1, -1), None)
    decay = chunk_decay(log_decay, runs, size)
    for place in range(len(ids)):
        chunk, row = divmod(place, size)
        start = chunk * size
        before = runs[0, start - 1] if start else 0
        for other in range(start, min(start + size, len(ids))):
            same = other <= place and runs[0, other] == runs[0, place]
            want = log_decay[0, other + 1 : place + 1].sum().exp() if same else 0.0
            assert decay.pairs[0, chunk, row, other - start] == pytest.approx(float(want))
        entered = log_decay[0, start : place + 1].sum().exp() if runs[0, place] == before else 0.0
        assert decay.entry[0, chunk, row] == pytest.approx(float(entered))
        end = min(start + size, len(ids))
        left = log_decay[0, place + 1 : end].sum().exp() if runs[0, place] == runs[0, end - 1] else 0.0
        assert decay.exit[0, chunk, row] == pytest.approx(float(left))
        through = log_decay[0, start:end].sum().exp() if before == runs[0, end - 1] else 0.0
        assert decay.through[0, chunk] == pytest.approx(float(through))


@pytest.mark.parametrize(
    ("ids", "mask", "runs"),
    [
        ([5, 5, 2, 2, 5], [1, 1, 1, 1, 1], [0, 0, 1, 1, 2]),
        ([9, 9, 1, 1, 2], [0, 0, 1, 1, 1], [0, 0, 0, 0, 1]),
        ([1, 9, 1, 9, 2], [1, 0, 1, 0, 1], [0, 0, 0, 0, 1]),
        ([1, 2, 9, 9, 9], [1, 1, 0, 0, 0], [0, 1, 1, 1, 1]),
        ([1, 2, 3, 4, 5], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]),
    ],
    ids=["no padding", "left", "between", "right", "nothing real"],
)
def test_runs_skip_padding(ids, mask, runs):
    got = segment_runs(torch.tensor([ids]), torch.tensor([mask], dtype=torch.bool))
    assert got.tolist() == [runs]
    if all(mask):
        assert segment_runs(torch.tensor([ids]), None).tolist() == [runs]


@pytest.mark.parametrize("real", [None, torch.ones(1, 0, dtype=torch.bool)])
def test_no_token_has_no_run(real):
    assert segment_runs(torch.zeros(1, 0, dtype=torch.int64), real).shape == (1, 0)


def test_heads_are_grouped_in_order():
    heads = torch.arange(6)[None, :, None]
    assert grouped(heads, 2, "q")[0, :, :, 0].tolist() == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(InputError, match="q has 6 heads"):
        grouped(heads, 4, "q")


def test_sums_are_float32_at_least():
    half, wide = torch.zeros(1, dtype=torch.bfloat16), torch.zeros(1, dtype=torch.float64)
    assert sum_dtype(half) == torch.float32
    assert sum_dtype(half, wide) == torch.float64
