"""Mutants of caches: what earlier tokens left behind is lost, shifted or mixed up."""

import torch

from astrozoo.attention import KVCache, StateCache
from astrozoo.attention.cache import CachedTokens
from astrozoo.attention.flash import Flash
from attention_mutants.registry import mutant


class Forgetful(KVCache):
    def append(self, *new, **terms):
        self.held = tuple(part[..., -4:, :] for part in self.held)
        self.positions = self.positions[:, -4:]
        return super().append(*new, **terms)


class Shifted(KVCache):
    def next_positions(self, count, key_mask):
        return super().next_positions(count, key_mask) + (self.lengths > 0).long()[:, None]


class Unordered(KVCache):
    def reorder(self, rows):
        self.lengths = self.lengths[rows]


class Uncropped(KVCache):
    """The lengths go back, the tokens stay."""

    def crop(self, length):
        self.lengths = self.lengths.clamp(max=length)


class Padded(KVCache):
    """Counts padding as tokens, so that positions after it are too late."""

    def next_positions(self, count, key_mask):
        return super().next_positions(count, None)

    def _count(self, count, key_mask):
        super()._count(count, None)


class Unmasked(KVCache):
    """Forgets which tokens of earlier chunks were padding."""

    def append(self, *new, key_mask=None, positions=None):
        held = super().append(*new, key_mask=key_mask, positions=positions)
        mask = held.key_mask
        if mask is not None:
            mask = torch.cat((torch.ones_like(mask[:, : -new[0].shape[2]]), mask[:, -new[0].shape[2] :]), dim=1)
        return CachedTokens(held.tensors, mask, held.positions)


def with_cache(kind, check):
    class Caching(Flash):
        def new_cache(self, batch, max_len=None, *, device=None, dtype=None):
            return kind(batch, device=device)

    Caching.__name__ = f"Uses{kind.__name__}Cache"
    return mutant(check)(Caching)


for kind, check in (
    (Forgetful, "cache"),
    (Shifted, "cache"),
    (Unordered, "cache_rows"),
    (Uncropped, "cache_rows"),
    (Padded, "cache_padding"),
    (Unmasked, "cache_padding"),
):
    with_cache(kind, check)


@mutant("cache_compiled")
class AsksTheCacheForItsLength(Flash):
    """A number read from a tensor breaks the graph, as it makes the host wait for the device."""

    def place(self, parts, terms, cache, positions):
        if cache is not None and int(cache.lengths.max()) == 0:
            cache.reset()
        return super().place(parts, terms, cache, positions)


@mutant("cache")
class TurnsCachedKeysNot(Flash):
    """Rotary positions reach the queries of a step, not its keys."""

    def place(self, parts, terms, cache, positions):
        query, key, value = parts
        if cache is not None and self.config.rope is not None:
            own = cache.next_positions(query.shape[2], terms.key_mask)
            key = self.config.rope.turn(key, -own)  # what the base class then undoes
        return super().place((query, key, value), terms, cache, positions)


@mutant("cache")
class TurnsCachedKeysTwice(Flash):
    def place(self, parts, terms, cache, positions):
        query, key, value = parts
        if cache is not None and self.config.rope is not None:
            key = self.config.rope.turn(key, cache.next_positions(query.shape[2], terms.key_mask))
        return super().place((query, key, value), terms, cache, positions)


@mutant("cache_padding")
class IgnoresPaddingBesideACache(Flash):
    def place(self, parts, terms, cache, positions):
        return super().place(parts, terms if cache is None else terms.replace(key_mask=None), cache, positions)


@mutant("cache")
class PromisesACacheAndHasNone(Flash):
    def new_cache(self, batch, max_len=None, *, device=None, dtype=None):
        return None


@mutant("cache")
class HasACacheOfAnotherKind(Flash):
    def new_cache(self, batch, max_len=None, *, device=None, dtype=None):
        return StateCache(batch)
