"""What ring attention is made of: layouts, the products of two shards, and the kernels of a block."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from astrozoo.attention.reference import dense_attention
from astrozoo.attention.sequence_parallel import blocks, gather_sequence, shard_positions, shard_sequence
from astrozoo.attention.sequence_parallel.layout import Piece, pieces_of, pieces_of_runs, products, shard_runs
from astrozoo.attention.terms import Terms
from astrozoo.errors import InputError


@pytest.fixture(autouse=True)
def one_thread():
    """Tensors this small only lose by sharing work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


LAYOUTS = ("zigzag", "contiguous")
layouts, worlds = st.sampled_from(LAYOUTS), st.integers(1, 5)


@given(length=st.integers(0, 40), world=worlds, layout=layouts)
def test_every_position_lies_on_one_rank(length, world, layout):
    positions = torch.cat([shard_positions(length, rank, world, layout) for rank in range(world)])
    assert positions.sort().values.tolist() == list(range(length))


def test_zigzag_pairs_an_early_with_a_late_chunk():
    assert shard_positions(8, 0, 2).tolist() == [0, 1, 6, 7]
    assert shard_positions(8, 1, 2).tolist() == [2, 3, 4, 5]
    assert shard_positions(8, 1, 2, "contiguous").tolist() == [4, 5, 6, 7]


@given(length=st.integers(0, 40), world=worlds, layout=layouts)
def test_shard_holds_the_positions_of_its_rank(length, world, layout):
    for rank in range(world):
        shard = shard_sequence(torch.arange(length)[None], 1, rank=rank, world=world, layout=layout)
        assert torch.equal(shard[0], shard_positions(length, rank, world, layout))


def test_shard_of_one_process_is_everything_and_has_a_gradient():
    x = torch.randn(2, 5, 3, requires_grad=True)
    shard = shard_sequence(x, 1)
    assert torch.equal(shard, x)
    assert shard.requires_grad
    assert torch.equal(gather_sequence(shard, 1), x)


def test_rank_and_layout_that_do_not_exist_are_refused():
    with pytest.raises(InputError, match="rank is 2; expected 0 to 1"):
        shard_positions(8, 2, 2)
    with pytest.raises(InputError, match="layout is 'striped'"):
        shard_positions(8, 0, 2, "striped")
    with pytest.raises(InputError, match="both rank and world"):
        shard_sequence(torch.zeros(4), 0, rank=0)


def met(query: torch.Tensor, key: torch.Tensor, query_pieces, key_pieces) -> torch.Tensor:
    """How often every query meets every key, where positions allow it."""
    count = torch.zeros(len(query), len(key), dtype=torch.int64)
    for product in products(query_pieces, key_pieces):
        rows, columns = torch.tensor(product.queries), torch.tensor(product.keys)
        seen = query[rows, None] >= key[columns]
        if product.kind == "full":
            assert seen.all()
        elif product.kind == "causal":
            assert torch.equal(seen, torch.ones_like(seen).tril())
        else:
            assert seen.any()  # else there would be nothing to compute
        count[rows[:, None], columns] += seen
    return count


@given(queries=st.integers(0, 30), keys=st.integers(0, 30), world=worlds, layout=layouts)
def test_products_cover_every_visible_pair_once(queries, keys, world, layout):
    for rank in range(world):
        for origin in range(world):
            query_runs, key_runs = (shard_runs(n, r, world, layout) for n, r in ((queries, rank), (keys, origin)))
            query = shard_positions(queries, rank, world, layout) + keys - queries
            key = shard_positions(keys, origin, world, layout)
            count = met(query, key, pieces_of_runs(query_runs, keys - queries), pieces_of_runs(key_runs))
            assert torch.equal(count, (query[:, None] >= key).long())


@given(st.lists(st.integers(0, 9), max_size=8), st.lists(st.integers(0, 9), max_size=8))
def test_products_of_any_positions_cover_every_visible_pair_once(query, key):
    query, key = torch.tensor(query, dtype=torch.int64), torch.tensor(key, dtype=torch.int64)
    count = met(query, key, pieces_of(query[None]), pieces_of(key[None]))
    assert torch.equal(count, (query[:, None] >= key).long())


@pytest.mark.parametrize("world", [1, 2, 3, 4, 8])
def test_zigzag_needs_one_product_of_one_size_in_each_later_step(world):
    shards = [pieces_of_runs(shard_runs(16 * world, rank, world)) for rank in range(world)]
    for rank, own in enumerate(shards):
        for origin, other in enumerate(shards):
            (product,) = products(own, other)
            area = len(product.queries) * len(product.keys)
            assert (product.kind, area) == (("causal", 256) if rank == origin else ("full", 128))


