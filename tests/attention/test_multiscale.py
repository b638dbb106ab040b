from __future__ import annotations

import pytest
import torch

from astrozoo.attention import Grid
from astrozoo.attention.flash import flash
from astrozoo.attention.multiscale import multiscale
from astrozoo.errors import ConfigError, InputError


def build(**options):
    torch.manual_seed(0)
    return multiscale.build(**{"dim": 16, "num_heads": 4, "num_kv_heads": 2, "dtype": torch.float64, **options})


def tokens(length, seed=1):
    return torch.randn(2, length, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("pools", "geometry", "length"),
    [
        ((2, 4), None, 16),
        ((2, 4), None, 13),
        ((1, 3), Grid((4, 6)), 24),
        ((2, (1, 4)), Grid((3, 7)), 21),
        (((1, 2, 3),), Grid((2, 3, 5)), 30),
        ((64,), None, 5),
    ],
    ids=str,
)
def test_pooling_equals_a_matrix_of_means_with_gradients(pools, geometry, length, masked):
    attention = build(pools=pools)
    x = tokens(length).requires_grad_()
    terms = {"geometry": geometry}
    if masked:
        terms["key_mask"] = torch.rand(2, length, generator=torch.Generator().manual_seed(2)) > 0.4
    outs = [call(x, **terms) for call in (attention, attention.forward_reference)]
    torch.testing.assert_close(*outs, rtol=0, atol=1e-12)
    for ours, theirs in zip(*(torch.autograd.grad(out.square().sum(), x) for out in outs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)


def test_stride_of_one_is_plain_attention():
    attention, plain = (
        build(pools=(1,), rope=True),
        flash.build(dim=16, num_heads=4, num_kv_heads=2, rope=True, dtype=torch.float64),
    )
    plain.load_state_dict(attention.state_dict())
    x = tokens(11)
    torch.testing.assert_close(attention(x), plain(x), rtol=0, atol=1e-12)


def test_masked_cell_enters_no_mean_and_an_empty_block_is_not_seen():
    attention, x = build(pools=(4,)), tokens(12)
    key_mask = torch.ones(2, 12, dtype=torch.bool)
    key_mask[:, 1] = False
    key_mask[:, 4:8] = False
    changed = x.clone()
    changed[~key_mask] = float("nan")
    torch.testing.assert_close(attention(changed, key_mask=key_mask), attention(x, key_mask=key_mask))
    weights = attention.forward_with(x, key_mask=key_mask)[1]["weights"]
    assert weights.shape == (2, 4, 12, 3)
    assert not weights[..., 1].any()


def test_mean_of_a_cut_block_is_over_its_cells_only():
    attention = build(pools=(4,))
    x = tokens(5)
    alone = attention.forward_with(x, x, want=("lse",))[1]["lse"]
    key = attention.project(x)[1]
    blocks = torch.stack((key[:, :, :4].mean(2), key[:, :, 4]), dim=2).repeat_interleave(2, 1)
    query = attention.project(x)[0]
    torch.testing.assert_close(alone, torch.logsumexp(query @ blocks.mT * 4**-0.5, -1))


def test_queries_of_another_sequence_attend_to_the_grid_of_the_context():
    attention = build(pools=(2,))
    out = attention(tokens(3), tokens(24), geometry=Grid((4, 6)))
    torch.testing.assert_close(out, attention.forward_reference(tokens(3), tokens(24), geometry=Grid((4, 6))))


def test_rolling_a_periodic_axis_by_the_stride_rolls_the_output():
    attention, x, grid = build(pools=(1, 2)), tokens(24), Grid((4, 6), (False, True))
    rolled = x.unflatten(1, (4, 6)).roll(2, dims=2).flatten(1, 2)
    want = attention(x, geometry=grid).unflatten(1, (4, 6)).roll(2, dims=2).flatten(1, 2)
    torch.testing.assert_close(attention(rolled, geometry=grid), want)


@pytest.mark.parametrize("pools", [(), (0,), ((2, 0),), ("2",), (True,)])
def test_strides_that_cannot_be_are_refused(pools):
    with pytest.raises(ConfigError, match="pools"):
        build(pools=pools)


def test_stride_for_each_axis_needs_that_many_axes():
    with pytest.raises(InputError, match="the grid has 1"):
        build(pools=((2, 2),))(tokens(8))
