from __future__ import annotations

import pytest
import torch

from astrozoo.nn.norm import RMSNorm


def test_divides_by_the_root_mean_square():
    norm = RMSNorm(6, eps=1e-6, dtype=torch.float64)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(3, 4, 6, dtype=torch.float64)
    want = x / (x.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt() * norm.weight
    torch.testing.assert_close(norm(x), want, rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_keeps_the_dtype_of_the_features_under_autocast(dtype):
    norm, x = RMSNorm(6), torch.randn(3, 6, dtype=dtype)
    with torch.autocast("cpu", dtype=dtype):
        y = norm(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y, torch.nn.functional.rms_norm(x.float(), (6,)).to(dtype), rtol=1e-2, atol=1e-2)


def test_zero_has_a_finite_gradient():
    x = torch.zeros(2, 6, requires_grad=True)
    RMSNorm(6, eps=1e-6)(x).sum().backward()
    assert torch.isfinite(x.grad).all()
