"""Attention along one axis of a grid at a time: space, level and time each in its turn.

Ho et al. 2019 (arXiv:1912.12180); time first, then space, as in Bertasius et al. 2021 (arXiv:2102.05095). Both give
every axis a layer of its own. Here the axes share one set of projections, so that the interface is that of all
attentions and a grid with one long axis is plain attention: in mode `sequential` the values are mixed along one axis
after the other, y = A_last ... A_first v, so that every cell reaches every other; in mode `sum` y = A_first v + ... +
A_last v, and a cell reaches the cells on its lines only.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from astrozoo.attention.cache import Cache, KVCache, StaticKVCache
from astrozoo.attention.frames import HeldFrames, frame_positions, remember_frames
from astrozoo.attention.grids import GridAttention, from_lines, grid_of, square_grid, to_lines, token_lines
from astrozoo.attention.module import AttentionConfig, Parts, implement
from astrozoo.attention.reference import dense_attention
from astrozoo.attention.terms import Terms
from astrozoo.errors import InputError
from astrozoo.nn.checks import each_at_least, fail, one_of
from astrozoo.registry.spec import Paper

__all__ = ["Axial", "AxialConfig", "axial"]


@dataclass(frozen=True, kw_only=True)
class AxialConfig(AttentionConfig):
    """Options of `axial`.

    Attributes:
        axes: Axes along which cells attend, in order; all by default, that of time first. Negative ones count from the
            last.
        mode: `sequential`, one axis after the other, or `sum`.
        time_axis: The axis along which `causal` hides later cells and a cache grows.
    """

    axes: tuple[int, ...] | None = None
    mode: str = "sequential"
    time_axis: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self, ("sequential", "sum"), "mode")
        if self.axes is not None:
            each_at_least(self, -3, "axes")
            if not self.axes or len(set(self.axes)) < len(self.axes):
                raise fail(self, "axes", "different axes, at least one")
        if isinstance(self.time_axis, bool) or not isinstance(self.time_axis, int) or not -3 <= self.time_axis < 3:
            raise fail(self, "time_axis", "an axis of a grid, from -3 to 2")


@dataclass(frozen=True, kw_only=True)
class _AxialTerms(Terms):
    """The terms of a call with a cache, and what that holds."""

    held: HeldFrames | None = None


class Axial(GridAttention):
    """softmax(q k' / sqrt(dim)) v along each line of the grid, one axis after the other, or summed over the axes.

    In mode `sequential` an axis of one cell is left out, for it changes nothing. With `causal=True` no cell sees a
    later one along the axis of time, which cannot be periodic: later is what `positions` say, or a later frame. A cache
    holds frames: a call takes one or more of them, whole and in order, with `geometry=Grid(...)` of these frames; there
    `positions` only turn rotary heads.
    """

    def new_cache(
        self,
        batch: int,
        max_len: int | None = None,
        *,
        cells: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Any:
        """As `Attention.new_cache`, for frames; its lengths count them.

        Args:
            batch: As there.
            max_len: Frames to reserve memory for.
            cells: Cells of a frame, needed with `max_len`; 1 for a sequence.
            device: As there.
            dtype: As there.
        """
        device, dtype = self.placement(device, dtype)
        if max_len is None:
            return KVCache(batch, device=device)
        config = self.config
        widths = cells * (config.key_dim + 1), cells * config.value_dim
        return StaticKVCache(batch, config.kv_heads, max_len, *widths, device=device, dtype=dtype)

    def place(
        self, parts: Parts, terms: Terms, cache: Cache | None, positions: tuple[Tensor | None, Tensor | None]
    ) -> tuple[Parts, Terms]:
        """As `Attention.place`; what a cache holds goes into the terms."""
        query = parts[0]
        shape, periodic = grid_of(terms.geometry, query.shape[2], self.spec.name)
        time = self._axis(self.config.time_axis, shape)
        if terms.causal and periodic[time]:
            raise InputError(f"causal along axis {time}, which is periodic: on a circle nothing is later.")
        rope, real, frame_mask = self.config.rope, None, None
        frames = torch.arange(shape[time], device=query.device)[None]
        if cache is not None:
            if terms.key_mask is not None:
                real = token_lines(terms.key_mask.expand(query.shape[0], -1), shape, time)
                # A frame with a real cell is real. Frames of padding take no time.
                frame_mask = real.unflatten(0, (query.shape[0], -1)).any(dim=1)
            frames = cache.next_positions(shape[time], frame_mask)
        if rope is not None and positions[0] is None:
            places = frame_positions(frames, shape, time, rope.axes)
            positions = places, places
        parts, terms = super().place(parts, terms, None, positions)
        if cache is None:
            return parts, terms
        order = self._order(shape)
        if time not in order[: 1 if self.config.mode == "sequential" else None]:
            raise InputError(
                f"AxialConfig.axes is {self.config.axes}: a cache needs the axis of time, {time}, among them, and in "
                "mode 'sequential' as the first, or other axes would change the values that it holds."
            )
        held = remember_frames(cache, parts[1], parts[2], shape, time, real, frame_mask, frames)
        return parts, _AxialTerms(
            causal=terms.causal, key_mask=terms.key_mask, positions=terms.positions, geometry=terms.geometry,
            scale=terms.scale, dropout=terms.dropout, held=held,
        )  # fmt: skip

    def attend(self, query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> Tensor:
        """As `Attention.attend`, in O(tokens * length of a line)."""
        return self._mix(self._along, query, key, value, terms)

    def reference(self, query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> Tensor:
        """As `Attention.reference`: line by line."""
        return self._mix(_along_each_line, query.double(), key.double(), value.double(), terms)

    def _mix(self, along: Callable[..., Tensor], query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> Tensor:
        """One axis after the other, or their sum, with attention along one as `along` does it."""
        batch, heads, tokens, _ = query.shape
        if tokens == 0:
            return value.new_zeros(batch, heads, 0, value.shape[3])
        shape, _ = grid_of(terms.geometry, tokens, self.spec.name)
        time = self._axis(self.config.time_axis, shape)
        held = getattr(terms, "held", None)
        order = self._order(shape)
        if self.config.mode == "sequential":
            order = [axis for axis in order if shape[axis] > 1 or (axis == time and held is not None)] or order[-1:]
        total: Tensor | None = None
        for axis in order:
            if self.config.mode == "sequential" and total is not None:
                key, value = key.repeat_interleave(heads // key.shape[1], dim=1), total
                total = None
            of_time = axis == time
            line_terms = terms.replace(causal=terms.causal and of_time)
            mixed = along(query, key, value, line_terms, shape, axis, held if of_time else None)
            total = mixed if total is None else total + mixed
        assert total is not None  # there is at least one axis
        return total

    def _along(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        terms: Terms,
        shape: tuple[int, ...],
        axis: int,
        held: HeldFrames | None,
    ) -> Tensor:
        """Attention along one axis: (batch, head, token, value dim), all lines of all rows as one batch."""
        batch, lines = query.shape[0], to_lines(query, shape, axis)
        if held is None:
            keys, values = to_lines(key, shape, axis), to_lines(value, shape, axis)
            mask, positions = terms.key_mask, None
            if mask is not None:
                mask = token_lines(mask.expand(batch, -1), shape, axis)
            if terms.causal and terms.positions is not None:
                own, other = (token_lines(part.expand(batch, -1), shape, axis) for part in terms.positions)
                positions = own, other
        else:
            keys, values, mask = held.key.to(query.dtype), held.value.to(query.dtype), held.mask
            positions = held.positions if terms.causal else None
        line_terms = Terms(
            causal=terms.causal, key_mask=mask, positions=positions, scale=terms.scale, dropout=terms.dropout
        )
        return from_lines(self.served(lines, keys, values, line_terms), shape, axis)

    def _order(self, shape: tuple[int, ...]) -> list[int]:
        if self.config.axes is None:
            time = self._axis(self.config.time_axis, shape)
            return [time, *(axis for axis in range(len(shape)) if axis != time)]
        order = [self._axis(axis, shape) for axis in self.config.axes]
        if len(set(order)) < len(order):
            raise InputError(f"AxialConfig.axes is {self.config.axes}: some are the same on {len(shape)} axes.")
        return order

    def _axis(self, axis: int, shape: tuple[int, ...]) -> int:
        if not -len(shape) <= axis < len(shape):
            raise InputError(f"An option names axis {axis}; the grid has {len(shape)}. Pass geometry=Grid(shape).")
        return axis % len(shape)


def _along_each_line(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    terms: Terms,
    shape: tuple[int, ...],
    axis: int,
    held: HeldFrames | None,
) -> Tensor:
    """What `Axial._along` must equal: dense attention of one line after the other, the cells of each counted out."""
    strides = [math.prod(shape[other + 1 :]) for other in range(len(shape))]
    others = [other for other in range(len(shape)) if other != axis]
    outs, order = [], []
    for number, fixed in enumerate(itertools.product(*(range(shape[other]) for other in others))):
        start = sum(strides[other] * cell for other, cell in zip(others, fixed, strict=True))
        line = [start + strides[axis] * cell for cell in range(shape[axis])]
        keys, values = key[:, :, line], value[:, :, line]
        mask = None if terms.key_mask is None else terms.key_mask[:, line]
        positions = terms.positions
        if positions is not None:
            positions = positions[0][:, line], positions[1][:, line]
        if held is not None:
            cells = math.prod(shape) // shape[axis]
            rows = slice(number, None, cells)  # of all rows of the batch
            keys, values = held.key[rows], held.value[rows]
            mask = None if held.mask is None else held.mask[rows]
            positions = None if held.positions is None else (held.positions[0][rows], held.positions[1][rows])
        line_terms = Terms(causal=terms.causal, key_mask=mask, positions=positions, scale=terms.scale)
        outs.append(dense_attention(query[:, :, line], keys, values, line_terms).out)
        order += line
    back = torch.tensor(order, device=query.device).argsort()
    return torch.cat(outs, dim=2)[:, :, back]


axial = implement(
    Axial,
    AxialConfig,
    name="axial",
    summary="attention along one axis of a grid at a time (space, level, time)",
    exactness="exact along each axis: equals dense attention with the mask of the lines; one long axis equals flash",
    cost="N sum(n_i) d, n_i the cells of axis i",
    causal=True,
    cross=False,
    masks=("key_mask",),
    grouped_query=True,
    cache="kv",
    exact=False,
    geometry="grid",
    cost_exponent=1.5,
    softmax=False,
    paper=Paper(
        authors="Ho, Kalchbrenner, Weissenborn, Salimans",
        year=2019,
        title="Axial Attention in Multidimensional Transformers",
        arxiv="1912.12180",
    ),
    example_geometry=square_grid,
)
