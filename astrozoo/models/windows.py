"""Attention within shifted windows of a latitude-longitude grid with levels, with a bias that knows where on Earth.

Windows: Liu et al. 2021 (Swin, arXiv:2103.14030); on (level, lat, lon) with an Earth-specific bias: Bi et al. 2022
(Pangu-Weather, arXiv:2211.02556). What is special here:
- A window of the configuration is an upper bound. An axis is cut into as few windows as that allows, all alike and as
  small as they can be: 25 cells under windows of 8 become 4 windows of 7, a single level becomes a window of one level.
- Longitude wraps. Shifted windows lie across the dateline as anywhere else, so there is nothing to mask, and where
  windows do not divide the circle, the last one reaches into the first: its surplus cells are true neighbours.
- Latitude, level and the longitude of a region end. What a shifted window holds from the opposite edge is masked, and
  so is what fills up an axis that windows do not divide.
- The bias is a table over offsets for each of a few reference latitudes and levels, linear in between, so it is the
  same function on any grid. Each row of cells has its own, also within a window. Longitudes share it (Pangu's trick).
- Windows of the same longitudes become heads, and those along longitude become batch: one kernel call for all, and the
  bias exists once, not for every window and sample.

Layout: `tokens[batch, level, lat, lon, channel]`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from astrozoo.attention.core import attend_terms
from astrozoo.attention.terms import Terms
from astrozoo.nn.precision import full_precision

__all__ = ["WindowAttention", "WindowPlan"]


@dataclass(frozen=True)
class _Axis:
    """How an axis of `cells` is cut: `count` windows of `window`, moved by `shift`; `wraps` if it is a circle."""

    cells: int
    window: int
    count: int
    shift: int
    wraps: bool

    @classmethod
    def cut(cls, cells: int, window: int, *, shifted: bool, wraps: bool) -> _Axis:
        count = -(-cells // window)
        window = -(-cells // count)
        return cls(cells, window, count, window // 2 if shifted and count > 1 else 0, wraps)

    @property
    def filling(self) -> int:
        """Cells that windows hold beyond those of the axis."""
        return self.count * self.window - self.cells

    def places(self, device: torch.device) -> Tensor:
        """Which cell lies at each place after turning the filled axis by `shift`: int (window, slot)."""
        filled = self.count * self.window
        cell = torch.arange(filled, device=device) + self.shift
        return (cell % (self.cells if self.wraps else filled)).unflatten(0, (self.count, self.window))

    def offsets(self, device: torch.device) -> Tensor:
        """From the query's slot to the key's, plus `window - 1`: int (query, key)."""
        slot = torch.arange(self.window, device=device)
        reach = slot - slot[:, None]
        if self.wraps and self.count == 1:  # around the whole circle the other way may be nearer
            half = self.cells // 2
            reach = (reach + half) % self.cells - half
        return reach + self.window - 1

    def visible(self, device: torch.device) -> Tensor | None:
        """What belongs together in each window: bool (window, query, key), or None for all."""
        if self.wraps or not (self.shift or self.filling):
            return None
        cell = self.places(device)
        place = torch.arange(cell.numel(), device=device).view_as(cell)
        brought = cell < place  # from the other end of the axis
        real = cell < self.cells
        apart = brought[:, :, None] ^ brought[:, None, :]  # Inductor of PyTorch 2.11 has no == of booleans on a GPU
        return ~apart & real[:, None, :]


@dataclass(frozen=True)
class WindowPlan:
    """How a grid is cut into windows: what blocks on one grid with the same shift share. Made by `WindowPlan.make`.

    Attributes:
        axes: Of level, latitude, longitude.
        index: int (level window * lat window * query * key), into rows of the bias: (level, lat, offsets).
        mask: bool (level window, lat window, lon window or 1, query, key), or None.
        reference: Weights of the reference levels (level, reference) and latitudes (lat, reference).
    """

    axes: tuple[_Axis, _Axis, _Axis]
    index: Tensor
    mask: Tensor | None
    reference: tuple[Tensor, Tensor]

    @classmethod
    def make(
        cls,
        sizes: Sequence[int],
        window: Sequence[int],
        *,
        shifted: bool,
        longitude: str,
        references: tuple[int, int],
        device: torch.device,
        dtype: torch.dtype,
    ) -> WindowPlan:
        """The plan of a grid.

        Args:
            sizes: Levels, latitudes, longitudes.
            window: Largest window along each.
            shifted: Whether windows are moved by half their size, where there are several.
            longitude: `periodic` or `regional`.
            references: Reference levels and latitudes of the bias.
            device: Of the plan's tensors.
            dtype: Of the weights of the references, that of the parameters.
        """
        level, lat, lon = (
            _Axis.cut(cells, most, shifted=shifted, wraps=axis == 2 and longitude == "periodic")
            for axis, (cells, most) in enumerate(zip(sizes, window, strict=True))
        )
        axes = level, lat, lon
        reach = [2 * axis.window - 1 for axis in axes]
        rows = []
        for axis, row, offset in (
            (level, lat.cells * reach[0] * reach[1] * reach[2], reach[1] * reach[2]),
            (lat, reach[0] * reach[1] * reach[2], reach[2]),
        ):
            place = axis.places(device).clamp(max=axis.cells - 1)
            rows.append(place[:, :, None] * row + axis.offsets(device) * offset)  # (window, query, key)
        # (level window, lat window, level, lat, lon of the query, level, lat, lon of the key)
        index = (
            rows[0][:, None, :, None, None, :, None, None]
            + rows[1][None, :, None, :, None, None, :, None]
            + lon.offsets(device)[None, None, None, None, :, None, None, :]
        ).flatten()
        weights = [
            _hats(axis.cells, points, device, dtype) for axis, points in zip((level, lat), references, strict=True)
        ]
        return cls(axes, index, _mask(axes, device), (weights[0], weights[1]))

    @property
    def apart(self) -> bool:
        """Whether windows along longitude differ in what they mask."""
        return self.mask is not None and self.mask.shape[2] > 1

    def gather(self, tokens: Tensor) -> Tensor:
        """Fill up and turn: `[batch, level, lat, lon, channel]` -> the same, of whole windows."""
        level, lat, lon = self.axes
        if level.filling or lat.filling or (lon.filling and not lon.wraps):
            tokens = F.pad(tokens, (0, 0, 0, 0 if lon.wraps else lon.filling, 0, lat.filling, 0, level.filling))
        tokens = self._turn(tokens, -1)
        if lon.wraps and lon.filling:
            tokens = torch.cat([tokens, tokens[:, :, :, : lon.filling]], 3)
        return tokens

    def restore(self, tokens: Tensor) -> Tensor:
        """Undo `gather`: turn back and crop."""
        level, lat, lon = self.axes
        if lon.wraps and lon.filling:
            tokens = tokens[:, :, :, : lon.cells]
        return self._turn(tokens, 1)[:, : level.cells, : lat.cells, : lon.cells]

    def _turn(self, tokens: Tensor, sign: int) -> Tensor:
        turns = [(sign * axis.shift, dim) for dim, axis in enumerate(self.axes, 1) if axis.shift]
        return torch.roll(tokens, *map(tuple, zip(*turns, strict=True))) if turns else tokens


def _mask(axes: tuple[_Axis, _Axis, _Axis], device: torch.device) -> Tensor | None:
    mask = None
    for position, axis in enumerate(axes):
        visible = axis.visible(device)
        if visible is None:
            continue
        shape = [1] * 9  # windows, queries, keys along level, lat, lon
        shape[position], shape[3 + position], shape[6 + position] = visible.shape
        part = visible.view(shape)
        mask = part if mask is None else mask & part
    if mask is None:
        return None
    slots = [axis.window for axis in axes]
    windows = list(mask.shape[:3])
    cells = slots[0] * slots[1] * slots[2]
    return mask.expand(*windows, *slots, *slots).reshape(*windows, cells, cells)


def _hats(cells: int, points: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Weights (cell, point) of linear interpolation between points that are the middles of equal parts of the axis."""
    place = (torch.arange(cells, device=device, dtype=dtype) + 0.5) * (points / cells) - 0.5
    distance = place.clamp(0, points - 1)[:, None] - torch.arange(points, device=device, dtype=dtype)
    return (1 - distance.abs()).clamp(min=0)


