from __future__ import annotations

import pytest
import torch

import astrozoo
from astrozoo.errors import ConfigError, UnknownModelError, UnknownOptionError
from astrozoo.registry.router import LONG, RULES, Tokens, route, table


@pytest.mark.parametrize(
    ("tokens", "device", "name"),
    [
        (Tokens(), "cpu", "flash"),
        (Tokens(length=512), "cpu", "flash"),
        (Tokens(length=LONG["cpu"]), "cpu", "flash"),
        (Tokens(length=LONG["cpu"] + 1), "cpu", "sliding_window"),
        (Tokens(length=LONG["cpu"] + 1), "cuda", "flash"),
        (Tokens(length=LONG["other"] + 1), "cuda", "sliding_window"),
        (Tokens(length=10**6, masks=("mask",)), "cuda", "flash"),
        (Tokens(length=10**6, masks=("bias",)), "cuda", "flash"),
        (Tokens(length=10**6, masks=("key_mask", "segments")), "cuda", "sliding_window"),
        (Tokens(length=10**6, context=True), "cuda", "flash"),
        (Tokens(length=10**6, grid=(100, 100, 100)), "cuda", "neighborhood"),
        (Tokens(length=100, grid=(10, 10)), "cuda", "flash"),
        (Tokens(geometry="graph"), "cpu", "graph"),
        (Tokens(geometry="points"), "cpu", "metric_bias"),
        (Tokens(length=10**6, world_size=4), "cuda", "ring"),
    ],
    ids=lambda value: str(value) if not isinstance(value, Tokens) else "",
)
def test_rule(tokens, device, name):
    assert route(tokens, device).name == name


def test_every_case_is_printed_and_ends_with_all_tokens():
    assert [line.split()[0] for line in table().splitlines()] == [rule.name for rule in RULES]
    assert RULES[-1].name == "flash"


def test_names_of_the_rule_exist():
    assert {rule.name for rule in RULES} <= set(astrozoo.list_attentions())


@pytest.mark.parametrize("hints", [{"masks": ("padding",)}, {"geometry": "grid"}])
def test_hint_without_meaning_is_refused(hints):
    with pytest.raises(ConfigError):
        astrozoo.create_attention("auto", dim=8, num_heads=2, **hints)


def test_auto_makes_what_the_rule_names_and_says_why():
    attention = astrozoo.create_attention("auto", dim=8, num_heads=2, length=16, causal=True)
    assert attention.spec.name == attention.decision.name == "flash"
    assert attention.decision.reason == "otherwise: all tokens, exactly"
    assert attention.config.causal


def test_auto_takes_options_of_what_it_makes():
    attention = astrozoo.create_attention("auto", dim=8, num_heads=2, length=10**6, window=64, device="meta")
    assert attention.spec.name == "sliding_window"
    assert attention.config.window == 64


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("mha", "flash"),
        ("memory_efficient", "flash"),
        ("multi_query", "grouped_query"),
        ("cross", "perceiver"),
        ("alibi", "metric_bias"),
    ],
)
def test_alias_is_the_attention_with_options_preset(alias, name):
    attention = astrozoo.create_attention(alias, dim=8, num_heads=2)
    assert attention.spec.name == astrozoo.attention_info(alias).name == name
    if alias == "multi_query":
        assert attention.config.num_kv_heads == 1


def test_backend_is_told_from_an_attention():
    with pytest.raises(UnknownModelError, match=r"It is a backend: create_attention\('flash', backend='xformers'"):
        astrozoo.create_attention("xformers", dim=8, num_heads=2)


def test_unknown_option_offers_the_nearest():
    with pytest.raises(UnknownOptionError, match=r"no option 'dropuot'\. Did you mean 'dropout'"):
        astrozoo.create_attention("flash", dim=8, num_heads=2, dropuot=0.1)
    with pytest.raises(TypeError):
        astrozoo.create_attention("flash", dim=8, num_heads=2, dropuot=0.1)


def test_explain_attention_is_public():
    attention = astrozoo.create_attention("flash", dim=8, num_heads=2)
    assert "sdpa" in astrozoo.explain_attention(attention, torch.randn(1, 4, 8))
