"""xFormers' memory-efficient attention (Lefaudeux et al. 2022).

Since 0.0.35 it runs PyTorch's own kernels, or flash-attn's where that is installed: `auto` therefore passes it over and
says so. Force it with `backend="xformers"` to compare.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from astrozoo.attention.backends.base import expand_heads, scale_of
from astrozoo.attention.backends.probe import compare_with_math
from astrozoo.attention.request import AttentionRequest
from astrozoo.attention.terms import Terms
from astrozoo_kernels.packages import load, version_of

__all__ = ["XformersBackend"]

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


class XformersBackend:
    """The backend `xformers`."""

    name = "xformers"
    priority = 80

    def version(self) -> str:
        """Version of xFormers."""
        return version_of("xformers")

    def refusals(self, request: AttentionRequest) -> tuple[str, ...]:
        """As `AttentionBackend.refusals`."""
        _, problem = load("xformers.ops")
        reasons = [problem] if problem else []
        if request.device_type != "cuda":
            reasons.append(f"it needs a CUDA GPU, not {request.device_type}")
        if request.masked:
            reasons.append("masks are left to the same kernel of PyTorch")
        if request.dtype not in _DTYPES:
            reasons.append(f"it takes no {request.dtype}")
        if request.empty:
            reasons.append("there are no queries or no keys")
        if request.lse:
            reasons.append("its log-sum-exp has no gradient")
        if request.deterministic and request.grad:
            reasons.append("its backward is not deterministic")
        if request.compiling:
            reasons.append("torch.compile breaks the graph on it")
        return tuple(reasons)

    def unwanted(self, request: AttentionRequest) -> str:
        """It has no kernel of its own."""
        return "same aten kernel as sdpa"

    def probe(self, request: AttentionRequest) -> str:
        """As `AttentionBackend.probe`."""
        return _probe(request.device, request.dtype, request.head_dim, request.causal)

    def kernel(self, request: AttentionRequest) -> str:
        """Its dispatcher, which picks a kernel of PyTorch or flash-attn."""
        return "memory_efficient_attention"

    def run(
        self, query: Tensor, key: Tensor, value: Tensor, terms: Terms, request: AttentionRequest, kernel: str
    ) -> tuple[Tensor, Tensor | None]:
        """As `AttentionBackend.run`."""
        return _run(query, key, value, terms), None


def _run(query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> Tensor:
    from xformers.ops import LowerTriangularMask, memory_efficient_attention

    key, value = expand_heads(query, key, value)
    causal = terms.causal and query.shape[2] != 1
    out: Tensor = memory_efficient_attention(
        *(heads.transpose(1, 2) for heads in (query, key, value)),  # (batch, token, head, dim)
        attn_bias=LowerTriangularMask() if causal else None, p=terms.dropout, scale=scale_of(query, terms),
    )  # fmt: skip
    return out.transpose(1, 2)


@functools.cache
def _probe(device: str, dtype: torch.dtype, head_dim: int, causal: bool) -> str:
    return compare_with_math(_run, device=device, dtype=dtype, head_dim=head_dim, causal=causal)
