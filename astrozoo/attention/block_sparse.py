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

from astrozoo.attention.backends.flex import FlexBackend, run_flex
from astrozoo.attention.block_layout import in_layout, key_table, listed_layout
from astrozoo.attention.blocks import count_blocks, fold_queries, fold_terms, key_blocks, unfold_queries
from astrozoo.attention.choice import BackendChoice, overridden
from astrozoo.attention.core import attend_terms, hide_unseen
from astrozoo.attention.module import Attention, AttentionConfig, implement
from astrozoo.attention.reference import dense_attention
from astrozoo.attention.request import AttentionRequest, describe
from astrozoo.attention.terms import Terms
from astrozoo.errors import InputError
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
        layout: Of `custom`: for each row of blocks the numbers of the blocks it sees. It fixes the number of tokens to
            that of its rows.
    """

    pattern: str = "local_global"
    block: int = 64
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
        try:
            layout = tuple(tuple(int(block) for block in row) for row in self.layout)
        except (TypeError, ValueError):
            raise fail(self, "layout", "for each row of blocks a list of numbers of blocks") from None
        self._set("layout", layout)
        if (self.pattern == "custom") != bool(layout):
            raise fail(self, "layout", "one list of blocks for each row if the pattern is 'custom', else none")
        if any(not 0 <= block < len(layout) for row in layout for block in row):
            raise fail(self, "layout", f"numbers of blocks from 0 to below {len(layout)}, the number of rows")


class BlockSparse(Attention):
    """Attention within a layout of blocks. Positions of the caller move queries and keys to other blocks."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> Tensor:
        """Gather the blocks that each row of blocks sees, and attend in a batch of rows."""
        config, queries, keys = self.config, query.shape[2], key.shape[2]
        self._check(keys)
        if terms.positions is not None:  # padding in a cache, or an order of the caller: blocks follow from positions
            return self._dense(query, key, value, terms)
        request = describe(query, key, value, terms, lse=False)
        if self._flex_serves(request):
            self.last_choice = BackendChoice("flex", "flex_attention", torch.__version__, {}, request)
            return self._flex(query, key, value, terms)
        rows = count_blocks(keys, config.block)
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

        full = terms.replace(causal=False, geometry=None)
        key, value = hide_unseen(key, value, Terms(key_mask=terms.key_mask))
        folded = fold_terms(full, query_at - before, key_at[None], visible[None], batch=query.shape[0])
        result = attend_terms(
            fold_queries(query, config.block, lead=lead), key_blocks(key, table, config.block),
            key_blocks(value, table, config.block), folded, backend=config.backend,
        )  # fmt: skip
        self.last_choice = result.choice
        out = unfold_queries(result.out, query.shape[0], queries, lead=lead)
        return self._with_global_rows(out, query, key, value, terms)

    def _with_global_rows(self, out: Tensor, query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> Tensor:
        """The output with the queries of global blocks replaced: they see all keys, or all earlier ones."""
        before = key.shape[2] - query.shape[2]
        count = min(max(self._global_tokens - before, 0), query.shape[2])
        if not count:
            return out
        part = slice(0, count)
        placed = terms.replace(positions=terms.resolved_positions(query.shape[2], key.shape[2], query.device))
        own = placed.rows(part) if terms.causal else terms.rows(part)
        first = attend_terms(query[:, :, part], key, value, own, backend=self.config.backend).out
        return torch.cat((first, out[:, :, count:]), dim=2)

    @property
    def _global_tokens(self) -> int:
        return self.config.global_blocks * self.config.block if self.config.pattern == "local_global" else 0

    def _check(self, keys: int) -> None:
        layout, block = self.config.layout, self.config.block
        if layout and not (len(layout) - 1) * block < keys <= len(layout) * block:
            raise InputError(
                f"block_sparse has a layout of {len(layout)} rows of {block} tokens; it takes more than "
                f"{(len(layout) - 1) * block} and up to {len(layout) * block} tokens, not {keys}."
            )

    def _dense(self, query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> Tensor:
        """Every query compared with every key, by their positions."""
        own, other = terms.resolved_positions(query.shape[2], key.shape[2], query.device)
        block = self.config.block
        rows = (other.amax() if other.numel() else other.new_zeros(())) // block + 1
        seen = in_layout(self.config, own[:, :, None] // block, other[:, None] // block, rows, causal=terms.causal)
        mask = seen[:, None] if terms.mask is None else terms.mask & seen[:, None]
        result = attend_terms(query, key, value, terms.replace(mask=mask), backend=self.config.backend)
        self.last_choice = result.choice
        return result.out

    def reference(self, query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> Tensor:
        """Dense attention with the layout as a mask, written block by block."""
        return dense_attention(query, key, value, self._masked(query, key, terms)).out

    def weights(self, query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> tuple[Tensor, Tensor]:
        """As `Attention.weights`; 0 outside the layout."""
        return super().weights(query, key, value, self._masked(query, key, terms))

    def _masked(self, query: Tensor, key: Tensor, terms: Terms) -> Terms:
        own, other = terms.resolved_positions(query.shape[2], key.shape[2], query.device)
        last = max(int(other.max()) if other.numel() else 0, int(own.max()) if own.numel() else 0)
        seen = listed_layout(self.config, last // self.config.block + 1, causal=terms.causal).to(query.device)
        block = self.config.block
        mask = seen[(own.clamp(min=0) // block)[:, :, None], (other.clamp(min=0) // block)[:, None]][:, None]
        return terms.replace(mask=mask if terms.mask is None else mask & terms.mask)

    # -- the compiled kernel -------------------------------------------------------------------------------------------

    def _flex_serves(self, request: AttentionRequest) -> bool:
        """Whether the compiled block-sparse kernel is asked for and can serve the call."""
        backend = overridden(self.config.backend)
        asked = (backend,) if isinstance(backend, str) else backend
        if request.device_type != "cuda" or request.compiling or not {"auto", "flex"} & set(asked):
            return False
        kernel = FlexBackend()
        return not kernel.refusals(request) and not kernel.probe(request)

    def _flex(self, query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> Tensor:
        config, keys = self.config, key.shape[2]
        before, rows = keys - query.shape[2], count_blocks(keys, config.block)

        def visible(own: Tensor, other: Tensor) -> Tensor:
            return in_layout(config, (own + before) // config.block, other // config.block, rows, causal=terms.causal)

        return run_flex(query, key, value, terms, also=visible)[0]


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
