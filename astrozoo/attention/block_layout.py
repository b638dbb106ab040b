"""Which blocks of keys a row of blocks sees: as a table, as a question about a pair, as a list for the reference."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["in_layout", "key_table", "listed_layout"]

_PRIME = 2_147_483_647  # 2^31 - 1: products of two numbers below it fit into int64


def key_table(config: Any, row: Tensor, rows: int, *, causal: bool) -> tuple[Tensor, Tensor]:
    """The blocks that some rows see.

    Args:
        config: A `BlockSparseConfig`.
        row: int64 (row,), numbers of the rows.
        rows: Blocks of the whole sequence.
        causal: Whether later blocks are left out.

    Returns:
        int64 (row, number), numbers of blocks; and bool (row, number), whether the entry counts: a block is listed
        once, and one beyond the ends not at all. A block that does not count is given as one that exists.
    """
    wanted = _wanted(config, row, rows, causal=causal)
    valid = (wanted >= 0) & (wanted < rows)
    if causal:
        valid = valid & (wanted <= row[:, None])
    number = torch.arange(wanted.shape[1], device=row.device)
    earlier = number[:, None] > number
    again = (wanted[:, :, None] == wanted[:, None, :]) & valid[:, None, :] & earlier
    return wanted.clamp(0, rows - 1), valid & ~again.any(dim=2)


def _wanted(config: Any, row: Tensor, rows: int, *, causal: bool) -> Tensor:
    """Blocks (row, number) before doubles and those beyond the ends are taken out."""
    if config.pattern == "custom":
        return _custom(config, row.device)[row]
    near = torch.arange(-config.local_blocks, 1 if causal else config.local_blocks + 1, device=row.device)
    parts = [row[:, None] + near]
    if config.pattern == "local_global":
        parts.append(torch.arange(config.global_blocks, device=row.device).expand(row.shape[0], -1))
    elif config.pattern == "strided":
        steps = torch.arange(1, config.strided_blocks + 1, device=row.device) * config.stride
        parts.append(row[:, None] - steps)
        if not causal:
            parts.append(row[:, None] + steps)
    else:
        parts.append(_drawn(config, row, rows, causal=causal))
    return torch.cat(parts, dim=1)


def _custom(config: Any, device: torch.device) -> Tensor:
    """int64 (row, number) of a layout, filled up with -1."""
    longest = max(len(row) for row in config.layout)
    filled = [[*row, *[-1] * (longest - len(row))] for row in config.layout]
    return torch.tensor(filled, dtype=torch.int64, device=device).reshape(len(filled), longest)


def _drawn(config: Any, row: Tensor, rows: Any, *, causal: bool) -> Tensor:
    """Random blocks (..., number) of rows (...): a hash of seed, row and number, the same on every device."""
    number = torch.arange(config.random_blocks, device=row.device)
    mixed = (row[..., None] * 1_000_003 + number * 7_919 + config.seed * 104_729 + 12_345) % _PRIME
    for factor in (48_271, 69_621, 39_373):  # multipliers of well-tried congruential generators modulo the prime
        mixed = ((mixed ^ (mixed >> 15)) * factor) % _PRIME
    return mixed % ((row[..., None] + 1).clamp(min=1) if causal else rows)  # padding may lie before the first row


def in_layout(config: Any, own: Tensor, other: Tensor, rows: Any, *, causal: bool) -> Tensor:
    """Whether rows of blocks `own` see blocks `other`: bool of their common shape. Global rows see all.

    Args:
        config: A `BlockSparseConfig`.
        own: int64, numbers of rows.
        other: int64, numbers of blocks.
        rows: Blocks of the whole sequence, a number or a tensor of one.
        causal: Whether later blocks are left out.
    """
    distance = own - other
    if config.pattern == "custom":
        listed = torch.zeros(len(config.layout), len(config.layout), dtype=torch.bool, device=own.device)
        for row, blocks in enumerate(config.layout):
            listed[row, list(blocks)] = True
        last = len(config.layout) - 1
        seen = listed[own.clamp(0, last), other.clamp(0, last)] & (own <= last) & (other <= last)
    else:
        seen = distance.abs() <= config.local_blocks
        if config.pattern == "local_global":
            seen = seen | (other < config.global_blocks) | (own < config.global_blocks)
        elif config.pattern == "strided":
            apart = distance.abs()
            seen = seen | ((apart % config.stride == 0) & (apart <= config.stride * config.strided_blocks))
        elif config.random_blocks:
            seen = seen | (_drawn(config, own, rows, causal=causal) == other[..., None]).any(dim=-1)
    return seen & (distance >= 0) if causal else seen


def listed_layout(config: Any, rows: int, *, causal: bool) -> Tensor:
    """Bool (row, block), set block by block in Python; for the reference."""
    seen = torch.zeros(rows, rows, dtype=torch.bool)
    for row in range(rows):
        if config.pattern == "custom":
            blocks = set(config.layout[row]) if row < len(config.layout) else set()
        else:
            blocks = set(range(row - config.local_blocks, row + config.local_blocks + 1))
        if config.pattern == "local_global":
            blocks |= set(range(rows if row < config.global_blocks else config.global_blocks))
        elif config.pattern == "strided":
            for step in range(1, config.strided_blocks + 1):
                blocks |= {row - step * config.stride, row + step * config.stride}
        elif config.pattern == "random":
            blocks |= set(_drawn(config, torch.tensor(row), rows, causal=causal).tolist())
        for block in blocks:
            if 0 <= block < rows and (block <= row or not causal):
                seen[row, block] = True
    return seen
