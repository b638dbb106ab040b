"""Ring attention on real processes: everything that one process would get, and no rank with the whole key."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from typing import Any

import pytest
import ring_cases
import torch
from ring_cases import BUGS, CASES, RANKS, tokens, whole
from torch import distributed

from astrozoo.attention.reference import dense_attention
from astrozoo.attention.sequence_parallel import record_ring, ring_attend
from astrozoo.attention.terms import make_terms
from astrozoo.errors import BackendUnavailableError, InputError
from astrozoo.processes import leave_process_group

LIMITS = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2}
WORLDS = (1, 2, 4)
GRADIENTS = ("dq", "dk", "dv")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict[str, Any]]:
    """What each of four processes wrote; one launch for all cases, because starting takes longer than they do."""
    folder = tmp_path_factory.mktemp("ring")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, ring_cases.__file__, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr[-4000:]
    results = [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(RANKS)]
    results[RANKS - 2]["widow"] = torch.load(folder / "widow.pt")
    return results


@functools.cache
def expected(name: str) -> dict[str, torch.Tensor]:
    """Dense attention on the whole sequence in float64, and its gradients."""
    case, inputs = CASES[name], whole(CASES[name])
    leaves = [item.double().requires_grad_() for item in (inputs.query, inputs.key, inputs.value)]
    terms = make_terms(
        batch=ring_cases.BATCH, heads=ring_cases.HEADS, queries=case.queries, keys=case.keys, causal=case.causal,
        key_mask=inputs.key_mask, segments=inputs.segments,
    )  # fmt: skip
    dense = dense_attention(*leaves, terms)
    dense.out.backward(inputs.grad.double())
    return {"out": dense.out.detach(), "lse": dense.lse.detach(), **dict(zip(GRADIENTS, [x.grad for x in leaves]))}  # noqa: B905


def assembled(parts: list[dict[str, Any]], name: str) -> dict[str, torch.Tensor]:
    """The shards of a group's ranks, put where they belong."""
    case = CASES[name]
    result = {}
    for item in ("out", "lse", *GRADIENTS):
        length = case.keys if item in ("dk", "dv") else case.queries
        shape = list(parts[0][item].shape)
        shape[2] = length
        result[item] = torch.full(shape, torch.nan, dtype=torch.float64)
        for rank, part in enumerate(parts):
            result[item][:, :, tokens(case, length, rank, len(parts))] = part[item].double()
    return result


def groups(ranks: list[dict[str, Any]], world: int, kind: str, name: str) -> list[list[dict[str, Any]]]:
    """Results of every group of `world` ranks."""
    parts = [rank[kind][world, name] for rank in ranks]
    return [parts[first : first + world] for first in range(0, RANKS, world)]


def error(found: torch.Tensor, right: torch.Tensor) -> float:
    """Relative error over the whole tensor; infinite log-sum-exps must agree, and do not count."""
    assert torch.equal(found.isinf(), right.isinf())
    found, right = found.masked_fill(right.isinf(), 0), right.masked_fill(right.isinf(), 0)
    return float((found - right).norm() / right.norm())


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", CASES)
def test_ranks_get_what_one_process_gets(name, world, ranks):
    for parts in groups(ranks, world, "cases", name):
        found, right = assembled(parts, name), expected(name)
        errors = {item: error(found[item], right[item]) for item in right}
        assert max(errors.values()) <= LIMITS[CASES[name].dtype], errors
        assert all(part["out"].dtype == part["dk"].dtype == CASES[name].dtype for part in parts)


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name].key_mask and CASES[name].segments])
def test_query_that_sees_nothing_gives_zero_and_finite_gradients(name, ranks):
    dead = expected(name)["lse"].isinf()
    assert dead.any()
    for world in WORLDS:
        found = assembled(groups(ranks, world, "cases", name)[0], name)
        assert (found["out"][dead] == 0).all()
        assert (found["dq"][dead] == 0).all()
        assert all(found[item].isfinite().all() for item in GRADIENTS)


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("bug", BUGS)
def test_known_bug_passes_forward_and_fails_in_gradients(bug, world, ranks):
    for parts in groups(ranks, world, "bugs", bug):
        found, right = assembled(parts, "full-contiguous"), expected("full-contiguous")
        assert error(found["out"], right["out"]) <= 1e-12
        assert error(found["dq"], right["dq"]) > 0.1
        assert error(found["dk"], right["dk"]) > 0.1
        if bug == "delta_of_a_block":
            assert error(found["dv"], right["dv"]) <= 1e-12


