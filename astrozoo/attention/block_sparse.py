"""Softmax attention over some blocks of keys for each block of queries.

Child et al. 2019 (arXiv:1904.10509) and BigBird, Zaheer et al. 2020 (arXiv:2007.14062). A row of blocks sees a fixed
number of blocks whatever the length, so cost is linear:

local_global  the nearest blocks, and the first `global_blocks` of the sequence, whose own queries see all
strided       the nearest blocks, and every `stride`-th further away
random        the nearest blocks, and `random_blocks` others, drawn by a seed
custom        what a layout lists for each row

Under `causal` the nearest and strided blocks are those before, random ones are drawn among them, and no query sees a
later key. On CUDA the compiled block-sparse kernel runs where it can; elsewhere blocks are gathered and folded into a
batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from astrozoo.attention.backends.flex import BLOCK
from astrozoo.attention.block_layout import in_layout, key_table, listed_layout
from astrozoo.attention.blocks import count_blocks, fold_queries, fold_terms, key_blocks, unfold_queries
from astrozoo.attention.choice import able, overridden
from astrozoo.attention.core import hide_unseen
from astrozoo.attention.module import Attention, AttentionConfig, implement
from astrozoo.attention.reference import dense_attention
from astrozoo.attention.request import describe
from astrozoo.attention.terms import BlockLayout, Terms
from astrozoo.errors import ConfigError, InputError
from astrozoo.nn.checks import at_least, fail, one_of
from astrozoo.registry.spec import Paper

__all__ = ["BlockSparse", "BlockSparseConfig", "block_sparse"]


@dataclass(frozen=True, kw_only=True)
class BlockSparseConfig(AttentionConfig):
    """As `AttentionConfig`, and the pattern.

    Attributes:
        pattern: `local_global`, `strided`, `random` or `custom`.
        block: Tokens of a block.
        local_blocks: Blocks that a row sees before its own, and after it if not causal.
        global_blocks: Of `local_global`: blocks at the start that all see.
        stride: Of `strided`: blocks from one further block to the next.
        strided_blocks: Of `strided`: further blocks in each direction.
        random_blocks: Of `random`: further blocks.
        seed: Of `random`: other seeds draw other blocks.
        layout: Of `custom`: for each row of blocks the numbers of the blocks it sees, or a bool tensor (row, block). It
            is for as many tokens as its rows hold, or fewer.
    """

    pattern: str = "local_global"
    block: int = 128
    local_blocks: int = 1
    global_blocks: int = 1
    stride: int = 4
    strided_blocks: int = 2
    random_blocks: int = 2
    seed: int = 0
    layout: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        AttentionConfig.__post_init__(self)
        one_of(self, ("local_global", "strided", "random", "custom"), "pattern")
        at_least(self, 1, "block", "stride")
        at_least(self, 0, "local_blocks", "global_blocks", "strided_blocks", "random_blocks", "seed")
        if isinstance(self.layout, Tensor):
            self._set("layout", _numbers(self.layout))
        try:
            layout = tuple(tuple(int(block) for block in row) for row in self.layout)
        except (TypeError, ValueError):
            raise fail(self, "layout", "for each row of blocks a list of numbers of blocks") from None
        self._set("layout", layout)
        if (self.pattern == "custom") != bool(layout):
            raise fail(self, "layout", "one list of blocks for each row if the pattern is 'custom', else none")
        if any(not 0 <= block < len(layout) for row in layout for block in row):
            raise fail(self, "layout", f"numbers of blocks from 0 to below {len(layout)}, the number of rows")


def _numbers(layout: Tensor) -> tuple[tuple[int, ...], ...]:
    """For each row of a bool tensor (row, block) the numbers of its blocks."""
    if layout.dtype != torch.bool or layout.dim() != 2 or layout.shape[0] != layout.shape[1]:
        shape = tuple(layout.shape)
        raise ConfigError(f"BlockSparseConfig.layout is {layout.dtype} {shape}; allowed: a square bool tensor.")
    return tuple(tuple(row.nonzero().flatten().tolist()) for row in layout)


class BlockSparse(Attention):
    """Attention within a layout of blocks. Positions of the caller move queries and keys to other blocks."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> Tensor:
        """Gather the blocks that each row of blocks sees, and attend in a batch of rows."""
        config, queries, keys = self.config, query.shape[2], key.shape[2]
        if terms.positions is not None:  # padding in a cache, or an order of the caller: blocks follow from positions
            return self._dense(query, key, value, terms)
        self._check(keys)
        if queries <= config.block:  # whole rows of blocks would cost more
            return self._dense(query, key, value, terms)
        rows = count_blocks(keys, config.block)
        if query.device.type == "cuda" and queries == keys:
            row = torch.arange(rows, device=query.device)
            seen = in_layout(config, row[:, None], row, rows, causal=terms.causal)
            placed = terms.replace(blocks=BlockLayout(config.block, seen))
            kernels = self._kernels(query, key, value, placed)
            if kernels:
                return self.served(query, key, value, placed, backend=kernels)
        before = keys - queries  # the last query is aligned with the last key
        lead = before % config.block
        row = torch.arange(count_blocks(lead + queries, config.block), device=query.device) + before // config.block
        table, seen = key_table(config, row, rows, causal=terms.causal)

        slot = torch.arange(config.block, device=query.device)
        query_at = row[:, None] * config.block + slot
        key_at = (table[..., None] * config.block + slot).flatten(1)
        visible = seen.repeat_interleave(config.block, dim=1) & (key_at < keys)
        visible = visible[:, None] & ((query_at >= before) & (query_at < keys))[..., None]
        if terms.causal:
            visible = visible & (query_at[..., None] >= key_at[:, None])

        key, value = hide_unseen(key, value, Terms(key_mask=terms.key_mask))
        folded = fold_terms(terms, query_at - before, key_at[None], visible[None], batch=query.shape[0])
        out = self.served(
            fold_queries(query, config.block, lead=lead), key_blocks(key, table, config.block),
            key_blocks(value, table, config.block), folded, hidden=terms.mask is None and terms.bias is None,
        )  # fmt: skip
        out = unfold_queries(out, query.shape[0], queries, lead=lead)
        # Under causality global rows see global blocks alone, as other rows do.
        return out if terms.causal else self._with_global_rows(out, query, key, value, terms)

    def _with_global_rows(self, out: Tensor, query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> Tensor:
        """The output with the queries of global blocks replaced: they see all keys."""
        before = key.shape[2] - query.shape[2]
        count = min(max(self._global_tokens - before, 0), query.shape[2])
        if not count:
            return out
        part = slice(0, count)
        first = self.served(query[:, :, part], key, value, terms.rows(part))
        return torch.cat((first, out[:, :, count:]), dim=2)

    @property
    def _global_tokens(self) -> int:
        return self.config.global_blocks * self.config.block if self.config.pattern == "local_global" else 0

    def _check(self, keys: int) -> None:
        layout, block = self.config.layout, self.config.block
        if layout and keys > len(layout) * block:
            raise InputError(
                f"block_sparse has a layout of {len(layout)} rows of {block} tokens; it takes up to "
                f"{len(layout) * block} tokens, not {keys}."
            )

    def _dense(self, query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> Tensor:
        """Every query compared with every key, by their positions."""
        own, other = terms.resolved_positions(query.shape[2], key.shape[2], query.device)
        # Not by `//`, which PyTorch's compiler for CPUs gets wrong for a range (see tiling.py). Below 0 is padding.
        own, other = (torch.div(part, self.config.block, rounding_mode="trunc").long() for part in (own, other))
        rows = (other.amax() if other.numel() else other.new_zeros(())) + 1
        seen = in_layout(self.config, own[:, :, None], other[:, None], rows, causal=terms.causal)
        mask = seen[:, None] if terms.mask is None else terms.mask & seen[:, None]
        return self.served(query, key, value, terms.replace(mask=mask))

    def reference(self, query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> Tensor:
        """Dense attention with the layout as a mask, written block by block."""
        return dense_attention(query, key, value, self._masked(query, key, terms)).out

    def weights(self, query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> tuple[Tensor, Tensor]:
        """As `Attention.weights`; 0 outside the layout."""
        return super().weights(query, key, value, self._masked(query, key, terms))

    def _masked(self, query: Tensor, key: Tensor, terms: Terms) -> Terms:
        own, other = terms.resolved_positions(query.shape[2], key.shape[2], query.device)
        own, other = ((part.clamp(min=0) // self.config.block).long() for part in (own, other))
        last = max((int(part.max()) for part in (own, other) if part.numel()), default=0)
        seen = listed_layout(self.config, last + 1, causal=terms.causal).to(query.device)
        mask = seen[own[:, :, None], other[:, None]][:, None]
        return terms.replace(mask=mask if terms.mask is None else mask & terms.mask)

    def _kernels(self, query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> tuple[str, ...]:
        """Backends that skip the blocks outside a layout and can serve the call."""
        if terms.blocks is None or not terms.blocks.fits(BLOCK):
            return ()
        request = describe(query, key, value, terms, lse=False)
        return able(request, overridden(self.config.backend), ("flex",))


block_sparse = implement(
    BlockSparse,
    BlockSparseConfig,
    name="block_sparse",
    summary="attention over a block layout: local_global, strided, random, custom",
    exactness="exact: equals the expanded mask; all blocks equals flash",
    cost="nnz b^2 d",
    causal=True,
    cross=False,
    masks=("mask", "key_mask", "bias", "segments"),
    grouped_query=True,
    cache="kv",
    paper=Paper(
        authors="Zaheer, Guruganesh, Dubey, et al.",
        year=2020,
        title="Big Bird: Transformers for Longer Sequences",
        arxiv="2007.14062",
    ),
    cost_exponent=1.0,
    example={"block": 4},
)
