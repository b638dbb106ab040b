"""Mutants of what a query may see. Those that derive from `WithTerms` are wrong in both paths alike."""

import math

import torch

from astrozoo.attention.flash import Flash
from astrozoo.attention.terms import Terms
from attention_mutants.registry import WithTerms, mutant


@mutant("causal_alignment")
class TopLeftCausal(WithTerms):
    """As `is_causal=True` of scaled_dot_product_attention: the first query stands at the first key."""

    def change(self, terms, query, key):
        places = [torch.arange(part.shape[2])[None] for part in (query, key)]
        return terms if terms.positions is not None else terms.replace(positions=tuple(places))


@mutant("causal")
class StrictCausal(WithTerms):
    """A token does not see itself."""

    def change(self, terms, query, key):
        own, other = terms.resolved_positions(query.shape[2], key.shape[2], query.device)
        return terms.replace(positions=(own - 1, other)) if terms.causal else terms


@mutant("causal")
class CausalSeesTheNextToken(WithTerms):
    def change(self, terms, query, key):
        own, other = terms.resolved_positions(query.shape[2], key.shape[2], query.device)
        return terms.replace(positions=(own + 1, other)) if terms.causal else terms


@mutant("causal")
class IgnoresCausalOfItsConfiguration(Flash):
    def _checked(self, given, causal):
        return super()._checked(given, bool(causal))


@mutant("causal_alignment")
class IgnoresPositions(WithTerms):
    def change(self, terms, query, key):
        return terms.replace(positions=None)


@mutant("key_mask_content")
class IgnoresKeyMask(WithTerms):
    def change(self, terms, query, key):
        return terms.replace(key_mask=None)


@mutant("key_mask_content")
class InvertsKeyMask(WithTerms):
    """As `key_padding_mask` of nn.MultiheadAttention, where True hides."""

    def change(self, terms, query, key):
        return terms if terms.key_mask is None else terms.replace(key_mask=~terms.key_mask)


@mutant("key_mask_content")
class SkipsTheMaskOfOneRow(WithTerms):
    """As transformers issue 46773: a batch of one is taken to have no padding."""

    def change(self, terms, query, key):
        mask = terms.key_mask
        if mask is not None:
            mask = torch.cat((torch.ones_like(mask[:1]), mask[1:]))
        return terms.replace(key_mask=mask)


@mutant("dead_rows")
class HidesByTheLeastNumber(Flash):
    """As the eager masks of transformers: a row that sees nothing gives the mean of all values."""

    def attend(self, query, key, value, terms):
        visible = terms.visible(query.shape[2], key.shape[2], query.device)
        if visible is not None:
            low = torch.zeros(visible.shape, dtype=query.dtype).masked_fill(~visible, torch.finfo(query.dtype).min)
            bias = low if terms.bias is None else (low + terms.bias.to(low.dtype)).clamp(min=torch.finfo(low.dtype).min)
            terms = Terms(bias=bias, scale=terms.scale, dropout=terms.dropout)
        return super().attend(query, key, value, terms)


def logits_of(query, key, terms):
    """Scaled logits with -inf where hidden."""
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    scale = query.shape[-1] ** -0.5 if terms.scale is None else terms.scale
    logits = scale * query @ key.transpose(-1, -2)
    if terms.bias is not None:
        logits = logits + terms.bias.to(logits.dtype)
    visible = terms.visible(query.shape[2], key.shape[2], query.device)
    return logits if visible is None else logits.masked_fill(~visible, -torch.inf)


