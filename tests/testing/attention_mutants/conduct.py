"""Mutants of what surrounds the computation: state, compilation, saving, and claims."""

from dataclasses import dataclass

import torch
from torch import nn

from astrozoo.attention import AttentionConfig, KVCache
from astrozoo.attention.flash import Flash
from attention_mutants.registry import mutant


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
