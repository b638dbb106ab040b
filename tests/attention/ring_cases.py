"""Run by test_ring_core.py: four processes, which run every case in groups of 1, 2 and 4. Argument: FOLDER."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import os
import sys
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, distributed
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from astrozoo.attention.sequence_parallel import blocks, gather_sequence, record_ring, ring_attend, shard_sequence
from astrozoo.attention.sequence_parallel.transport import Ring, Transfer
from astrozoo.errors import InputError
from astrozoo.processes import leave_process_group

RANKS = 4
BATCH, HEADS, DIM = 2, 4, 8


@dataclass(frozen=True)
class Case:
    """One call on a whole sequence, and how it is cut."""

    causal: bool = False
    layout: str = "zigzag"
    dtype: torch.dtype = torch.float64
    kv_heads: int = HEADS
    value_dim: int = DIM
    queries: int = 48
    keys: int = 48
    key_mask: bool = False  # with NaN and infinity below it
    segments: bool = False
    strided: bool = False  # dimension of heads after that of tokens, as projections leave it
    cut: str = "layout"  # or "comb", "lengths": by positions or lengths of the caller

    @property
    def options(self) -> dict[str, Any]:
        return {"causal": self.causal, "layout": self.layout}


def _cases() -> dict[str, Case]:
    cases = {}
    for causal in (False, True):
        for layout in ("zigzag", "contiguous"):
            name = f"{'causal' if causal else 'full'}-{layout}"
            plain = Case(causal=causal, layout=layout)
            cases[name] = plain
            for label, changes in {
                "float32": {"dtype": torch.float32},
                "grouped": {"kv_heads": 2},
                "key_mask": {"key_mask": True},
                "segments": {"segments": True},
                "all": {"key_mask": True, "segments": True, "kv_heads": 1, "value_dim": 5},
                "all-float32": {"key_mask": True, "segments": True, "kv_heads": 1, "dtype": torch.float32},
                "odd_length": {"queries": 45, "keys": 45},
                "cross": {"queries": 20},
                "shorter_than_the_ring": {"queries": 3, "keys": 3},
            }.items():
                cases[f"{name}-{label}"] = dataclasses.replace(plain, **changes)
    cases["causal-strided"] = Case(causal=True, strided=True, kv_heads=2)
    cases["causal-comb"] = Case(causal=True, cut="comb")
    cases["causal-comb-key_mask"] = Case(causal=True, cut="comb", key_mask=True, segments=True)
    cases["causal-lengths"] = Case(causal=True, layout="contiguous", cut="lengths")
    cases["full-lengths"] = Case(cut="lengths", key_mask=True)
    cases["causal-bfloat16"] = Case(causal=True, dtype=torch.bfloat16, kv_heads=2)
    return cases


CASES = _cases()


@dataclass
class Whole:
    """Inputs of a case, not cut."""

    query: Tensor
    key: Tensor
    value: Tensor
    grad: Tensor
    key_mask: Tensor | None
    segments: tuple[Tensor, Tensor] | None


def whole(case: Case) -> Whole:
    """The same on every rank and in the test."""
    seed = zlib.crc32(repr(case).encode())
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(case.dtype)

    key = normal(BATCH, case.kv_heads, case.keys, DIM)
    value = normal(BATCH, case.kv_heads, case.keys, case.value_dim)
    key_mask = segments = None
    if case.key_mask:
        key_mask = torch.rand(BATCH, case.keys, generator=generator) < 0.6
        key_mask[1, : case.keys // 2] = False  # whole shards, and under causality rows that see nothing
        hidden = ~key_mask[:, None, :, None]
        key, value = key.masked_fill(hidden, torch.nan), value.masked_fill(hidden, torch.inf)
    if case.segments:
        ids = torch.randint(0, 3, (BATCH, case.keys), generator=generator)
        segments = ids[:, : case.queries].clone(), ids
        segments[0][0, 1] = 7  # a query without a segment of keys
    return Whole(
        normal(BATCH, HEADS, case.queries, DIM), key, value, normal(BATCH, HEADS, case.queries, case.value_dim),
        key_mask, segments,
    )  # fmt: skip


def tokens(case: Case, length: int, rank: int, world: int) -> Tensor:
    """Which tokens of a sequence a rank holds; written without the code under test."""
    every = np.arange(length)
    if case.cut == "comb":
        mine = every[rank::world]
    elif case.cut == "lengths":  # the second rank has nothing
        bounds = [0, length // 3, *[length // 3] * (world > 2), *[length // 2] * (world > 3)][:world]
        mine = every[bounds[rank] : [*bounds[1:], length][rank]]
    elif case.layout == "contiguous":
        mine = np.array_split(every, world)[rank]
    else:
        chunks = np.array_split(every, 2 * world)
        mine = np.concatenate([chunks[rank], chunks[2 * world - 1 - rank]])
    return torch.from_numpy(mine.copy())


def run(case: Case, group: Any, rank: int, world: int) -> dict[str, Any]:
    """What this rank gets: output, log-sum-exp, gradients, and what it did for them."""
    inputs = whole(case)
    rows, columns = tokens(case, case.queries, rank, world), tokens(case, case.keys, rank, world)

    def part(item: Tensor, index: Tensor) -> Tensor:
        item = item[:, :, index]
        if case.strided:
            item = item.transpose(1, 2).contiguous().transpose(1, 2)
        return item.requires_grad_()

    query, key, value = part(inputs.query, rows), part(inputs.key, columns), part(inputs.value, columns)
    options = case.options
    if inputs.key_mask is not None:
        options["key_mask"] = inputs.key_mask[:, columns]
    if inputs.segments is not None:
        options["segments"] = inputs.segments[0][:, rows], inputs.segments[1][:, columns]
    if case.cut == "comb":
        options["positions"] = rows, columns
    with record_ring() as record:
        out, lse = ring_attend(query, key, value, group=group, **options)
        out.backward(inputs.grad[:, :, rows])
    return {
        "out": out.detach(), "lse": lse, "dq": query.grad, "dk": key.grad, "dv": value.grad,
        "record": dataclasses.asdict(record),
    }  # fmt: skip


@contextlib.contextmanager
def stale_keys() -> Iterator[None]:
    """A bug: the backward pass of every step takes the keys and values of the first (diffusers issue 14265)."""
    right, first = blocks.block_backward, []

    def wrong(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *rest: Tensor, **options: Any) -> Any:
        first.append((key, value))
        return right(grad, query, *first[0], *rest, **options)

    with mock.patch.object(blocks, "block_backward", wrong):
        yield


@contextlib.contextmanager
def delta_of_a_block() -> Iterator[None]:
    """A bug: row sums of dO * O over the output from one block of keys, not from all (tt-metal issue 53205)."""
    right = blocks.block_backward

    def wrong(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, **options: Any) -> Any:
        part, total = blocks.block_forward(query, key, value, **options)
        return right(grad, query, key, value, part * torch.exp(total - lse)[..., None], lse, **options)

    with mock.patch.object(blocks, "block_backward", wrong):
        yield


BUGS = {"stale_keys": stale_keys, "delta_of_a_block": delta_of_a_block}
MARK = 3.25  # what every key of the memory test consists of


class KeysHeld(TorchDispatchMode):
    """The most numbers of keys alive at one time, found by their value in every storage that an operation touched."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, StorageWeakRef] = {}
        self.most = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if "empty" in function.__name__:
            result.zero_()  # no marks of what lay there before
        for item in torch.utils._pytree.tree_leaves((args, kwargs, result)):
            if isinstance(item, Tensor):
                storage = item.untyped_storage()
                self.storages[storage._cdata] = StorageWeakRef(storage)
        self.storages = {name: ref for name, ref in self.storages.items() if not ref.expired()}
        held = 0
        for ref in self.storages.values():
            storage = torch.UntypedStorage._new_with_weak_ptr(ref.cdata)
            if storage is not None and storage.nbytes() % 8 == 0:
                numbers = torch.empty(0, dtype=torch.float64).set_(storage)
                held += int((numbers == MARK).sum())
        self.most = max(self.most, held)
        return result