@pytest.mark.parametrize("bug", BUGS)
def test_known_bug_is_invisible_on_one_rank(bug, ranks):
    found = assembled(groups(ranks, 1, "bugs", bug)[0], "full-contiguous")
    assert all(error(found[item], right) <= 1e-12 for item, right in expected("full-contiguous").items())


@pytest.mark.parametrize("world", [2, 4])
def test_zigzag_gives_every_rank_the_same_causal_work(world, ranks):
    for parts in groups(ranks, world, "cases", "causal-zigzag"):
        records = [part["record"] for part in parts]
        assert all(record == records[0] for record in records)
        assert records[0]["forward_products"] == records[0]["backward_products"] == world
        assert sum(record["forward_scores"] for record in records) == 48 * 49 // 2  # nothing in the future


def test_contiguous_layout_leaves_early_ranks_idle(ranks):
    records = [part["record"] for part in groups(ranks, 4, "cases", "causal-contiguous")[0]]
    assert [record["forward_products"] for record in records] == [1, 2, 3, 4]
    assert sum(record["forward_scores"] for record in records) == 48 * 49 // 2


def test_grouped_heads_are_not_expanded_for_the_journey(ranks):
    sent = {name: ranks[0]["cases"][4, name]["record"]["sent_bytes"] for name in ("full-zigzag", "full-zigzag-grouped")}
    assert sent["full-zigzag-grouped"] == sent["full-zigzag"] // 2


def test_no_rank_holds_more_than_three_of_four_shards_of_the_key(ranks):
    for rank in ranks:
        assert 1 < rank["memory"]["forward"] <= 3
        assert 1 < rank["memory"]["backward"] <= 3


def test_rank_that_differs_is_named_on_every_rank(ranks):
    for rank in ranks:
        for option in ("scale", "key_mask"):
            assert f"Rank 3 differs from rank 0 in {option};" in rank["refusals"][option]
        assert "[8, 8, 8, 6] keys; layout 'zigzag' gives [7, 7, 8, 8]" in rank["refusals"]["lengths"]
        assert rank["refusals"]["none"] == ""


def test_refusal_of_one_rank_reaches_the_others(ranks):
    said = [rank["refusals"]["heads"] for rank in ranks]
    assert "must divide" in said[-1]
    assert all("Rank 3 refused" in other for other in said[:-1])


def test_sequence_comes_together_again(ranks):
    for rank in ranks:
        assert all(rank["sequences"].values()), rank["sequences"]


def test_absent_rank_ends_in_an_error_after_the_timeout(ranks):
    for present in (0, 2):  # forward, backward
        message, seconds = ranks[present]["missing"]
        assert "Timed out" in message
        assert seconds < 10


def test_dead_rank_ends_in_an_error(ranks):
    message, seconds = ranks[RANKS - 2]["widow"]
    assert message
    assert seconds < 10


@pytest.mark.parametrize("name", CASES)
def test_no_group_is_the_whole_sequence_in_this_process(name):
    found = assembled([ring_cases.run(CASES[name], None, 0, 1)], name)
    errors = {item: error(found[item], right) for item, right in expected(name).items()}
    assert max(errors.values()) <= LIMITS[CASES[name].dtype], errors


