"""Whole layers, projections and all, of this library and of others, on the same tokens."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from astrozoo.bench.attention.cases import case_of
from astrozoo.bench.attention.contestants import Contestant, build
from astrozoo.bench.attention.setting import Setting

__all__ = ["LAYERS", "layer", "peer_layer"]


def layer(name: str, setting: Setting) -> Contestant:
    """The attention `name` of the registry as a layer."""
    module, geometry = build(name, setting), case_of(name).geometry(setting)
    return _contestant(name, module, lambda x: module(x, causal=setting.causal, geometry=geometry), setting)


def peer_layer(name: str, setting: Setting) -> Contestant | str:
    """The layer of another library that does what the attention `name` does, or why there is none."""
    title, make = LAYERS[name]
    if setting.device == "cpu" and title.startswith("fla"):
        return f"{title} was left out: its kernels need a GPU"
    try:
        module, call = make(setting)
        module = module.to(setting.device, setting.dtype)
    except Exception as error:  # without a fitting Triton or CUDA an import raises anything
        return f"{title} was left out: {type(error).__name__}: {error}"
    return _contestant(title, module, call, setting)


def _contestant(name: str, module: nn.Module, call: Callable[[Tensor], Tensor], setting: Setting) -> Contestant:
    shape = (setting.batch, setting.tokens, setting.width)
    x = torch.randn(shape, device=setting.device, dtype=setting.dtype, requires_grad=True)
    return Contestant(name, lambda x, *_: call(x), (x, *module.parameters()))  # a step needs all these gradients


def _torch_multihead(setting: Setting) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    module = nn.MultiheadAttention(setting.width, setting.heads, bias=False, batch_first=True)

    def call(x: Tensor) -> Tensor:
        # Beside is_causal a mask must be given, although it is then not read: this one takes no memory.
        mask = x.new_zeros(()).expand(x.shape[1], x.shape[1]) if setting.causal else None
        out: Tensor = module(x, x, x, need_weights=False, attn_mask=mask, is_causal=setting.causal)[0]
        return out

    return module, call


def _fla(name: str, **options: Any) -> Callable[[Setting], tuple[nn.Module, Callable[[Tensor], Tensor]]]:
    def make(setting: Setting) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
        sizes = {"hidden_size": setting.width, "num_heads": setting.heads}
        if "expand" in options:  # Mamba-2 counts heads of its widened channels
            sizes["head_dim"] = options["expand"] * setting.head_dim
        elif "expand_v" in options:
            sizes["head_dim"] = setting.head_dim
        module: nn.Module = getattr(importlib.import_module("fla.layers"), name)(**sizes, **options)
        return module, lambda x: module(x)[0]

    return make


LAYERS: dict[str, tuple[str, Callable[[Setting], tuple[nn.Module, Callable[[Tensor], Tensor]]]]] = {
    "flash": ("nn.MultiheadAttention", _torch_multihead),
    "linear": ("fla LinearAttention", _fla("LinearAttention", feature_map="elu", output_norm="identity")),
    "gated_delta": ("fla GatedDeltaNet", _fla("GatedDeltaNet", expand_v=1)),
    "mamba2": ("fla Mamba2", _fla("Mamba2", expand=2, state_size=64)),
}
