"""Mutants of what surrounds the computation: state, caches, backends, compilation, saving, and claims."""

import dataclasses
from dataclasses import dataclass

import torch
from torch import nn

from astrozoo.attention import AttentionConfig, KVCache, StateCache
from astrozoo.attention.cache import CachedTokens
from astrozoo.attention.core import attend_terms, is_planning
from astrozoo.attention.flash import Flash
from astrozoo.errors import BackendRefused
from attention_mutants.registry import mutant

# -- state -------------------------------------------------------------------------------------------------------------


@mutant("stateless")
class RemembersEarlierCalls(Flash):
    def attend(self, query, key, value, terms):
        before = getattr(self, "seen", 0)
        self.seen = before + 1
        return super().attend(query, key, value, terms) * (1 + 1e-6 * min(before, 3))


@mutant("stateless")
class KeepsItsOutput(Flash):
    def attend(self, query, key, value, terms):
        self.last_heads = super().attend(query, key, value, terms)
        return self.last_heads


@mutant("stateless")
class KeepsStatistics(Flash):
    def make_projections(self, config, **made):
        super().make_projections(config, **made)
        self.register_buffer("mean", torch.zeros((), **made))

    def attend(self, query, key, value, terms):
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * value.detach().mean()
        return super().attend(query, key, value, terms)


@mutant("inputs_unmodified")
class NormalisesTokensInPlace(Flash):
    def forward(self, x, context=None, **terms):
        x.data.sub_(1e-9)
        return super().forward(x, context, **terms)


@mutant("inputs_unmodified")
class WritesCausalityIntoTheMask(Flash):
    """As an additive mask that is filled in place."""

    def forward(self, x, context=None, *, mask=None, **terms):
        if mask is not None and terms.get("causal"):
            mask &= torch.ones(mask.shape[-2:], dtype=torch.bool).tril(mask.shape[-1] - mask.shape[-2])
        return super().forward(x, context, mask=mask, **terms)


# -- caches ------------------------------------------------------------------------------------------------------------


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


# -- backends ----------------------------------------------------------------------------------------------------------


@mutant("forced_backend_missing")
class FallsBackSilently(Flash):
    def attend(self, query, key, value, terms):
        try:
            return super().attend(query, key, value, terms)
        except BackendRefused:
            return attend_terms(query, key, value, terms).out


@mutant("forced_backend_missing")
class IgnoresTheBackend(Flash):
    def attend(self, query, key, value, terms):
        result = attend_terms(query, key, value, terms)
        self.last_choice = result.choice
        return result.out


@mutant("reported_backend")
class ReportsWhatWasAsked(Flash):
    """As a flag that tells what is switched on, not what ran."""

    def attend(self, query, key, value, terms):
        result = attend_terms(query, key, value, terms, backend="math")
        self.last_choice = dataclasses.replace(result.choice, backend="sdpa", kernel="FLASH_ATTENTION")
        return result.out


@mutant("reported_backend")
class ReportsNothing(Flash):
    def attend(self, query, key, value, terms):
        return attend_terms(query, key, value, terms, backend=self.config.backend).out


@mutant("reported_backend")
class ReportsItsFirstCall(Flash):
    def make_projections(self, config, **made):
        super().make_projections(config, **made)
        tokens = torch.zeros(1, 1, 1, 8)
        self.last_choice = attend_terms(tokens, tokens, tokens, self.terms_of_nothing()).choice

    def terms_of_nothing(self):
        from astrozoo.attention import Terms

        return Terms()


@mutant("explained")
class ChoosesOtherwiseWhenItRuns(Flash):
    """What is explained was planned on tensors that are not real; this one looks whether they are."""

    def attend(self, query, key, value, terms):
        backend = "auto" if is_planning() else "math"
        result = attend_terms(query, key, value, terms, backend=backend)
        self.last_choice = result.choice
        return result.out


@mutant("backends_agree")
class IsWrongOnOneBackend(Flash):
    def attend(self, query, key, value, terms):
        out = super().attend(query, key, value, terms)
        return out * 1.001 if self.last_choice.backend == "chunked" else out


