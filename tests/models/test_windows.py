import itertools

import pytest
import torch

from astrozoo.models import windows
from astrozoo.models.windows import WindowAttention, WindowPlan

WIDTH, HEADS, WINDOW, REFERENCES = 8, 2, (2, 4, 4), (2, 3)
GRIDS = {  # level, lat, lon
    "windows divide": (4, 8, 8),
    "one level": (1, 8, 12),
    "windows do not divide": (3, 7, 10),
    "one window": (2, 4, 4),
    "smaller than a window": (1, 3, 3),
    "an odd circle in one window": (1, 9, 3),
}


@pytest.fixture
def attention():
    torch.manual_seed(0)
    module = WindowAttention(WIDTH, HEADS, WINDOW, REFERENCES).double()
    module.reset_parameters()
    with torch.no_grad():
        module.table.normal_()
        module.qkv.bias.normal_()
        module.output.bias.normal_()
    return module


def make_plan(sizes, *, shifted=True, longitude="periodic", window=WINDOW, references=REFERENCES):
    return WindowPlan.make(
        sizes,
        window,
        shifted=shifted,
        longitude=longitude,
        references=references,
        device=torch.device("cpu"),
        dtype=torch.float64,
    )


def tokens_of(sizes, batch=2, width=WIDTH):
    torch.manual_seed(1)
    return torch.randn(batch, *sizes, width, dtype=torch.float64)