def weighted(weights, value):
    return weights @ value.repeat_interleave(weights.shape[1] // value.shape[1], dim=1)


@mutant("dead_rows")
class SoftmaxOfNothing(Flash):
    """The softmax of a row of -inf is NaN."""

    def attend(self, query, key, value, terms):
        return weighted(logits_of(query, key, terms).softmax(dim=-1), value)


@mutant("dead_rows")
class HidesNaNFromTheForwardPassOnly(Flash):
    """As pytorch issue 103963: zero forward, NaN backward."""

    def attend(self, query, key, value, terms):
        return weighted(logits_of(query, key, terms).softmax(dim=-1).nan_to_num(0), value).nan_to_num(0)


@mutant("dead_rows")
class HasNoAnswerWithoutKeys(Flash):
    def attend(self, query, key, value, terms):
        out = super().attend(query, key, value, terms)
        return out + key.amax() * 0 if key.shape[2] == 0 else out


@mutant("mask_one_key")
class MasksAfterTheSoftmax(Flash):
    """Weights of hidden keys are dropped, and the others not made to sum to one."""

    def attend(self, query, key, value, terms):
        visible = terms.visible(query.shape[2], key.shape[2], query.device)
        bare = terms.replace(mask=None, key_mask=None, segments=None, causal=False)
        weights = logits_of(query, key, bare).softmax(dim=-1)
        return weighted(weights if visible is None else weights * visible, value)

    reference = attend


@mutant("mask_one_key")
class AddsTheMask(WithTerms):
    """A boolean mask is cast and added to the logits."""

    def change(self, terms, query, key):
        if terms.mask is None:
            return terms
        added = terms.mask.to(query.dtype)
        return terms.replace(mask=None, bias=added if terms.bias is None else terms.bias + added)


@mutant("nan_safe")
class HidesTokensOnlyInTheLogits(Flash):
    """Weights are 0 under the mask, but 0 times NaN is NaN in the gradient of the projections."""

    def forward(self, x, context=None, *, key_mask=None, **terms):
        if key_mask is not None and context is None and terms.get("bias") is None:
            hidden = ~key_mask.bool()[:, None, None].expand(-1, 1, x.shape[1], -1)
            terms["bias"] = torch.zeros(hidden.shape, dtype=x.dtype).masked_fill(hidden, -torch.inf)
            key_mask = None
        return super().forward(x, context, key_mask=key_mask, **terms)


@mutant("mask_dtypes")
class TakesMasksOfThreeDimensions(Flash):
    def forward(self, x, context=None, *, mask=None, **terms):
        return super().forward(
            x, context, mask=mask[:, None] if mask is not None and mask.dim() == 3 else mask, **terms
        )


@mutant("mask_dtypes")
class TakesFloatingMasks(Flash):
    """As pytorch issue 99012: whether 0 and 1 are added or select is left to guess."""

    def forward(self, x, context=None, *, mask=None, **terms):
        return super().forward(x, context, mask=None if mask is None else mask.bool(), **terms)


@mutant("mask_dtypes")
class TakesOnlyOneForTrue(Flash):
    def forward(self, x, context=None, *, mask=None, **terms):
        whole = mask is not None and not mask.is_floating_point() and mask.dtype != torch.bool
        return super().forward(x, context, mask=mask == 1 if whole else mask, **terms)


@mutant("segments")
class IgnoresSegments(WithTerms):
    def change(self, terms, query, key):
        return terms.replace(segments=None)


@mutant("segments")
class SeesEarlierSegments(WithTerms):
    def change(self, terms, query, key):
        if terms.segments is None:
            return terms
        own, other = terms.segments
        starts = [torch.cat((part.new_ones(part.shape[0], 1), part.diff(dim=1) != 0), dim=1) for part in (own, other)]
        own, other = (start.bool().cumsum(dim=1) for start in starts)
        return terms.replace(segments=None, mask=(own[:, :, None] >= other[:, None])[:, None])


@mutant("bias_value")
class DropsTheBias(WithTerms):
    def change(self, terms, query, key):
        return terms.replace(bias=None)


@mutant("bias_value")
class AddsTheBiasBeforeScaling(WithTerms):
    def change(self, terms, query, key):
        scale = query.shape[-1] ** -0.5 if terms.scale is None else terms.scale
        return terms if terms.bias is None else terms.replace(bias=terms.bias * scale)


@mutant("bias_value")
class BoundsTheBias(WithTerms):
    """-inf becomes a large number, so hidden keys are seen a little and dead rows live."""

    def change(self, terms, query, key):
        return terms if terms.bias is None else terms.replace(bias=terms.bias.clamp(min=-20))


@mutant("bias_value")
class TakesTheBiasOfTheFirstHead(WithTerms):
    def change(self, terms, query, key):
        return terms if terms.bias is None else terms.replace(bias=terms.bias[:, :1])


@mutant("bias_gradient")
class GivesTheBiasNoGradient(Flash):
    def attend(self, query, key, value, terms):
        terms = terms if terms.bias is None else terms.replace(bias=terms.bias.detach())
        return super().attend(query, key, value, terms)


@mutant("bias_gradient")
class GivesEachRowOfABiasTheGradientOfOne(Flash):
    """Forgets to sum the gradient over the rows that share a bias."""

    def attend(self, query, key, value, terms):
        if terms.bias is not None and terms.bias.shape[0] == 1 and query.shape[0] > 1:
            bias = terms.bias.expand(query.shape[0], -1, -1, -1)
            terms = terms.replace(bias=torch.cat((bias[:1], bias[1:].detach())))
        return super().attend(query, key, value, terms)


@mutant("weights")
class GivesTheLogSumExpAWrongSign(Flash):
    def weights(self, query, key, value, terms):
        weights, lse = super().weights(query, key, value, terms)
        return weights, -lse


@mutant("weights")
class GivesTheLogSumExpToTheBaseTwo(Flash):
    """As flash kernels do inside."""

    def weights(self, query, key, value, terms):
        weights, lse = super().weights(query, key, value, terms)
        return weights, lse / math.log(2)


@mutant("weights")
class ShowsWeightsBeforeTheMask(Flash):
    def weights(self, query, key, value, terms):
        return super().weights(query, key, value, Terms(scale=terms.scale))


@mutant("weights")
class ComputesOtherwiseWhenWeightsAreAsked(Flash):
    """As `need_weights` of nn.MultiheadAttention, which takes another path."""

    def forward_with(self, x, context=None, *, want=("weights",), **terms):
        y, found = super().forward_with(x, context, want=want, **terms)
        return y + 1e-7, found