def memory(rank: int) -> dict[str, float]:
    """Shards of keys held at most, forward and backward, of as many as there are ranks."""
    length = 64
    key = torch.full((1, 1, length, DIM), MARK, dtype=torch.float64, requires_grad=True)
    value = torch.randn(1, 1, length, DIM, dtype=torch.float64, requires_grad=True)
    query = torch.randn(1, 1, 4, DIM, dtype=torch.float64, requires_grad=True)
    exchange = Ring.exchange

    def instant(*arguments: Any, **options: Any) -> Any:  # the worst case: what comes in is there at once
        transfer = exchange(*arguments, **options)
        sent = transfer._sent
        return Transfer(transfer.wait(), [], sent)

    with mock.patch.object(Ring, "exchange", instant):
        with KeysHeld() as forward:
            out, _ = ring_attend(query, key, value, group=distributed.group.WORLD)
        with KeysHeld() as backward:
            out.sum().backward()
    return {"forward": forward.most / key.numel(), "backward": backward.most / key.numel()}


def refusals(rank: int) -> dict[str, str]:
    """What this rank says where one of them, the last, gives something that does not fit."""
    last = rank == RANKS - 1

    def attempt(*, length: int = 8, heads: int = HEADS, **options: Any) -> str:
        query = torch.zeros(1, HEADS, length, DIM)
        key = torch.zeros(1, heads, length, DIM)
        try:
            ring_attend(query, key, key, group=distributed.group.WORLD, **options)
        except InputError as error:
            return str(error)
        return ""

    return {
        "scale": attempt(scale=2.0 if last else 1.0),
        "key_mask": attempt(key_mask=torch.ones(1, 8, dtype=torch.bool) if last else None),
        "heads": attempt(heads=3 if last else HEADS),
        "lengths": attempt(length=6 if last else 8, causal=True),
        "none": attempt(length=6 if last else 8, causal=True, layout="contiguous"),
    }


