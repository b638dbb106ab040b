"""Tokens on a grid, folded into lines or tiles so that attention within each is one batched call, and back.

Neighbourhoods are tiled: the cells of a tile share one halo of keys, so that memory follows cells times (tile + kernel)
and not cells times kernel times head width, and the work stays dense. Along each axis a tiling is a few small index
tables; a grid of several axes has their product.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from astrozoo.attention.cache import Cache
from astrozoo.attention.geometry import Grid
from astrozoo.attention.module import Attention, Parts
from astrozoo.attention.terms import Terms
from astrozoo.errors import InputError

__all__ = [
    "AxisTiles",
    "GridAttention",
    "GridTiles",
    "coordinates",
    "for_each_axis",
    "from_lines",
    "gather_tiles",
    "grid_blocks",
    "grid_of",
    "restore_cells",
    "square_grid",
    "tile_grid",
    "to_lines",
    "token_lines",
]


def grid_of(geometry: Any, tokens: int, name: str) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """Cells and wrap of every axis; without a geometry the sequence is a grid of one axis that does not wrap.

    Raises:
        InputError: The grid has another number of cells than there are tokens.
    """
    if geometry is None:
        return (tokens,), (False,)
    cells = math.prod(geometry.shape)
    if cells != tokens:
        raise InputError(f"{name} got Grid.shape {tuple(geometry.shape)}, {cells} cells, for {tokens} tokens.")
    return tuple(geometry.shape), tuple(geometry.periodic)


def for_each_axis(value: int | tuple[int, ...], axes: int, name: str) -> tuple[int, ...]:
    """An option that is one number for all axes, or has one for each.

    Raises:
        InputError: The grid has another number of axes.
    """
    if isinstance(value, int):
        return (value,) * axes
    if len(value) != axes:
        raise InputError(f"{name} is {value}, for {len(value)} axes; the grid has {axes}. Pass geometry=Grid(shape).")
    return value


def coordinates(shape: Sequence[int], device: torch.device) -> Tensor:
    """int64 (cell, axis), where each cell lies, in row-major order."""
    steps = [torch.arange(cells, device=device) for cells in shape]
    return torch.stack([part.flatten() for part in torch.meshgrid(*steps, indexing="ij")], dim=-1)


def square_grid(tokens: int) -> Grid:
    """A grid of two axes that holds `tokens` cells and is as square as it can be."""
    rows = next(rows for rows in range(math.isqrt(tokens), 0, -1) if tokens % rows == 0)
    return Grid((rows, tokens // rows))


class GridAttention(Attention):
    """Attention of a grid with itself; rotary positions of several axes are by default the coordinates of the cells."""

    def place(
        self, parts: Parts, terms: Terms, cache: Cache | None, positions: tuple[Tensor | None, Tensor | None]
    ) -> tuple[Parts, Terms]:
        """As `Attention.place`."""
        rope = self.config.rope
        if rope is not None and rope.axes > 1 and positions[0] is None:
            shape, _ = grid_of(terms.geometry, parts[0].shape[2], self.spec.name)
            places = coordinates(shape, parts[0].device)[None]
            positions = places, places
        return super().place(parts, terms, cache, positions)


# -- lines -------------------------------------------------------------------------------------------------------------


def to_lines(heads: Tensor, shape: tuple[int, ...], axis: int) -> Tensor:
    """(batch * line, head, cell along the axis, dim) from (batch, head, token, dim); lines in row-major order."""
    count = len(shape)
    grid = heads.unflatten(2, shape)  # (batch, head, *shape, dim)
    others = [2 + other for other in range(count) if other != axis]
    lines = grid.permute(0, *others, 1, 2 + axis, 2 + count)
    return lines.reshape(-1, heads.shape[1], shape[axis], heads.shape[3])


def from_lines(lines: Tensor, shape: tuple[int, ...], axis: int) -> Tensor:
    """The inverse of `to_lines`: (batch, head, token, dim)."""
    others = [cells for other, cells in enumerate(shape) if other != axis]
    grid = lines.reshape(-1, *others, *lines.shape[1:])  # (batch, *others, head, cell, dim)
    count = len(shape)
    order = list(range(1, count))
    order.insert(axis, count + 1)
    return grid.permute(0, count, *order, count + 2).flatten(2, -2)


def token_lines(tokens: Tensor, shape: tuple[int, ...], axis: int) -> Tensor:
    """(batch * line, cell along the axis) from (batch, token)."""
    return to_lines(tokens[:, None, :, None], shape, axis)[:, 0, :, 0]


# -- blocks ------------------------------------------------------------------------------------------------------------


def grid_blocks(shape: tuple[int, ...], strides: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Blocks of `strides` cells that cover a grid, the last along an axis cut by the edge.

    Returns:
        int64 (block, member), the token of every member, and bool (block, member), false for those beyond the edge,
        in whose place another token stands.
    """
    members = torch.zeros(1, 1, dtype=torch.int64, device=device)
    inside = members == 0
    for cells, stride in zip(shape, strides, strict=True):
        first = torch.arange(0, cells, stride, device=device)
        at = first[:, None] + torch.arange(stride, device=device)
        members = _pairs(members, at.clamp(max=cells - 1), cells)
        inside = _pairs(inside.long(), (at < cells).long(), 1) == 2
    return members, inside