class WindowAttention(nn.Module):
    """softmax(q k' / sqrt(dim) + bias(level, latitude, offset)) v within the windows of a plan.

    Args:
        width: Channels.
        heads: Heads, a divisor of `width`.
        window: Largest window of any plan: levels, latitudes, longitudes.
        references: Levels and latitudes at which the bias is learnt.
    """

    def __init__(self, width: int, heads: int, window: Sequence[int], references: tuple[int, int]) -> None:
        super().__init__()
        self.heads = heads
        self.window = tuple(window)
        self.qkv = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.table = nn.Parameter(torch.empty(heads, *references, *(2 * cells - 1 for cells in window)))

    def reset_parameters(self) -> None:
        """Xavier for each projection, zero biases, 0.02 for the table."""
        for weight in (*self.qkv.weight.chunk(3), self.output.weight):
            nn.init.xavier_uniform_(weight)
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.output.bias)
        nn.init.trunc_normal_(self.table, std=0.02)

    def bias(self, plan: WindowPlan) -> Tensor:
        """`[head, level window, lat window, query, key]`, added to the logits of every longitude's windows."""
        table: Tensor = self.table
        for dim, (axis, most) in enumerate(zip(plan.axes, self.window, strict=True), 3):
            if axis.window < most:
                table = table.narrow(dim, most - axis.window, 2 * axis.window - 1)
        with full_precision(table):
            rows = torch.einsum("lr,as,hrsxyz->hlaxyz", *plan.reference, table).flatten(1)
        windows = plan.axes[0].count, plan.axes[1].count
        cells = plan.axes[0].window * plan.axes[1].window * plan.axes[2].window
        return rows.index_select(1, plan.index).view(self.heads, *windows, cells, cells)

    def forward(self, tokens: Tensor, plan: WindowPlan) -> Tensor:
        """`tokens[batch, level, lat, lon, channel]` -> like `tokens`."""
        level, lat, lon = plan.axes
        batch = tokens.shape[0]
        tokens = self.qkv(plan.gather(tokens))
        windows = tokens.unflatten(4, (3, self.heads, -1))
        for dim, axis in ((3, lon), (2, lat), (1, level)):
            windows = windows.unflatten(dim, (axis.count, axis.window))
        # (batch, level window, level, lat window, lat, lon window, lon, part, head, dim), where windows along longitude
        # join the batch, or the heads if what they mask differs
        order = (7, 0, 8, 1, 3, 5, 2, 4, 6, 9) if plan.apart else (7, 0, 5, 8, 1, 3, 2, 4, 6, 9)
        parts = windows.permute(order)
        lead = parts.shape[1:9]
        parts = parts.flatten(6, 8)
        parts = parts.flatten(2, 5) if plan.apart else parts.flatten(3, 5).flatten(1, 2)
        query, key, value = parts.unbind(0)  # 3 x (batch * lon window, head * window, slot, dim)

        bias, mask = self.bias(plan), None
        if plan.mask is not None:
            mask = plan.mask.expand(level.count, lat.count, -1, -1, -1)
            mask = mask.expand(self.heads, -1, -1, -1, -1, -1).flatten(0, 3)[None]
        if plan.apart:
            bias = bias[:, :, :, None].expand(-1, -1, -1, lon.count, -1, -1)
        bias = bias.reshape(1, -1, *bias.shape[-2:]).to(query.dtype)
        # What fills up is a projection of zeros and finite, so keys need no hiding beyond the mask.
        out = attend_terms(query, key, value, Terms(bias=bias, mask=mask), hidden=True).out

        out = out.reshape(*lead, -1)
        # to (batch, level window, level, lat window, lat, lon window, lon, head, dim)
        back = (0, 2, 5, 3, 6, 4, 7, 1, 8) if plan.apart else (0, 3, 5, 4, 6, 1, 7, 2, 8)
        out = out.permute(back).reshape(
            batch, level.count * level.window, lat.count * lat.window, lon.count * lon.window, -1
        )
        return self.output(plan.restore(out))
