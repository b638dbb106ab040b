"""Kernels called directly, on the tensors that the interface gets: what `flash` is measured against."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from astrozoo.attention.backends.flex import compiled_flex
from astrozoo.attention.reference import dense_attention
from astrozoo.attention.terms import Terms
from astrozoo.bench.attention.contestants import Contestant
from astrozoo.bench.attention.setting import Setting

__all__ = ["kernels", "naive"]

Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]

_SDPA = {
    "sdpa cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa flash": SDPBackend.FLASH_ATTENTION,
    "sdpa efficient": SDPBackend.EFFICIENT_ATTENTION,
}
_FLASH_ATTN = {
    "flash-attn-4": "flash_attn.cute.interface",
    "flash-attn-3": "flash_attn_interface",
    "flash-attn-2": "flash_attn.flash_attn_interface",
}


def kernels(ours: Contestant, setting: Setting) -> tuple[list[Contestant], list[str]]:
    """The fused kernels that take a request without masks, on the inputs of `flash`; and what is missing."""
    found: dict[str, Kernel] = {}
    notes = []
    if setting.device == "cpu":
        found["sdpa"] = functools.partial(F.scaled_dot_product_attention, is_causal=setting.causal)
    else:
        found |= {name: _sdpa(backend, setting.causal) for name, backend in _SDPA.items()}
        found["flex"] = _flex(setting)
        for name, module in _FLASH_ATTN.items():
            try:
                function = importlib.import_module(module).flash_attn_func
            except Exception as error:  # a binary for another torch or CUDA raises anything
                notes.append(f"{name} was left out: {type(error).__name__}: {error}")
            else:
                found[name] = _flash_attn(function, setting.causal)
    return [Contestant(name, run, ours.inputs, _reference(setting), ours.module) for name, run in found.items()], notes


def naive(ours: Contestant, setting: Setting) -> Contestant:
    """Two matrix products and a softmax, as in a textbook, in the dtype of the inputs."""

    def run(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        logits = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
        if setting.causal:
            tokens = query.shape[2]
            hidden = torch.ones(tokens, tokens, dtype=torch.bool, device=query.device).triu(1)
            logits = logits.masked_fill(hidden, -torch.inf)
        return logits.softmax(-1) @ value

    return Contestant("naive", run, ours.inputs, _reference(setting), ours.module)


def _reference(setting: Setting) -> Kernel:
    return lambda query, key, value: dense_attention(query, key, value, Terms(causal=setting.causal)).out


def _sdpa(backend: SDPBackend, causal: bool) -> Kernel:
    def run(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        with sdpa_kernel([backend]):
            return F.scaled_dot_product_attention(query, key, value, is_causal=causal)

    return run


def _flex(setting: Setting) -> Kernel:
    @functools.cache
    def blocks(tokens: int) -> Any:
        from torch.nn.attention.flex_attention import create_block_mask

        def earlier(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:  # noqa: ARG001
            return query >= key

        return create_block_mask(earlier, None, None, tokens, tokens, device=setting.device)

    def run(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out: Tensor = compiled_flex()(query, key, value, block_mask=blocks(query.shape[2]) if setting.causal else None)
        return out

    return run


def _flash_attn(function: Callable[..., Any], causal: bool) -> Kernel:
    def run(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        answer = function(*(heads.transpose(1, 2) for heads in (query, key, value)), causal=causal)
        out: Tensor = answer[0] if isinstance(answer, tuple) else answer  # some releases add the log-sum-exp
        return out.transpose(1, 2)

    return run