# -- tiles -------------------------------------------------------------------------------------------------------------


class AxisTiles(NamedTuple):
    """How one axis is cut.

    Attributes:
        query: int64 (tile, slot), the cell of every query.
        key: int64 (tile, halo), the cell of every key that the queries of the tile may need.
        reach: int64 (slot, halo), how many cells the key lies beyond the query, the same in every tile.
        visible: bool (tile | 1, slot, halo), which of them the query sees; None for all.
        home: int64 (2, cell), tile and slot in which each cell is a query.
    """

    query: Tensor
    key: Tensor
    reach: Tensor
    visible: Tensor | None
    home: Tensor


class GridTiles(NamedTuple):
    """How a grid is cut: the product of its axes.

    Attributes:
        query: int64 (tile, slot), the token of every query.
        key: int64 (tile, halo), the token of every key.
        visible: bool (tile | 1, slot, halo), or None for all.
        home: int64 (token,), where in tile * slot each token is a query.
    """

    query: Tensor
    key: Tensor
    visible: Tensor | None
    home: Tensor


def tile_grid(axes: Sequence[AxisTiles], shape: tuple[int, ...]) -> GridTiles:
    """The product of the tilings of the axes of a grid of `shape`."""
    query, key, visible = axes[0].query, axes[0].key, axes[0].visible
    tile, slot = axes[0].home
    for axis, cells in zip(axes[1:], shape[1:], strict=True):
        visible = _both(visible, axis.visible, query, key, axis)
        query = _pairs(query, axis.query, cells)
        key = _pairs(key, axis.key, cells)
        tile = (tile[:, None] * axis.query.shape[0] + axis.home[0]).flatten()
        slot = (slot[:, None] * axis.query.shape[1] + axis.home[1]).flatten()
    return GridTiles(query, key, visible, tile * query.shape[1] + slot)


def _pairs(before: Tensor, axis: Tensor, cells: int) -> Tensor:
    """Row-major tokens (tile * tile, slot * slot) of each earlier token with each cell of one more axis."""
    return (before[:, None, :, None] * cells + axis[None, :, None, :]).flatten(2, 3).flatten(0, 1)


def _both(before: Tensor | None, now: Tensor | None, query: Tensor, key: Tensor, axis: AxisTiles) -> Tensor | None:
    if before is None and now is None:
        return None
    queries, keys = query.shape[1], key.shape[1]
    before = query.new_ones(1, queries, keys, dtype=torch.bool) if before is None else before
    more_queries, more_keys = axis.query.shape[1], axis.key.shape[1]
    now = query.new_ones(1, more_queries, more_keys, dtype=torch.bool) if now is None else now
    if before.shape[0] != 1 or now.shape[0] != 1:  # where one of them differs between tiles, the product does
        before = before.expand(query.shape[0], -1, -1)
        now = now.expand(axis.query.shape[0], -1, -1)
    both = before[:, None, :, None, :, None] & now[None, :, None, :, None, :]
    return both.flatten(4, 5).flatten(2, 3).flatten(0, 1)


def gather_tiles(heads: Tensor, index: Tensor) -> Tensor:
    """(batch * tile, head, slot, dim) from (batch, head, token, dim) and the tokens of the tiles (tile, slot)."""
    tokens = heads.transpose(1, 2).index_select(1, index.flatten())  # whole tokens: long contiguous rows
    return tokens.reshape(-1, index.shape[1], *tokens.shape[2:]).transpose(1, 2)


def restore_cells(tiles: Tensor, home: Tensor, batch: int) -> Tensor:
    """(batch, head, token, dim) from (batch * tile, head, slot, dim); `home` as in `GridTiles`."""
    slots = tiles.transpose(1, 2).reshape(batch, -1, tiles.shape[1], tiles.shape[3])
    return slots.index_select(1, home).transpose(1, 2)
