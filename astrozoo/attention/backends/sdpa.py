"""PyTorch's `scaled_dot_product_attention`, with the kernel forced, so that what ran is known and not guessed.

Kernels in order of preference: on CUDA cuDNN (never with a mask tensor, which gives wrong gradients there: PyTorch
issue 196678), FlashAttention 2 (takes no mask), the memory-efficient one; on CPU the flash kernel, which takes masks.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from astrozoo.attention.backends.base import expand_heads, merged_mask, scale_of
from astrozoo.attention.backends.probe import compare_with_math
from astrozoo.attention.request import AttentionRequest
from astrozoo.attention.terms import Terms

__all__ = ["KERNELS", "SdpaBackend"]

_HALF = (torch.float16, torch.bfloat16)
KERNELS = {
    "CUDNN_ATTENTION": SDPBackend.CUDNN_ATTENTION,
    "FLASH_ATTENTION": SDPBackend.FLASH_ATTENTION,
    "EFFICIENT_ATTENTION": SDPBackend.EFFICIENT_ATTENTION,
}


class SdpaBackend:
    """The backend `sdpa`, or with `only` one of its kernels, such as `sdpa:efficient`."""

    priority = 70

    def __init__(self, only: str | None = None) -> None:
        self.only = only
        self.name = "sdpa" if only is None else f"sdpa:{only.removesuffix('_ATTENTION').lower()}"

    def version(self) -> str:
        """Version of PyTorch."""
        return torch.__version__

    def refusals(self, request: AttentionRequest) -> tuple[str, ...]:
        """As `AttentionBackend.refusals`: empty if any of the kernels can."""
        reasons = []
        for name in self._candidates(request):
            why = _REFUSALS[name](request)
            if not why:
                return ()
            reasons.append(f"{name}: {why}")
        return tuple(reasons) or (f"it has no fused kernel on {request.device_type}",)

    def unwanted(self, request: AttentionRequest) -> str:
        """Nothing: where it can it is fast."""
        return ""

    def kernel(self, request: AttentionRequest) -> str:
        """The first kernel that can and whose probe passes."""
        able = [name for name in self._candidates(request) if not _REFUSALS[name](request)]
        for name in able:
            if not _probe(name, request.device, request.dtype, request.head_dim, request.causal):
                return name
        return able[0]

    def probe(self, request: AttentionRequest) -> str:
        """As `AttentionBackend.probe`, for the kernel that would run."""
        return _probe(self.kernel(request), request.device, request.dtype, request.head_dim, request.causal)

    def run(
        self, query: Tensor, key: Tensor, value: Tensor, terms: Terms, request: AttentionRequest, kernel: str
    ) -> tuple[Tensor, Tensor | None]:
        """As `AttentionBackend.run`."""
        return _run(query, key, value, terms, kernel, lse=request.lse)

    def _candidates(self, request: AttentionRequest) -> tuple[str, ...]:
        names: tuple[str, ...] = tuple(KERNELS) if request.device_type == "cuda" else ()
        if request.device_type == "cpu":
            names = ("FLASH_ATTENTION",)
        return names if self.only is None else tuple(name for name in names if name == self.only)


def _run(
    query: Tensor, key: Tensor, value: Tensor, terms: Terms, kernel: str, *, lse: bool
) -> tuple[Tensor, Tensor | None]:
    on_cpu = query.device.type == "cpu"
    if on_cpu or kernel == "EFFICIENT_ATTENTION":
        key, value = expand_heads(query, key, value)
    half_on_cpu = on_cpu and query.dtype in _HALF
    mask = merged_mask(query, key, terms, torch.float32 if half_on_cpu else query.dtype, causal_in_kernel=True)
    causal = terms.causal and mask is None
    if causal and query.shape[2] == 1:  # a branch: under torch.compile the comparison alone is a symbol, not a bool
        causal = False
    scale = scale_of(query, terms)
    if lse:  # only without gradients, see the refusals
        out, total = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, causal, attn_mask=_float_mask(mask, query), scale=scale
        )
        return _without_dead_rows(out, total, mask)
    alive = None
    if mask is not None and not on_cpu:
        # The memory-efficient kernel gives NaN gradients for rows that see nothing; let them see all, then drop them.
        visible = mask if mask.dtype == torch.bool else mask != -torch.inf
        alive = visible.any(dim=-1, keepdim=True)
        mask = mask | ~alive if mask.dtype == torch.bool else mask.masked_fill(~alive, 0)
        mask = mask.expand(-1, query.shape[1], -1, -1)
    with sdpa_kernel([KERNELS[kernel]]):
        out = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=terms.dropout, is_causal=causal, scale=scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )  # fmt: skip
    return out if alive is None else out.masked_fill(~alive, 0), None


def _float_mask(mask: Tensor | None, query: Tensor) -> Tensor | None:
    if mask is None or mask.dtype != torch.bool:
        return mask
    dtype = torch.float32 if query.dtype in _HALF else query.dtype
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, -torch.inf)


def _without_dead_rows(out: Tensor, total: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    if mask is None:
        return out, total
    visible = mask if mask.dtype == torch.bool else mask != -torch.inf
    dead = ~visible.any(dim=-1)
    return out.masked_fill(dead[..., None], 0), total.masked_fill(dead, -torch.inf)


def _refuse_flash(request: AttentionRequest) -> str:
    if request.device_type == "cpu":
        return _refuse_flash_on_cpu(request)
    if request.masked:
        return "it takes no mask"
    if request.deterministic and request.grad:
        return "its backward is not deterministic"
    return _refuse_half_kernels(request, limit=256)


def _refuse_flash_on_cpu(request: AttentionRequest) -> str:
    if request.empty:
        return "there are no queries or no keys"
    if request.dropout:
        return "it drops no weights"
    if request.head_dim != request.v_head_dim:
        return f"v_head_dim {request.v_head_dim} is not head_dim {request.head_dim}"
    if request.bias_grad:
        return "it gives no gradient of a bias"
    if request.lse and request.grad:
        return "its log-sum-exp has no gradient"
    if request.dtype not in (*_HALF, torch.float32, torch.float64):
        return f"it takes no {request.dtype}"
    return ""


def _refuse_cudnn(request: AttentionRequest) -> str:
    if request.masked:
        return "with a mask tensor it gives wrong gradients (PyTorch issue 196678)"
    if request.deterministic and request.grad:
        return "its backward is not deterministic"
    if request.dropout:
        return "its dropout follows no generator of PyTorch's eager kernels"
    if request.one_key:
        return "it takes no single key"
    return _refuse_half_kernels(request, limit=256)


def _refuse_half_kernels(request: AttentionRequest, *, limit: int) -> str:
    if request.lse:
        return "it returns no log-sum-exp here"
    if request.empty:
        return "there are no queries or no keys"
    if request.dtype not in _HALF:
        return f"it takes no {request.dtype}"
    if request.head_dim != request.v_head_dim:
        return f"v_head_dim {request.v_head_dim} is not head_dim {request.head_dim}"
    if request.head_dim > limit:
        return f"head_dim {request.head_dim} is above {limit}"
    return ""


def _refuse_efficient(request: AttentionRequest) -> str:
    if request.lse:
        return "it returns no log-sum-exp here"
    if request.empty:
        return "there are no queries or no keys"
    if request.dtype not in (*_HALF, torch.float32):
        return f"it takes no {request.dtype}"
    if request.bias_grad and request.deterministic:
        return "its gradient of a bias is not deterministic"
    if request.deterministic and request.grad:
        return "its backward is not deterministic"
    return ""


_REFUSALS = {
    "CUDNN_ATTENTION": _refuse_cudnn,
    "FLASH_ATTENTION": _refuse_flash,
    "EFFICIENT_ATTENTION": _refuse_efficient,
}


@functools.cache
def _probe(kernel: str, device: str, dtype: torch.dtype, head_dim: int, causal: bool) -> str:
    """As `AttentionBackend.probe`, once for each kind of call."""

    def run(query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> Tensor:
        return _run(query, key, value, terms, kernel, lse=False)[0]

    problem = compare_with_math(run, device=device, dtype=dtype, head_dim=head_dim, causal=causal)
    return f"{kernel}: {problem}" if problem else ""
