"""What the backends say where their package or a GPU is missing; that they agree with plain attention elsewhere."""

from __future__ import annotations

import pytest
import torch
from astrozoo_kernels import flash_attn, packages

import astrozoo
from astrozoo.attention import attend
from astrozoo.attention.backends.math import softmax_attention
from astrozoo.attention.choice import backends
from astrozoo.attention.terms import Terms
from astrozoo.errors import BackendRefused

NAMES = ["flash_attn", "xformers"]


def heads(device="cpu", dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 4, 32, 16, generator=generator).to(device, dtype) for _ in range(3)]


def test_both_come_before_the_kernels_of_pytorch():
    order = list(backends())
    assert order.index("flash_attn") < order.index("xformers") < order.index("sdpa")


@pytest.mark.parametrize("name", NAMES)
def test_forced_on_cpu_is_an_error_that_says_why(name):
    with pytest.raises(BackendRefused, match="it needs a CUDA GPU, not cpu"):
        attend(*heads(), backend=name)


@pytest.mark.parametrize("name", NAMES)
def test_auto_goes_on_and_tells_their_reasons(name):
    choice = attend(*heads()).choice
    assert choice.backend == "sdpa"
    assert any("CUDA GPU" in reason for reason in choice.refused[name])


@pytest.mark.parametrize("name", NAMES)
def test_chain_falls_to_the_next_named_backend(name):
    assert attend(*heads(), backend=(name, "math")).choice.backend == "math"


def test_missing_package_is_told_from_a_broken_one(monkeypatch, tmp_path):
    (tmp_path / "broken_kernel.py").write_text("raise OSError('undefined symbol: cudaFoo')\n")
    (tmp_path / "kernel_without_toolkit.py").write_text("import a_toolkit_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert packages.load("no_such_kernel_package.ops") == (None, "package not installed")
    assert packages.load("broken_kernel") == (None, "its import fails: OSError: undefined symbol: cudaFoo")
    assert packages.load("kernel_without_toolkit") == (None, "its import lacks a_toolkit_that_is_not_there")


@pytest.mark.parametrize("release", flash_attn._RELEASES, ids=lambda release: release.kernel)
@pytest.mark.parametrize(
    ("terms", "window"),
    [
        (Terms(), "unlimited"),
        (Terms(causal=True), "unlimited"),
        (Terms(window=5), (4, 4)),
        (Terms(window=5, causal=True), (4, 0)),
    ],
    ids=["full", "causal", "window", "causal window"],
)
def test_calls_mean_what_the_terms_say(release, terms, window, monkeypatch):
    """The packages run on GPUs only: a stand-in with their documented arguments computes what they would."""
    seen = {}

    class Package:
        @staticmethod
        def flash_attn_func(q, k, v, *, softmax_scale, causal, deterministic, window_size, **options):
            seen.update(window=window_size, options=options)
            left = None if window_size[0] == release.unlimited else window_size[0] + 1
            inner = Terms(causal=causal, window=left, scale=softmax_scale)
            out = softmax_attention(*(x.transpose(1, 2) for x in (q, k, v)), inner)[0].transpose(1, 2)
            return (out, None) if release.kernel != "flash_attn_2" else out

    monkeypatch.setattr(flash_attn, "load", lambda module: (Package, ""))
    query, key, value = heads()
    got = flash_attn._run(release, query, key, value, terms, deterministic=False)
    torch.testing.assert_close(got, softmax_attention(query, key, value, terms)[0])
    assert seen["window"] == ((release.unlimited,) * 2 if window == "unlimited" else window)
    assert ("dropout_p" in seen["options"]) == release.dropout


def test_plugin_is_listed_as_working():
    states = {plugin.name: plugin for plugin in astrozoo.list_plugins(load=True)}
    assert states["astrozoo-kernels"].state == "ok"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("causal", [False, True])
def test_agrees_with_math_on_a_gpu(name, causal):
    inputs = heads("cuda", torch.bfloat16)
    try:
        out = attend(*inputs, causal=causal, backend=name).out
    except BackendRefused as refused:
        pytest.skip(str(refused))
    want = attend(*inputs, causal=causal, backend="math").out
    assert float((out - want).norm()) < 0.02 * float(want.norm())
