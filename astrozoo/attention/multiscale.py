"""Attention to keys and values that are pooled at several strides, on a grid or a sequence.

Fan et al. 2021 (arXiv:2104.11227), Wang et al. 2021 (arXiv:2102.12122), with several strides at once: a query sees the
neighbourhood means of every scale in one softmax. Means are over real cells only: a masked cell enters none, and a
pooled cell without a real one is not seen.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from astrozoo.attention.core import attend_terms
from astrozoo.attention.grids import for_each_axis, grid_of, square_grid
from astrozoo.attention.module import Attention, AttentionConfig, implement
from astrozoo.attention.reference import dense_attention
from astrozoo.attention.terms import Terms
from astrozoo.nn.checks import fail
from astrozoo.registry.spec import Paper

__all__ = ["Multiscale", "MultiscaleConfig", "multiscale"]

Stride = int | tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class MultiscaleConfig(AttentionConfig):
    """As `AttentionConfig`, and more.

    Attributes:
        pools: Strides, each a number of cells for all axes of the grid or one for each; 1 for the cells themselves.
    """

    pools: tuple[Stride, ...] = (2, 4)

    def __post_init__(self) -> None:
        AttentionConfig.__post_init__(self)
        pools = tuple(tuple(pool) if isinstance(pool, list) else pool for pool in self.pools)
        self._set("pools", pools)
        sizes = [size for pool in pools for size in (pool if isinstance(pool, tuple) else (pool,))]
        if not pools or not sizes or any(type(size) is not int or size < 1 for size in sizes):
            raise fail(self, "pools", "one or more strides of at least 1, each a number or one for each axis")


class Multiscale(Attention):
    """Attention to pooled keys and values. A grid, if given, is that of the keys; without one they are a sequence."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> Tensor:
        """Pool keys and values at every stride and attend to all."""
        shape, _ = grid_of(terms.geometry, key.shape[2], self.spec.name)
        keys, values, masks = [], [], []
        for pool in self.config.pools:
            strides = for_each_axis(pool, len(shape), "pools")
            pooled_key, seen = _pool(key, shape, strides, terms.key_mask)
            keys.append(pooled_key)
            values.append(_pool(value, shape, strides, terms.key_mask)[0])
            masks.append(seen)
        key_mask = None if terms.key_mask is None else torch.cat([mask for mask in masks if mask is not None], dim=1)
        pooled = Terms(key_mask=key_mask, scale=terms.scale, dropout=terms.dropout)
        result = attend_terms(
            query, torch.cat(keys, dim=2), torch.cat(values, dim=2), pooled, backend=self.config.backend
        )
        self.last_choice = result.choice
        return result.out

    def reference(self, query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> Tensor:
        """A matrix that averages the real cells of every pooled cell, then dense attention."""
        return dense_attention(query, *self._dense(key, value, terms)).out

    def weights(self, query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> tuple[Tensor, Tensor]:
        """Weights (batch, head, query, pooled key), strides in their order, and the log-sum-exp."""
        dense = dense_attention(query, *self._dense(key, value, terms))
        return dense.weights, dense.lse

    def _dense(self, key: Tensor, value: Tensor, terms: Terms) -> tuple[Tensor, Tensor, Terms]:
        shape, _ = grid_of(terms.geometry, key.shape[2], self.spec.name)
        matrix = torch.cat([_members(shape, for_each_axis(pool, len(shape), "pools")) for pool in self.config.pools])
        matrix = matrix.to(key.device)
        real = terms.key_mask
        if real is None:
            real = torch.ones(key.shape[0], key.shape[2], dtype=torch.bool, device=key.device)
        members = matrix[None] * real[:, None].double()  # (batch, pooled key, key)
        mean = (members / members.sum(-1, keepdim=True).clamp(min=1))[:, None]
        key, value = (mean @ tokens.double().masked_fill(~real[:, None, :, None], 0) for tokens in (key, value))
        return key, value, Terms(key_mask=members.any(-1), scale=terms.scale)


def _pool(
    heads: Tensor, shape: tuple[int, ...], strides: tuple[int, ...], key_mask: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Means over the real cells of each block of `strides` cells, and which blocks have any.

    Args:
        heads: (batch, head, cell, dim).
        shape: Cells per axis.
        strides: Cells of a block per axis; the last block of an axis may have fewer.
        key_mask: bool (batch | 1, cell), or None if all are real.

    Returns:
        (batch, head, block, dim), and bool (batch | 1, block) or None.
    """
    if all(stride == 1 for stride in strides):
        return heads, key_mask
    whole = all(cells % stride == 0 for cells, stride in zip(shape, strides, strict=True))
    if key_mask is None and whole:
        return _blocks(heads, shape, strides).mean(dim=-2), None
    if key_mask is None:
        real = heads.new_ones(1, 1, heads.shape[2], 1)
    else:
        real = key_mask[:, None, :, None].to(heads.dtype)
        heads = heads.masked_fill(~key_mask[:, None, :, None], 0)
    count = _blocks(real, shape, strides).sum(dim=-2)  # (batch | 1, 1, block, 1)
    pooled = _blocks(heads, shape, strides).sum(dim=-2) / count.clamp(min=1)
    return pooled, None if key_mask is None else count[:, 0, :, 0] > 0


def _blocks(heads: Tensor, shape: tuple[int, ...], strides: tuple[int, ...]) -> Tensor:
    """(batch, head, block, cell of the block, dim), padded with zeros to whole blocks."""
    batch, count, _, dim = heads.shape
    grid = heads.reshape(batch, count, *shape, dim)
    padding: list[int] = [0, 0]
    for cells, stride in zip(reversed(shape), reversed(strides), strict=True):
        padding += [0, -cells % stride]
    if any(padding):
        grid = F.pad(grid, padding)
    split: list[int] = []
    for cells, stride in zip(grid.shape[2:-1], strides, strict=True):
        split += [cells // stride, stride]
    grid = grid.reshape(batch, count, *split, dim)
    axes = len(shape)
    order = [0, 1, *(2 + 2 * axis for axis in range(axes)), *(3 + 2 * axis for axis in range(axes)), 2 + 2 * axes]
    return grid.permute(order).reshape(batch, count, -1, math.prod(strides), dim)


def _members(shape: tuple[int, ...], strides: tuple[int, ...]) -> Tensor:
    """float64 (block, cell): 1 where a cell belongs to a block; written cell by cell, for the reference."""
    blocks = [-(-cells // stride) for cells, stride in zip(shape, strides, strict=True)]
    matrix = torch.zeros(math.prod(blocks), math.prod(shape), dtype=torch.float64)
    for cell, place in enumerate(itertools.product(*(range(cells) for cells in shape))):
        block = 0
        for position, stride, count in zip(place, strides, blocks, strict=True):
            block = block * count + position // stride
        matrix[block, cell] = 1
    return matrix


def _example_geometry(tokens: int) -> Any:
    return square_grid(tokens)


multiscale = implement(
    Multiscale,
    MultiscaleConfig,
    name="multiscale",
    summary="queries attend to keys and values pooled at several strides",
    exactness="exact on pooled keys; pools [1] equals flash",
    cost="N^2 d / p",
    causal=False,
    cross=True,
    masks=("key_mask",),
    grouped_query=True,
    cache=None,
    paper=Paper(
        authors="Fan, Xiong, Mangalam, Li, Yan, Malik, Feichtenhofer",
        year=2021,
        title="Multiscale Vision Transformers",
        arxiv="2104.11227",
    ),
    exact=False,
    geometry="grid",
    example={"pools": (1, 3)},
    example_geometry=_example_geometry,
)