def test_stretches_are_found_in_positions():
    assert pieces_of(torch.tensor([[4, 5, 6, 9, 10]])) == (Piece(0, 3, 4, 6, True), Piece(3, 5, 9, 10, True))
    assert pieces_of(torch.tensor([[4, 6, 8, 10]])) == (Piece(0, 4, 4, 10, False),)
    assert pieces_of(torch.tensor([[0, 1], [1, 2]])) == (Piece(0, 2, 0, 2, False),)


KINDS = ("none", "causal", "keys", "pairs", "broadcast pairs")


def block(kind: str, dtype: torch.dtype, key_heads: int) -> tuple[list[torch.Tensor], dict, Terms]:
    """Query, key, value, gradient; options of the kernel; the same as terms."""
    query, grad = torch.randn(2, 2, 4, 70, 16, dtype=dtype)
    key, value = torch.randn(2, 2, key_heads, 70, 16, dtype=dtype)
    visible = {
        "keys": torch.rand(2, 1, 1, 70) < 0.5,
        "pairs": torch.rand(2, 1, 70, 70) < 0.5,
        "broadcast pairs": torch.rand(1, 1, 70, 70) < 0.5,
    }.get(kind)
    if visible is not None:
        visible[0, :, :3] = False  # rows that see nothing
    mask = None if visible is None else visible.expand(-1, -1, 70, 70)
    options = {"scale": 0.3, "causal": kind == "causal", "visible": visible}
    return [query, key, value, grad], options, Terms(causal=kind == "causal", mask=mask, scale=0.3)


@pytest.mark.parametrize("kernel", ["cpu_flash", "math"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("key_heads", [4, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_kernel_of_a_block_is_right_forward_and_backward(kind, key_heads, dtype, kernel, monkeypatch):
    (query, key, value, grad), options, terms = block(kind, dtype, key_heads)
    assert blocks.kernel_of(query, key, value, options["visible"]) == "cpu_flash"
    monkeypatch.setattr(blocks, "kernel_of", lambda *_: kernel)
    monkeypatch.setattr(blocks, "TILE", 70 * 8 * 16)  # several tiles
    leaves = [item.double().requires_grad_() for item in (query, key, value)]
    dense = dense_attention(*leaves, terms)
    dense.out.backward(grad.double())
    out, lse = blocks.block_forward(query, key, value, **options)
    alive = lse.masked_fill(lse == -torch.inf, torch.inf)
    grads = blocks.block_backward(grad, query, key, value, out.to(dtype), alive, **options)
    limit = {torch.float64: 1e-13, torch.float32: 2e-6, torch.float16: 3e-3, torch.bfloat16: 1e-2}[dtype]
    for found, right in zip((out, *grads), (dense.out, *[leaf.grad for leaf in leaves]), strict=True):
        assert (found.double() - right).norm() <= limit * right.norm()
    assert lse.dtype == blocks.inner_dtype(dtype)
    torch.testing.assert_close(lse.double(), dense.lse, rtol=limit, atol=limit)


@pytest.mark.parametrize("bounds", [(0, 70), (0, 1, 70), (0, 30, 31, 70), (0, 30, 30, 70)], ids=str)
@pytest.mark.parametrize("kind", ["none", "pairs"])
def test_blocks_of_keys_add_up_to_the_whole(kind, bounds):
    (query, key, value, grad), options, terms = block(kind, torch.float64, 2)
    leaves = [item.clone().requires_grad_() for item in (query, key, value)]
    dense = dense_attention(*leaves, terms)
    dense.out.backward(grad)

    def parts():
        for start, stop in itertools.pairwise(bounds):
            visible = options["visible"]
            seen = None if visible is None else visible[..., start:stop]
            yield key[:, :, start:stop], value[:, :, start:stop], {**options, "visible": seen}

    out, lse = torch.zeros_like(query), torch.full(query.shape[:3], -torch.inf, dtype=torch.float64)
    for keys, values, own in parts():
        blocks.merge_(out, lse, *blocks.block_forward(query, keys, values, **own))
    torch.testing.assert_close(out, dense.out)
    torch.testing.assert_close(lse, dense.lse)
    alive = lse.masked_fill(lse == -torch.inf, torch.inf)
    grads = [blocks.block_backward(grad, query, keys, values, out, alive, **own) for keys, values, own in parts()]
    torch.testing.assert_close(sum(dq for dq, _, _ in grads), leaves[0].grad)
    torch.testing.assert_close(torch.cat([dk for _, dk, _ in grads], dim=2), leaves[1].grad)
    torch.testing.assert_close(torch.cat([dv for _, _, dv in grads], dim=2), leaves[2].grad)


def test_large_logits_stay_finite():
    query = torch.full((1, 1, 3, 8), 300.0, dtype=torch.float16)
    out, lse = blocks.block_forward(query, query, query, scale=1.0)
    assert out.isfinite().all()
    torch.testing.assert_close(lse, torch.full((1, 1, 3), 720_000 + 3.0**0.5).round(), rtol=1e-5, atol=0.0)
