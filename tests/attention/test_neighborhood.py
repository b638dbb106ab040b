from __future__ import annotations

import itertools
import math

import pytest
import torch
from grid_cases import equal_with_gradients, randomized, reach
from torch._dynamo.testing import CompileCounter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from astrozoo.attention import Grid
from astrozoo.attention.flash import flash
from astrozoo.attention.neighborhood import neighborhood
from astrozoo.errors import ConfigError, InputError, UnsupportedArgument

DOUBLE = torch.float64


def build(**options):
    options = {"dim": 8, "num_heads": 2, "dtype": DOUBLE, **options}
    return randomized(neighborhood.build(**options)).eval()


def tokens(count, rows=2, dim=8):
    return torch.randn(rows, count, dim, dtype=DOUBLE)


GRIDS = {
    "line": (Grid((13,)), 5),
    "line, even kernel": (Grid((13,)), 4),
    "long line": (Grid((150,)), 9),
    "line, long kernel": (Grid((300,)), 170),
    "ring": (Grid((150,), (True,)), 8),
    "short ring": (Grid((12,), (True,)), 5),
    "plane": (Grid((19, 23)), (3, 5)),
    "cylinder": (Grid((18, 25), (False, True)), (5, 4)),
    "torus": (Grid((17, 18), (True, True)), 3),
    "volume": (Grid((5, 9, 10)), (3, 3, 5)),
    "globe": (Grid((3, 9, 14), (False, False, True)), (3, 3, 5)),
    "column": (Grid((1, 1, 40)), 3),
    "one cell": (Grid((1,)), 3),
}
WINDOWS = {
    "line": (Grid((12,)), 4, 0),
    "shifted line": (Grid((12,)), 4, 2),
    "odd line": (Grid((13,)), 4, 3),
    "ring": (Grid((12,), (True,)), 4, 2),
    "odd ring": (Grid((13,), (True,)), 4, 1),
    "globe": (Grid((3, 7, 12), (False, False, True)), (2, 3, 4), (1, 1, 2)),
    "window of the axis": (Grid((3, 8)), (4, 4), (2, 2)),
}


@pytest.mark.parametrize("masked", [False, True], ids=["plain", "masked"])
@pytest.mark.parametrize("name", GRIDS)
def test_sliding_equals_the_dense_mask_with_gradients(name, masked):
    grid, kernel = GRIDS[name]
    attention = build(kernel=kernel, num_kv_heads=1)
    key_mask = torch.rand(2, len(grid)) > 0.3 if masked else None
    equal_with_gradients(attention, tokens(len(grid)), geometry=grid, key_mask=key_mask)


@pytest.mark.parametrize("masked", [False, True], ids=["plain", "masked"])
@pytest.mark.parametrize("name", WINDOWS)
def test_shifted_equals_the_dense_mask_with_gradients(name, masked):
    grid, kernel, shift = WINDOWS[name]
    attention = build(kernel=kernel, shift=shift, mode="shifted")
    key_mask = torch.rand(2, len(grid)) > 0.3 if masked else None
    equal_with_gradients(attention, tokens(len(grid)), geometry=grid, key_mask=key_mask)


@pytest.mark.parametrize("mode", ["sliding", "shifted"])
@pytest.mark.parametrize("periodic", [False, True], ids=["plain", "periodic"])
def test_relative_bias_equals_the_dense_bias_with_gradients(mode, periodic):
    grid = Grid((3, 9, 18), (False, False, periodic))
    attention = build(kernel=(2, 3, 5), mode=mode, relative_bias=True)
    equal_with_gradients(attention, tokens(len(grid)), geometry=grid, key_mask=torch.rand(2, len(grid)) > 0.2)


@pytest.mark.parametrize("mode", ["sliding", "shifted"])
@pytest.mark.parametrize("axes", [(0,), (1,), (0, 1), (-2,), None], ids=str)
def test_causal_axes_equal_the_dense_mask_with_gradients(mode, axes):
    grid = Grid((13, 12))
    attention = build(kernel=(3, 4), mode=mode, causal_axes=axes)
    equal_with_gradients(attention, tokens(len(grid)), geometry=grid, causal=True)


