"""The kernels of flash-linear-attention (Triton), where it is installed, the tensors are on CUDA, and it can be right.

Written against fla 0.6 (MIT licence); its operations take (batch, token, head, dim), the same number of heads for all,
and gates in log space. Every kernel is tried once, forward and backward, before it is trusted.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import re
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from astrozoo.attention.backends.probe import for_real
from astrozoo.attention.recurrent.decay import decayed_sums
from astrozoo.attention.recurrent.householder import delta_sums
from astrozoo.errors import BackendRefused
from astrozoo.nn.precision import full_precision

__all__ = ["Backend", "Rule", "fla_decayed_sums", "fla_delta_sums", "fla_refusals", "takes_fla"]

Backend = Literal["auto", "torch", "fla"]
Rule = Literal["linear", "gated", "delta"]

PACKAGE = "flash-linear-attention"
WIDEST_KEY = 256  # of the delta rule's kernel, which asserts it
HOPPER = 9
WRONG_FROM, WRONG_UNTIL = (3, 4, 0), (3, 7, 1)  # Triton; fla itself refuses these backwards on Hopper (its issue 640)


def takes_fla(
    backend: Backend,
    rule: Rule,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *gates: Tensor | None,
    causal: bool = True,
    segments: bool = False,
) -> bool:
    """Whether a call goes to flash-linear-attention: yes if it can and is not forbidden.

    Args:
        backend: What the caller asked for.
        rule: Which kernel.
        q: As in the kernels below.
        k: As in the kernels below.
        v: As in the kernels below.
        gates: Decay, strength and state, which may want a gradient too.
        causal: Whether query i sees keys up to i, and as many keys as queries are given.
        segments: Whether the state is emptied within the sequence.

    Raises:
        BackendRefused: If `backend` is `fla` and it cannot; the message says why.
    """
    compiling = torch.compiler.is_compiling()
    if backend == "torch" or (backend == "auto" and (compiling or not v.is_cuda)):
        return False
    wants = [tensor for tensor in (q, k, v, *gates) if tensor is not None]
    grad = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in wants)
    dtype = torch.promote_types(torch.promote_types(q.dtype, k.dtype), v.dtype)
    if v.dtype == torch.bfloat16:
        dtype = v.dtype  # its range is that of float32, so features in float32 only lose digits that v does not have
    reasons = fla_refusals(
        rule,
        device=v.device,
        dtype=dtype,
        key_dim=k.shape[-1],
        value_dim=v.shape[-1],
        tokens=v.shape[-2],
        grad=grad,
        causal=causal,
        segments=segments,
        compiling=compiling,
    )
    if reasons and backend == "fla":
        raise BackendRefused(f"fla cannot run {rule!r}: {'; '.join(reasons)}. backend='torch' runs everywhere.")
    return not reasons


def fla_refusals(
    rule: Rule,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    key_dim: int = 64,
    value_dim: int = 64,
    tokens: int = 64,
    grad: bool = False,
    causal: bool = True,
    segments: bool = False,
    compiling: bool = False,
) -> tuple[str, ...]:
    """Why flash-linear-attention would not run a call, or nothing if it would. Masked keys are no reason.

    Args:
        rule: `linear` (no decay), `gated` (scalar decay: gated linear attention, RetNet, Mamba-2), or `delta`.
        device: Of the tensors.
        dtype: What is multiplied: bfloat16 where v is, otherwise the widest of q, k and v.
        key_dim: Width of a key.
        value_dim: Width of a value.
        tokens: Length of the sequence.
        grad: Whether a gradient is wanted.
        causal: Whether query i sees keys up to i, and as many keys as queries are given.
        segments: Whether the state is emptied within the sequence.
        compiling: Whether the call is traced.
    """
    device = torch.device(device)
    reasons = [
        reason
        for applies, reason in (
            (device.type != "cuda", f"its kernels need a CUDA GPU, and the tensors are on {device.type}"),
            (compiling, "its operations break a traced graph"),
            (dtype == torch.float64, "it has no float64"),
            (
                dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest",
                "it multiplies float32 in TF32, which torch.set_float32_matmul_precision does not allow here",
            ),
            (rule == "delta" and key_dim > WIDEST_KEY, f"keys are wider than {WIDEST_KEY}, here {key_dim}"),
            (
                grad and dtype.itemsize == 2 and bool(key_dim % 2 or value_dim % 2),
                f"its backward takes even widths only in half precision, here {key_dim} and {value_dim}",
            ),
            (tokens == 0, "there is no token"),
            (not causal, "its sums are causal, over as many keys as queries"),
            (segments, "it takes segments only as lengths known on the CPU"),
        )
        if applies
    ]
    if importlib.util.find_spec("fla") is None:
        return (f"{PACKAGE} is not installed", *reasons)
    if device.type != "cuda":
        return tuple(reasons)
    if problem := _import_problem():
        return (problem, *reasons)
    if grad and rule != "linear":
        reasons.extend(_hopper_problem(torch.cuda.get_device_capability(device)[0], _version("triton")))
    if not reasons and (problem := _probe(rule, device, dtype, key_dim, value_dim, grad)):
        reasons.append(problem)
    return tuple(reasons)


def fla_decayed_sums(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, *, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """As `decayed_sums`, by `fla.ops.simple_gla.chunk_simple_gla`; the state in float32."""
    operation = importlib.import_module("fla.ops.simple_gla").chunk_simple_gla
    return _run(operation, q, k, v, {"g": log_decay}, state)


def fla_delta_sums(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, beta: Tensor, *, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """As `delta_sums`, by `fla.ops.gated_delta_rule.chunk_gated_delta_rule`; the state in float32."""
    operation = importlib.import_module("fla.ops.gated_delta_rule").chunk_gated_delta_rule
    gate = torch.zeros_like(beta, dtype=torch.float32) if log_decay is None else log_decay
    return _run(operation, q, k, v, {"g": gate, "beta": beta}, state)


def _run(
    operation: Callable[..., Any],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: dict[str, Tensor | None],
    state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Give every query head a copy of what its group shares, in the dtype of `v`, and take one state a group."""
    dtype = v.dtype
    lead = torch.broadcast_shapes(q.shape[:3], k.shape[:3], v.shape[:3])
    members = max(k.shape[2], v.shape[2], *(gate.shape[2] for gate in gates.values() if gate is not None))

    def spread(tensor: Tensor, trailing: int) -> Tensor:
        heads = tensor.expand(*lead, *tensor.shape[3:]).flatten(1, 2)
        return heads.transpose(1, 2).contiguous() if trailing else heads

    given = {name: None if gate is None else spread(gate, 1) for name, gate in gates.items()}
    out, last = operation(
        q=spread(q.to(dtype), 1),
        k=spread(k.to(dtype), 1),
        v=spread(v, 1),
        scale=1.0,
        initial_state=None if state is None else spread(state, 0).contiguous(),
        output_final_state=True,
        **given,
    )
    last = last.unflatten(1, lead[1:])[:, :, :members]
    return out.transpose(1, 2).unflatten(1, lead[1:]), last


