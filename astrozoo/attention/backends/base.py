"""What backends without masks or groups of their own share. What a backend is: `astrozoo.registry.hookspecs`."""

from __future__ import annotations

import torch
from torch import Tensor

from astrozoo.attention.terms import Terms

__all__ = ["expand_heads", "merged_mask", "scale_of"]


def scale_of(query: Tensor, terms: Terms) -> float:
    """The factor of the logits."""
    return query.shape[-1] ** -0.5 if terms.scale is None else terms.scale


def expand_heads(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Key and value with a head for every head of the query: each is repeated for its group of query heads."""
    groups = query.shape[1] // key.shape[1]
    if groups == 1:
        return key, value

    def expand(heads: Tensor) -> Tensor:
        return heads.unsqueeze(2).expand(-1, -1, groups, -1, -1).flatten(1, 2)

    return expand(key), expand(value)


def merged_mask(
    query: Tensor, key: Tensor, terms: Terms, dtype: torch.dtype, *, causal_in_kernel: bool
) -> Tensor | None:
    """All terms as one mask: bool, or with a bias float of `dtype` with -inf where hidden; None if there are none.

    Shape (batch | 1, head | 1, query, key). With `causal_in_kernel` a causal square without other terms gives None,
    and so does a single query, which sees every key.
    """
    queries, keys = query.shape[2], key.shape[2]
    causal_alone = terms.causal and terms.kind() == "none" and terms.window is None
    if causal_alone and ((causal_in_kernel and queries == keys) or queries == 1):
        return None
    visible = terms.visible(queries, keys, query.device)
    if terms.bias is None:
        return visible
    bias = terms.bias.to(dtype)
    return bias if visible is None else bias.masked_fill(~visible, -torch.inf)
