"""A probe runs a kernel for real, whatever the caller is doing, and the caller sees nothing of it."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from astrozoo.attention import choice
from astrozoo.attention.backends import sdpa
from astrozoo.attention.backends.math import softmax_attention
from astrozoo.attention.backends.probe import compare_with_math
from astrozoo.attention.core import attend
from astrozoo.training.estimate import estimate


def probe(run) -> str:
    return compare_with_math(run, device="cpu", dtype=torch.float32, head_dim=8, causal=False)


def test_a_probe_among_fake_tensors_finds_what_is_right_and_what_is_wrong():
    with FakeTensorMode(), FlopCounterMode(display=False) as counter:
        assert probe(lambda q, k, v, terms: softmax_attention(q, k, v, terms)[0]) == ""
        assert "wrong values" in probe(lambda q, k, v, terms: 2 * softmax_attention(q, k, v, terms)[0])
    assert counter.get_total_flops() == 0


@pytest.fixture
def nothing_known():
    """As in a process that has not yet used attention."""
    for cache in (choice._resolve, choice._able, sdpa._probe):
        cache.cache_clear()


def test_fake_tensors_get_the_kernel_that_real_ones_would(nothing_known):
    with FakeTensorMode():
        served = attend(*(torch.empty(1, 2, 16, 8) for _ in range(3)))
    assert served.choice.backend == "sdpa"


@pytest.mark.parametrize("name", ["cube_vit_tiny", "cube_swin_tiny", "cube_unet_former_tiny"])
def test_models_with_attention_can_be_estimated(nothing_known, name):
    found = estimate(name, device="cpu")
    assert found.training_peak_bytes > found.activation_bytes + found.parameter_bytes + found.optimizer_bytes
    assert found.flops_step > 2 * found.flops_forward > 0
