"""Softmax attention in blocks of queries (Rabe and Staats 2021, arXiv:2112.05682): all that `math` can, in O(N) memory.

Each block is computed again in the backward pass, so that no N^2 tensor is kept; it serves long sequences that the
fused kernels refuse, on CPU above all: dropout, gradients of a bias, values wider than keys.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from astrozoo.attention.backends.math import softmax_attention
from astrozoo.attention.request import AttentionRequest
from astrozoo.attention.terms import Terms

__all__ = ["ChunkedBackend"]

LONG = 2048  # keys from which `auto` prefers blocks to the whole
BLOCK = 512


class ChunkedBackend:
    """The backend `chunked`."""

    name = "chunked"
    priority = 20

    def version(self) -> str:
        """Version of PyTorch."""
        return torch.__version__

    def refusals(self, request: AttentionRequest) -> tuple[str, ...]:
        """Under torch.compile the number of blocks would be baked in."""
        return ("the number of blocks is not fixed under torch.compile",) if request.compiling else ()

    def unwanted(self, request: AttentionRequest) -> str:
        """Why `auto` passes it over although it could: short sequences are faster in one piece."""
        if request.keys is not None and request.queries is not None and min(request.keys, request.queries) < LONG:
            return f"fewer than {LONG} tokens are faster in one piece"
        return ""

    def probe(self, request: AttentionRequest) -> str:
        """Nothing to find out: it runs the operations of `math`."""
        return ""

    def kernel(self, request: AttentionRequest) -> str:
        """Matrix products and a softmax on blocks of queries."""
        return f"matmul in blocks of {BLOCK}"

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
        queries, keys = query.shape[2], key.shape[2]
        if terms.blocks is not None:
            seen = terms.blocks.visible(queries, keys)
            terms = terms.replace(blocks=None, mask=seen[None, None] if terms.mask is None else terms.mask & seen)
        if terms.causal or terms.window is not None:
            terms = terms.replace(positions=terms.resolved_positions(queries, keys, query.device))
        outs: list[Tensor] = []
        sums: list[Tensor] = []
        for start in range(0, max(queries, 1), BLOCK):
            part = slice(start, start + BLOCK)
            block, own = query[:, :, part], terms.rows(part)
            if request.grad:
                out, total = checkpoint(softmax_attention, block, key, value, own, lse=request.lse, use_reentrant=False)
            else:
                out, total = softmax_attention(block, key, value, own, lse=request.lse)
            outs.append(out)
            if total is not None:
                sums.append(total)
        return torch.cat(outs, dim=2), torch.cat(sums, dim=2) if request.lse else None
