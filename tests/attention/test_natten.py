"""Dispatch to NATTEN, with a package of the same interface in its place: what it gets, and why it is passed over."""

from __future__ import annotations

import types

import pytest
import torch

import astrozoo
from astrozoo.attention import Grid, record_attention
from astrozoo.attention.backends import natten as backend
from astrozoo.attention.neighborhood import neighborhood
from astrozoo.attention.terms import Terms
from astrozoo.attention.tiling import tiled_neighborhood
from astrozoo.errors import BackendRefused

SHAPE, KERNEL = (6, 7), (3, 4)


def kernel_of(dims):
    """(batch, *shape, head, dim) in and out, as the package has it."""

    def run(query, key, value, *, kernel_size, is_causal, scale):
        shape = tuple(query.shape[1 : 1 + dims])
        flat = (part.flatten(1, dims).transpose(1, 2) for part in (query, key, value))
        out = tiled_neighborhood(*flat, shape=shape, kernel=kernel_size, causal=is_causal, scale=scale)
        return out.transpose(1, 2).unflatten(1, shape)

    return run


@pytest.fixture
def installed(monkeypatch):
    """A package `natten`, trusted on any device."""
    package = types.ModuleType("natten")
    package.__version__ = "0.0.test"
    package.HAS_LIBNATTEN = True
    for dims in (1, 2, 3):
        setattr(package, f"na{dims}d", kernel_of(dims))
    monkeypatch.setattr(backend, "_package", lambda: package)
    backend.probe_natten.cache_clear()
    yield package
    backend.probe_natten.cache_clear()


def refusals(*, terms=None, periodic=(False, False), kernel=KERNEL, biased=False, dtype=torch.float32, dim=8, **cast):
    query = torch.empty(2, 2, 42, dim, dtype=dtype, device="meta")
    found = backend.natten_refusals(
        query, query, terms or Terms(), shape=SHAPE, periodic=periodic, kernel=kernel, biased=biased
    )
    return [reason for reason in found if "CUDA" not in reason]


def test_package_that_is_not_there_is_a_reason():
    backend._package.cache_clear()
    attention = neighborhood.build(dim=16, num_heads=2, kernel=3, backend="natten")
    with pytest.raises(BackendRefused, match="natten is not installed"):
        attention(torch.randn(1, 10, 16))
    attention = neighborhood.build(dim=16, num_heads=2, kernel=3, backend=("natten", "math"))
    attention(torch.randn(1, 10, 16))
    assert attention.last_choice.backend == "math"
    assert attention.last_choice.refused["natten"] == ("the package natten is not installed",)
    assert backend.natten_version() == ""


def test_cpu_is_a_reason(installed):
    attention = neighborhood.build(dim=16, num_heads=2, kernel=3)
    attention(torch.randn(1, 10, 16))
    assert attention.last_choice.refused["natten"] == ("its kernels run on CUDA, not on cpu",)
    assert "its kernels run on CUDA" in attention.last_choice.table()


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"periodic": (False, True)}, "periodic"),
        ({"kernel": (3, 1)}, "one cell"),
        ({"biased": True}, "relative bias"),
        ({"terms": Terms(key_mask=torch.ones(2, 42, dtype=torch.bool))}, "key_mask"),
        ({"terms": Terms(dropout=0.1)}, "drops no weights"),
        ({"terms": Terms(causal=True, positions=(torch.zeros(1, 42), torch.zeros(1, 42)))}, "positions"),
        ({"dtype": torch.float64}, "float64"),
        ({"dim": 12}, "multiple of 8"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_it_cannot_do_is_a_reason(installed, given, reason):
    assert refusals() == []
    (found,) = refusals(**given)
    assert reason in found


def test_build_without_kernels_is_a_reason(installed):
    installed.HAS_LIBNATTEN = False
    assert refusals() == ["the installed natten was built without its kernels"]


def test_broken_package_is_a_reason(monkeypatch):
    def broken(name):
        raise OSError("undefined symbol")

    monkeypatch.setattr(backend.importlib, "import_module", broken)
    backend._package.cache_clear()
    try:
        assert refusals() == ["the package natten cannot be imported: OSError: undefined symbol"]
    finally:
        backend._package.cache_clear()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kv_heads", [2, 1])
def test_kernel_gets_what_it_expects(installed, monkeypatch, causal, kv_heads):
    ours = neighborhood.build(dim=16, num_heads=2, num_kv_heads=kv_heads, kernel=(3, 9), backend="sdpa")
    theirs = neighborhood.build(dim=16, num_heads=2, num_kv_heads=kv_heads, kernel=(3, 9))
    theirs.load_state_dict(ours.state_dict())
    monkeypatch.setattr("astrozoo.attention.neighborhood.natten_refusals", lambda *args, **given: ())
    x, grid = torch.randn(2, 42, 16), Grid(SHAPE)
    with record_attention() as log:
        y = theirs(x, geometry=grid, causal=causal)
    assert (theirs.last_choice.backend, theirs.last_choice.kernel) == ("natten", "na2d")
    assert theirs.last_choice in log
    torch.testing.assert_close(y, ours(x, geometry=grid, causal=causal))
    assert "runs na2d (0.0.test)" in astrozoo.explain_attention(theirs, x, geometry=grid)


def test_kernel_that_fails_its_probe_is_passed_over(installed, monkeypatch):
    installed.na1d = lambda query, key, value, **given: 2 * kernel_of(1)(query, key, value, **given)
    monkeypatch.setattr("astrozoo.attention.neighborhood.natten_refusals", lambda *args, **given: ())
    attention = neighborhood.build(dim=16, num_heads=2, kernel=3)
    attention(torch.randn(1, 10, 16))
    assert "output differs from the tiled form" in attention.last_choice.refused["natten"][0]
    assert attention.last_choice.backend != "natten"


def test_kernel_that_raises_is_passed_over(installed, monkeypatch):
    def broken(*args, **given):
        raise RuntimeError("no kernel image")

    installed.na1d = broken
    monkeypatch.setattr("astrozoo.attention.neighborhood.natten_refusals", lambda *args, **given: ())
    attention = neighborhood.build(dim=16, num_heads=2, kernel=3, backend="natten")
    with pytest.raises(BackendRefused, match="RuntimeError: no kernel image"):
        attention(torch.randn(1, 10, 16))
