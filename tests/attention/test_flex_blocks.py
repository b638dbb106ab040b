"""The blocks that the compiled kernel is told to compute or skip; the kernel itself runs on CUDA."""

from __future__ import annotations

import pytest
import torch

from astrozoo.attention.backends.flex import BLOCK, block_mask
from astrozoo.attention.terms import BlockLayout, Terms

TOKENS = 700  # the sixth block is partly empty


def layout(size):
    rows = -(-TOKENS // size)
    return BlockLayout(size, torch.rand(rows, rows, generator=torch.Generator().manual_seed(0)) < 0.3)


def by_blocks(visible, reduce):
    """bool (query block, key block): `reduce` over the pairs of each block; missing pairs count as hidden."""
    blocks = -(-TOKENS // BLOCK)
    padded = torch.nn.functional.pad(visible, (0, blocks * BLOCK - TOKENS, 0, blocks * BLOCK - TOKENS))
    return reduce(padded.unflatten(1, (blocks, BLOCK)).unflatten(0, (blocks, BLOCK)).transpose(1, 2).flatten(2), -1)


def listed(number, columns):
    seen = torch.zeros(columns.shape[-2:], dtype=torch.bool)
    for row, count in enumerate(number[0, 0]):
        seen[row, columns[0, 0, row, :count].long()] = True
    return seen


@pytest.mark.parametrize(
    "terms",
    [
        Terms(),
        Terms(causal=True),
        Terms(window=70),
        Terms(window=400, causal=True),
        Terms(window=1),
        Terms(blocks=layout(32)),
        Terms(blocks=layout(128)),
        Terms(blocks=layout(256), causal=True),
    ],
    ids=["all", "causal", "window", "causal window", "itself", "small", "equal", "large causal"],
)
def test_blocks_with_a_visible_pair_are_computed_and_no_others(terms):
    visible = terms.visible(TOKENS, TOKENS, torch.device("cpu"))
    visible = torch.ones(TOKENS, TOKENS, dtype=torch.bool) if visible is None else visible[0, 0]
    mask = block_mask(terms, 2, TOKENS, TOKENS, torch.device("cpu"))
    partial = listed(mask.kv_num_blocks, mask.kv_indices)
    full = listed(mask.full_kv_num_blocks, mask.full_kv_indices)
    assert torch.equal(partial | full, by_blocks(visible, torch.any))
    assert not (partial & full).any()
    whole = by_blocks(visible, torch.all)
    assert torch.equal(full[:-1], whole[:-1])  # of the last row, queries that do not exist may count as seeing all


def test_padding_leaves_no_block_computed_without_a_mask():
    key_mask = torch.ones(2, TOKENS, dtype=torch.bool)
    for terms in (Terms(window=400, key_mask=key_mask), Terms(blocks=layout(128), key_mask=key_mask)):
        assert not block_mask(terms, 2, TOKENS, TOKENS, torch.device("cpu")).full_kv_num_blocks.any()


def test_fewer_queries_than_keys_are_aligned_at_the_end():
    terms = Terms(window=200, causal=True)
    mask = block_mask(terms, 1, 128, TOKENS, torch.device("cpu"))
    visible = terms.visible(128, TOKENS, torch.device("cpu"))[0, 0]
    seen = torch.nn.functional.pad(visible, (0, 6 * BLOCK - TOKENS)).unflatten(1, (6, BLOCK)).any(2).any(0)
    assert torch.equal(
        (listed(mask.kv_num_blocks, mask.kv_indices) | listed(mask.full_kv_num_blocks, mask.full_kv_indices))[0], seen
    )


@pytest.mark.parametrize("causal", [False, True])
def test_rule_within_blocks_is_the_mask_itself(causal):
    segments = (torch.arange(TOKENS) // 90)[None]
    key_mask = torch.rand(2, TOKENS, generator=torch.Generator().manual_seed(1)) < 0.7
    terms = Terms(blocks=layout(64), causal=causal, segments=(segments, segments), key_mask=key_mask)
    rule = block_mask(terms, 2, TOKENS, TOKENS, torch.device("cpu")).mask_mod
    at = torch.arange(TOKENS)
    found = rule(torch.arange(2)[:, None, None], torch.zeros(()), at[:, None], at)
    assert torch.equal(found, terms.visible(TOKENS, TOKENS, torch.device("cpu"))[:, 0])