def test_no_group_is_this_process_alone_even_among_others(tmp_path):
    query = torch.randn(1, 2, 6, 4)
    alone = ring_attend(query, query, query, causal=True)[0]
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        with record_ring() as record:
            grouped = ring_attend(query, query, query, causal=True, group=distributed.group.WORLD)[0]
            again = ring_attend(query, query, query, causal=True)[0]
    finally:
        leave_process_group()
    torch.testing.assert_close(grouped, alone)
    torch.testing.assert_close(again, alone)
    assert (record.forward_products, record.sent_bytes) == (2, 0)


def test_group_without_distributed_is_refused(monkeypatch):
    query = torch.zeros(1, 1, 2, 4)
    with pytest.raises(BackendUnavailableError, match="no process group is initialised"):
        ring_attend(query, query, query, group=object())
    monkeypatch.setattr(distributed, "is_available", lambda: False)
    with pytest.raises(BackendUnavailableError, match=r"without torch\.distributed"):
        ring_attend(query, query, query, group=object())


def test_inputs_that_do_not_fit_are_refused():
    query = torch.zeros(1, 2, 4, 8)
    with pytest.raises(InputError, match="expected one of 'zigzag', 'contiguous'"):
        ring_attend(query, query, query, layout="striped")
    with pytest.raises(InputError, match="float8"):
        ring_attend(*[query.to(torch.float8_e5m2)] * 3)
    with pytest.raises(InputError, match="key_mask has shape"):
        ring_attend(query, query, query, key_mask=torch.ones(1, 5, dtype=torch.bool))


def test_logarithm_has_no_gradient_and_output_has():
    query = torch.randn(1, 2, 4, 8, requires_grad=True)
    out, lse = ring_attend(query, query.detach(), query.detach())
    assert out.requires_grad
    assert not lse.requires_grad


def test_autocast_changes_nothing_inside():
    query = torch.randn(1, 2, 16, 8)
    value = torch.randn(1, 2, 16, 6)  # a width that only the plain kernel takes
    right = ring_attend(query, query, value)[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ring_attend(query, query, value)[0], right)


@pytest.mark.parametrize("value_dim", [3, 2])  # flash and plain kernel
def test_gradients_are_the_slopes_of_the_output(value_dim):
    query, key = torch.randn(1, 2, 4, 3).double(), torch.randn(1, 1, 5, 3).double()
    value = torch.randn(1, 1, 5, value_dim).double()
    key_mask = torch.tensor([[0, 0, 1, 0, 1]])
    leaves = [item.requires_grad_() for item in (query, key, value)]
    assert torch.autograd.gradcheck(lambda *x: ring_attend(*x, causal=True, key_mask=key_mask)[0], leaves)


@pytest.mark.parametrize(("batch", "queries", "keys"), [(0, 3, 3), (1, 0, 3), (1, 3, 0)])
@pytest.mark.parametrize("causal", [False, True])
def test_nothing_to_attend_to_gives_zeros(batch, queries, keys, causal):
    query = torch.randn(batch, 2, queries, 8, requires_grad=True)
    key = torch.randn(batch, 2, keys, 8, requires_grad=True)
    out, lse = ring_attend(query, key, key, causal=causal)
    out.sum().backward()
    assert out.shape == query.shape
    assert (query.grad == 0).all()
    assert keys or (lse == -torch.inf).all()


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch 2.11 in its compiler
def test_one_process_compiles_without_a_break():
    query, key, value = (torch.randn(1, 2, 12, 8, requires_grad=True) for _ in range(3))
    compiled = torch.compile(lambda *x: ring_attend(*x, causal=True)[0], fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(query, key, value), ring_attend(query, key, value, causal=True)[0])


def test_meta_device_gives_shapes():
    query = torch.zeros(1, 2, 4, 8, device="meta")
    assert ring_attend(query, query, query[..., :5], causal=True)[0].shape == (1, 2, 4, 5)
