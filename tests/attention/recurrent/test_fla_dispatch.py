"""When flash-linear-attention would run, and that its layout is served; its operations are stood in for by formulas."""

from __future__ import annotations

import importlib.machinery
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from astrozoo.attention.recurrent import fla, fla_refusals, gated_delta, linear_attention, state_space
from astrozoo.attention.recurrent.decay import decayed_sums
from astrozoo.attention.recurrent.householder import delta_sums
from astrozoo.errors import BackendRefused


def token_by_token(q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, beta: Tensor | None, **options: Any) -> Any:
    """What the operations of fla compute: (batch, token, head, dim), gates (batch, token, head)."""
    assert q.shape[2] == k.shape[2] == v.shape[2]
    assert all(tensor.is_contiguous() for tensor in (q, k, v))
    assert options["scale"] == 1.0
    assert options["output_final_state"]
    dtype, state = v.dtype, options["initial_state"]
    q, k, v = (tensor.to(torch.promote_types(dtype, torch.float32)) for tensor in (q, k, v))
    state = q.new_zeros(q.shape[0], q.shape[2], q.shape[3], v.shape[3]) if state is None else state
    outs = []
    for t in range(q.shape[1]):
        if g is not None:
            state = g[:, t].exp()[..., None, None] * state
        value = v[:, t]
        if beta is not None:
            value = beta[:, t, :, None] * (value - torch.einsum("bhde,bhd->bhe", state, k[:, t]))
        state = state + torch.einsum("bhd,bhe->bhde", k[:, t], value)
        outs.append(torch.einsum("bhde,bhd->bhe", state, q[:, t]))
    return torch.stack(outs, dim=1).to(dtype), state


def simple_gla(*, g: Tensor | None, **given: Any) -> Any:
    return token_by_token(g=g, beta=None, **given)


