"""Neighbourhoods on a grid as dense attention of small tiles: how each axis is cut, and the call for all tiles at once.

An axis is cut into tiles with the halo of a sliding neighbourhood, or into shifted windows, which are their own halo.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from astrozoo.attention.choice import BackendChoice
from astrozoo.attention.core import attend_terms
from astrozoo.attention.grids import AxisTiles, gather_tiles, restore_cells, tile_grid
from astrozoo.attention.terms import Terms

__all__ = ["Layout", "sliding_axis", "tiled_attention", "tiled_neighborhood", "window_axis"]

_TILE = {0: 1, 1: 64, 2: 8, 3: 4}  # cells along each axis that is longer than one: about 64 queries share a halo


def _tile_sizes(shape: Sequence[int], kernel: Sequence[int]) -> tuple[int, ...]:
    """Cells of a tile along each axis: enough to keep products of matrices large, few enough to keep halos small."""
    usual = _TILE[sum(cells > 1 for cells in shape)]
    # Tiles of more than half a kernel: then the halo holds the windows that an edge pushes inward, too.
    return tuple(max(usual, reach // 2 + 1) for reach in kernel)


def sliding_axis(
    cells: int, kernel: int, tile: int, *, periodic: bool, causal: bool, device: torch.device
) -> AxisTiles:
    """Tiles of an axis whose cells see the `kernel` nearest, and the halo each tile needs.

    Args:
        cells: Length of the axis.
        kernel: Cells that one sees; an even number has one more before than after. At an edge the window moves inward.
        tile: Cells of a tile, more than half of `kernel`; the last tile overlaps the one before.
        periodic: Whether the axis wraps.
        causal: Whether a cell sees the last `kernel` cells up to itself, fewer at the start.
        device: Of the tables.
    """
    kernel = min(kernel, cells)
    before = kernel - 1 if causal else kernel // 2
    if tile + kernel - 1 >= cells:  # the halo would be the whole axis
        tile, halo, lead, last = cells, cells, 0, 0
    else:
        halo, lead, last = tile + kernel - 1, before, cells - tile
    slot = torch.arange(tile, device=device)
    first = (torch.arange(-(-cells // tile), device=device) * tile).clamp(max=last)  # of every tile
    query = first[:, None] + slot
    key = first[:, None] + torch.arange(halo, device=device) - lead
    reach = torch.arange(halo, device=device) - lead - slot[:, None]
    cell = torch.arange(cells, device=device)
    number = _whole(cell, tile)
    home = torch.stack((number, cell - (number * tile).clamp(max=last)))
    if periodic:
        seen = (reach + before) % cells < kernel
        visible = None if kernel == cells else seen[None]
        return AxisTiles(query, key % cells, _shortest(reach, cells), visible, home)
    if causal:
        visible = (reach <= 0) & (reach > -kernel) & (key >= 0)[:, None]
    elif kernel == cells:
        visible = None
    else:
        start = (query - before).clamp(0, cells - kernel)[:, :, None]
        visible = (start <= key[:, None]) & (key[:, None] < start + kernel)
    return AxisTiles(query, key.clamp(0, cells - 1), reach, visible, home)


def window_axis(
    cells: int, window: int, shift: int, *, periodic: bool, causal: bool, device: torch.device
) -> AxisTiles:
    """Windows of an axis, the first boundary at cell `shift`; cells see their own window.

    Args:
        cells: Length of the axis.
        window: Cells of a window. One that covers the axis is not shifted.
        shift: Cells before the first boundary, less than `window`: a smaller window of its own, or, on an axis that
            wraps, the end of the last window.
        periodic: Whether the axis wraps.
        causal: Whether a cell sees no later cell of its window.
        device: Of the tables.
    """
    if window >= cells:
        window, shift = cells, 0
    lead = 0 if periodic else -shift % window  # empty slots before the first cell
    count = -(-(cells + lead) // window)
    slot, cell = torch.arange(window, device=device), torch.arange(cells, device=device)
    place = torch.arange(count, device=device)[:, None] * window + slot
    if periodic:
        member, real = (place + shift) % cells, place < cells
        at = (cell - shift) % cells
    else:
        member = (place - lead).clamp(0, cells - 1)
        real = (place >= lead) & (place < cells + lead)
        at = cell + lead
    reach = slot - slot[:, None]
    visible = None if count * window == cells else real[:, None].expand(-1, window, -1)
    if causal:
        earlier = (reach <= 0)[None]
        visible = earlier if visible is None else visible & earlier
    home = torch.stack((_whole(at, window), at % window))
    return AxisTiles(member, member, _shortest(reach, cells) if periodic else reach, visible, home)


def _whole(cell: Tensor, size: int) -> Tensor:
    """How often `size` goes into `cell`, which is not negative.

    Not by `//`: floor division of a range by a power of two leaves the compiler of PyTorch 2.11 to 2.15 for CPUs with
    whatever was in memory in its last elements.
    """
    return torch.div(cell, size, rounding_mode="trunc")


def _shortest(reach: Tensor, cells: int) -> Tensor:
    """Around a circle the other way may be nearer."""
    half = cells // 2
    return (reach + half) % cells - half


@dataclass(frozen=True)
class Layout:
    """Grid and options of one call, one entry for each axis.

    Attributes:
        shape: Cells.
        periodic: Whether it wraps.
        kernel: Cells that one sees, or of a window; may be more than there are.
        shift: Cells before the first boundary between windows.
        causal: Whether later cells are hidden.
    """

    shape: tuple[int, ...]
    periodic: tuple[bool, ...]
    kernel: tuple[int, ...]
    shift: tuple[int, ...]
    causal: tuple[bool, ...]

    def cut(self, mode: str, device: torch.device) -> list[AxisTiles]:
        """How each axis is cut in mode `sliding` or `shifted`."""
        sizes = _tile_sizes(self.shape, self.kernel)
        axes = []
        for axis, cells in enumerate(self.shape):
            wraps: dict[str, Any] = {"periodic": self.periodic[axis], "causal": self.causal[axis], "device": device}
            if mode == "sliding":
                axes.append(sliding_axis(cells, self.kernel[axis], sizes[axis], **wraps))
            else:
                axes.append(window_axis(cells, self.kernel[axis], self.shift[axis], **wraps))
        return axes


def tiled_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    terms: Terms,
    layout: Layout,
    mode: str,
    relative_bias: Tensor | None,
    backend: tuple[str, ...],
) -> tuple[Tensor, BackendChoice]:
    """Attention of the queries of each tile to the keys of its halo, all tiles of all rows as one batch.

    Args:
        query: (batch, head, token, dim), tokens row-major on the grid of `layout`.
        key: (batch, key head, token, dim).
        value: (batch, key head, token, value dim).
        terms: Of the call; `positions` hide what is later if the call is causal, besides what `layout` hides.
        layout: The grid and its neighbourhoods.
        mode: `sliding` or `shifted`.
        relative_bias: (head, 2 kernel - 1, ...), added to the logit of every offset; or None.
        backend: Names of backends, tried in order.

    Returns:
        (batch, head, token, value dim), and what computed it.
    """
    batch = query.shape[0]
    axes = layout.cut(mode, query.device)
    tiles = tile_grid(axes, layout.shape)
    count, slots = tiles.query.shape
    halo = tiles.key.shape[1]
    visible = tiles.visible
    if terms.causal and terms.positions is not None:
        own, other = (part.expand(batch, -1) for part in terms.positions)
        earlier = other[:, tiles.key][:, :, None, :] <= own[:, tiles.query][..., None]  # (batch, tile, slot, halo)
        visible = earlier if visible is None else visible & earlier
    mask = None
    if visible is not None:
        alike = visible.dim() == 3 and visible.shape[0] == 1
        rows = 1 if alike else batch * count
        spread = visible if alike else visible.expand(batch, count, slots, halo)
        mask = spread.reshape(rows, 1, slots, halo)
    key_mask = None
    if terms.key_mask is not None:
        key_mask = terms.key_mask.expand(batch, -1)[:, tiles.key].flatten(0, 1)
    result = attend_terms(
        gather_tiles(query, tiles.query),
        gather_tiles(key, tiles.key),
        gather_tiles(value, tiles.key),
        Terms(
            mask=mask, key_mask=key_mask, bias=_tile_bias(relative_bias, axes), scale=terms.scale,
            dropout=terms.dropout,
        ),
        backend=backend if len(backend) > 1 else backend[0],
    )  # fmt: skip
    return restore_cells(result.out, tiles.home, batch), result.choice


def _tile_bias(table: Tensor | None, axes: list[AxisTiles]) -> Tensor | None:
    """(1, head, slot, halo) from the table (head, offset, ...): offsets within a tile are the same in all tiles."""
    if table is None:
        return None
    index: list[slice | Tensor] = [slice(None)]
    for axis, tiles in enumerate(axes):
        size = table.shape[1 + axis]
        at = tiles.reach.clamp(-(size // 2), size // 2) + size // 2  # farther ones are hidden
        spread = [1] * (2 * len(axes))
        spread[axis], spread[len(axes) + axis] = at.shape
        index.append(at.reshape(spread))
    bias = table[tuple(index)]
    return bias.flatten(1 + len(axes)).flatten(1, len(axes))[None]


def tiled_neighborhood(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    shape: tuple[int, ...],
    kernel: tuple[int, ...],
    causal: tuple[bool, ...],
    scale: float | None,
) -> Tensor:
    """Sliding neighbourhoods without further terms, in the form in which kernels of others are called."""
    axes = len(shape)
    layout = Layout(shape, (False,) * axes, kernel, (0,) * axes, causal)
    return tiled_attention(query, key, value, Terms(scale=scale), layout, "sliding", None, ("auto",))[0]