def neighbours(cell, cells, most, *, shifted, wraps):
    """Cells of the window of `cell` with their offsets, from the definition."""
    count = -(-cells // most)
    window = -(-cells // count)
    shift = window // 2 if shifted and count > 1 else 0
    if wraps and count == 1:
        return {(cell + step) % cells: step for step in range(-(cells // 2), cells - cells // 2)}
    if wraps:
        slot = ((cell - shift) % cells) % window
        return {(cell - slot + other) % cells: other - slot for other in range(window)}
    return {other: other - cell for other in range(cells) if (other - shift) // window == (cell - shift) // window}


def between(cell, cells, references):
    """Weight of each reference point for a cell."""
    place = min(max((cell + 0.5) / cells * references - 0.5, 0), references - 1)
    below = int(place)
    return [1 - (place - below) if point == below else place - below if point == below + 1 else 0.0
            for point in range(references)]  # fmt: skip


def by_definition(module, tokens, *, shifted, longitude):
    """Dense attention with the windows as mask and the bias of each pair of cells."""
    sizes = tokens.shape[1:4]
    cells = list(itertools.product(*map(range, sizes)))
    bias = torch.full((HEADS, len(cells), len(cells)), -torch.inf, dtype=torch.float64)
    seen = [
        [
            neighbours(cell, size, most, shifted=shifted, wraps=axis == 2 and longitude == "periodic")
            for cell in range(size)
        ]
        for axis, (size, most) in enumerate(zip(sizes, WINDOW, strict=True))
    ]
    number = {cell: row for row, cell in enumerate(cells)}
    for at in cells:
        level, lat = (
            torch.tensor(between(at[axis], sizes[axis], REFERENCES[axis]), dtype=torch.float64) for axis in (0, 1)
        )
        table = torch.einsum("r,s,hrsxyz->xyzh", level, lat, module.table)
        for pairs in itertools.product(*(seen[axis][cell].items() for axis, cell in enumerate(at))):
            offset = tuple(step + most - 1 for (_, step), most in zip(pairs, WINDOW, strict=True))
            bias[:, number[at], number[tuple(cell for cell, _ in pairs)]] = table[offset]
    query, key, value = module.qkv(tokens.flatten(1, 3)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
    weights = (query @ key.mT / (WIDTH // HEADS) ** 0.5 + bias).softmax(-1)
    return module.output((weights @ value).transpose(1, 2).flatten(2)).view_as(tokens)


@pytest.mark.parametrize("longitude", ["periodic", "regional"])
@pytest.mark.parametrize("shifted", [False, True], ids=["fixed", "shifted"])
@pytest.mark.parametrize("grid", GRIDS)
def test_attention_is_that_of_the_definition(attention, grid, shifted, longitude):
    tokens = tokens_of(GRIDS[grid], batch=1)
    with torch.no_grad():
        expected = by_definition(attention, tokens, shifted=shifted, longitude=longitude)
        got = attention(tokens, make_plan(GRIDS[grid], shifted=shifted, longitude=longitude))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shift", [0, 2])
def test_a_regional_level_without_earth_specific_bias_is_timms_swin(shift):
    swin = pytest.importorskip("timm.models.swin_transformer", reason="timm is not installed")
    torch.manual_seed(0)
    block = swin.SwinTransformerBlock(WIDTH, (12, 8), HEADS, window_size=4, shift_size=shift).double().eval()
    module = WindowAttention(WIDTH, HEADS, (1, 4, 4), (1, 1)).double()
    with torch.no_grad():
        block.attn.relative_position_bias_table.normal_()
        for own, other in ((module.qkv, block.attn.qkv), (module.output, block.attn.proj)):
            own.load_state_dict(other.state_dict())
        table = block.attn.relative_position_bias_table.T.unflatten(1, (7, 7)).flip(1, 2)  # timm: query minus key
        module.table.copy_(table[:, None, None, None])
        tokens = tokens_of((1, 12, 8))
        plan = make_plan((1, 12, 8), shifted=shift > 0, longitude="regional", window=(1, 4, 4), references=(1, 1))
        # timm masks with -100
        torch.testing.assert_close(module(tokens, plan)[:, 0], block._attn(tokens[:, 0]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("shifted", [False, True], ids=["fixed", "shifted"])
def test_rolling_by_a_window_rolls_the_output(attention, shifted):
    tokens, plan = tokens_of((3, 7, 12)), make_plan((3, 7, 12), shifted=shifted)
    for columns in (4, 8, -4):
        rolled = attention(tokens.roll(columns, 3), plan)
        torch.testing.assert_close(rolled, attention(tokens, plan).roll(columns, 3), rtol=0, atol=1e-12)


def test_rolling_by_any_column_rolls_the_output_where_one_window_is_the_circle(attention):
    tokens, plan = tokens_of((1, 8, 3)), make_plan((1, 8, 3))
    torch.testing.assert_close(
        attention(tokens.roll(1, 3), plan), attention(tokens, plan).roll(1, 3), rtol=0, atol=1e-12
    )


def reach(attention, plan, sizes, at):
    """Cells whose tokens the output at `at` depends on: bool (level, lat, lon)."""
    tokens = tokens_of(sizes, batch=1).requires_grad_()
    attention(tokens, plan)[(0, *at)].sum().backward()
    return tokens.grad[0].abs().sum(-1) > 0


def test_shifted_windows_join_the_two_sides_of_the_dateline_but_neither_poles_nor_top_and_bottom(attention):
    sizes = (4, 8, 12)
    seen = reach(attention, make_plan(sizes), sizes, (0, 0, 0))
    assert seen[0, :2, [10, 11, 0, 1]].all()
    assert seen.sum() == 1 * 2 * 4


def test_shifted_windows_of_a_region_do_not_join_east_and_west(attention):
    sizes = (4, 8, 12)
    seen = reach(attention, make_plan(sizes, longitude="regional"), sizes, (0, 0, 0))
    assert seen[0, :2, :2].all()
    assert seen.sum() == 1 * 2 * 2


def test_a_circle_that_windows_do_not_divide_is_filled_with_true_neighbours(attention):
    sizes = (1, 4, 10)  # windows of 4 columns: 0-3, 4-7, and 8 to 1 across the dateline
    plan = make_plan(sizes, shifted=False)
    assert plan.mask is None
    assert reach(attention, plan, sizes, (0, 0, 9))[0, 0].nonzero().flatten().tolist() == [0, 1, 8, 9]


def test_one_level_costs_one_level():
    level = make_plan((1, 8, 12)).axes[0]
    assert (level.window, level.count, level.filling) == (1, 1, 0)


def test_windows_are_as_even_as_the_grid_allows():
    plan = make_plan((13, 33, 25), window=(4, 8, 8))
    assert [(axis.window, axis.count) for axis in plan.axes] == [(4, 4), (7, 5), (7, 4)]


def test_bias_differs_by_latitude_and_level_and_is_the_same_at_all_longitudes(attention):
    bias = attention.bias(make_plan((4, 8, 12), shifted=False))  # (head, level window, lat window, query, key)
    assert bias.shape == (HEADS, 2, 2, 32, 32)
    assert not torch.isclose(bias[:, 0], bias[:, 1]).all()
    assert not torch.isclose(bias[:, :, 0], bias[:, :, 1]).all()
    wider = attention.bias(make_plan((4, 8, 24), shifted=False))
    torch.testing.assert_close(wider, bias, rtol=0, atol=0)


def test_bias_is_one_function_of_latitude_on_any_grid(attention):
    # Cell 1 of 3 and cell 4 of 9 have the same middle: the equator.
    coarse, fine = (attention.bias(make_plan((1, lat, 4), shifted=False)) for lat in (3, 9))
    column = slice(0, 4)  # keys in the query's own row
    torch.testing.assert_close(coarse[:, 0, 0, 4:8, 4:8], fine[:, 0, 1, 4:8, 4:8], rtol=0, atol=1e-12)
    assert not torch.isclose(coarse[:, 0, 0, column, column], fine[:, 0, 1, 4:8, 4:8]).all()


def test_bias_that_is_linear_in_latitude_is_interpolated_exactly(attention):
    with torch.no_grad():
        attention.table.copy_(torch.tensor([-1.0, 0.0, 1.0])[:, None, None, None].expand_as(attention.table))
    bias = attention.bias(make_plan((1, 12, 1), shifted=False))[0, 0, :, :, 0].flatten()  # row by row
    latitude = (torch.arange(12, dtype=torch.float64) + 0.5) / 12 * 3 - 1.5
    torch.testing.assert_close(bias, latitude.clamp(-1, 1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("longitude", ["periodic", "regional"])
def test_bias_exists_once_for_all_samples_in_one_call(attention, monkeypatch, longitude):
    calls = []
    attend = windows.attend_terms

    def watched(query, key, value, terms, **options):
        calls.append((query.shape, terms.bias.shape))
        return attend(query, key, value, terms, **options)

    monkeypatch.setattr(windows, "attend_terms", watched)
    attention(tokens_of((2, 8, 12), batch=5), make_plan((2, 8, 12), longitude=longitude))
    ((query, bias),) = calls
    assert bias == (1, query[1], 32, 32)
    assert query[0] == (5 * 3 if longitude == "periodic" else 5)


def test_gradients_are_right(attention):
    plan = make_plan((2, 5, 6))
    tokens = tokens_of((2, 5, 6), batch=1).requires_grad_()
    direction = torch.randn_like(tokens)
    table = torch.randn_like(attention.table)

    def loss(step):
        with torch.no_grad():
            moved = torch.func.functional_call(
                attention, {"table": attention.table + step * table}, (tokens + step * direction, plan)
            )
        return moved.square().sum()

    attention(tokens, plan).square().sum().backward()
    slope = (tokens.grad * direction).sum() + (attention.table.grad * table).sum()
    torch.testing.assert_close((loss(1e-5) - loss(-1e-5)) / 2e-5, slope, rtol=1e-7, atol=0)
