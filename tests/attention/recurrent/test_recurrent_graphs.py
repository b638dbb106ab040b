"""The kernels under torch.compile, on the meta device, and their cost."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch._dynamo
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from astrozoo.attention.recurrent import (
    causal_conv,
    elu_features,
    gated_delta,
    linear_attention,
    orthogonal_projection,
    softmax_features,
    state_space,
)

DIM = 8
PROJECTION = orthogonal_projection(16, DIM, generator=torch.Generator().manual_seed(0))
TAPS = torch.linspace(-1, 1, 4 * DIM).reshape(DIM, 4)


def run_linear(x: Tensor, mask: Tensor, segments: Tensor) -> object:
    return linear_attention(elu_features(x), elu_features(x), x, causal=True, key_mask=mask)


def run_whole(x: Tensor, mask: Tensor, segments: Tensor) -> object:
    return linear_attention(elu_features(x), elu_features(x), x, causal=False, key_mask=mask)


def run_performer(x: Tensor, mask: Tensor, segments: Tensor) -> object:
    features = (softmax_features(x, PROJECTION.to(x.device), query=query) for query in (True, False))
    return linear_attention(*features, x, causal=True, key_mask=mask)


def run_delta(x: Tensor, mask: Tensor, segments: Tensor) -> object:
    keys = F.normalize(x, dim=-1)
    return gated_delta(x, keys, x, -x[..., 0].abs(), x[..., 1].sigmoid(), key_mask=mask, segments=segments)


def run_gated(x: Tensor, mask: Tensor, segments: Tensor) -> object:
    return gated_delta(x, x, x, -x[..., 0].abs(), erase=False, key_mask=mask, segments=segments)


def run_state_space(x: Tensor, mask: Tensor, segments: Tensor) -> object:
    rates = x.new_full((x.shape[1],), -0.5)
    return state_space(x, x[..., 0].abs(), rates, x[:, :1], x[:, :1], key_mask=mask, segments=segments)


def run_conv(x: Tensor, mask: Tensor, segments: Tensor) -> object:
    return causal_conv(x[:, 0], TAPS.to(x.device), key_mask=mask, segments=segments)


Run = Callable[[Tensor, Tensor, Tensor], object]
WITH_PRODUCTS = [run_linear, run_whole, run_performer, run_delta, run_gated, run_state_space]  # whose cost is counted


def draw(length: int, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    x = 0.3 * torch.randn(1, 2, length, DIM, device=device)
    segments = torch.arange(length, device=device).div(50, rounding_mode="floor")[None]
    return x, torch.rand(1, length, device=device) < 0.9, segments


@pytest.mark.parametrize("run", [run_linear, run_delta, run_state_space, run_conv])
def test_few_graphs_serve_lengths_from_none_to_thousands(run: Run) -> None:
    """A graph for each factor of 8 in length, and for 0 and 1; no branch on what the tensors hold."""
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(run, fullgraph=True, backend=counter)
    for length in (300, 16, 1, 64, 65, 256, 700, 2048, 4096, 0):
        given = draw(length)
        for got, want in zip(tree_leaves(compiled(*given)), tree_leaves(run(*given)), strict=True):
            torch.testing.assert_close(got, want)
    assert counter.frame_count <= 6
    torch._dynamo.reset()


@pytest.mark.parametrize("run", [run_whole, run_performer, run_delta, run_gated, run_conv])
def test_compiled_gradient_is_the_eager_one(run: Run) -> None:
    torch._dynamo.reset()
    x, mask, segments = draw(150)
    x.requires_grad_()
    grads = [
        torch.autograd.grad(sum(leaf.square().sum() for leaf in tree_leaves(function(x, mask, segments))), x)[0]
        for function in (run, torch.compile(run, fullgraph=True, backend="aot_eager"))
    ]
    torch.testing.assert_close(grads[1], grads[0])
    torch._dynamo.reset()


@pytest.mark.parametrize("run", [*WITH_PRODUCTS, run_conv])
def test_meta_tensors_give_shapes(run: Run) -> None:
    shapes = [[leaf.shape for leaf in tree_leaves(run(*draw(70, device)))] for device in ("cpu", "meta")]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("run", WITH_PRODUCTS)
def test_cost_grows_with_the_length_and_no_faster(run: Run) -> None:
    """Exponent 1 within 0.1 from 1024 to 16384 tokens, counted."""
    counts = []
    for length in (1024, 16384):
        with FlopCounterMode(display=False) as counter:
            run(*draw(length, "meta"))
        counts.append(counter.get_total_flops())
    assert 16**0.9 <= counts[1] / counts[0] <= 16**1.1
