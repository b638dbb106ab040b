"""Frames of a grid, one after the other along its axis of time: their positions, and how a cache of tokens holds them.

A frame is one token as wide as all its cells, so that caches count, crop and reorder frames as they do tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from astrozoo.attention.grids import coordinates, to_lines
from astrozoo.errors import InputError

__all__ = ["HeldFrames", "frame_positions", "remember_frames"]


@dataclass(frozen=True)
class HeldFrames:
    """All frames of a cache, those of the call included, as lines along time.

    Attributes:
        key: (batch * cell, key head, frame, dim).
        value: (batch * cell, key head, frame, value dim).
        mask: bool (batch * cell, frame), or None if all are real.
        positions: Of the frames of the call and of all frames, (batch * cell, frame) each; None if simply counted.
    """

    key: Tensor
    value: Tensor
    mask: Tensor | None
    positions: tuple[Tensor, Tensor] | None


def frame_positions(frames: Tensor, shape: tuple[int, ...], time: int, axes: int) -> Tensor:
    """Positions of all tokens: coordinates (batch | 1, token, axis), or for one axis frame by frame (batch | 1, token).

    Args:
        frames: Positions of the frames, (batch | 1, frame).
        shape: Cells of the grid along each axis.
        time: Its axis of time.
        axes: Number of axes of the positions.
    """
    where = coordinates(shape, frames.device)
    frame = frames[:, where[:, time]]  # (batch | 1, token)
    if axes > 1:
        steps = [frame if axis == time else where[:, axis].expand_as(frame) for axis in range(len(shape))]
        return torch.stack(steps, dim=-1)
    within = torch.zeros_like(where[:, 0])
    for axis, cells in enumerate(shape):
        if axis != time:
            within = within * cells + where[:, axis]
    return frame * (math.prod(shape) // shape[time]) + within


def remember_frames(
    cache: Any,
    key: Tensor,
    value: Tensor,
    shape: tuple[int, ...],
    time: int,
    real: Tensor | None,
    frame_mask: Tensor | None,
    frames: Tensor,
) -> HeldFrames:
    """Add frames to the cache, where a frame is one token as wide as all its cells, and return all as lines.

    Args:
        cache: A `KVCache` or `StaticKVCache`.
        key: (batch, key head, token, dim).
        value: (batch, key head, token, value dim).
        shape: Cells of the grid of the call along each axis.
        time: Its axis of time.
        real: bool (batch * cell, frame), which cells are real; None for all.
        frame_mask: bool (batch, frame), which frames are.
        frames: (batch, frame), their positions.
    """
    batch, cells = key.shape[0], math.prod(shape) // shape[time]

    def pack(lines: Tensor) -> Tensor:  # (batch * cell, head, frame, dim) -> (batch, head, frame, cell * dim)
        return lines.unflatten(0, (batch, cells)).permute(0, 2, 3, 1, 4).flatten(3)

    def unpack(wide: Tensor) -> Tensor:
        return wide.unflatten(3, (cells, -1)).permute(0, 3, 1, 2, 4).flatten(0, 1)

    lines = to_lines(key, shape, time)
    flag = lines.new_ones(lines.shape[0], 1, lines.shape[2], 1) if real is None else real[:, None, :, None]
    # Whether a cell is real is kept beside its key.
    wide_key = pack(torch.cat((lines, flag.to(lines.dtype).expand(-1, lines.shape[1], -1, -1)), dim=3))
    before = cache.tensors().get("key")
    if before is not None and before.shape[-1] != wide_key.shape[-1]:
        held_cells = before.shape[-1] // (key.shape[3] + 1)
        raise InputError(
            f"The cache holds frames of {held_cells} cells; the grid of the call has frames of {cells}. "
            "A cache of max_len needs their number: new_cache(batch, max_len, cells=...)."
        )
    all_frames = cache.append(wide_key, pack(to_lines(value, shape, time)), key_mask=frame_mask)
    keys, values = (unpack(wide) for wide in all_frames.tensors)
    mask, positions = all_frames.key_mask, all_frames.positions
    if mask is not None:
        mask = mask.repeat_interleave(cells, dim=0) & (keys[:, 0, :, -1] > 0.5)
    pair = None
    if positions is not None:
        pair = frames.repeat_interleave(cells, dim=0), positions.repeat_interleave(cells, dim=0)
    return HeldFrames(keys[..., :-1], values, mask, pair)
