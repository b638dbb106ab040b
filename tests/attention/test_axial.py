from __future__ import annotations

import itertools
import math

import pytest
import torch
from grid_cases import equal_with_gradients, randomized, reach
from torch._dynamo.testing import CompileCounter
from torch.utils.flop_counter import FlopCounterMode

from astrozoo.attention import Grid, KVCache, StaticKVCache
from astrozoo.attention.axial import axial
from astrozoo.attention.flash import flash
from astrozoo.attention.reference import dense_attention
from astrozoo.attention.terms import make_terms
from astrozoo.errors import ConfigError, InputError, UnsupportedArgument

DOUBLE = torch.float64
GRIDS = {
    "line": Grid((9,)),
    "plane": Grid((5, 7)),
    "cylinder": Grid((4, 6), (False, True)),
    "volume": Grid((3, 4, 5)),
    "column": Grid((1, 1, 8)),
    "one cell": Grid((1, 1)),
}


def build(**options):
    options = {"dim": 8, "num_heads": 2, "dtype": DOUBLE, **options}
    return randomized(axial.build(**options)).eval()


def tokens(count, rows=2, dim=8):
    return torch.randn(rows, count, dim, dtype=DOUBLE)


def like(kind, attention):
    other = kind.build(dim=8, num_heads=2, dtype=DOUBLE)
    other.load_state_dict(attention.state_dict())
    return other


@pytest.mark.parametrize("masked", [False, True], ids=["plain", "masked"])
@pytest.mark.parametrize("mode", ["sequential", "sum"])
@pytest.mark.parametrize("name", GRIDS)
def test_folded_lines_equal_the_lines_one_by_one_with_gradients(name, mode, masked):
    grid = GRIDS[name]
    attention = build(mode=mode, num_kv_heads=1, rope=True)
    key_mask = torch.rand(2, len(grid)) > 0.3 if masked else None
    for causal in (False, True):
        equal_with_gradients(attention, tokens(len(grid)), geometry=grid, key_mask=key_mask, causal=causal)


@pytest.mark.parametrize("causal", [False, True])
def test_modes_are_products_and_sums_of_dense_maps_with_the_mask_of_the_lines(causal):
    shape = (3, 4, 5)
    where = torch.tensor(list(itertools.product(*(range(cells) for cells in shape))))
    sequential, total = build(), build(mode="sum")
    total.load_state_dict(sequential.state_dict())
    x, key_mask = tokens(60), torch.rand(2, 60) > 0.2
    query, key, value = sequential.project(x.masked_fill(~key_mask[..., None], 0))
    maps = []
    for axis in range(3):
        same = (where[:, None] == where[None]) | (torch.arange(3) == axis)
        line = same.all(dim=-1)
        if causal and axis == 0:
            line &= where[None, :, 0] <= where[:, None, 0]
        terms = make_terms(batch=2, heads=2, queries=60, keys=60, mask=line, key_mask=key_mask)
        maps.append(dense_attention(query, key, value, terms).weights)
    terms = {"geometry": Grid(shape), "key_mask": key_mask, "causal": causal}
    expected = maps[2] @ maps[1] @ maps[0] @ value
    heads = sequential.forward_with(x, want=("heads",), **terms)[1]["heads"]
    torch.testing.assert_close(heads, expected, rtol=0, atol=1e-12)
    heads = total.forward_with(x, want=("heads",), **terms)[1]["heads"]
    torch.testing.assert_close(heads, (maps[0] + maps[1] + maps[2]) @ value, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(1, 1, 11), (1, 11, 1), (11,), (11, 1)], ids=str)
@pytest.mark.parametrize("masked", [False, True], ids=["plain", "masked"])
def test_one_long_axis_equals_flash(shape, masked):
    attention = build()
    x, key_mask = tokens(11), torch.rand(2, 11) > 0.3 if masked else None
    expected = like(flash, attention)(x, key_mask=key_mask)
    torch.testing.assert_close(attention(x, geometry=Grid(shape), key_mask=key_mask), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(7,), (7, 1)], ids=str)
