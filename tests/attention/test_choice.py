from __future__ import annotations

import re

import pytest
import torch

import astrozoo
from astrozoo.attention import attend, record_attention, use_backend
from astrozoo.attention import choice as chosen
from astrozoo.attention.backends.sdpa import SdpaBackend
from astrozoo.attention.flash import flash
from astrozoo.attention.request import AttentionRequest, describe
from astrozoo.attention.terms import Terms
from astrozoo.errors import AttentionFallbackWarning, BackendRefused, ConfigError


def heads(**options):
    return [torch.randn(1, 2, 8, 16, **options) for _ in range(3)]


REQUEST = AttentionRequest(
    device="cpu", dtype=torch.float32, queries=8, keys=8, square=True, single=False, one_key=False, empty=False,
    head_dim=16, v_head_dim=16, heads=2, kv_heads=2, causal=False, window=None, mask="none", bias_grad=False,
    dropout=False, grad=False, lse=False, deterministic=False, compiling=False,
)  # fmt: skip


def test_auto_takes_the_fused_kernel_and_says_why_not_the_others():
    choice = attend(*heads()).choice
    assert (choice.backend, choice.kernel, choice.version) == ("sdpa", "FLASH_ATTENTION", torch.__version__)
    assert any("on cpu it has no gradients" in reason for reason in choice.refused["flex"])
    assert "sdpa" in choice.table()


@pytest.mark.parametrize("backend", ["sdpa", "sdpa:flash", "math", "chunked", ("flex", "math")])
def test_forced_backend_runs(backend):
    expected = backend[-1] if isinstance(backend, tuple) else backend
    assert attend(*heads(), backend=backend).choice.backend == expected


def test_forced_backend_that_cannot_is_an_error_with_all_reasons():
    with pytest.raises(BackendRefused, match=r"(?s)flex: on cpu it has no gradients.*sdpa: FLASH_ATTENTION: it drops"):
        attend(*heads(), dropout_p=0.1, backend=("flex", "sdpa"))


def test_unknown_backend_offers_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'sdpa'"):
        attend(*heads(), backend="sdap")


def test_block_overrides_auto_only():
    with use_backend("math"):
        assert attend(*heads()).choice.backend == "math"
        assert attend(*heads(), backend="sdpa").choice.backend == "sdpa"
    assert attend(*heads()).choice.backend == "sdpa"


def test_block_of_an_unknown_backend_is_refused_at_once():
    with pytest.raises(ConfigError), use_backend("quick"):
        pass


def test_environment_overrides_auto(monkeypatch):
    monkeypatch.setenv("ASTROZOO_ATTENTION_BACKEND", "flex, math")
    assert attend(*heads()).choice.backend == "math"


def test_strict_mode_allows_no_unfused_attention_on_an_accelerator(monkeypatch):
    on_accelerator = REQUEST._replace(device="xpu", queries=4096, keys=4096)
    with pytest.warns(AttentionFallbackWarning, match="computing in full"):
        assert chosen.resolve(on_accelerator, "auto")[1].backend == "chunked"
    monkeypatch.setenv("ASTROZOO_ATTENTION_STRICT", "1")
    with pytest.raises(BackendRefused, match="ASTROZOO_ATTENTION_STRICT=1"):
        chosen.resolve(on_accelerator, "auto")
    assert chosen.resolve(REQUEST._replace(dropout=True), "auto")[1].backend == "math"


@pytest.mark.parametrize(
    ("change", "kernel"),
    [
        ({}, "CUDNN_ATTENTION"),
        ({"causal": True}, "CUDNN_ATTENTION"),
        ({"mask": "key"}, "EFFICIENT_ATTENTION"),
        ({"mask": "bias"}, "EFFICIENT_ATTENTION"),
        ({"causal": True, "square": False}, "EFFICIENT_ATTENTION"),
        ({"dropout": True}, "FLASH_ATTENTION"),
        ({"head_dim": 320, "v_head_dim": 320}, "EFFICIENT_ATTENTION"),
        ({"dtype": torch.float32}, "EFFICIENT_ATTENTION"),
    ],
    ids=str,
)
def test_kernel_on_cuda_is_the_fastest_that_is_safe(change, kernel, monkeypatch):
    """Decided from the request alone; the probe, which needs the device, is taken to pass."""
    from astrozoo.attention.backends import sdpa

    monkeypatch.setattr(sdpa, "_probe", lambda *_: "")
    request = REQUEST._replace(device="cuda:0", dtype=torch.bfloat16, grad=True)._replace(**change)
    backend = sdpa.SdpaBackend()
    assert backend.refusals(request) == ()
    assert backend.kernel(request) == kernel


