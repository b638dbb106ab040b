"""FlashAttention 4, 3 or 2, the newest that is installed.

Dao 2023 (arXiv:2307.08691), Shah et al. 2024 (arXiv:2407.08608). Betas change signatures and results between releases,
so every kind of call is tried once on the device and compared with plain attention before it is used.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from astrozoo.attention.backends.base import scale_of
from astrozoo.attention.backends.probe import TOKENS, compare_with_math
from astrozoo.attention.request import AttentionRequest
from astrozoo.attention.terms import Terms
from astrozoo_kernels.packages import load, version_of

__all__ = ["FlashAttnBackend"]


@dataclass(frozen=True)
class _Release:
    """One generation of the package.

    Attributes:
        kernel: What the choice calls it.
        module: Where its `flash_attn_func` lives.
        distribution: Whose version is shown.
        capability: Lowest compute capability.
        unlimited: What stands for "no limit" in its window sizes.
        head_dim: Widest head.
        dropout: Whether it drops weights.
    """

    kernel: str
    module: str
    distribution: str
    capability: tuple[int, int]
    unlimited: int | None
    head_dim: int
    dropout: bool


_RELEASES = (
    _Release("flash_attn_4", "flash_attn.cute.interface", "flash-attn-4", (9, 0), None, 128, dropout=False),
    _Release("flash_attn_3", "flash_attn_interface", "flash-attn-3", (9, 0), -1, 256, dropout=False),
    _Release("flash_attn_2", "flash_attn.flash_attn_interface", "flash-attn", (8, 0), -1, 256, dropout=True),
)


class FlashAttnBackend:
    """The backend `flash_attn`."""

    name = "flash_attn"
    priority = 90

    def version(self) -> str:
        """Versions of the generations that are installed."""
        return ", ".join(
            f"{release.distribution} {version}"
            for release in _RELEASES
            if (version := version_of(release.distribution))
        )

    def refusals(self, request: AttentionRequest) -> tuple[str, ...]:
        """As `AttentionBackend.refusals`."""
        reasons = [f"it needs a CUDA GPU, not {request.device_type}"] if request.device_type != "cuda" else []
        if request.mask != "none":
            reasons.append(f"it takes no mask of kind {request.mask}")
        if request.dtype not in (torch.float16, torch.bfloat16):
            reasons.append(f"it takes no {request.dtype}")
        if request.empty:
            reasons.append("there are no queries or no keys")
        if request.lse:
            reasons.append("its log-sum-exp has no gradient in every release")
        if request.head_dim != request.v_head_dim:
            reasons.append(f"v_head_dim {request.v_head_dim} is not head_dim {request.head_dim}")
        if request.compiling:
            reasons.append("torch.compile cannot trace it in every release")
        installed = [(release, *load(release.module)) for release in _RELEASES]
        if not any(module for _, module, _ in installed):
            reasons.extend(f"{release.kernel}: {problem}" for release, _, problem in installed)
        elif not reasons and not _able(request):
            reasons.append(f"no installed release takes head_dim {request.head_dim}, dropout or this GPU")
        return tuple(reasons)

    def unwanted(self, request: AttentionRequest) -> str:
        """Nothing: where it can it is the fastest."""
        return ""

    def probe(self, request: AttentionRequest) -> str:
        """As `AttentionBackend.probe`: empty if the newest release that is able passes, or an older one does."""
        problems = [(release, _probe(release, *_kind(request))) for release in _able(request)]
        if any(not problem for _, problem in problems):
            return ""
        return "; ".join(f"{release.kernel}: {problem}" for release, problem in problems)

    def kernel(self, request: AttentionRequest) -> str:
        """The newest release that is able and passes its probe."""
        able = _able(request)
        for release in able:
            if not _probe(release, *_kind(request)):
                return release.kernel
        return able[0].kernel

    def run(
        self, query: Tensor, key: Tensor, value: Tensor, terms: Terms, request: AttentionRequest, kernel: str
    ) -> tuple[Tensor, Tensor | None]:
        """As `AttentionBackend.run`."""
        release = next(release for release in _RELEASES if release.kernel == kernel)
        return _run(release, query, key, value, terms, deterministic=request.deterministic), None


def _able(request: AttentionRequest) -> list[_Release]:
    """Installed releases that serve the head width, dropout and GPU of the request, newest first."""
    if request.device_type != "cuda":
        return []
    capability = torch.cuda.get_device_capability(torch.device(request.device))
    return [
        release
        for release in _RELEASES
        if load(release.module)[0] is not None
        and capability >= release.capability
        and request.head_dim <= release.head_dim
        and request.head_dim % 8 == 0
        and (release.dropout or not request.dropout)
    ]


def _kind(request: AttentionRequest) -> tuple[str, torch.dtype, int, bool, bool, bool]:
    return (
        request.device, request.dtype, request.head_dim, request.causal, request.window is not None,
        request.deterministic,
    )  # fmt: skip


@functools.cache
def _probe(
    release: _Release, device: str, dtype: torch.dtype, head_dim: int, causal: bool, window: bool, deterministic: bool
) -> str:
    def run(query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> Tensor:
        return _run(release, query, key, value, terms, deterministic=deterministic)

    return compare_with_math(
        run, device=device, dtype=dtype, head_dim=head_dim, causal=causal, window=TOKENS // 4 if window else None
    )


def _run(release: _Release, query: Tensor, key: Tensor, value: Tensor, terms: Terms, *, deterministic: bool) -> Tensor:
    module, _ = load(release.module)
    attend: Callable[..., Any] = module.flash_attn_func  # type: ignore[union-attr]  # it is installed, or not able
    reach = release.unlimited if terms.window is None else terms.window - 1
    options: dict[str, Any] = {"dropout_p": terms.dropout} if release.dropout else {}
    answer = attend(
        *(heads.transpose(1, 2) for heads in (query, key, value)),  # (batch, token, head, dim)
        softmax_scale=scale_of(query, terms), causal=terms.causal, deterministic=deterministic,
        window_size=(reach, 0 if terms.causal and terms.window is not None else reach), **options,
    )  # fmt: skip
    out: Tensor = answer[0] if isinstance(answer, (tuple, list)) else answer  # some releases add the log-sum-exp
    return out.transpose(1, 2)
