"""What a third party may offer beyond models: attentions, families that take them, and published weights."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import subprocess
import sys

import pytest
import torch
from distributions import FAMILY, write_distribution

import astrozoo
from astrozoo import registry
from astrozoo.errors import ConfigError, PluginError, WeightsError

ATTENTION = """
import dataclasses

import torch
from astrozoo.registry.family import AttentionImplementation
from astrozoo.registry.spec import AttentionSpec


class Mean(torch.nn.Module):
    def __init__(self, dim, num_heads, *, gain=1.0):
        super().__init__()
        self.value, self.gain = torch.nn.Linear(dim, dim), gain

    def forward(self, x):
        return self.gain * self.value(x).mean(1, keepdim=True).expand_as(x)


mean = AttentionImplementation(
    spec=AttentionSpec(
        name="mean", summary="Every token sees the mean", exactness="exact", cost="N d", causal=False, cross=False,
        masks=(), grouped_query=False, cache=None,
    ),
    build=Mean,
)
nothing = AttentionImplementation(
    spec=dataclasses.replace(mean.spec, name="nothing"), build=lambda dim, num_heads: "no module",
)
"""

TOKENS = FAMILY.replace("width: int = 3", "width: int = 3\n    attention: str = 'mean'").replace(
    "miniature={}", "miniature={}, default_attention='mean', attentions=('mean',)"
)


@pytest.fixture
def attention(install):
    entries = {"mean": "my_attention:mean", "nothing": "my_attention:nothing"}
    return install("my-attention", {"astrozoo.attention": entries}, {"my_attention.py": ATTENTION})


def test_attention_is_listed_described_and_created(attention):
    assert "mean" in astrozoo.list_attentions(plugin="my-attention")
    assert "mean" not in astrozoo.list_attentions(plugin="my-attention", causal=True)
    assert astrozoo.attention_info("mean").distribution == "my-attention"
    module = astrozoo.create_attention("mean", dim=4, num_heads=2, gain=0.0)
    assert torch.equal(module(torch.randn(2, 3, 4)), torch.zeros(2, 3, 4))


def test_attention_that_builds_no_module_is_an_error(attention):
    with pytest.raises(PluginError, match="str"):
        astrozoo.create_attention("nothing", dim=4, num_heads=2)


def test_family_with_tokens_takes_an_attention_by_name(install, attention):
    install("my-tokens", {"astrozoo.models": {"line_nano": "my_tokens:line_nano"}}, {"my_tokens.py": TOKENS})
    assert astrozoo.create_model("line_nano", attention="mean").config.attention == "mean"


def test_attention_nobody_offers_is_refused_by_a_family_with_tokens(install, attention):
    install("my-tokens", {"astrozoo.models": {"line_nano": "my_tokens:line_nano"}}, {"my_tokens.py": TOKENS})
    with pytest.raises(LookupError, match="meen"):
        astrozoo.create_model("line_nano", attention="meen")


def test_attention_that_does_not_fit_a_family_is_refused_with_the_reason(install, attention):
    use = "attention_use=TokenUse(masks=('key_mask',))"
    tokens = TOKENS.replace("attentions=('mean',)", f"attentions=('flash',), {use}").replace("'mean'", "'flash'")
    tokens = tokens.replace("\nfrom ", "\nfrom astrozoo.registry.fit import TokenUse\nfrom ", 1)
    install("my-tokens", {"astrozoo.models": {"line_nano": "my_tokens:line_nano"}}, {"my_tokens.py": tokens})
    with pytest.raises(ConfigError, match=r"cannot use attention 'mean': it honours no key_mask\. It takes flash\."):
        astrozoo.create_model("line_nano", attention="mean")
    assert astrozoo.create_model("line_nano", attention="flash").config.attention == "flash"


def test_attention_for_a_family_without_tokens_is_refused(install, attention):
    install("my-line", {"astrozoo.models": {"line_nano": "my_line:line_nano"}}, {"my_line.py": FAMILY})
    with pytest.raises(ConfigError, match="no token attention"):
        astrozoo.create_model("line_nano", attention="mean")


@pytest.fixture
def published(install, tmp_path):
    """`line_nano` with weights of which every digest is pinned, and the folder they lie in."""
    site = install("my-line", {"astrozoo.models": {"line_nano": "my_line:line_nano"}}, {"my_line.py": FAMILY})
    folder = tmp_path / "published"
    model = astrozoo.create_model("line_nano")
    torch.nn.init.constant_(model.layer.weight, 7.0)
    astrozoo.save_model(model, folder)
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    weights = (
        "\nfrom astrozoo.registry.spec import PretrainedWeights\n"
        f"weights = PretrainedWeights(tag='sevens', source={folder.as_uri()!r}, revision='1', "
        f"sha256={digests!r}, licence='CC0-1.0')\n"
        "line_nano = FAMILY.variant('nano', 'With weights.', pretrained=(weights,))\n"
    )
    (site / "my_line.py").write_text(FAMILY + weights)
    sys.modules.pop("my_line")
    importlib.invalidate_caches()
    registry.refresh()
    return folder


@pytest.mark.parametrize("pretrained", [True, "sevens"])
def test_published_weights_are_loaded_by_tag_or_as_the_first(published, pretrained):
    model = astrozoo.create_model("line_nano", pretrained=pretrained)
    assert torch.equal(model.layer.weight, torch.full((1, 3), 7.0))
    assert model.training


def test_unknown_tag_names_those_there_are(published):
    with pytest.raises(WeightsError, match="sevens"):
        astrozoo.create_model("line_nano", pretrained="seven")


def test_model_without_published_weights_says_so():
    with pytest.raises(WeightsError, match="no published weights"):
        astrozoo.create_model("cube_unet_nano", pretrained=True)


def test_changed_published_file_is_refused_before_it_is_read(published):
    weights = published / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + bytes(4))
    with pytest.raises(WeightsError, match="sha256"):
        astrozoo.create_model("line_nano", pretrained=True)


@pytest.mark.parametrize("blocked", ["my-line", "*"])
def test_blocked_distribution_is_not_there_in_a_fresh_process(tmp_path, blocked):
    folder = write_distribution(
        tmp_path / "site", "my-line", {"astrozoo.models": {"line_nano": "my_line:line_nano"}}, {"my_line.py": FAMILY}
    )
    script = "import json, astrozoo; print(json.dumps(astrozoo.list_models('line_*')))"

    def listed(**environment: str) -> list[str]:
        env = {**os.environ, "PYTHONPATH": str(folder), **environment}
        run = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
        names: list[str] = json.loads(run.stdout)
        return names

    assert listed() == ["line_nano"]
    assert listed(ASTROZOO_DISABLE_PLUGINS=blocked) == []
