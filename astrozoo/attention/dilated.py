"""Attention within segments at several dilations, merged by how much weight each holds.

LongNet, Ding et al. 2023 (arXiv:2307.02486). A branch (segment, dilation) cuts the sequence into segments and keeps in
each every `dilation`-th token, which attend to each other; heads start at different tokens, so that together they keep
all. A query's outputs of all branches are averaged with the sums of their exponentials as weights: dense attention in
which a pair counts once for every branch that holds it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from astrozoo.attention.backends.base import expand_heads
from astrozoo.attention.core import attend_terms, hide_unseen
from astrozoo.attention.module import Attention, AttentionConfig, implement, unsupported
from astrozoo.attention.reference import Dense, dense_attention
from astrozoo.attention.terms import Terms
from astrozoo.nn.checks import each_at_least, fail, same_length
from astrozoo.registry.spec import Paper

__all__ = ["Dilated", "DilatedConfig", "dilated"]


@dataclass(frozen=True, kw_only=True)
class DilatedConfig(AttentionConfig):
    """As `AttentionConfig`, and the branches.

    Attributes:
        segments: Tokens of a segment, for each branch.
        dilations: Of every how many tokens one is kept, for each branch; divides the segment. One of them is 1, or some
            heads would leave tokens without any.
    """

    segments: tuple[int, ...] = (128, 512, 2048)
    dilations: tuple[int, ...] = (1, 4, 16)

    def __post_init__(self) -> None:
        AttentionConfig.__post_init__(self)
        each_at_least(self, 1, "segments", "dilations")
        same_length(self, "dilations", len(self.segments), "one for each of segments")
        if 1 not in self.dilations:
            raise fail(self, "dilations", "numbers of which one is 1, so that every token has keys in every head")
        if any(segment % dilation for segment, dilation in zip(self.segments, self.dilations, strict=True)):
            raise fail(self, "dilations", f"divisors of the segments {self.segments}")


class Dilated(Attention):
    """The merged branches. A head starts at the token of a segment that is its number modulo the dilation."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> Tensor:
        """Attention of every branch in a batch of segments, merged."""
        self._check(terms)
        key, value = expand_heads(query, *hide_unseen(key, value, terms))  # heads of a group keep other tokens
        branches = [
            self._branch(query, key, value, terms, segment, dilation)
            for segment, dilation in zip(self.config.segments, self.config.dilations, strict=True)
        ]
        if len(branches) == 1:
            return branches[0][0]
        return _merge(*zip(*branches, strict=True)).to(query.dtype)

    def _branch(
        self, query: Tensor, key: Tensor, value: Tensor, terms: Terms, segment: int, dilation: int
    ) -> tuple[Tensor, Tensor]:
        """Output (batch, head, token, dim) and log-sum-exp (batch, head, token); 0 and -inf where it keeps no token."""
        batch, heads, tokens, _ = query.shape
        if not torch.compiler.is_compiling() and tokens < segment:  # one segment, no longer than it must be
            segment = max(-(-tokens // dilation), 1) * dilation
        start = torch.arange(heads, device=query.device) % dilation
        real = terms.key_mask
        if real is None:
            real = torch.ones(1, tokens, dtype=torch.bool, device=query.device)
        kept = _keep(real[:, None, :, None].expand(-1, heads, -1, -1), start, segment, dilation)[..., 0]
        if (
            real.shape[0] != batch
        ):  # all rows alike: what is hidden is the padding of the last segment, or a shared mask
            kept = kept.repeat(batch, 1, 1)
        seen = kept[:, :, None].expand(-1, -1, kept.shape[2], -1)
        inner = Terms(causal=terms.causal, mask=seen, scale=terms.scale, dropout=terms.dropout)
        if dilation == 1:
            inner = Terms(causal=terms.causal, key_mask=kept[:, 0], scale=terms.scale, dropout=terms.dropout)
        result = attend_terms(
            _keep(query, start, segment, dilation), _keep(key, start, segment, dilation),
            _keep(value, start, segment, dilation), inner, backend=self.config.backend,
            lse=len(self.config.segments) > 1,
        )  # fmt: skip
        self.last_choice = result.choice
        out = _put_back(result.out, start, batch, tokens, dilation, 0.0)
        if result.lse is None:
            return out, out.new_zeros(out.shape[:3])
        lse = _put_back(result.lse[..., None], start, batch, tokens, dilation, -torch.inf)
        return out, lse[..., 0]

    def reference(self, query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> Tensor:
        """Dense attention with the logarithm of the number of branches that hold a pair as a bias."""
        return self._dense(query, key, value, terms).out

    def weights(self, query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> tuple[Tensor, Tensor]:
        """Weights (batch, head, query, key) of the merged attention, and the log-sum-exp over branches and keys."""
        dense = self._dense(query, key, value, terms)
        return dense.weights, dense.lse

    def _dense(self, query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> Dense:
        self._check(terms)
        heads, tokens = query.shape[1], query.shape[2]
        times = torch.zeros(heads, tokens, tokens, dtype=torch.float64)
        for segment, dilation in zip(self.config.segments, self.config.dilations, strict=True):
            for head in range(heads):
                start = head % dilation
                for first in range(0, tokens, segment):
                    members = [t for t in range(first, min(first + segment, tokens)) if (t - first) % dilation == start]
                    rows = torch.tensor(members, dtype=torch.int64)
                    times[head, rows[:, None], rows] += 1
        return dense_attention(query, key, value, terms.replace(bias=times.log()[None].to(query.device)))

    def _check(self, terms: Terms) -> None:
        if terms.positions is not None and terms.causal:
            raise unsupported("positions together with causal", self.spec.name, causal=True, softmax=True, mask="mask")


def _keep(heads: Tensor, start: Tensor, segment: int, dilation: int) -> Tensor:
    """The tokens that a branch keeps: (batch * segment, head, kept, dim) from (batch, head, token, dim).

    Args:
        heads: Any tensor of that shape; padded with 0, or False, to whole segments.
        start: int64 (head,), at which token of a segment each head starts.
        segment: Tokens of a segment.
        dilation: Of how many tokens one is kept.
    """
    batch, count, tokens, dim = heads.shape
    rows = (tokens + segment - 1) // segment
    padded = F.pad(heads, (0, 0, 0, rows * segment - tokens))
    cut = padded.reshape(batch, count, rows, segment // dilation, dilation, dim)
    if dilation > 1:
        index = start[None, :, None, None, None, None].expand(batch, -1, rows, segment // dilation, 1, dim)
        cut = cut.gather(4, index)
    return cut[..., 0, :].transpose(1, 2).reshape(batch * rows, count, segment // dilation, dim)


def _put_back(kept: Tensor, start: Tensor, batch: int, tokens: int, dilation: int, empty: float) -> Tensor:
    """(batch, head, token, dim) from what `_keep` gave, `empty` where no token was kept."""
    rows, count, slots, dim = kept.shape[0] // batch, *kept.shape[1:]
    cut = kept.reshape(batch, rows, count, slots, 1, dim).transpose(1, 2)  # (batch, head, segment, slot, 1, dim)
    if dilation > 1:
        here = torch.arange(dilation, device=kept.device) == start[:, None]  # (head, dilation)
        cut = cut.expand(-1, -1, -1, -1, dilation, -1).masked_fill(~here[:, None, None, :, None], empty)
    return cut.reshape(batch, count, rows * slots * dilation, dim)[:, :, :tokens]


def _merge(outs: tuple[Tensor, ...], sums: tuple[Tensor, ...]) -> Tensor:
    """The mean of outputs of branches, weighted by the exponentials of their log-sum-exps; 0 where all are -inf."""
    stacked = torch.stack(sums)
    largest = stacked.detach().amax(dim=0)
    weights = (stacked - largest.masked_fill(largest == -torch.inf, 0)).exp()
    total = weights.sum(dim=0)
    mean = (torch.stack(outs).to(weights.dtype) * weights[..., None]).sum(dim=0)
    return mean / total.masked_fill(total == 0, 1)[..., None]


dilated = implement(
    Dilated,
    DilatedConfig,
    name="dilated",
    summary="segments at several dilations merged by log-sum-exp",
    exactness="exact: oracle with log-multiplicity bias; (N,1) equals flash",
    cost="N S d / r",
    causal=True,
    cross=False,
    masks=("key_mask",),
    grouped_query=True,
    cache=None,
    paper=Paper(
        authors="Ding, Ma, Dong, Zhang, Huang, Wang, Zheng, Wei",
        year=2023,
        title="LongNet: Scaling Transformers to 1,000,000,000 Tokens",
        arxiv="2307.02486",
    ),
    exact=False,
    cost_exponent=1.0,
    example={"segments": (4, 8, 16), "dilations": (1, 2, 4)},
)
