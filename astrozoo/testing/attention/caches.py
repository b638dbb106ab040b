"""Checks of caches: any chunks of a sequence, with padding on any side, give what one pass gives."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from astrozoo.attention import Attention, KVCache, Points
from astrozoo.attention.cache import Cache, LatentCache, StateCache, WindowKVCache
from astrozoo.errors import InputError
from astrozoo.testing.attention.cases import Case, agree, one_line
from astrozoo.testing.attention.subject import AttentionSubject
from astrozoo.testing.report import ConformanceError, NotApplicable, require

__all__: list[str] = []

KINDS: dict[str, type[Cache]] = {"kv": KVCache, "window": WindowKVCache, "latent": LatentCache, "state": StateCache}


def cache(subject: AttentionSubject) -> None:
    """Tokens one by one and in uneven chunks, with rotary positions, equal the single pass; so does a copy."""
    for attention in _subjects(subject):
        case = _series(subject, 24)
        whole = _full(attention, case)
        before, after = case.keys_at(torch.arange(5)), case.keys_at(torch.arange(5, 24))
        for max_len in (None, 24):
            for sizes in ([1] * 24, [7, 1, 1, 12, 3], [23, 1]):
                held = _new(attention, 2, max_len)
                y = _in_chunks(attention, held, case, sizes)
                agree(y, whole, f"chunks of {sizes} tokens, max_len={max_len}, rope={attention.config.rope}")
                require(held.lengths.tolist() == [24, 24], f"after 24 tokens the cache says {held.lengths.tolist()}")
                require(held.nbytes > 0, "a cache that holds tokens says that it holds no bytes")
            held.reset()
            agree(_in_chunks(attention, held, before, [3, 2]), whole[:, :5], f"after reset, max_len={max_len}")
            other = _new(attention, 2, max_len)
            other.load_state_dict({name: tensor.clone() for name, tensor in held.state_dict().items()})
            y = _in_chunks(attention, other, after, [4, 15])
            agree(y, whole[:, 5:], f"a copy through state_dict, max_len={max_len}")


def cache_compiled(subject: AttentionSubject) -> None:
    """Under `torch.compile(fullgraph=True)` steps with a cache of fixed size take a few graphs, not one each."""
    from torch._dynamo.testing import CompileCounterWithBackend

    for attention in itertools.islice(_subjects(subject), 1):
        case = _series(subject, 16)
        whole = _full(attention, case)
        torch._dynamo.reset()
        counter = CompileCounterWithBackend("eager")
        compiled = torch.compile(attention, fullgraph=True, backend=counter)
        held = _new(attention, 2, 16)
        try:
            y = [_in_chunks(attention, held, case.keys_at(torch.arange(4)), [4])]
            y.append(_in_chunks(compiled, held, case.keys_at(torch.arange(4, 16)), [1] * 12))
        except ConformanceError:
            raise
        except Exception as error:
            raise ConformanceError(f"torch.compile raised {type(error).__name__}: {one_line(error)}") from error
        finally:
            torch._dynamo.reset()
        agree(torch.cat(y, dim=1), whole, "4 tokens, then 12 compiled steps")
        graphs = counter.frame_count
        require(0 < graphs <= 3, f"12 steps took {graphs} graphs; the cache does not have a fixed size")


def cache_padding(subject: AttentionSubject) -> None:
    """Rows of unequal length, padded on the left or on the right of a chunk, equal the same rows alone."""
    for attention in _subjects(subject):
        subject.needs_mask("key_mask")
        x = subject.own_case(14).x
        junk = torch.full_like(x[:1, :3], torch.nan)
        for side in ("left", "right"):
            # Row 0 has three tokens less in the first chunk of eight.
            short = torch.cat((junk, x[:1, :5]) if side == "left" else (x[:1, :5], junk), dim=1)
            first = torch.cat((short, x[1:, :8]))
            real = torch.ones(2, 8, dtype=torch.bool)
            real[0, : 3 if side == "left" else None] = False
            if side == "right":
                real[0, :5] = True
            expected = [_full(attention, Case("alone", row)) for row in (x[:1, :11], x[1:])]
            following = Case("following", torch.cat((x[:1, 5:11], x[1:, 8:14])))
            for max_len in (None, 20):
                held = _new(attention, 2, max_len)
                y = attention(first, causal=True, cache=held, key_mask=real)
                what = f"padding on the {side}, max_len={max_len}, rope={attention.config.rope}"
                agree(y[0, real[0]], expected[0][0, :5], f"{what}: the padded row")
                agree(y[1], expected[1][0, :8], f"{what}: the full row")
                require(held.lengths.tolist() == [5, 8], f"{what}: lengths are {held.lengths.tolist()}, not [5, 8]")
                y = _in_chunks(attention, held, following, [1, 1, 4])
                agree(y[:1], expected[0][:, 5:], f"{what}: tokens after the padded chunk")
                agree(y[1:], expected[1][:, 8:], f"{what}: tokens after the full chunk")


def cache_rows(subject: AttentionSubject) -> None:
    """`reorder` lets rows continue others; `crop` goes back, or says that it cannot."""
    for attention in _subjects(subject):
        x = subject.own_case(12).x
        start, later, other = (Case("part", part) for part in (x[:, :6], x[:, 6:], x[:, 6:9]))
        for max_len in (None, 16):
            held = _new(attention, 2, max_len)
            _in_chunks(attention, held, start, [6])
            rows = torch.tensor([1, 1])
            held.reorder(rows)
            y = _in_chunks(attention, held, later, [1, 5])
            expected = _full(attention, _joined(x[rows, :6], x[:, 6:]))[:, 6:]
            agree(y, expected, f"rows that continue another, max_len={max_len}")
            try:
                held.crop(4)
            except InputError:
                exempt = subject.spec.cache in ("state", "window")
                require(exempt, f"a cache of kind {subject.spec.cache} cannot go back, max_len={max_len}")
                continue
            require(subject.spec.cache != "state", "a state is said to go back, which a sum over tokens cannot")
            require(held.lengths.tolist() == [4, 4], f"after crop(4) the cache says {held.lengths.tolist()}")
            y = _in_chunks(attention, held, other, [1, 2])
            expected = _full(attention, _joined(x[rows, :4], x[:, 6:9]))[:, 4:]
            agree(y, expected, f"other tokens after crop, max_len={max_len}")


def _subjects(subject: AttentionSubject) -> Iterator[Attention]:
    """Instances without and with rotary positions, once the cache is known to be as the spec says."""
    kind = subject.spec.cache
    attention = subject.build()
    if kind is None:
        require(attention.new_cache(2) is None, "the spec declares no cache, but new_cache gives one")
        case = subject.own_case()
        subject.must_refuse("cache", lambda: case(attention, cache=KVCache(2)))
        raise NotApplicable("it declares no cache, and refuses one")
    if kind == "context":
        _context_cache(subject, attention)
        raise NotApplicable("its cache holds a context that is read once, which was checked")
    held = attention.new_cache(2)
    require(isinstance(held, KINDS.get(kind, Cache)), f"the spec says {kind!r}, new_cache gives {type(held).__name__}")
    yield attention
    turned = subject.build_or_refusal(rope=True)
    if turned is not None:
        yield turned


def _context_cache(subject: AttentionSubject, attention: Attention) -> None:
    """A context that went into the cache once serves later queries."""
    case = subject.case(5, 9)
    held = _new(attention, 2, None)
    agree(attention(case.x, case.context, cache=held), case(attention), "the call that fills the cache")
    later = subject.case(3, 9, seed=4).x
    expected = attention(later, case.context)
    agree(attention(later, cache=held), expected, "queries on a context that is cached")
    agree(attention(later, cache=held), expected, "the same queries again")


def _new(attention: Attention, rows: int, max_len: int | None) -> Any:
    held = attention.new_cache(rows, max_len)
    if not isinstance(held, Cache):
        raise ConformanceError(f"new_cache gives {type(held).__name__}, expected an astrozoo.attention cache")
    return held


def _series(subject: AttentionSubject, length: int) -> Case:
    """Tokens in a row, with points where they lie if it takes some: a grid has no next token."""
    case = subject.own_case(length)
    return case if isinstance(case.geometry, Points) else case.replace(geometry=None)


def _joined(*parts: Tensor) -> Case:
    return Case("joined", torch.cat(parts, dim=1))


def _full(attention: Attention, case: Case) -> Tensor:
    with torch.no_grad():
        return case(attention, causal=True)


def _in_chunks(attention: Callable[..., Tensor], held: Any, case: Case, sizes: list[int]) -> Tensor:
    parts = torch.arange(case.sizes[1]).split(sizes)
    with torch.no_grad():
        return torch.cat([case.keys_at(part)(attention, causal=True, cache=held) for part in parts], dim=1)