def test_deterministic_training_on_cuda_takes_no_kernel_with_atomics():
    from astrozoo.attention.backends.sdpa import SdpaBackend

    request = REQUEST._replace(device="cuda:0", dtype=torch.bfloat16, grad=True, deterministic=True)
    assert SdpaBackend().refusals(request)
    assert SdpaBackend().refusals(request._replace(grad=False)) == ()


def test_kernel_that_fails_its_probe_is_passed_over(monkeypatch):
    from astrozoo.attention.backends import sdpa

    monkeypatch.setattr(sdpa, "_probe", lambda kernel, *_: "it gives wrong values" if "CUDNN" in kernel else "")
    request = REQUEST._replace(device="cuda:0", dtype=torch.bfloat16)
    assert sdpa.SdpaBackend().kernel(request) == "FLASH_ATTENTION"


def test_recorded_calls_are_those_that_ran():
    attention = flash.build(dim=32, num_heads=2)
    with record_attention() as log:
        attention(torch.randn(1, 5, 32))
        attention(torch.randn(1, 5, 32), causal=True)
    assert [choice.request.causal for choice in log] == [False, True]
    assert attention.last_choice is log[-1]


def test_explanation_tells_the_kernel_without_running_it():
    attention = flash.build(dim=32, num_heads=2, dropout=0.1)
    x = torch.randn(1, 3000, 32)
    text = astrozoo.explain_attention(attention, x)
    assert re.search("sdpa +FLASH_ATTENTION: it drops no weights", text)
    assert re.search("chunked +runs matmul in blocks", text)
    assert attention.last_choice is None
    attention.eval()
    assert "runs FLASH_ATTENTION" in astrozoo.explain_attention(attention, x, causal=True)


def test_explanation_of_a_forced_backend_is_its_refusal():
    attention = flash.build(dim=32, num_heads=2, backend="flex")
    with pytest.raises(BackendRefused, match="on cpu it has no gradients"):
        astrozoo.explain_attention(attention, torch.randn(1, 4, 32))


def test_lengths_under_compilation_share_a_graph():
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("inductor")
    attention = flash.build(dim=32, num_heads=2, num_kv_heads=1, rope=True).eval()
    compiled = torch.compile(attention, fullgraph=True, backend=counter)
    for length in (16, 24, 37, 64, 96, 128, 200, 256, 300, 511):
        x = torch.randn(2, length, 32)
        key_mask = torch.arange(length)[None] < torch.tensor([[length], [length - 3]])
        torch.testing.assert_close(
            compiled(x, key_mask=key_mask, causal=True), attention(x, key_mask=key_mask, causal=True)
        )
    assert counter.frame_count <= 2  # one for the first length, one for all others


def test_one_compiled_graph_may_run_on_two_backends(monkeypatch):
    monkeypatch.setattr(chosen, "_in_use", {})  # as in a process that compiles for the first time

    def both(query, key, value):
        return attend(query, key, value).out + attend(query, key, value, backend="math").out

    inputs = heads()
    compiled = torch.compile(both, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*inputs), both(*inputs))


def test_cudnn_is_left_out_where_there_is_one_key():
    """PyTorch's cuDNN kernel takes no single key; a masked autoencoder of small fields sees no more than one patch."""
    asked = REQUEST._replace(device="cuda:0", dtype=torch.bfloat16, queries=1, keys=1, single=True)
    assert not SdpaBackend("CUDNN_ATTENTION").refusals(asked)
    assert "no single key" in SdpaBackend("CUDNN_ATTENTION").refusals(asked._replace(one_key=True))[0]
    assert not SdpaBackend().refusals(asked._replace(one_key=True))  # others take it


@pytest.mark.parametrize("keys", [1, 2])
def test_description_tells_of_a_single_key(keys):
    query, key, value = torch.randn(1, 2, 3, 16), torch.randn(1, 2, keys, 16), torch.randn(1, 2, keys, 16)
    assert describe(query, key, value, Terms(), lse=False).one_key == (keys == 1)