@pytest.mark.parametrize("length", [1, 2, 16, 63, 64, 65, 70, 71, 129, 256])
@pytest.mark.parametrize("causal", [False, True])
def test_sequence_of_any_length_is_a_grid_of_one_axis(length, causal):
    attention = build(kernel=7)
    x = tokens(length)
    with torch.no_grad():
        torch.testing.assert_close(
            attention(x, causal=causal), attention.forward_reference(x, causal=causal), rtol=0, atol=1e-12
        )
        assert torch.equal(attention(x), attention(x, geometry=Grid((length,))))


def test_long_sequence_equals_the_dense_mask():
    attention, x = build(kernel=33), tokens(4096, rows=1)
    with torch.no_grad():
        torch.testing.assert_close(attention(x), attention.forward_reference(x), rtol=0, atol=1e-12)


def test_no_tokens_give_no_rows():
    assert build()(tokens(0)).shape == (2, 0, 8)


@pytest.mark.parametrize("kernel", [(3,), (4,), (5,)], ids=str)
def test_every_cell_sees_exactly_the_kernel_nearest_cells(kernel):
    size = kernel[0]
    seen = reach(build(kernel=kernel), tokens(11))
    for cell in range(11):
        first = min(max(cell - size // 2, 0), 11 - size)
        assert seen[cell].nonzero().flatten().tolist() == list(range(first, first + size))


def test_corner_of_a_volume_sees_a_whole_window():
    grid = Grid((3, 4, 5))
    seen = reach(build(kernel=(2, 3, 3)), tokens(len(grid), rows=1), geometry=grid)
    assert (seen.sum(dim=1) == 18).all()
    corner = [(level * 4 + lat) * 5 + lon for level in range(2) for lat in range(3) for lon in range(3)]
    assert seen[0].nonzero().flatten().tolist() == corner


def test_neighborhood_wraps_on_a_periodic_axis_only():
    grid = Grid((4, 8), (False, True))
    seen = reach(build(kernel=3), tokens(len(grid)), geometry=grid).view(4, 8, 4, 8)
    assert seen[1, 0].any(dim=0).nonzero().flatten().tolist() == [0, 1, 7]
    assert seen[0, 4].any(dim=1).nonzero().flatten().tolist() == [0, 1, 2]


@pytest.mark.parametrize("kernel", [(3, 3), (3, 4), (3, 11), (5, 20)], ids=str)
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("turn", [1, 4, 7])
def test_rolling_longitude_rolls_the_output(kernel, bias, turn):
    grid = Grid((5, 12), (False, True))
    attention, x = build(kernel=kernel, relative_bias=bias), tokens(60)
    with torch.no_grad():
        rolled = attention(x.view(2, 5, 12, 8).roll(turn, 2).flatten(1, 2), geometry=grid)
        expected = attention(x, geometry=grid).view(2, 5, 12, 8).roll(turn, 2).flatten(1, 2)
        torch.testing.assert_close(rolled, expected, rtol=0, atol=1e-12)
        edged = Grid((5, 12))
        assert not torch.allclose(attention(x, geometry=edged), expected, atol=1e-3) or kernel[1] >= 12


@pytest.mark.parametrize("shift", [0, 2])
def test_rolling_longitude_by_windows_rolls_shifted_windows(shift):
    grid = Grid((4, 12), (False, True))
    attention, x = build(kernel=(2, 4), mode="shifted", shift=(0, shift)), tokens(48)
    with torch.no_grad():
        rolled = attention(x.view(2, 4, 12, 8).roll(4, 2).flatten(1, 2), geometry=grid)
        expected = attention(x, geometry=grid).view(2, 4, 12, 8).roll(4, 2).flatten(1, 2)
    torch.testing.assert_close(rolled, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "options", [{"kernel": 40}, {"kernel": (12, 30)}, {"kernel": 30, "mode": "shifted", "shift": 4}]
)
@pytest.mark.parametrize("periodic", [(False, False), (False, True)], ids=["plain", "periodic"])
@pytest.mark.parametrize("masked", [False, True], ids=["plain", "masked"])
def test_kernel_of_the_grid_equals_flash(options, periodic, masked):
    grid, x = Grid((7, 30), periodic), tokens(210)
    attention = build(**options)
    full = flash.build(dim=8, num_heads=2, dtype=DOUBLE)
    full.load_state_dict(attention.state_dict())
    key_mask = torch.rand(2, 210) > 0.4 if masked else None
    torch.testing.assert_close(
        attention(x, geometry=grid, key_mask=key_mask), full(x, key_mask=key_mask), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("periodic", [False, True], ids=["edge", "ring"])
def test_shifted_windows_are_flash_on_each_window(periodic):
    grid, x = Grid((12,), (periodic,)), tokens(12)
    attention = build(kernel=4, mode="shifted", shift=1)
    full = flash.build(dim=8, num_heads=2, dtype=DOUBLE)
    full.load_state_dict(attention.state_dict())
    windows = (
        [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 0]] if periodic else [[0], [1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11]]
    )
    got = attention(x, geometry=grid)
    for window in windows:
        torch.testing.assert_close(got[:, window], full(x[:, window]), rtol=0, atol=1e-12)


def test_causal_hides_later_cells_along_the_named_axes():
    grid = Grid((5, 6))
    later = torch.tensor([[a > b for b in range(5)] for a in range(5)])  # (key, query) along the first axis
    along_first = reach(build(kernel=3, causal_axes=(0,)), tokens(30), geometry=grid, causal=True).view(5, 6, 5, 6)
    assert not along_first.any(dim=3).any(dim=1)[later.T].any()
    assert along_first[2, 2, :, 3].nonzero().flatten().tolist() == [0, 1, 2]
    everywhere = reach(build(kernel=3), tokens(30), geometry=grid, causal=True)
    assert not everywhere.triu(1).any()
    assert everywhere.diagonal().all()
    assert not reach(build(kernel=3, causal=True), tokens(9)).triu(1).any()


def test_causal_window_is_the_last_cells():
    seen = reach(build(kernel=3), tokens(8), causal=True)
    for cell in range(8):
        assert seen[cell].nonzero().flatten().tolist() == list(range(max(0, cell - 2), cell + 1))


def test_positions_of_the_caller_hide_what_is_later_by_them():
    attention, x = build(kernel=5), tokens(90)
    positions = (torch.arange(90) // 3)[None].expand(2, -1).clone()
    positions[1] = torch.arange(90)
    terms = {"positions": positions, "causal": True}
    equal_with_gradients(attention, x, **terms)
    equal_with_gradients(build(kernel=(3, 3), causal_axes=(0,)), x, geometry=Grid((9, 10)), **terms)


def test_relative_bias_is_indexed_by_offset_per_head():
    attention = build(kernel=(3,), num_heads=2, relative_bias=True)
    with torch.no_grad():
        attention.relative_bias.zero_()
        attention.relative_bias[0, 3] = 200.0  # offsets -2 to 2: one cell ahead
        attention.relative_bias[1, 0] = 200.0  # two cells back, seen at the far edge only
    weights = attention.forward_with(tokens(9))[1]["weights"]
    ahead = weights[:, 0].argmax(dim=-1)
    assert ahead[0].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, weights[0, 0, 8].argmax()]
    torch.testing.assert_close(weights[:, 1, 8, 6], torch.ones(2, dtype=DOUBLE))
    assert (weights[:, 1, 4].max(dim=-1).values < 0.999).all()


def test_relative_bias_takes_the_shorter_way_around():
    attention = build(kernel=(3,), relative_bias=True)
    with torch.no_grad():
        attention.relative_bias.zero_()
        attention.relative_bias[:, 3] = 200.0
    weights = attention.forward_with(tokens(9), geometry=Grid((9,), (True,)))[1]["weights"]
    assert weights[0, 0].argmax(dim=-1).tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 0]


def test_weights_are_those_of_the_neighbourhood():
    x = tokens(20)
    attention = build(kernel=3)
    _, aux = attention.forward_with(x, want=("weights", "lse", "heads"))
    _, _, value = attention.project(x)
    torch.testing.assert_close(aux["weights"] @ value, aux["heads"], rtol=0, atol=1e-12)
    assert (aux["weights"] > 0).sum(dim=-1).eq(3).all()
    assert aux["lse"].isfinite().all()


def test_rotary_positions_of_several_axes_are_coordinates():
    grid = Grid((3, 4, 5))
    attention = build(dim=12, num_heads=1, kernel=3, rope={"axes": 3})
    x = tokens(60, dim=12)
    places = torch.tensor(list(itertools.product(range(3), range(4), range(5))))
    torch.testing.assert_close(attention(x, geometry=grid), attention(x, geometry=grid, positions=places[None]))
    equal_with_gradients(attention, x, geometry=grid)


@pytest.mark.parametrize(
    "options", [{"kernel": 3}, {"kernel": (3,), "relative_bias": True}, {"kernel": 4, "mode": "shifted"}]
)
def test_nan_under_the_mask_reaches_neither_output_nor_gradient(options):
    attention, x = build(**options, bias=True), tokens(70)
    key_mask = torch.rand(2, 70) > 0.4
    key_mask[0, 20:40] = False
    filled = x.masked_fill(~key_mask[..., None], torch.nan).requires_grad_()
    y = attention(filled, key_mask=key_mask)
    torch.testing.assert_close(y, attention(x, key_mask=key_mask), rtol=0, atol=0)
    y.sum().backward()
    for gradient in (filled.grad, *(parameter.grad for parameter in attention.parameters())):
        assert gradient.isfinite().all()


def test_cell_whose_neighbourhood_is_masked_gives_zero():
    key_mask = torch.ones(2, 40, dtype=torch.bool)
    key_mask[1, 10:15] = False
    _, aux = build(kernel=3).forward_with(tokens(40), want=("heads",), key_mask=key_mask)
    assert (aux["heads"][1, :, 11:14] == 0).all()
    assert (aux["heads"][1, :, [10, 14]] != 0).any(dim=-1).all()
    assert (aux["heads"][0] != 0).any(dim=-1).all()


@pytest.mark.parametrize(
    ("options", "grid"),
    [
        ({"kernel": 9}, lambda side: Grid((side * side,))),
        ({"kernel": 5}, lambda side: Grid((side, side))),
        ({"kernel": 5}, lambda side: Grid((side, side), (True, True))),
        ({"kernel": 3}, lambda side: Grid((4, side // 2, side // 2))),
        ({"kernel": 8, "mode": "shifted", "shift": 4}, lambda side: Grid((side, side))),
    ],
    ids=["line", "plane", "torus", "volume", "shifted"],
)
def test_cost_is_linear_in_the_cells(options, grid):
    costs = []
    for side in (40, 160):
        attention = neighborhood.build(dim=8, num_heads=1, backend="math", device="meta", **options)
        with FlopCounterMode(display=False) as counter:
            attention(torch.randn(1, len(grid(side)), 8, device="meta"), geometry=grid(side))
        costs.append(counter.get_total_flops())
    cells = len(grid(160)) / len(grid(40))
    assert math.log(costs[1] / costs[0]) / math.log(cells) == pytest.approx(1.0, abs=0.1)


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation gives."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.elements = max(self.elements, out.numel())
        return out


def test_neighbours_are_never_gathered_one_by_one():
    attention = neighborhood.build(dim=32, num_heads=1, kernel=9)
    with torch.no_grad(), Largest() as largest:
        attention(torch.randn(1, 32 * 32, 32), geometry=Grid((32, 32)))
    assert largest.elements < 32 * 32 * 9 * 9 * 32 / 4


@pytest.mark.parametrize(
    ("options", "grid"),
    [
        ({"kernel": 7}, None),
        ({"kernel": (3, 5), "relative_bias": True}, lambda side: Grid((side, side + 1), (False, True))),
        ({"kernel": (4, 5), "mode": "shifted", "shift": 2}, lambda side: Grid((side, side + 1), (False, True))),
    ],
    ids=["line", "bias", "shifted"],
)
def test_sizes_under_compilation_share_graphs(options, grid):
    torch._dynamo.reset()
    counter = CompileCounter()
    attention = neighborhood.build(dim=16, num_heads=2, **options)
    compiled = torch.compile(attention, fullgraph=True, backend=counter)
    for size in (5, 16, 64, 70, 71, 100, 127, 200, 255, 256) if grid is None else range(3, 13):
        geometry = None if grid is None else grid(size)
        x = torch.randn(2, size if geometry is None else len(geometry), 16)
        key_mask = torch.rand(x.shape[:2]) > 0.3
        terms = {"geometry": geometry, "key_mask": key_mask}
        torch.testing.assert_close(compiled(x, **terms), attention(x, **terms))
    assert counter.frame_count <= 5  # one tile or several along each axis, the last full or not


@pytest.mark.parametrize(
    ("options", "grid"),
    [
        ({"kernel": 9}, Grid((300,))),
        ({"kernel": (3, 3), "relative_bias": True}, Grid((19, 20), (False, True))),
        ({"kernel": 64, "mode": "shifted", "shift": 32}, Grid((300,), (True,))),
    ],
    ids=["line", "bias", "shifted"],
)
def test_compiled_kernels_give_the_same(options, grid):
    torch._dynamo.reset()
    attention = neighborhood.build(dim=16, num_heads=2, **options)
    compiled = torch.compile(attention, fullgraph=True)
    x = torch.randn(2, len(grid), 16)
    torch.testing.assert_close(compiled(x, geometry=grid), attention(x, geometry=grid))


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"mode": "window"}, "mode"),
        ({"kernel": 0}, "kernel"),
        ({"kernel": (3, 0)}, "kernel"),
        ({"kernel": 3, "shift": 1}, "shift"),
        ({"kernel": (4, 2), "mode": "shifted", "shift": 2}, "shift"),
        ({"kernel": (4, 2), "mode": "shifted", "shift": (1, 1, 1)}, "shift"),
        ({"kernel": 3, "relative_bias": True}, "kernel"),
        ({"causal_axes": (0, 1.5)}, "causal_axes"),
    ],
)
def test_options_that_cannot_be_are_named(options, field):
    with pytest.raises(ConfigError, match=f"NeighborhoodConfig.{field}"):
        neighborhood.build(dim=8, num_heads=2, **options)


def test_grids_that_do_not_fit_are_refused():
    x = tokens(12)
    with pytest.raises(InputError, match=r"Grid.shape \(3, 5\), 15 cells, for 12 tokens"):
        build()(x, geometry=Grid((3, 5)))
    with pytest.raises(InputError, match="for 2 axes; the grid has 1"):
        build(kernel=(3, 3))(x)
    with pytest.raises(InputError, match="axis 1, which is periodic"):
        build()(x, geometry=Grid((3, 4), (False, True)), causal=True)
    with pytest.raises(InputError, match="causal_axes"):
        build(causal_axes=(2,))(x, geometry=Grid((3, 4)), causal=True)


@pytest.mark.parametrize("argument", ["mask", "bias", "segments", "context", "cache"])
def test_arguments_it_cannot_honour_are_refused(argument):
    with pytest.raises(UnsupportedArgument, match=argument):
        build()(tokens(4), **{argument: torch.zeros(4, 4)})
