"""Attention to keys and values that are pooled at several strides, on a grid or a sequence.

Fan et al. 2021 (arXiv:2104.11227), Wang et al. 2021 (arXiv:2102.12122), with several strides at once: a query sees the
neighbourhood means of every scale in one softmax. Means are over real cells only: a masked cell enters none, and a
pooled cell without a real one is not seen. Pools do not overlap, as in the second paper; the last along an axis may be
cut by the edge. Keys turn by their rotary positions before they are pooled: a logit is then the mean of those of the
cells.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from astrozoo.attention.grids import for_each_axis, grid_blocks, grid_of, square_grid
from astrozoo.attention.module import Attention, AttentionConfig, implement
from astrozoo.attention.reference import dense_attention
from astrozoo.attention.terms import Terms
from astrozoo.nn.checks import fail, one_of
from astrozoo.registry.spec import Paper

__all__ = ["Multiscale", "MultiscaleConfig", "multiscale"]

Stride = int | tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class MultiscaleConfig(AttentionConfig):
    """As `AttentionConfig`, and more.

    Attributes:
        pools: Strides, each a number of cells for all axes of the grid or one for each; 1 for the cells themselves.
        pooling: `mean`, or `conv`: each feature of a cell is first scaled by a learned weight of its place in the pool,
            a depthwise convolution whose kernel is its stride; needs a tuple for each stride.
    """

    pools: tuple[Stride, ...] = (2, 4)
    pooling: str = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        pools = tuple(tuple(pool) if isinstance(pool, list) else pool for pool in self.pools)
        self._set("pools", pools)
        sizes = [size for pool in pools for size in (pool if isinstance(pool, tuple) else (pool,))]
        if not pools or not sizes or any(type(size) is not int or size < 1 for size in sizes):
            raise fail(self, "pools", "one or more strides of at least 1, each a number or one for each axis")
        one_of(self, ("mean", "conv"), "pooling")
        if self.pooling == "conv":
            if any(isinstance(pool, int) for pool in pools):
                raise fail(self, "pools", "with pooling='conv' a tuple for each stride, one number for each axis")
            if self.rope is not None:
                raise fail(self, "rope", "None with pooling='conv': weights of single features undo the turn")


class Multiscale(Attention):
    """Attention to pooled keys and values. A grid, if given, is that of the keys; without one they are a sequence."""

    def make_projections(self, config: Any, *, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        """As `Attention.make_projections`, and for pooling `conv` the weights (*stride, dim) of every stride."""
        super().make_projections(config, device=device, dtype=dtype)
        strides = config.pools if config.pooling == "conv" else ()

        def weights(dim: int) -> nn.ParameterList:
            return nn.ParameterList(
                nn.Parameter(torch.empty(*pool, dim, device=device, dtype=dtype)) for pool in strides
            )

        self.key_pools, self.value_pools = weights(config.key_dim), weights(config.value_dim)

    def reset_parameters(self) -> None:
        """As `Attention.reset_parameters`; weights of pools are one, which gives means."""
        super().reset_parameters()
        for weight in (*self.key_pools, *self.value_pools):
            nn.init.ones_(weight)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> Tensor:
        """Pool keys and values at every stride and attend to all."""
        shape, _ = grid_of(terms.geometry, key.shape[2], self.spec.name)
        keys, values, masks = [], [], []
        for number, pool in enumerate(self.config.pools):
            strides = for_each_axis(pool, len(shape), "pools")
            weights = (self.key_pools[number], self.value_pools[number]) if self.key_pools else (None, None)
            if math.prod(strides) == 1 and weights[0] is None:
                keys.append(key)
                values.append(value)
                masks.append(terms.key_mask)
                continue
            members, real = grid_blocks(shape, strides, key.device)
            real = real[None]
            if terms.key_mask is not None:
                real = real & terms.key_mask[:, members]
            keys.append(_pool(key, members, real, weights[0]))
            values.append(_pool(value, members, real, weights[1]))
            masks.append(real.any(dim=2))
        key_mask = None
        if terms.key_mask is not None:  # without one, every pool has a real cell
            key_mask = torch.cat([mask for mask in masks if mask is not None], dim=1)
        pooled = Terms(key_mask=key_mask, scale=terms.scale, dropout=terms.dropout)
        return self.served(query, torch.cat(keys, dim=2), torch.cat(values, dim=2), pooled)

    def reference(self, query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> Tensor:
        """A matrix that averages the real cells of every pooled cell, then dense attention."""
        return dense_attention(query, *self._dense(key, value, terms)).out

    def weights(self, query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> tuple[Tensor, Tensor]:
        """Weights (batch, head, query, pooled key), strides in their order, and the log-sum-exp."""
        dense = dense_attention(query, *self._dense(key, value, terms))
        return dense.weights, dense.lse

    def _dense(self, key: Tensor, value: Tensor, terms: Terms) -> tuple[Tensor, Tensor, Terms]:
        shape, _ = grid_of(terms.geometry, key.shape[2], self.spec.name)
        real = terms.key_mask
        if real is None:
            real = torch.ones(1, key.shape[2], dtype=torch.bool, device=key.device)
        hidden = ~real[:, None, :, None]
        tokens = [part.double().masked_fill(hidden, 0) for part in (key, value)]
        pooled: list[list[Tensor]] = [[], []]
        seen = []
        for number, pool in enumerate(self.config.pools):
            strides = for_each_axis(pool, len(shape), "pools")
            matrix, place = (part.to(key.device) for part in _members(shape, strides))
            members = matrix * real[:, None].double()  # (batch | 1, pooled key, key)
            mean = (members / members.sum(-1, keepdim=True).clamp(min=1))[:, None]
            for part, pools, into in zip(tokens, (self.key_pools, self.value_pools), pooled, strict=True):
                scaled = part * pools[number].double().flatten(0, -2)[place] if pools else part
                into.append(mean @ scaled)
            seen.append(members.any(-1))
        keys, values = (torch.cat(parts, dim=2) for parts in pooled)
        return keys, values, Terms(key_mask=torch.cat(seen, dim=1), scale=terms.scale)


def _pool(heads: Tensor, members: Tensor, real: Tensor, weight: Tensor | None) -> Tensor:
    """Means over the real members of each pool, without a branch on whether the last of them is whole.

    Args:
        heads: (batch, head, token, dim).
        members: int64 (pool, member), the token of each.
        real: bool (batch | 1, pool, member).
        weight: (*stride, dim), of each member; or None.

    Returns:
        (batch, head, pool, dim); 0 for pools without a real member.
    """
    cells = heads.index_select(2, members.flatten()).unflatten(2, members.shape)
    if weight is not None:
        cells = cells * weight.flatten(0, -2).to(heads.dtype)
    cells = cells.masked_fill(~real[:, None, :, :, None], 0)
    count = real.sum(dim=2).clamp(min=1)[:, None, :, None]
    total = cells.sum(dim=3, dtype=torch.promote_types(heads.dtype, torch.float32))  # may be too large for a half
    return (total / count).to(heads.dtype)


def _members(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """float64 (block, cell), 1 where a cell belongs to a block, and int64 (cell,), its place there; cell by cell."""
    blocks = [-(-cells // stride) for cells, stride in zip(shape, strides, strict=True)]
    matrix = torch.zeros(math.prod(blocks), math.prod(shape), dtype=torch.float64)
    places = torch.zeros(math.prod(shape), dtype=torch.int64)
    for cell, where in enumerate(itertools.product(*(range(cells) for cells in shape))):
        block = 0
        for position, stride, count in zip(where, strides, blocks, strict=True):
            block = block * count + position // stride
            places[cell] = places[cell] * stride + position % stride
        matrix[block, cell] = 1
    return matrix, places


multiscale = implement(
    Multiscale,
    MultiscaleConfig,
    name="multiscale",
    summary="queries attend to keys and values pooled at several strides",
    exactness="exact on pooled keys; pools [1] equals flash",
    cost="N^2 d sum(1 / p), p the cells of a pool",
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
    example_geometry=square_grid,
)
