"""Variants only these tests know, and a Hub on the loopback interface."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from torch import Tensor
from weights_hub_server import Hub
from weights_toys import Peeking, family

from astrozoo import registry
from astrozoo.module import ZooModel
from astrozoo.registry.family import Variant
from astrozoo.registry.spec import PretrainedWeights


@pytest.fixture
def variants(monkeypatch: pytest.MonkeyPatch) -> dict[str, Variant]:
    """Variants the registry knows during a test; add to it or replace in it."""
    known = {
        variant.name: variant
        for variant in (
            family("toy").variant("nano", "For tests.", width=8),
            family("toy").variant("tied", "Shares a weight.", tied=True),
            family("peeking", Peeking).variant("nano", "Reads while it initialises."),
            family("other").variant("nano", "Another model.", depth=5),
        )
    }
    load_variant, model_info, list_models = registry.load_variant, registry.model_info, registry.list_models
    monkeypatch.setattr(registry, "load_variant", lambda name: known[name] if name in known else load_variant(name))
    monkeypatch.setattr(registry, "model_info", lambda name: known[name].spec() if name in known else model_info(name))
    monkeypatch.setattr(registry, "list_models", lambda *a, **k: [*known, *list_models(*a, **k)])
    return known


@pytest.fixture
def model(variants: dict[str, Variant]) -> ZooModel:
    return variants["toy_nano"].build().eval()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 3, 6)


@pytest.fixture
def publish(variants: dict[str, Variant]) -> Callable[..., Variant]:
    """Attach published weights to a variant."""

    def attach(name: str, *weights: PretrainedWeights) -> Variant:
        variants[name] = replace(variants[name], pretrained=weights)
        return variants[name]

    return attach


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub of its own for each test, and a cache of its own."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the client waits between its attempts
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the server speaks git-lfs, not xet
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with Hub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server
