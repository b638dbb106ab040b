"""Feature maps of linear attention: elu + 1, and the positive orthogonal random features of FAVOR+."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from astrozoo.attention.recurrent.chunks import sum_dtype
from astrozoo.errors import InputError
from astrozoo.nn.precision import full_precision

__all__ = ["elu_features", "orthogonal_projection", "softmax_features"]

LARGEST_LOG = 64.0  # of a key's feature: e^64 leaves room for e^24 keys in float32


def elu_features(x: Tensor) -> Tensor:
    """elu(x) + 1, positive everywhere (Katharopoulos et al. 2020, arXiv:2006.16236). Same shape and dtype as `x`."""
    return torch.where(x < 0, x.clamp(max=0).exp(), x + 1)  # exp(x) - 1 + 1 would round small features to 0


def orthogonal_projection(
    features: int,
    dim: int,
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Directions of random features (feature, dim): normal rows, orthogonal within each block of `dim`.

    Rows of a block are uniformly random orthonormal directions with the lengths of independent normal vectors, so each
    row alone is normal and the estimate unbiased, with less variance than independent rows (Choromanski et al. 2020,
    arXiv:2009.14794).

    Args:
        features: Number of rows, at least 1.
        dim: Width of a head.
        generator: Where the draws come from, a generator on the CPU; so all devices draw the same.
        device: Where the result lives.
        dtype: Of the result; drawn in float64.

    Raises:
        InputError: If a size is not positive.
    """
    if features < 1 or dim < 1:
        raise InputError(f"features is {features} and dim {dim}; both must be at least 1.")
    blocks = -(-features // dim)
    normal = torch.randn(blocks, dim, dim, generator=generator, dtype=torch.float64, device="cpu")
    q, r = torch.linalg.qr(normal)
    # LAPACK chooses signs; with those of R's diagonal the directions are uniformly distributed.
    directions = (q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)).transpose(-1, -2)
    lengths = torch.randn(blocks, dim, dim, generator=generator, dtype=torch.float64, device="cpu").norm(dim=-1)
    return (lengths.unsqueeze(-1) * directions).flatten(0, 1)[:features].to(device=device, dtype=dtype)


def softmax_features(x: Tensor, projection: Tensor, *, query: bool, scale: float | None = None) -> Tensor:
    """Positive random features with E[phi(q)'phi(k)] ~ exp(scale q'k) (FAVOR+, arXiv:2009.14794, lemma 1).

    phi(x) = exp(w'x - |x|^2 / 2) / sqrt(features) for x scaled by sqrt(scale). Queries are divided by their own largest
    feature, which the normaliser of `linear_attention` takes out again. Keys must not be divided by a maximum over
    positions: that lets later keys change earlier outputs, and sums over chunks of a sequence could not be added.
    Instead, as w'x - |x|^2 / 2 <= |w|^2 / 2 for every key there is, what exceeds e^64 in that bound is moved from the
    feature of the key to that of the query, where it depends on w alone.

    Args:
        x: (..., token, dim).
        projection: From `orthogonal_projection`, (feature, dim).
        query: Whether `x` are queries or keys.
        scale: Factor of the logits; dim ** -0.5 by default.

    Returns:
        (..., token, feature), float32 at least, at most 1 for queries. A key so long that all its features underflow
        is not seen.

    Raises:
        InputError: If the widths differ.
    """
    if projection.ndim != 2 or projection.shape[-1] != x.shape[-1]:
        raise InputError(f"projection is {tuple(projection.shape)}; expected (feature, {x.shape[-1]}).")
    dtype = sum_dtype(x)
    with full_precision(x):
        weight = projection.to(device=x.device, dtype=dtype)
        scaled = x.to(dtype) * (x.shape[-1] ** -0.5 if scale is None else scale) ** 0.5
        excess = (weight.square().sum(-1) / 2 - LARGEST_LOG).clamp(min=0)
        logits = scaled @ weight.transpose(-1, -2)
        if query:
            logits = logits + excess  # |q|^2 / 2 is the same for all features: it goes with the maximum
            return (logits - logits.detach().amax(-1, keepdim=True)).exp()
        half = scaled.square().sum(-1, keepdim=True) / 2
        return (logits - half - excess - math.log(projection.shape[0]) / 2).exp()
