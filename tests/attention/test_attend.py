from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from astrozoo.attention import attend, attend_packed
from astrozoo.attention.reference import dense_attention
from astrozoo.attention.terms import make_terms
from astrozoo.errors import InputError

BACKENDS = ["sdpa", "chunked", "math"]


def heads(*, batch=2, query_heads=4, key_heads=4, queries=9, keys=9, dim=8, value_dim=8, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    return (
        normal(batch, query_heads, queries, dim),
        normal(batch, key_heads, keys, dim),
        normal(batch, key_heads, keys, value_dim),
    )


def dense(query, key, value, **terms):
    shape = {"batch": query.shape[0], "heads": query.shape[1], "queries": query.shape[2], "keys": key.shape[2]}
    return dense_attention(query, key, value, make_terms(**shape, **terms))


def some_terms(name, queries=9, keys=9):
    generator = torch.Generator().manual_seed(1)

    def rand(*shape):
        return torch.rand(*shape, generator=generator)

    return {
        "none": {},
        "causal": {"causal": True},
        "window": {"window": 3},
        "causal window": {"window": 3, "causal": True},
        "key_mask": {"key_mask": rand(2, keys) > 0.3},
        "mask": {"mask": rand(queries, keys) > 0.5},
        "mask of heads": {"mask": rand(1, 4, queries, keys) > 0.5},
        "bias": {"bias": rand(2, 1, queries, keys).double()},
        "bias with holes": {
            "bias": rand(2, 4, queries, keys).double().masked_fill(rand(queries, keys) > 0.7, -torch.inf)
        },
        "segments": {"segments": (torch.arange(queries)[None] // 4, torch.arange(keys)[None] // 4)},
        "positions": {"positions": (torch.arange(queries) * 2, torch.arange(keys) * 2 - 3), "causal": True},
        "all": {"causal": True, "key_mask": rand(2, keys) > 0.3, "mask": rand(queries, keys) > 0.3,
                "bias": rand(queries, keys).double()},
    }[name]  # fmt: skip


TERMS = [
    "none", "causal", "window", "causal window", "key_mask", "mask", "mask of heads", "bias", "bias with holes",
    "segments", "positions", "all",
]  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("terms", TERMS)
@pytest.mark.parametrize("sizes", [(9, 9), (5, 9), (9, 5), (1, 9)], ids=lambda sizes: f"{sizes[0]}x{sizes[1]}")
@pytest.mark.parametrize("key_heads", [4, 2, 1])
def test_every_backend_equals_the_dense_formula_with_gradients(backend, terms, sizes, key_heads):
    inputs = heads(queries=sizes[0], keys=sizes[1], key_heads=key_heads)
    given_terms = some_terms(terms, *sizes)
    got = attend(*inputs, backend=backend, **given_terms)
    want = dense(*inputs, **given_terms).out
    assert got.choice.backend == backend
    torch.testing.assert_close(got.out, want, rtol=0, atol=1e-12)
    direction = torch.randn(want.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    gradients = [torch.autograd.grad(out, inputs, direction) for out in (got.out, want)]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)


@pytest.mark.parametrize("terms", TERMS)
@pytest.mark.parametrize("gradients", [False, True])
def test_log_sum_exp_equals_the_dense_formula(terms, gradients):
    inputs = heads()
    with torch.set_grad_enabled(gradients):
        got = attend(*inputs, lse=True, **some_terms(terms))
    want = dense(*inputs, **some_terms(terms))
    torch.testing.assert_close(got.lse, want.lse, rtol=0, atol=1e-12)
    torch.testing.assert_close(got.out, want.out, rtol=0, atol=1e-12)


def test_log_sum_exp_has_a_gradient():
    inputs = heads()
    ours = torch.autograd.grad(attend(*inputs, lse=True, causal=True).lse.sum(), inputs[:2])
    theirs = torch.autograd.grad(dense(*inputs, causal=True).lse.sum(), inputs[:2])
    for got, want in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-11)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("how", ["key_mask", "mask", "bias", "segments"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_query_that_sees_no_key_gives_zero_and_finite_gradients(backend, how, dtype):
    inputs = heads(dtype=dtype)
    hidden = torch.zeros(9, 9, dtype=torch.bool)
    terms = {
        "key_mask": {"key_mask": torch.zeros(2, 9, dtype=torch.bool)},
        "mask": {"mask": hidden},
        "bias": {"bias": torch.zeros(9, 9, dtype=dtype).masked_fill(~hidden, -torch.inf)},
        "segments": {"segments": (torch.zeros(2, 9, dtype=torch.int64), torch.ones(2, 9, dtype=torch.int64))},
    }[how]
    out = attend(*inputs, backend=backend, **terms).out
    assert out.dtype == dtype
    assert not out.any()
    for gradient in torch.autograd.grad(out.sum(), inputs):
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("how", ["key_mask", "mask", "bias"])
def test_what_is_hidden_from_all_is_never_read(backend, poison, how):
    query, key, value = (tensor.detach() for tensor in heads())
    clean = [query, key.clone(), value.clone()]
    key[:, :, 4], value[:, :, 4] = poison, poison
    seen = torch.ones(9, 9, dtype=torch.bool)
    seen[:, 4] = False
    terms = {
        "key_mask": {"key_mask": seen[:1].expand(2, -1)},
        "mask": {"mask": seen},
        "bias": {"bias": torch.zeros(9, 9).double().masked_fill(~seen, -torch.inf)},
    }[how]
    inputs = [tensor.requires_grad_() for tensor in (query, key, value)]
    out = attend(*inputs, backend=backend, **terms).out
    torch.testing.assert_close(out, attend(*clean, backend=backend, **terms).out, rtol=0, atol=0)
    for gradient in torch.autograd.grad(out.sum(), inputs):
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("backend", ["chunked", "math"])
def test_bias_has_a_gradient(backend):
    inputs = heads()
    bias = torch.randn(2, 4, 9, 9, dtype=torch.float64, requires_grad=True)
    ours = torch.autograd.grad(attend(*inputs, bias=bias, backend=backend).out.square().sum(), bias)[0]
    theirs = torch.autograd.grad(dense(*inputs, bias=bias).out.square().sum(), bias)[0]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)


def test_values_may_be_wider_than_keys():
    inputs = heads(dim=6, value_dim=10)
    torch.testing.assert_close(attend(*inputs).out, dense(*inputs).out, rtol=0, atol=1e-12)


@pytest.mark.parametrize("sizes", [(0, 5), (5, 0)])
def test_empty_sequences_give_empty_or_zero(sizes):
    inputs = heads(queries=sizes[0], keys=sizes[1])
    out = attend(*inputs).out
    assert out.shape == (2, 4, sizes[0], 8)
    assert not out.any()


def test_blocks_of_queries_give_what_the_whole_gives_beyond_one_block():
    inputs = heads(batch=1, query_heads=2, key_heads=1, queries=1030, keys=1100)
    terms = {"causal": True, "key_mask": torch.rand(1, 1100, generator=torch.Generator().manual_seed(3)) > 0.2}
    blocks, whole = (attend(*inputs, backend=name, lse=True, **terms) for name in ("chunked", "math"))
    torch.testing.assert_close(blocks.out, whole.out, rtol=0, atol=1e-12)
    torch.testing.assert_close(blocks.lse, whole.lse, rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", ["chunked", "math"])
def test_mean_over_dropout_is_the_output_without(backend):
    query, key, value = (tensor.detach() for tensor in heads(batch=1, query_heads=1, key_heads=1))
    torch.manual_seed(0)
    runs = [attend(query, key, value, dropout_p=0.5, backend=backend).out for _ in range(4000)]
    assert not torch.equal(runs[0], runs[1])
    torch.testing.assert_close(torch.stack(runs).mean(0), attend(query, key, value).out, rtol=0, atol=0.08)


@settings(deadline=None, max_examples=25)
@given(
    lengths=st.lists(st.integers(0, 7), min_size=1, max_size=5),
    causal=st.booleans(),
    window=st.none() | st.integers(1, 4),
)
def test_packed_sequences_equal_separate_calls(lengths, causal, window):
    offsets = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    total = sum(lengths)
    query, key, value = (tensor.detach()[0].transpose(0, 1) for tensor in heads(batch=1, queries=total, keys=total))
    out = attend_packed(query, key, value, cu_seqlens_q=offsets, max_q=max(lengths), causal=causal, window=window)
    for start, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        part = [tensor[start:end].transpose(0, 1)[None] for tensor in (query, key, value)]
        want = dense(*part, causal=causal, window=window).out[0].transpose(0, 1)
        torch.testing.assert_close(out[start:end], want, rtol=0, atol=1e-12)


def test_packed_keys_of_other_lengths_are_aligned_at_their_ends():
    query, key, value = (tensor.detach()[0].transpose(0, 1) for tensor in heads(batch=1, queries=5, keys=9))
    out = attend_packed(
        query, key, value, cu_seqlens_q=torch.tensor([0, 2, 5]), max_q=3, cu_seqlens_k=torch.tensor([0, 6, 9]), max_k=6,
        causal=True,
    )  # fmt: skip
    for q, k in (((0, 2), (0, 6)), ((2, 5), (6, 9))):
        part = [query[slice(*q)], key[slice(*k)], value[slice(*k)]]
        want = dense(*(tensor.transpose(0, 1)[None] for tensor in part), causal=True).out[0].transpose(0, 1)
        torch.testing.assert_close(out[slice(*q)], want, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({"mask": torch.zeros(9, 9)}, "Pass additive masks as `bias`"),
        ({"mask": torch.ones(2, 9, 9, dtype=torch.bool)}, "Three dimensions are ambiguous"),
        ({"mask": torch.ones(9, 8, dtype=torch.bool)}, r"expected \(batch=2 \| 1, head=4 \| 1, query=9, key=9\)"),
        ({"key_mask": torch.ones(2, 8, dtype=torch.bool)}, r"expected \(batch=2, key=9\)"),
        ({"key_mask": torch.ones(2, 9)}, "expected bool or integers"),
        ({"bias": torch.ones(9, 9, dtype=torch.int64)}, "expected a floating dtype"),
        ({"segments": torch.zeros(2, 9)}, "expected integer ids"),
        ({"segments": torch.zeros(2, 7, dtype=torch.int64)}, "segments of the query have shape"),
        ({"window": 0}, "a query always counts itself"),
        ({"positions": (torch.arange(9), torch.arange(4))}, "context_positions have shape"),
    ],
)
def test_terms_of_another_shape_or_dtype_are_refused(terms, message):
    with pytest.raises(InputError, match=message):
        attend(*heads(), **terms)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q, k, v: (q[0], k, v), "expected four dimensions"),
        (lambda q, k, v: (q, k[..., :4], v), "one dim of queries and keys"),
        (lambda q, k, v: (q, k[:, :3], v[:, :3]), "must divide"),
        (lambda q, k, v: (q, k.float(), v), "expected one floating dtype"),
    ],
)
def test_heads_that_do_not_fit_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        attend(*change(*heads()))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_integers_are_masks_too(dtype):
    inputs = heads()
    mask = torch.rand(9, 9, generator=torch.Generator().manual_seed(0)) > 0.4
    torch.testing.assert_close(attend(*inputs, mask=mask.to(dtype)).out, attend(*inputs, mask=mask).out)