def delta_rule(*, g: Tensor, beta: Tensor, **given: Any) -> Any:
    return token_by_token(g=g, beta=beta, **given)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """`installed()` puts a package `fla` with these operations in place; others can be given."""
    forget = [fla._import_problem.cache_clear, fla._probe.cache_clear]  # before a test puts something in their place

    def install(chunk_simple_gla: Any = simple_gla, chunk_gated_delta_rule: Any = delta_rule) -> None:
        for name in ("fla", "fla.ops", "fla.ops.simple_gla", "fla.ops.gated_delta_rule"):
            module = ModuleType(name)
            module.__spec__ = importlib.machinery.ModuleSpec(name, None)
            module.__dict__.update(chunk_simple_gla=chunk_simple_gla, chunk_gated_delta_rule=chunk_gated_delta_rule)
            monkeypatch.setitem(sys.modules, name, module)
        for clear in forget:
            clear()

    yield install
    for clear in forget:
        clear()


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> None:
    """No package `fla`, whatever this environment has."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "fla" else find(name, *rest))


@pytest.mark.usefixtures("absent")
def test_without_the_package_all_reasons_are_told():
    reasons = fla_refusals("delta", device="cpu", dtype=torch.float64)
    assert "flash-linear-attention is not installed" in reasons
    assert any("CUDA GPU" in reason and "on cpu" in reason for reason in reasons)
    assert any("float64" in reason for reason in reasons)


@pytest.mark.parametrize(
    "call",
    [
        lambda x, backend: linear_attention(x, x, x, causal=True, backend=backend),
        lambda x, backend: gated_delta(x, x, x, backend=backend),
        lambda x, backend: gated_delta(x, x, x, erase=False, backend=backend),
        lambda x, backend: state_space(x, x[..., 0], torch.zeros(2), x, x, backend=backend),
    ],
    ids=["linear", "delta", "gated", "state space"],
)
def test_on_the_cpu_it_is_passed_over_unless_forced(call):
    x = torch.rand(1, 2, 5, 4)
    assert torch.equal(call(x, "auto")[0], call(x, "torch")[0])
    with pytest.raises(BackendRefused, match=r"CUDA GPU.*backend='torch' runs everywhere"):
        call(x, "fla")


@pytest.mark.parametrize(
    ("features", "values", "multiplied"),
    [
        (torch.bfloat16, torch.bfloat16, torch.bfloat16),
        (torch.float32, torch.bfloat16, torch.bfloat16),
        (torch.float32, torch.float16, torch.float32),
        (torch.float64, torch.float32, torch.float64),
    ],
)
def test_wide_features_are_narrowed_only_where_no_range_is_lost(monkeypatch, features, values, multiplied):
    asked = []
    monkeypatch.setattr(fla, "fla_refusals", lambda rule, **request: asked.append(request["dtype"]) or ())
    q, v = torch.ones(1, 1, 1, 5, 4, dtype=features), torch.ones(1, 1, 1, 5, 4, dtype=values)
    assert fla.takes_fla("fla", "linear", q, q, v)
    assert asked == [multiplied]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dtype": torch.float64}, "no float64"),
        ({"dtype": torch.float32}, "TF32"),
        ({"key_dim": 320}, "wider than 256, here 320"),
        ({"grad": True, "value_dim": 33}, "even widths only in half precision, here 64 and 33"),
        ({"segments": True}, "segments"),
        ({"tokens": 0}, "no token"),
        ({"causal": False}, "causal, over as many keys as queries"),
        ({"compiling": True}, "traced graph"),
    ],
    ids=["float64", "float32", "wide", "odd", "segments", "empty", "not causal", "compiling"],
)
def test_what_it_cannot_do_is_named(installed, monkeypatch, change, reason):
    installed()
    monkeypatch.setattr(fla, "_probe", lambda *given: "")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert fla_refusals("delta", device="cuda", dtype=torch.bfloat16, grad=True) == ()
    (only,) = fla_refusals("delta", **{"device": "cuda", "dtype": torch.bfloat16, **change})
    assert reason in only


def test_float32_is_taken_where_tf32_is_allowed(installed, monkeypatch):
    installed()
    monkeypatch.setattr(fla, "_probe", lambda *given: "")
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    assert fla_refusals("linear", device="cuda", dtype=torch.float32) == ()


@pytest.mark.parametrize(
    ("capability", "triton", "wrong"),
    [
        (9, "3.3.1", False),
        (9, "3.4.0", True),
        (9, "3.6.0+git1234", True),
        (9, "3.7.0", True),
        (9, "3.7.1", False),
        (9, "3.10.0", False),
        (8, "3.6.0", False),
        (10, "3.6.0", False),
    ],
)
def test_wrong_gradients_on_hopper_are_refused(installed, monkeypatch, capability, triton, wrong):
    installed()
    monkeypatch.setattr(fla, "_probe", lambda *given: "")
    monkeypatch.setattr(fla, "_version", lambda package: triton)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (capability, 0))
    given = {"device": "cuda", "dtype": torch.bfloat16}
    for rule in ("gated", "delta"):
        assert bool(fla_refusals(rule, **given, grad=True)) == wrong
        assert fla_refusals(rule, **given, grad=False) == ()
    assert fla_refusals("linear", **given, grad=True) == ()


def test_a_package_that_cannot_be_imported_is_a_reason(installed, monkeypatch):
    installed()
    monkeypatch.setitem(sys.modules, "fla.ops.gated_delta_rule", None)
    (reason,) = fla_refusals("linear", device="cuda", dtype=torch.bfloat16)
    assert "cannot be imported: ModuleNotFoundError" in reason


def wrong(**given: Any) -> Any:
    out, state = simple_gla(**given)
    return 1.1 * out, state


def failing(**given: Any) -> Any:
    raise RuntimeError("no such kernel image")


@pytest.mark.parametrize(
    ("operation", "verdict"),
    [(simple_gla, ""), (wrong, "wrong values on cpu"), (failing, "fails on cpu: RuntimeError: no such kernel image")],
    ids=["right", "wrong", "failing"],
)
@pytest.mark.parametrize("grad", [True, False])
def test_a_kernel_is_tried_before_it_is_trusted(installed, operation, verdict, grad):
    installed(chunk_simple_gla=operation)
    for rule in ("linear", "gated"):
        got = fla._probe(rule, torch.device("cpu"), torch.bfloat16, 16, 8, grad)
        assert verdict in got
        assert bool(got) == bool(verdict)
    assert fla._probe("delta", torch.device("cpu"), torch.bfloat16, 16, 8, grad) == ""


def parts(*, readers: int, writers: int) -> dict[str, Tensor]:
    """Queries of `readers` members; values, decays and states of `writers` members; keys shared by a group."""
    return {
        "q": torch.randn(2, 3, readers, 20, 4, dtype=torch.float64),
        "k": F.normalize(torch.randn(2, 3, 1, 20, 4, dtype=torch.float64), dim=-1),
        "v": torch.randn(2, 3, writers, 20, 5, dtype=torch.float64),
        "log_decay": -torch.rand(2, 3, writers, 20, dtype=torch.float64),
        "state": torch.randn(2, 3, writers, 4, 5).double(),
    }


@pytest.mark.parametrize(("readers", "writers"), [(1, 1), (2, 1), (1, 2)], ids=["plain", "shared keys", "shared maps"])
@pytest.mark.parametrize("continued", [True, False])
def test_layouts_and_groups_are_served(agree, installed, readers, writers, continued):
    installed()
    tensors = parts(readers=readers, writers=writers)
    if not continued:
        del tensors["state"]
    agree(fla.fla_decayed_sums, decayed_sums, tensors)
    if writers == 1:
        tensors["beta"] = torch.rand(2, 3, 1, 20, dtype=torch.float64)
        agree(fla.fla_delta_sums, delta_sums, tensors)


def test_no_decay_is_served(agree, installed):
    installed()
    tensors = parts(readers=2, writers=1)
    del tensors["log_decay"]
    agree(
        lambda **given: fla.fla_decayed_sums(**given, log_decay=None),
        lambda **given: decayed_sums(**given, log_decay=None),
        tensors,
    )
    tensors["beta"] = torch.rand(2, 3, 1, 20, dtype=torch.float64)
    agree(
        lambda **given: fla.fla_delta_sums(**given, log_decay=None),
        lambda **given: delta_sums(**given, log_decay=None),
        tensors,
    )


@pytest.mark.parametrize(
    "call",
    [
        lambda x, m: linear_attention(x.exp(), x[:, :2].exp(), x[:, :2], causal=True, key_mask=m),
        lambda x, m: gated_delta(x, x[:, :2], x[:, :2], -x[:, :2, :, 0].abs(), x[:, :2, :, 1].sigmoid(), key_mask=m),
        lambda x, m: gated_delta(x, x[:, :2], x[:, :2], -x[:, :2, :, 0].abs(), erase=False, key_mask=m),
        lambda x, m: state_space(x, x[..., 0].abs(), -torch.ones(4), x[:, :2], x[:, :2], x[0, :, 0, 0], key_mask=m),
    ],
    ids=["linear", "delta", "gated", "state space"],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_functions_give_the_same_by_either_kernel(installed, monkeypatch, call, dtype):
    """Taken on the CPU for once: masks and groups are prepared before the choice, so both must agree."""
    installed()
    x, mask = (torch.randn(2, 4, 30, 6) / 2).to(dtype), torch.rand(2, 30) < 0.8
    want, want_state = call(x, mask)
    for module in ("linear", "delta", "ssd"):
        monkeypatch.setattr(f"astrozoo.attention.recurrent.{module}.takes_fla", lambda *given, **options: True)
    got, state = call(x, mask)
    assert got.dtype == want.dtype
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-5
    for mine, theirs in zip((got, *state), (want, *want_state), strict=True):
        assert mine.shape == theirs.shape
        assert (mine.float() - theirs.float()).norm() <= tolerance * theirs.float().norm()
