"""Features of linear attention: positive, unbiased, orthogonal, and causal however they are kept in range."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from astrozoo.attention.recurrent import elu_features, linear_attention, orthogonal_projection, softmax_features
from astrozoo.errors import InputError


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def performer(q, k, v, projection, *, causal, state=None):
    features = softmax_features(q, projection, query=True), softmax_features(k, projection, query=False)
    return linear_attention(*features, v, causal=causal, state=state)


def test_elu_features_are_positive_and_keep_the_dtype():
    x = torch.linspace(-20, 20, 101, dtype=torch.bfloat16)
    assert (elu_features(x) > 0).all()
    assert elu_features(x).dtype == torch.bfloat16
    x = torch.linspace(-3, 3, 50, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(elu_features(x), F.elu(x) + 1)
    assert torch.autograd.gradcheck(elu_features, (x,))
    still = torch.zeros(1, requires_grad=True)
    assert torch.autograd.grad(elu_features(still), still)[0] == 1


@pytest.mark.parametrize(("features", "dim"), [(1, 1), (7, 3), (64, 16), (16, 64)])
def test_directions_of_a_block_are_orthogonal(features, dim):
    projection = orthogonal_projection(features, dim, dtype=torch.float64)
    assert projection.shape == (features, dim)
    for block in projection.split(dim):
        product = block @ block.T
        off = product - torch.diag(product.diagonal())
        assert off.abs().max() < 1e-12 * max(1, product.abs().max())


def test_every_row_is_normally_distributed():
    """Mean, variance and fourth moment of 1, whatever the signs that the decomposition chose."""
    rows = torch.stack([orthogonal_projection(3, 3, generator=seeded(seed)) for seed in range(4000)])
    assert rows.mean(0).abs().max() < 0.06
    torch.testing.assert_close(rows.var(0), torch.ones(3, 3), rtol=0, atol=0.09)
    torch.testing.assert_close(rows.pow(4).mean(0), torch.full((3, 3), 3.0), rtol=0, atol=0.6)
    assert (rows[:, 0, 0].sign().mean()).abs() < 0.06


def test_a_generator_fixes_the_features():
    first, again, other = (orthogonal_projection(20, 8, generator=seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_kernel_is_unbiased():
    """The mean of phi(q)'phi(k) over draws is exp(q'k / sqrt(dim)), once the query's divisor is undone."""
    q, k = (0.5 * torch.randn(1, 8, dtype=torch.float64) for _ in range(2))
    estimates = []
    for seed in range(3000):
        projection = orthogonal_projection(8, 8, generator=seeded(seed), dtype=torch.float64)
        scaled = q * 8**-0.25
        divisor = (scaled @ projection.T).amax(-1) - scaled.square().sum(-1) / 2
        phi_q, phi_k = softmax_features(q, projection, query=True), softmax_features(k, projection, query=False)
        estimates.append((phi_q * phi_k).sum(-1) * divisor.exp() / math.sqrt(8))
    got = torch.stack(estimates).mean()
    assert abs(got - ((q * k).sum() * 8**-0.5).exp()) < 0.01


@pytest.mark.parametrize("causal", [True, False])
def test_error_falls_with_the_root_of_the_number_of_features(causal):
    """The Monte-Carlo law is 2 for 4 times as many features; the mean is over 6 draws."""
    q, k, v = (0.5 * torch.randn(2, 2, 128, 32) for _ in range(3))
    want = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    errors = []
    for features in (128, 512, 2048, 8192):
        runs = [
            performer(q, k, v, orthogonal_projection(features, 32, generator=seeded(seed)), causal=causal)[0]
            for seed in range(6)
        ]
        errors.append(sum(float((run - want).norm() / want.norm()) for run in runs) / len(runs))
    for more, fewer in pairwise(reversed(errors)):
        assert 1.5 <= fewer / more <= 2.2


def test_later_keys_change_nothing_earlier_however_large():
    projection = orthogonal_projection(64, 16, generator=seeded(0))
    q, k, v = (torch.randn(1, 2, 100, 16) for _ in range(3))
    before, _ = performer(q, k, v, projection, causal=True)
    k[:, :, 80:] *= 30
    after, _ = performer(q, k, v, projection, causal=True)
    assert torch.equal(before[:, :, :80], after[:, :, :80])


def test_states_of_chunks_are_on_one_scale():
    projection = orthogonal_projection(64, 16, generator=seeded(0))
    q, k, v = (torch.randn(1, 2, 100, 16, dtype=torch.float64) for _ in range(3))
    k[:, :, 50:] *= 5
    whole, _ = performer(q, k, v, projection, causal=True)
    state, outs = None, []
    for start, stop in pairwise([0, 30, 55, 100]):
        part = (tensor[:, :, start:stop] for tensor in (q, k, v))
        out, state = performer(*part, projection, causal=True, state=state)
        outs.append(out)
    torch.testing.assert_close(torch.cat(outs, dim=2), whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("dim", "size"), [(16, 1), (64, 1), (512, 1), (512, 20), (32, 300)])
def test_features_and_gradients_stay_finite(dim, size, dtype):
    """Also for keys along a direction of 512 dims, whose plain feature e^256 overflows."""
    projection = orthogonal_projection(2 * dim, dim, generator=seeded(0))
    q, k, v = ((size * torch.randn(1, 1, 40, dim)).to(dtype) for _ in range(3))
    k[0, 0, 0] = (projection[0] * dim**0.25).to(dtype)
    q, k, v = (tensor.requires_grad_() for tensor in (q, k, v))
    out, _ = performer(q, k, v, projection, causal=True)
    assert out.dtype == dtype
    assert torch.isfinite(out).all()
    for grad in torch.autograd.grad(out.float().square().mean(), [q, k, v]):
        assert torch.isfinite(grad).all()


def test_moving_a_factor_from_keys_to_queries_leaves_their_product():
    """At 512 dims the bound on the features of keys is in force; the product must still be that of the formula."""
    projection = orthogonal_projection(512, 512, generator=seeded(0), dtype=torch.float64)
    q, k, v = (0.3 * torch.randn(1, 1, 30, 512, dtype=torch.float64) for _ in range(3))
    scaled_q, scaled_k = q * 512**-0.25, k * 512**-0.25
    plain = [(x @ projection.T - x.square().sum(-1, keepdim=True) / 2).exp() for x in (scaled_q, scaled_k)]
    weights = plain[0] @ plain[1].transpose(-1, -2)
    want = weights / weights.sum(-1, keepdim=True) @ v
    torch.testing.assert_close(performer(q, k, v, projection, causal=False)[0], want)


def test_gradient_of_the_features_is_that_of_the_formula():
    projection = orthogonal_projection(12, 4, generator=seeded(0), dtype=torch.float64)
    q, k, v = (torch.randn(1, 1, 6, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    assert torch.autograd.gradcheck(lambda *given: performer(*given, projection, causal=True)[0], (q, k, v))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: orthogonal_projection(0, 4), "features is 0"),
        (lambda: orthogonal_projection(4, 0), "dim 0"),
        (lambda: softmax_features(torch.ones(1, 4), torch.ones(3, 5), query=True), "expected .feature, 4."),
    ],
    ids=["no features", "no dim", "width"],
)
def test_wrong_sizes_are_named(call, message):
    with pytest.raises(InputError, match=message):
        call()