# -- tools -------------------------------------------------------------------------------------------------------------


@mutant("compile_fullgraph")
class BakesTheLengthIn(Flash):
    """A loop over tokens is unrolled anew for each length."""

    def attend(self, query, key, value, terms):
        total = sum(query[:, :, index].mean() for index in range(query.shape[2]))
        return super().attend(query, key, value, terms) + 0 * total


@mutant("compile_fullgraph")
class LooksAtTheMask(Flash):
    """The branch depends on data: the graph breaks."""

    def forward(self, x, context=None, *, key_mask=None, **terms):
        if key_mask is not None and bool(key_mask.all()):
            key_mask = None
        return super().forward(x, context, key_mask=key_mask, **terms)


@mutant("serialisation")
class HoldsAClosure(Flash):
    def make_projections(self, config, **made):
        super().make_projections(config, **made)
        self.gain = lambda heads: heads * 1.0

    def attend(self, query, key, value, terms):
        return self.gain(super().attend(query, key, value, terms))


@mutant("serialisation")
class KeepsWhatMattersOutsideItsState(Flash):
    def make_projections(self, config, **made):
        super().make_projections(config, **made)
        self.gains = torch.rand(config.num_heads, dtype=torch.float64).tolist()

    def attend(self, query, key, value, terms):
        return super().attend(query, key, value, terms) * query.new_tensor(self.gains)[:, None, None]


@mutant("serialisation")
class LosesABufferOnTheMetaDevice(Flash):
    """A buffer that is not saved has no content after `to_empty`."""

    def make_projections(self, config, **made):
        super().make_projections(config, **made)
        self.register_buffer("gain", torch.ones((), **made), persistent=False)

    def attend(self, query, key, value, terms):
        return super().attend(query, key, value, terms) * self.gain


@mutant("serialisation")
class ForgetsAParameterInItsReset(Flash):
    def make_projections(self, config, **made):
        super().make_projections(config, **made)
        self.gain = nn.Parameter(torch.ones((), **made))

    def attend(self, query, key, value, terms):
        return super().attend(query, key, value, terms) * self.gain


@mutant("serialisation")
class IgnoresTheDevice(Flash):
    def make_projections(self, config, *, device=None, dtype=None):
        super().make_projections(config, device=None, dtype=dtype)


@mutant("cost_exponent", cost_exponent=1.0)
class ClaimsToBeLinear(Flash):
    pass


# -- claims ------------------------------------------------------------------------------------------------------------


@mutant("spec_is_true", masks=("mask", "key_mask", "bias"))
class IgnoresWhatItDoesNotDeclare(Flash):
    def _checked(self, given, causal):
        return super()._checked({**given, "segments": None}, causal)


@mutant("spec_is_true", cross=False)
class TakesAContextThatItDenies(Flash):
    def _checked(self, given, causal):
        return super()._checked({**given, "context": None}, causal)


@mutant("spec_is_true", causal=False)
class IsCausalAgainstItsWord(Flash):
    def _checked(self, given, causal):
        return bool(causal)


@mutant("spec_is_true")
class RefusesWhatItDeclares(Flash):
    def forward(self, x, context=None, *, segments=None, **terms):
        return super().forward(x, context, **terms)


@mutant("spec_is_true", geometry=None)
class TakesAnyGeometry(Flash):
    def _checked(self, given, causal):
        return super()._checked({**given, "geometry": None}, causal)


@mutant("spec_is_true", cache=None)
class KeepsACacheThatItDenies(Flash):
    def new_cache(self, batch, max_len=None, *, device=None, dtype=None):
        return KVCache(batch)


@mutant("names", name="Flash-2")
class HasANameThatCannotBeWritten(Flash):
    pass


@mutant("names", aliases={"one_head": {"num_kv_heads": 1}, "ghost": {"heads_of_keys": 1}})
class HasAnAliasThatBuildsNothing(Flash):
    pass


@dataclass(frozen=True, kw_only=True)
class Lenient(AttentionConfig):
    num_head_: int | None = None


@mutant("names", config=Lenient)
class TakesAMisspeltOption(Flash):
    pass
