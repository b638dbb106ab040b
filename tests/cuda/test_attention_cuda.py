"""Attentions on a GPU: every one equals itself in float64 on the CPU, and every kernel equals plain attention.

Skipped, with that reason, where there is no GPU.
"""

from __future__ import annotations

import copy

import pytest
import torch

import astrozoo
from astrozoo import registry
from astrozoo.attention import attend, attend_packed, record_attention
from astrozoo.errors import BackendRefused

# PyTorch warns on its way to a GPU (first cuBLAS call, TF32 left off, Dynamo's tracing); only our own warnings count.
pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.filterwarnings("error::astrozoo.errors.AttentionFallbackWarning"),
]

LENGTHS = [16, 256, 1000, 4096]
TOLERANCE = {torch.float32: 5e-3, torch.bfloat16: 4e-2}  # relative; float32 products may run in TF32


def relative(got, want):
    got, want = (tensor.detach().double().cpu() for tensor in (got, want))
    return float((got - want).norm() / want.norm())


def example(name, length):
    implementation = registry.load_attention(name)
    make = implementation.example_geometry
    return dict(implementation.example), None if make is None else make(length)


def moved(geometry, device):
    if geometry is None:
        return None
    if isinstance(geometry, tuple):
        return tuple(moved(part, device) for part in geometry)
    changed = copy.copy(geometry)
    for field, value in vars(geometry).items():
        if isinstance(value, torch.Tensor):
            object.__setattr__(changed, field, value.to(device))
    return changed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", astrozoo.list_attentions())
def test_gpu_equals_cpu_in_float64_with_gradients(name, length, dtype):
    options, geometry = example(name, length)
    if length > options.get("max_len", length):
        options["max_len"] = length
    torch.manual_seed(0)
    reference = astrozoo.create_attention(name, dim=128, num_heads=4, dtype=torch.float64, **options)
    attention = copy.deepcopy(reference).to("cuda", dtype)
    x = torch.randn(2, length, 128, dtype=torch.float64, requires_grad=True)
    own = x.detach().to("cuda", dtype).requires_grad_()
    context = {"context": x} if reference.spec.needs_context else {}
    if geometry is not None:
        context["geometry"] = geometry
    on_gpu = {"context": own} if reference.spec.needs_context else {}
    if geometry is not None:
        on_gpu["geometry"] = moved(geometry, "cuda")
    want, got = reference(x, **context), attention(own, **on_gpu)
    direction = torch.randn_like(want)
    want.backward(direction)
    got.backward(direction.to("cuda", dtype))
    assert relative(got, want) < TOLERANCE[dtype]
    assert relative(own.grad, x.grad) < 2 * TOLERANCE[dtype]


