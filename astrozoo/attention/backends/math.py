"""Plain softmax attention that can do everything: any mask, bias gradient, dropout, log-sum-exp. Memory is N^2."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from astrozoo.attention.backends.base import scale_of
from astrozoo.attention.request import AttentionRequest
from astrozoo.attention.terms import Terms
from astrozoo.nn.precision import full_precision

__all__ = ["MathBackend", "softmax_attention"]


def softmax_attention(
    query: Tensor, key: Tensor, value: Tensor, terms: Terms, *, lse: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Attention with logits and softmax in at least float32, whatever autocast says; arguments as for `attend`."""
    dtype = query.dtype
    inner = torch.promote_types(dtype, torch.float32)
    batch, heads, queries, dim = query.shape
    kv_heads, keys, value_dim = key.shape[1], key.shape[2], value.shape[3]
    with full_precision(query):
        grouped = query.to(inner).reshape(batch, kv_heads, heads // kv_heads * queries, dim)
        logits = (grouped * scale_of(query, terms)) @ key.to(inner).transpose(-1, -2)
        logits = logits.reshape(batch, heads, queries, keys)
        visible = terms.visible(queries, keys, query.device)
        if terms.bias is not None:
            finite = terms.bias != -torch.inf
            visible = finite if visible is None else visible & finite
            logits = logits + terms.bias.to(inner).masked_fill(~finite, 0)  # -inf would give NaN in its gradient
        alive = None
        if visible is not None:
            alive = visible.any(dim=-1, keepdim=True)
            # A row without a visible key keeps finite logits, so that softmax and its gradient stay finite.
            logits = logits.masked_fill(~visible & alive, -torch.inf)
        weights = torch.softmax(logits, dim=-1)
        if alive is not None:
            weights = weights.masked_fill(~alive, 0)
        if terms.dropout > 0:
            weights = F.dropout(weights, terms.dropout)
        out = weights.reshape(batch, kv_heads, heads // kv_heads * queries, keys) @ value.to(inner)
        out = out.reshape(batch, heads, queries, value_dim).to(dtype)
        total = None
        if lse:
            total = torch.logsumexp(logits, dim=-1)
            if alive is not None:
                total = total.masked_fill(~alive[..., 0], -torch.inf)
    return out, total


class MathBackend:
    """The backend `math`."""

    name = "math"
    priority = 10

    def version(self) -> str:
        """Version of PyTorch."""
        return torch.__version__

    def refusals(self, request: AttentionRequest) -> tuple[str, ...]:
        """None: it serves everything."""
        return ()

    def unwanted(self, request: AttentionRequest) -> str:
        """Nothing: it is the last resort."""
        return ""

    def probe(self, request: AttentionRequest) -> str:
        """Nothing to find out: it is what others are compared with."""
        return ""

    def kernel(self, request: AttentionRequest) -> str:
        """Matrix products and a softmax."""
        return "matmul"

    def run(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        terms: Terms,
        request: AttentionRequest,
        kernel: str,
    ) -> tuple[Tensor, Tensor | None]:
        """As `AttentionBackend.run`."""
        return softmax_attention(query, key, value, terms, lse=request.lse)