def test_causal_along_one_long_axis_equals_causal_flash(shape):
    attention, x = build(), tokens(7)
    expected = like(flash, attention)(x, causal=True)
    torch.testing.assert_close(attention(x, geometry=Grid(shape), causal=True), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("length", [1, 16, 256])
def test_sequence_without_a_geometry_is_one_line(length):
    attention, x = build(), tokens(length)
    assert torch.equal(attention(x), attention(x, geometry=Grid((length,))))
    torch.testing.assert_close(attention(x), like(flash, attention)(x), rtol=0, atol=1e-12)


def test_long_square_grid_equals_the_lines_one_by_one():
    attention, x = build(), tokens(4096, rows=1)
    with torch.no_grad():
        expected = attention.forward_reference(x, geometry=Grid((64, 64)))
        torch.testing.assert_close(attention(x, geometry=Grid((64, 64))), expected, rtol=0, atol=1e-12)


def test_no_tokens_give_no_rows():
    assert build()(tokens(0)).shape == (2, 0, 8)


def test_one_axis_reaches_its_line_and_two_reach_everywhere():
    grid, x = Grid((4, 5)), tokens(20)
    on_a_line = reach(build(axes=(1,)), x, geometry=grid).view(4, 5, 4, 5)
    for row in range(4):
        assert on_a_line[row, :, row].all()
        assert on_a_line[row].sum() == 25
    assert reach(build(axes=(0, 1)), x, geometry=grid).all()
    assert reach(build(axes=(-1, -2)), x, geometry=grid).all()
    cross = reach(build(mode="sum"), x, geometry=grid).view(4, 5, 4, 5)
    assert cross[1, 2].sum() == 8
    assert cross[1, 2, 1].all()
    assert cross[1, 2, :, 2].all()


@pytest.mark.parametrize("time", [0, 1, -1])
@pytest.mark.parametrize("mode", ["sequential", "sum"])
def test_causal_hides_later_frames_and_nothing_else(time, mode):
    shape = (3, 4, 2)
    seen = reach(build(time_axis=time, mode=mode), tokens(24), geometry=Grid(shape), causal=True)
    when = torch.tensor(list(itertools.product(*(range(cells) for cells in shape))))[:, time]
    later = when[None] > when[:, None]
    assert not seen[later].any()
    assert seen.diagonal().all()
    if mode == "sequential":
        assert seen[~later].all()


@pytest.mark.parametrize("time", [0, 1])
def test_positions_of_the_caller_say_what_is_later(time):
    grid, x = Grid((5, 6)), tokens(30)
    positions = torch.rand(2, 30) * 9
    equal_with_gradients(build(time_axis=time), x, geometry=grid, causal=True, positions=positions)
    backwards = torch.arange(30).flip(0)
    seen = reach(build(), tokens(6), causal=True, positions=backwards[:6])
    assert torch.equal(seen, torch.ones(6, 6, dtype=torch.bool).triu())


@pytest.mark.parametrize("mode", ["sequential", "sum"])
@pytest.mark.parametrize("turn", [1, 3])
def test_rolling_a_periodic_axis_rolls_the_output(mode, turn):
    grid, x = Grid((3, 7), (False, True)), tokens(21)
    attention = build(mode=mode)
    rolled = attention(x.view(2, 3, 7, 8).roll(turn, 2).flatten(1, 2), geometry=grid, causal=True)
    expected = attention(x, geometry=grid, causal=True).view(2, 3, 7, 8).roll(turn, 2).flatten(1, 2)
    torch.testing.assert_close(rolled, expected, rtol=0, atol=1e-12)


def test_rotary_positions_of_several_axes_are_coordinates():
    grid = Grid((3, 4, 5))
    attention = build(dim=12, num_heads=1, rope={"axes": 3})
    x = tokens(60, dim=12)
    places = torch.tensor(list(itertools.product(range(3), range(4), range(5))))[None]
    torch.testing.assert_close(attention(x, geometry=grid), attention(x, geometry=grid, positions=places))


@pytest.mark.parametrize("mode", ["sequential", "sum"])
def test_nan_under_the_mask_reaches_neither_output_nor_gradient(mode):
    attention, x, grid = build(mode=mode, bias=True), tokens(30), Grid((5, 6))
    key_mask = torch.rand(2, 30) > 0.4
    key_mask[0, :18] = False
    filled = x.masked_fill(~key_mask[..., None], torch.nan).requires_grad_()
    y = attention(filled, geometry=grid, key_mask=key_mask)
    torch.testing.assert_close(y, attention(x, geometry=grid, key_mask=key_mask), rtol=0, atol=0)
    y.sum().backward()
    for gradient in (filled.grad, *(parameter.grad for parameter in attention.parameters())):
        assert gradient.isfinite().all()


def test_cells_without_a_real_one_to_see_give_zero():
    key_mask = torch.ones(2, 20, dtype=torch.bool)
    key_mask[1, 5:10] = False
    terms = {"geometry": Grid((4, 5)), "key_mask": key_mask, "want": ("heads",)}
    heads = build(axes=(1,)).forward_with(tokens(20), **terms)[1]["heads"]
    assert (heads[1, :, 5:10] == 0).all()
    assert (heads[1, :, 10:] != 0).any(dim=-1).all()


# -- caches ------------------------------------------------------------------------------------------------------------


def frames_of(x, shape, time, start, count):
    """Tokens of `count` frames from `start` on, and the shape of their grid."""
    part = x.unflatten(1, shape).narrow(1 + time, start, count).flatten(1, len(shape))
    return part, tuple(count if axis == time else cells for axis, cells in enumerate(shape))


def in_chunks(attention, cache, x, shape, time, sizes, key_mask=None, run="forward"):
    outs, start = [], 0
    for count in sizes:
        part, cut = frames_of(x, shape, time, start, count)
        real = None if key_mask is None else frames_of(key_mask[..., None], shape, time, start, count)[0][..., 0]
        y = getattr(attention, run)(part, geometry=Grid(cut), cache=cache, causal=True, key_mask=real)
        outs.append(y.unflatten(1, cut))
        start += count
    return torch.cat(outs, dim=1 + time).flatten(1, len(shape))


@pytest.mark.parametrize("mode", ["sequential", "sum"])
@pytest.mark.parametrize("rope", [None, True, {"axes": 3}], ids=["plain", "rope", "rope of axes"])
@pytest.mark.parametrize("time", [0, 2])
@pytest.mark.parametrize("reserve", [False, True], ids=["growing", "static"])
def test_frames_in_any_chunks_equal_one_pass(mode, rope, time, reserve):
    shape = (6, 3, 2) if time == 0 else (2, 3, 6)
    attention = build(dim=12, num_heads=2, num_kv_heads=1, mode=mode, rope=rope, time_axis=time)
    x = tokens(36, dim=12)
    key_mask = torch.rand(2, 36) > 0.3
    frame_has_real = key_mask.view(2, *shape).movedim(1 + time, 1).flatten(2).any(dim=2)
    assert frame_has_real.all()
    for real in (None, key_mask):
        whole = attention(x, geometry=Grid(shape), causal=True, key_mask=real)
        for sizes in ([1] * 6, [2, 1, 3], [5, 1]):
            for run in ("forward", "forward_reference"):
                cache = attention.new_cache(2, 6 if reserve else None, cells=6)
                assert isinstance(cache, StaticKVCache if reserve else KVCache)
                y = in_chunks(attention, cache, x, shape, time, sizes, real, run)
                torch.testing.assert_close(y, whole, rtol=0, atol=1e-11)
                assert cache.lengths.tolist() == [6, 6]


def test_frames_of_padding_take_no_time():
    attention, shape = build(rope=True), (4, 3)
    x = tokens(12)
    cache = attention.new_cache(2)
    padded = torch.cat((torch.full((2, 6, 8), torch.nan, dtype=DOUBLE), x[:, :6]), dim=1)
    key_mask = (torch.arange(12) >= 6)[None].expand(2, -1)
    y = attention(padded, geometry=Grid((4, 3)), key_mask=key_mask, cache=cache, causal=True)
    later = attention(x[:, 6:], geometry=Grid((2, 3)), cache=cache, causal=True)
    whole = attention(x, geometry=Grid(shape), causal=True)
    torch.testing.assert_close(torch.cat((y[:, 6:], later), dim=1), whole, rtol=0, atol=1e-11)
    assert cache.lengths.tolist() == [4, 4]


def test_cache_of_frames_is_cut_and_reordered_by_frames():
    attention, shape = build(), (5, 4)
    x = tokens(20)
    cache = attention.new_cache(2)
    in_chunks(attention, cache, x, shape, 0, [4])
    cache.crop(2)
    cache.reorder(torch.tensor([1, 1]))
    y = attention(x[:, 16:], geometry=Grid((1, 4)), cache=cache, causal=True)
    seen = torch.cat((x[[1, 1], :8], x[:, 16:]), dim=1)
    torch.testing.assert_close(y, attention(seen, geometry=Grid((3, 4)), causal=True)[:, 8:], rtol=0, atol=1e-12)


def test_frames_that_do_not_fit_the_cache_are_refused():
    attention, x = build(), tokens(12)
    cache = attention.new_cache(2)
    attention(x[:, :4], geometry=Grid((2, 2)), cache=cache)
    with pytest.raises(InputError, match="frames of 2 cells; the grid of the call has frames of 3"):
        attention(x[:, :6], geometry=Grid((2, 3)), cache=cache)
    with pytest.raises(InputError, match="max_len needs their number"):
        attention(x[:, :6], geometry=Grid((2, 3)), cache=attention.new_cache(2, 8))


def test_cache_needs_time_before_the_other_axes():
    space_first = build(axes=(1, 0))
    with pytest.raises(InputError, match="in mode 'sequential' as the first"):
        space_first(tokens(6), geometry=Grid((2, 3)), cache=space_first.new_cache(2))
    total = build(axes=(1, 0), mode="sum")
    in_chunks(total, total.new_cache(2), tokens(6), (2, 3), 0, [1, 1])


# -- cost, compilation, refusals ---------------------------------------------------------------------------------------


def test_cost_on_a_square_grid_grows_with_the_power_of_three_halves():
    costs = []
    for side in (32, 128):
        attention = axial.build(dim=8, num_heads=1, backend="math", device="meta")
        with FlopCounterMode(display=False) as counter:
            attention(torch.randn(1, side * side, 8, device="meta"), geometry=Grid((side, side)))
        projections = 4 * 2 * side * side * 8 * 8
        costs.append(counter.get_total_flops() - projections)
    assert math.log(costs[1] / costs[0]) / math.log(16) == pytest.approx(1.5, abs=0.01)


@pytest.mark.parametrize(
    ("options", "grid"),
    [
        ({"causal": True}, None),
        ({"rope": True, "causal": True}, lambda side: Grid((side, side + 1), (False, True))),
        ({"mode": "sum", "axes": (2, 0)}, lambda side: Grid((side, 3, side + 1))),
    ],
    ids=["line", "causal", "sum"],
)
def test_sizes_under_compilation_share_graphs(options, grid):
    torch._dynamo.reset()
    counter = CompileCounter()
    attention = axial.build(dim=16, num_heads=2, **options)
    compiled = torch.compile(attention, fullgraph=True, backend=counter)
    for size in range(3, 13):
        geometry = None if grid is None else grid(size)
        x = torch.randn(2, size if geometry is None else len(geometry), 16)
        terms = {"geometry": geometry, "key_mask": torch.rand(x.shape[:2]) > 0.3}
        torch.testing.assert_close(compiled(x, **terms), attention(x, **terms))
    assert counter.frame_count <= 2  # one for the first size, one for all others


def test_steps_with_a_static_cache_under_compilation_share_graphs():
    torch._dynamo.reset()
    counter = CompileCounter()
    attention = axial.build(dim=16, num_heads=2, rope=True).eval()
    cache, expected = (attention.new_cache(2, 8, cells=6) for _ in range(2))

    def step(x, cache):
        return attention(x, geometry=Grid((1, 2, 3)), cache=cache, causal=True)

    compiled = torch.compile(step, fullgraph=True, backend=counter)
    with torch.no_grad():
        for _ in range(8):
            x = torch.randn(2, 6, 16)
            torch.testing.assert_close(compiled(x, cache), step(x, expected))
    assert counter.frame_count <= 2


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"mode": "product"}, "mode"),
        ({"axes": ()}, "axes"),
        ({"axes": (0, 0)}, "axes"),
        ({"axes": (0, "lat")}, "axes"),
        ({"time_axis": 3}, "time_axis"),
        ({"time_axis": None}, "time_axis"),
    ],
)
def test_options_that_cannot_be_are_named(options, field):
    with pytest.raises(ConfigError, match=f"AxialConfig.{field}"):
        axial.build(dim=8, num_heads=2, **options)


def test_grids_that_do_not_fit_are_refused():
    x = tokens(12)
    with pytest.raises(InputError, match=r"Grid.shape \(3, 5\), 15 cells, for 12 tokens"):
        build()(x, geometry=Grid((3, 5)))
    with pytest.raises(InputError, match="names axis 2; the grid has 2"):
        build(axes=(0, 2))(x, geometry=Grid((3, 4)))
    with pytest.raises(InputError, match="some are the same"):
        build(axes=(0, -2))(x, geometry=Grid((3, 4)))
    with pytest.raises(InputError, match="axis 0, which is periodic"):
        build()(x, geometry=Grid((3, 4), (True, False)), causal=True)


@pytest.mark.parametrize("argument", ["mask", "bias", "segments", "context"])
def test_arguments_it_cannot_honour_are_refused(argument):
    with pytest.raises(UnsupportedArgument, match=argument):
        build()(tokens(4), **{argument: torch.zeros(4, 4)})
