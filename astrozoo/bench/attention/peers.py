"""Other libraries' kernels of the same kind, called directly on the same tensors.

flash-linear-attention 0.6 (MIT licence) for the recurrences, NATTEN for neighbourhoods; both run on GPUs only.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from astrozoo.attention import Attention
from astrozoo.bench.attention.cases import KERNEL, grid_shape
from astrozoo.bench.attention.contestants import Contestant
from astrozoo.bench.attention.setting import Setting

__all__ = ["peer_of"]


def peer_of(ours: Contestant, setting: Setting) -> Contestant | str:
    """What does the same as an attention on the same tensors, or why there is nothing; empty if nothing is known."""
    if ours.name not in _PEERS:
        return ""
    name, module, make = _PEERS[ours.name]
    if setting.device == "cpu":
        return f"{name} was left out: its kernels need a GPU"
    try:
        package = importlib.import_module(module)
    except Exception as error:  # without a fitting Triton or CUDA an import raises anything
        return f"{name} was left out: {type(error).__name__}: {error}"
    return Contestant(name, make(package, ours.module, setting), ours.inputs, ours.reference, ours.module)


def _linear(package: Any, module: Attention, setting: Setting) -> Callable[..., Tensor]:  # noqa: ARG001
    def run(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query, key = F.elu(query) + 1, F.elu(key) + 1
        out: Tensor = package.chunk_linear_attn(*map(_by_token, (query, key, value)), scale=1.0, normalize=True)[0]
        return out.transpose(1, 2)

    return run


def _gated_delta(package: Any, module: Attention, setting: Setting) -> Callable[..., Tensor]:  # noqa: ARG001
    norm: Any = module.output_norm

    def run(query: Tensor, key: Tensor, value: Tensor, decay: Tensor, strength: Tensor, gate: Tensor) -> Tensor:
        parts = map(_by_token, (query, key, value, decay, strength))
        out = package.chunk_gated_delta_rule(*parts, scale=1.0)[0].transpose(1, 2)
        gated: Tensor = norm(out) * F.silu(gate)
        return gated

    return run


def _mamba2(package: Any, module: Attention, setting: Setting) -> Callable[..., Tensor]:  # noqa: ARG001
    layer: Any = module

    def run(query: Tensor, key: Tensor, value: Tensor, step: Tensor, gate: Tensor) -> Tensor:
        decay = -step * layer.log_rate.to(step.dtype).exp()[:, None]
        written = (value * step[..., None]).to(value.dtype)
        shared = (heads.expand(-1, value.shape[1], -1, -1) for heads in (query, key))  # one group
        out = package.chunk_simple_gla(*map(_by_token, (*shared, written, decay)), scale=1.0)[0].transpose(1, 2)
        gated = (out + layer.skip[:, None, None] * value) * F.silu(gate)
        normed: Tensor = layer.output_norm(gated.transpose(1, 2).flatten(2))
        return normed.unflatten(2, (value.shape[1], -1)).transpose(1, 2)

    return run


def _neighborhood(package: Any, module: Attention, setting: Setting) -> Callable[..., Tensor]:  # noqa: ARG001
    shape = grid_shape(setting.tokens)
    kernel = tuple(min(KERNEL, side) for side in shape)

    def run(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        cells = (_by_token(heads).unflatten(1, shape) for heads in (query, key, value))
        out: Tensor = package.na2d(*cells, kernel_size=kernel)
        return out.flatten(1, 2).transpose(1, 2)

    return run


def _by_token(heads: Tensor) -> Tensor:
    return heads.transpose(1, 2).contiguous()  # (batch, token, head, ...)


_PEERS: dict[str, tuple[str, str, Callable[[Any, Attention, Setting], Callable[..., Tensor]]]] = {
    "linear": ("fla linear", "fla.ops.linear_attn", _linear),
    "gated_delta": ("fla gated delta", "fla.ops.gated_delta_rule", _gated_delta),
    "mamba2": ("fla simple gla", "fla.ops.simple_gla", _mamba2),
    "neighborhood": ("natten", "natten", _neighborhood),
}
