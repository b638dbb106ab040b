"""Mutants of the computation itself: scale, heads, sizes, gradients, dropout, dtypes."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from astrozoo.attention import AttentionConfig
from astrozoo.attention.core import attend_terms
from astrozoo.attention.flash import Flash
from attention_mutants.registry import mutant
from attention_mutants.terms import logits_of, weighted


@mutant("value")
class ScalesByTheWidthOfTokens(Flash):
    def attend(self, query, key, value, terms):
        scale = self.config.dim**-0.5 if terms.scale is None else terms.scale
        return super().attend(query, key, value, terms.replace(scale=scale))


@mutant("options")
class IgnoresAnExplicitScale(Flash):
    def attend(self, query, key, value, terms):
        return super().attend(query, key, value, terms.replace(scale=None))

    def reference(self, query, key, value, terms):
        return super().reference(query, key, value, terms.replace(scale=None))


@mutant("options")
class IgnoresTheNorm(Flash):
    def make_projections(self, config, **made):
        super().make_projections(config, **made)
        self.query_norm, self.key_norm = nn.Identity(), nn.Identity()


@mutant("options")
class ScalesByDimOverHeadsNotByHeadDim(Flash):
    def scaled(self, terms):
        return terms.replace(scale=(self.config.dim / self.config.num_heads) ** -0.5) if terms.scale is None else terms

    def attend(self, query, key, value, terms):
        return super().attend(query, key, value, self.scaled(terms))

    def reference(self, query, key, value, terms):
        return super().reference(query, key, value, self.scaled(terms))


@mutant("value")
class PermutesValues(Flash):
    def attend(self, query, key, value, terms):
        return super().attend(query, key, value.flip(1), terms)


@mutant("mask_one_key")
class NormalisesOverQueries(Flash):
    """Both paths alike: each key's weights sum to one, not each query's."""

    def attend(self, query, key, value, terms):
        return weighted(logits_of(query, key, terms).softmax(dim=-2).nan_to_num(0), value)

    reference = attend


@mutant("equal_tokens")
class GrowsWithTheNumberOfKeys(Flash):
    def attend(self, query, key, value, terms):
        return super().attend(query, key, value, terms) * key.shape[2] ** 0.1

    def reference(self, query, key, value, terms):
        return super().reference(query, key, value, terms) * key.shape[2] ** 0.1


@mutant("batch_independent")
class NormalisesOverTheBatch(Flash):
    def attend(self, query, key, value, terms):
        return super().attend(query - query.mean(dim=0, keepdim=True), key, value, terms)

    def reference(self, query, key, value, terms):
        return super().reference(query - query.mean(dim=0, keepdim=True), key, value, terms)


@mutant("key_permutation")
class CountsTheFirstKeyTwice(Flash):
    def attend(self, query, key, value, terms):
        return super().attend(query, key, value, terms) + 1e-3 * value[:, :, :1].mean()


@mutant("cross")
class TakesAContextOfEqualLengthForTheTokens(Flash):
    def forward(self, x, context=None, **terms):
        return super().forward(x, None if context is not None and context.shape == x.shape else context, **terms)


@mutant("cross")
class LetsQueriesMix(Flash):
    def project(self, x, context=None):
        return super().project(x if context is None else x + x.mean(dim=1, keepdim=True), context)


@mutant("odd_lengths")
class DropsTheTailOfABlock(Flash):
    """As kernels that take whole blocks only."""

    def attend(self, query, key, value, terms):
        whole = key.shape[2] // 64 * 64 or key.shape[2]
        if terms.kind() == "none" and not terms.causal:
            key, value = key[:, :, :whole], value[:, :, :whole]
        return super().attend(query, key, value, terms)


@mutant("odd_lengths")
class PadsKeysWithZeros(Flash):
    """A key of zeros has a logit of 0, not of -inf."""

    def attend(self, query, key, value, terms):
        if terms.kind() == "none" and not terms.causal:
            key, value = (F.pad(part, (0, 0, 0, -part.shape[2] % 16)) for part in (key, value))
        return super().attend(query, key, value, terms)


@mutant("lengths")
class SeesTwoThousandTokens(Flash):
    """As positions from a table."""

    def attend(self, query, key, value, terms):
        return (
            super().attend(query, key[:, :, :2048], value[:, :, :2048], terms)
            if key.shape[2] > 2048
            else super().attend(query, key, value, terms)
        )


@dataclass(frozen=True, kw_only=True)
class OwnHeadDim(AttentionConfig):
    def __post_init__(self):
        self._set("head_dim", self.dim // self.num_heads)
        super().__post_init__()


@mutant("head_dims", config=OwnHeadDim)
class IgnoresHeadDim(Flash):
    pass


@dataclass(frozen=True, kw_only=True)
class NoValueDim(AttentionConfig):
    def __post_init__(self):
        self._set("v_head_dim", None)
        super().__post_init__()


@mutant("head_dims", config=NoValueDim)
class IgnoresTheWidthOfValues(Flash):
    pass


@mutant("head_dims")
class NeedsContiguousTokens(Flash):
    def forward(self, x, context=None, **terms):
        return super().forward(x.view(-1).view(x.shape), context, **terms)


@mutant("grouped_query")
class TilesGroupedHeads(Flash):
    """Query head h reads key head h modulo their number; both paths alike."""

    def attend(self, query, key, value, terms):
        groups = query.shape[1] // key.shape[1]
        return super().attend(query, key.repeat(1, groups, 1, 1), value.repeat(1, groups, 1, 1), terms)

    def reference(self, query, key, value, terms):
        groups = query.shape[1] // key.shape[1]
        return super().reference(query, key.repeat(1, groups, 1, 1), value.repeat(1, groups, 1, 1), terms)


@dataclass(frozen=True, kw_only=True)
class FullHeads(AttentionConfig):
    def __post_init__(self):
        self._set("num_kv_heads", self.num_heads)
        super().__post_init__()


@mutant("grouped_query", config=FullHeads)
class IgnoresTheNumberOfKeyHeads(Flash):
    pass


@mutant("gradients")
class HasAParameterThatNothingReads(Flash):
    def make_projections(self, config, **made):
        super().make_projections(config, **made)
        self.gain = nn.Parameter(torch.ones(config.num_heads, **made))


@mutant("gradients")
class HalvesTheGradientOfValues(Flash):
    """Both paths alike: only finite differences can tell."""

    def project(self, x, context=None):
        query, key, value = super().project(x, context)
        return query, key, 0.5 * value + 0.5 * value.detach()


@mutant("gradients")
class ForgetsTheGradientOfKeys(Flash):
    def attend(self, query, key, value, terms):
        return super().attend(query, key.detach(), value, terms)


@mutant("gradients")
class TakesTheGradientOfStaleKeys(Flash):
    """As diffusers issue 14265: right forward, the backward with keys of another step."""

    def attend(self, query, key, value, terms):
        logits = logits_of(query, key, terms)
        stale = logits + 0.3 * (logits.roll(1, dims=-1) - logits.roll(1, dims=-1).detach()).nan_to_num(0)
        return weighted(stale.softmax(dim=-1), value)


@mutant("dropout")
class DropsInEvaluation(Flash):
    """As scaled_dot_product_attention, which drops whatever the mode of the module."""

    def attend(self, query, key, value, terms):
        return super().attend(query, key, value, terms.replace(dropout=self.config.dropout))


@mutant("dropout")
class NeverDrops(Flash):
    def attend(self, query, key, value, terms):
        return super().attend(query, key, value, terms.replace(dropout=0.0))


@mutant("dropout")
class DropsWithoutRescaling(Flash):
    def attend(self, query, key, value, terms):
        out = super().attend(query, key, value, terms)
        return out * (1 - terms.dropout)


@mutant("dropout")
class DropsTheSameWeightsInEveryCall(Flash):
    def attend(self, query, key, value, terms):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return super().attend(query, key, value, terms)


@mutant("dtypes")
class AnswersInFloat32(Flash):
    def forward(self, x, context=None, **terms):
        return super().forward(x, context, **terms).float()


@mutant("dtypes")
class ComputesInHalfPrecision(Flash):
    def attend(self, query, key, value, terms):
        half = [part.to(torch.bfloat16) for part in (query, key, value)]
        return super().attend(*half, terms).to(query.dtype)


@mutant("autocast")
class SwitchesAutocastOff(Flash):
    def forward(self, x, context=None, **terms):
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x, context, **terms)


@mutant("autocast")
class AnswersInTheDtypeOfAutocast(Flash):
    def merge(self, heads):
        return self.output(heads.transpose(1, 2).flatten(2))

    def forward(self, x, context=None, **terms):
        y = super().forward(x, context, **terms)
        return y.to(torch.get_autocast_dtype("cpu")) if torch.is_autocast_enabled("cpu") else y


@mutant("large_logits")
class MakesLogitsInHalfPrecision(Flash):
    """As kernels that multiply before they scale: above 65504 is infinity, and its difference NaN."""

    def attend(self, query, key, value, terms):
        return weighted(logits_of(query, key, terms.replace(scale=1.0)).softmax(dim=-1), value)


@mutant("deterministic")
class AddsInAnyOrder(Flash):
    """As atomic additions: the same sum in another order every time."""

    def attend(self, query, key, value, terms):
        order = torch.randperm(key.shape[2])
        if terms.kind() == "none" and not terms.causal:
            key, value = key[:, :, order], value[:, :, order]
        noise = torch.rand(()) * torch.finfo(query.dtype).eps
        return attend_terms(query, key, value, terms).out * (1 + noise * 8)


@mutant("checkpointing")
class DropsByAGeneratorOfItsOwn(Flash):
    """A second forward pass draws other weights, for nobody restores this generator."""

    def attend(self, query, key, value, terms):
        if terms.dropout == 0:
            return super().attend(query, key, value, terms)
        self.draws = getattr(self, "draws", 0) + 1
        with torch.random.fork_rng():
            torch.manual_seed(self.draws)
            return attend_terms(query, key, value, terms).out