def sequences(rank: int) -> dict[str, bool]:
    """Whether what was cut comes together again."""
    same = {}
    for layout in ("zigzag", "contiguous"):
        for length in (2, 13, 16):
            for dtype in (torch.float32, torch.bfloat16, torch.bool, torch.int64):
                x = torch.arange(3 * length * 2).reshape(3, length, 2).to(dtype)
                shard = shard_sequence(x, 1, group=distributed.group.WORLD, layout=layout)
                again = gather_sequence(shard, 1, group=distributed.group.WORLD, layout=layout)
                same[f"{layout} {length} {dtype}"] = torch.equal(again, x)
    try:
        gather_sequence(torch.zeros(rank), 0, group=distributed.group.WORLD)
    except InputError as error:
        same["refusal"] = "gives" in str(error)
    return same


def missing_neighbour(group: Any, rank: int, *, backward: bool) -> tuple[str, float]:
    """Error and seconds of the even rank of a pair, whose neighbour does not come, or not in the backward pass."""
    query = torch.zeros(1, 1, 4, DIM, requires_grad=True)
    present = rank % 2 == 0
    start = time.monotonic()
    try:
        if present or backward:
            out = ring_attend(query, query, query, group=group)[0]
            if present:
                out.sum().backward()
    except RuntimeError as error:
        return str(error), time.monotonic() - start
    return "", time.monotonic() - start


def main(rank: int, folder: Path) -> None:
    """Write what happened on this rank to `folder`."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS, timeout=dt.timedelta(seconds=60)
    )
    pairs = [distributed.new_group([first, first + 1]) for first in (0, 2)]
    singles = [distributed.new_group([only]) for only in range(RANKS)]
    groups = {1: singles[rank], 2: pairs[rank // 2], 4: distributed.group.WORLD}
    results: dict[str, Any] = {"cases": {}, "bugs": {}}
    for world, group in groups.items():
        for name, case in CASES.items():
            results["cases"][world, name] = run(case, group, rank % world, world)
        for name, bug in BUGS.items():
            with bug():
                results["bugs"][world, name] = run(CASES["full-contiguous"], group, rank % world, world)
    results["memory"] = memory(rank)
    results["refusals"] = refusals(rank)
    results["sequences"] = sequences(rank)
    patience = dt.timedelta(seconds=1)
    hasty = [distributed.new_group([first, first + 1], timeout=patience) for first in (0, 2)]
    distributed.barrier()
    results["missing"] = missing_neighbour(hasty[rank // 2], rank, backward=rank >= 2)
    torch.save(results, folder / f"{rank}.pt")
    distributed.barrier()
    if rank == RANKS - 1:
        os._exit(0)  # dies without a word to its neighbour
    if rank == RANKS - 2:
        start = time.monotonic()
        try:
            run(CASES["full-contiguous"], pairs[1], 0, 2)
        except RuntimeError as error:
            torch.save((str(error), time.monotonic() - start), folder / "widow.pt")
    leave_process_group()


if __name__ == "__main__":
    # Forked, so that PyTorch is imported once; nothing has started a thread yet.
    torch.multiprocessing.start_processes(main, (Path(sys.argv[1]),), RANKS, start_method="fork")