@functools.cache
def _import_problem() -> str:
    """Why the package that is there cannot be used, or an empty string."""
    try:
        importlib.import_module("fla.ops.simple_gla")
        importlib.import_module("fla.ops.gated_delta_rule")
    except Exception as error:  # whatever it or Triton raises, the kernels are not to be had
        return f"{PACKAGE} cannot be imported: {type(error).__name__}: {error}"
    return ""


def _hopper_problem(capability: int, triton: str) -> tuple[str, ...]:
    """The backwards of gated rules are wrong for some versions of Triton on Hopper."""
    number = tuple(int(part) for part in re.findall(r"\d+", triton)[:3])
    if capability == HOPPER and WRONG_FROM <= number < WRONG_UNTIL:
        return (f"Triton {triton} gives wrong gradients of gated rules on Hopper; 3.7.1 and later are right",)
    return ()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "0"


@functools.cache
def _probe(rule: Rule, device: torch.device, dtype: torch.dtype, key_dim: int, value_dim: int, grad: bool) -> str:
    """Run a kernel on a small input and compare it with ours; why it is not to be trusted, or an empty string."""
    with for_real():
        return _compare_with_ours(rule, device, dtype, key_dim, value_dim, grad)


def _compare_with_ours(
    rule: Rule, device: torch.device, dtype: torch.dtype, key_dim: int, value_dim: int, grad: bool
) -> str:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(1, 2, 1, 80, *shape, generator=generator).to(device)

    q, k, v, weight = (draw(dim).to(dtype) for dim in (key_dim, key_dim, value_dim, value_dim))
    k = torch.nn.functional.normalize(k, dim=-1)
    log_decay = None if rule == "linear" else -0.1 * draw().abs()
    beta = draw().sigmoid()
    found: list[list[Tensor]] = []
    try:
        with torch.enable_grad(), full_precision(v):
            for fast in (False, True):
                query, key, value = (
                    tensor.to(dtype if fast else torch.float32, copy=True).requires_grad_(grad) for tensor in (q, k, v)
                )
                if rule == "delta":
                    out = (fla_delta_sums if fast else delta_sums)(query, key, value, log_decay, beta)[0]
                else:
                    out = (fla_decayed_sums if fast else decayed_sums)(query, key, value, log_decay)[0]
                grads = torch.autograd.grad(out, (query, key, value), weight.to(out.dtype)) if grad else ()
                found.append([tensor.detach().float() for tensor in (out, *grads)])
    except Exception as error:  # whatever Triton raises
        return f"it fails on {device}: {type(error).__name__}: {error}"
    for got, want in zip(found[1], found[0], strict=True):
        if not float((got - want).norm()) <= 0.03 * float(want.norm()):
            return f"it gives wrong values on {device}"
    return ""
