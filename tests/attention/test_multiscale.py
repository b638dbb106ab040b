from __future__ import annotations

import itertools

import pytest
import torch
from grid_cases import equal_with_gradients, randomized
from torch._dynamo.testing import CompileCounter
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

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


@pytest.mark.parametrize("masked", [False, True])
def test_pooling_equals_attention_on_means_that_are_taken_by_hand(masked):
    attention, x, shape = build(pools=((2, 3),), num_kv_heads=4), tokens(35), (5, 7)
    key_mask = torch.rand(2, 35) > 0.5 if masked else torch.ones(2, 35, dtype=torch.bool)
    query, key, value = attention.project(x.masked_fill(~key_mask[..., None], 0))
    expected = []
    for row in range(2):
        means = []
        for top, left in itertools.product(range(0, 5, 2), range(0, 7, 3)):
            pool = [lat * 7 + lon for lat in range(top, min(top + 2, 5)) for lon in range(left, min(left + 3, 7))]
            real = [cell for cell in pool if key_mask[row, cell]]
            if real:
                means.append((key[row, :, real].mean(dim=1), value[row, :, real].mean(dim=1)))
        keys, values = (torch.stack(parts, dim=1) for parts in zip(*means, strict=True))
        expected.append(torch.softmax(query[row] @ keys.mT * 4**-0.5, dim=-1) @ values)
    terms = {"geometry": Grid(shape), "key_mask": key_mask if masked else None, "want": ("heads",)}
    heads = attention.forward_with(x, **terms)[1]["heads"]
    torch.testing.assert_close(heads, torch.stack(expected), rtol=0, atol=1e-12)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("pools", "geometry", "length"),
    [(((2,), (4,)), None, 13), (((1, 1), (2, 3)), Grid((3, 7)), 21), (((1, 2, 2),), Grid((2, 3, 5)), 30)],
    ids=["line", "plane", "volume"],
)
def test_learned_pools_equal_their_matrix_with_gradients(pools, geometry, length, masked):
    attention = randomized(build(pools=pools, pooling="conv"))
    key_mask = torch.rand(2, length) > 0.4 if masked else None
    equal_with_gradients(attention, tokens(length), geometry=geometry, key_mask=key_mask)


def test_learned_pools_are_a_depthwise_convolution():
    attention, x = randomized(build(pools=((2, 3),), pooling="conv", num_kv_heads=4)), tokens(24)
    query, key, value = attention.project(x)
    pooled = []
    for heads, weight in ((key, attention.key_pools[0]), (value, attention.value_pools[0])):
        kernel = weight.permute(2, 0, 1)[:, None] / 6
        out = F.conv2d(heads.mT.reshape(8, 4, 4, 6), kernel, stride=(2, 3), groups=4)
        pooled.append(out.reshape(2, 4, 4, 4).mT)
    expected = torch.softmax(query @ pooled[0].mT * 4**-0.5, dim=-1) @ pooled[1]
    heads = attention.forward_with(x, geometry=Grid((4, 6)), want=("heads",))[1]["heads"]
    torch.testing.assert_close(heads, expected, rtol=0, atol=1e-12)


def test_learned_pools_start_as_means():
    learned, plain = build(pools=((2,), (4,)), pooling="conv"), build(pools=(2, 4))
    plain.load_state_dict(learned.state_dict(), strict=False)
    torch.testing.assert_close(learned(tokens(11)), plain(tokens(11)), rtol=0, atol=1e-12)


def test_rotary_logit_of_a_pool_is_the_mean_of_those_of_its_cells():
    attention, x = build(pools=(3,), rope=True, num_kv_heads=4), tokens(9)
    plain = flash.build(dim=16, num_heads=4, rope=True, dtype=torch.float64)
    plain.load_state_dict(attention.state_dict())
    weights = [each.forward_with(x)[1]["weights"].log() for each in (attention, plain)]
    ours = weights[0].diff(dim=-1)
    torch.testing.assert_close(ours, weights[1].unflatten(-1, (3, 3)).mean(dim=-1).diff(dim=-1))


def test_learned_pool_of_a_masked_cell_is_finite():
    attention = randomized(build(pools=((4,),), pooling="conv", bias=True))
    x, key_mask = tokens(12), torch.ones(2, 12, dtype=torch.bool)
    key_mask[:, 4:8] = False
    x = x.masked_fill(~key_mask[..., None], torch.nan).requires_grad_()
    attention(x, key_mask=key_mask).sum().backward()
    for gradient in (x.grad, *(parameter.grad for parameter in attention.parameters())):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("length", [1, 16, 256])
def test_sequence_of_any_length_has_its_pools(length):
    attention = build(pools=(1, 3, 300))
    torch.testing.assert_close(attention(tokens(length)), attention.forward_reference(tokens(length)))


def test_no_keys_give_zero():
    y = build()(tokens(3), torch.zeros(2, 0, 16, dtype=torch.float64))
    assert torch.equal(y, torch.zeros(2, 3, 16, dtype=torch.float64))


def test_cost_falls_with_the_cells_of_a_pool():
    costs = []
    for pools in ((1,), (4,), ((2, 2),)):
        attention = multiscale.build(dim=16, num_heads=1, pools=pools, backend="math", device="meta")
        with FlopCounterMode(display=False) as counter:
            grid = Grid((32, 32)) if pools == ((2, 2),) else None
            attention(torch.randn(1, 1024, 16, device="meta"), geometry=grid)
        costs.append(counter.get_total_flops() - 4 * 2 * 1024 * 16 * 16)
    assert costs[0] == 4 * costs[1] == 4 * costs[2]


@pytest.mark.parametrize("grid", [False, True], ids=["line", "plane"])
def test_sizes_under_compilation_share_graphs(grid):
    torch._dynamo.reset()
    counter = CompileCounter()
    attention = multiscale.build(dim=16, num_heads=2, pools=(1, 2, 3))
    compiled = torch.compile(attention, fullgraph=True, backend=counter)
    for size in range(3, 13):
        geometry = Grid((size, size + 1)) if grid else None
        x = torch.randn(2, len(geometry) if grid else size, 16)
        terms = {"geometry": geometry, "key_mask": torch.rand(x.shape[:2]) > 0.3}
        torch.testing.assert_close(compiled(x, **terms), attention(x, **terms))
    assert counter.frame_count <= 2  # one for the first size, one for all others


def test_learned_pools_need_their_axes_and_no_rotary_positions():
    with pytest.raises(ConfigError, match=r"MultiscaleConfig.pools"):
        build(pools=(2,), pooling="conv")
    with pytest.raises(ConfigError, match=r"MultiscaleConfig.rope"):
        build(pools=((2,),), pooling="conv", rope=True)
    with pytest.raises(ConfigError, match=r"MultiscaleConfig.pooling"):
        build(pooling="max")


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