@pytest.mark.parametrize("kernel", ["sdpa:cudnn", "sdpa:flash", "sdpa:efficient", "flex", "flash_attn", "xformers"])
@pytest.mark.parametrize(
    "terms",
    [
        {},
        {"causal": True},
        {"window": 100, "causal": True},
        {"key_mask": torch.arange(576)[None] < torch.tensor([[576], [300]])},
        {"segments": (torch.arange(576) // 100)[None].expand(2, -1)},
        {"bias": torch.randn(1, 4, 576, 576)},
    ],
    ids=["none", "causal", "window", "key_mask", "segments", "bias"],
)
@pytest.mark.parametrize("dim", [64, 128])
def test_kernel_equals_math_or_refuses(kernel, terms, dim):
    """576 = 64 mod 128: the length at which cuDNN gave wrong gradients with masks."""
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(2, 4, 576, dim, generator=generator) for _ in range(3)]
    on_gpu = {name: term.cuda() if isinstance(term, torch.Tensor) else term for name, term in terms.items()}
    half = [tensor.to("cuda", torch.bfloat16).requires_grad_() for tensor in inputs]
    try:
        got = attend(*half, backend=kernel, **on_gpu)
    except BackendRefused as refused:
        pytest.skip(str(refused))
    exact = [tensor.detach().double().requires_grad_() for tensor in half]
    want = attend(*exact, backend="math", **on_gpu)
    assert relative(got.out, want.out) < 0.02
    gradients = [
        torch.autograd.grad(result.out.square().sum(), source) for result, source in ((got, half), (want, exact))
    ]
    for ours, theirs in zip(*gradients, strict=True):
        assert relative(ours, theirs) < 0.03


def test_rows_that_see_nothing_are_zero_with_finite_gradients():
    for dtype in (torch.bfloat16, torch.float32):
        inputs = [torch.randn(2, 4, 200, 64, device="cuda", dtype=dtype, requires_grad=True) for _ in range(3)]
        key_mask = torch.zeros(2, 200, dtype=torch.bool, device="cuda")
        key_mask[0] = True
        out = attend(*inputs, key_mask=key_mask, causal=True).out
        assert not out[1].any()
        assert all(torch.isfinite(gradient).all() for gradient in torch.autograd.grad(out.sum(), inputs))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("queries", [1, 5])
def test_a_single_key_finds_a_kernel(queries, dtype):
    query = torch.randn(2, 4, queries, 32, device="cuda", dtype=dtype, requires_grad=True)
    key, value = (torch.randn(2, 4, 1, 32, device="cuda", dtype=dtype, requires_grad=True) for _ in range(2))
    out = attend(query, key, value).out
    torch.testing.assert_close(out, value.expand_as(out))
    out.sum().backward()
    assert query.grad.count_nonzero() == 0  # all weight is on the only key, whatever the query


def test_unmasked_attention_runs_fused_and_deterministic_training_repeats_its_bits():
    inputs = [torch.randn(2, 4, 512, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
    with record_attention() as log:
        attend(*inputs, causal=True)
    assert log[0].backend not in ("math", "chunked"), log[0].table()
    torch.use_deterministic_algorithms(True, warn_only=False)
    try:
        runs = []
        for _ in range(2):
            out = attend(*inputs, causal=True).out
            runs.append([out, *torch.autograd.grad(out.square().sum(), inputs)])
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))


@pytest.mark.parametrize("causal", [False, True])
def test_packed_sequences_equal_separate_calls(causal):
    lengths = [100, 1, 300, 37]
    offsets = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], device="cuda")
    q, k, v = (torch.randn(sum(lengths), 4, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    got = attend_packed(q, k, v, cu_seqlens_q=offsets, max_q=max(lengths), causal=causal)
    for start, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        part = [tensor[start:end].transpose(0, 1)[None].double() for tensor in (q, k, v)]
        want = attend(*part, causal=causal, backend="math").out[0].transpose(0, 1)
        assert relative(got[start:end], want) < 0.02


# Inductor of torch 2.11 fails assertions of its own on these with symbolic lengths; with dynamic=False they compile.
SYMBOLIC = {"block_sparse", "neighborhood", "sliding_window"}


@pytest.mark.parametrize("name", astrozoo.list_attentions())
def test_compiles_for_ten_lengths(name, request):
    if name in SYMBOLIC and torch.__version__ < "2.12":
        request.applymarker(pytest.mark.xfail(reason="symbolic lengths in Inductor of torch 2.11", strict=False))
    torch._dynamo.reset()
    torch.manual_seed(0)
    for length in (64, 96, 128, 200, 256, 300, 384, 512, 700, 1024):
        options, geometry = example(name, length)
        options.update({"max_len": 1024} if "max_len" in options else {})
        torch.manual_seed(0)
        if length == 64:
            attention = astrozoo.create_attention(
                name, dim=128, num_heads=4, device="cuda", dtype=torch.bfloat16, **options
            ).eval()
            compiled = torch.compile(attention, fullgraph=True)
        x = torch.randn(2, length, 128, device="cuda", dtype=torch.bfloat16)
        terms = {} if geometry is None else {"geometry": moved(geometry, "cuda")}
        if attention.spec.needs_context:
            terms["context"] = x
        assert relative(compiled(x, **terms), attention(x, **terms)) < 0.03
