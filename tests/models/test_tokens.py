"""What token families share: which attentions fit, positions, conditions."""

import pytest
import torch

from astrozoo import registry
from astrozoo.errors import ConfigError, UnknownModelError
from astrozoo.models.tokens import (
    GRID_ATTENTIONS,
    GRID_TOKENS,
    SUBSET_ATTENTIONS,
    SUBSET_TOKENS,
    TokenConfig,
    TokenTrunk,
    is_relative,
    longitude_step,
    misfit,
)
from astrozoo.module import _reset_children

CELLS = (3, 11, 20)
GRID = (2, 3, 5)  # of patches


def build(attention, *, longitude="periodic", use=GRID_TOKENS, **options):
    torch.manual_seed(0)
    trunk = TokenTrunk(
        16, 2, 2, longitude=longitude, patch=(2, 4, 4), attention=attention, use=use, condition_width=3, **options
    )
    _reset_children(trunk)
    with torch.no_grad():
        for parameter in trunk.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return trunk.double().eval()


def tokens_and_condition():
    torch.manual_seed(1)
    return torch.randn(2, *GRID, 16).double(), torch.randn(2, 3).double()


@pytest.mark.parametrize(
    ("use", "listed"), [(GRID_TOKENS, GRID_ATTENTIONS), (SUBSET_TOKENS, SUBSET_ATTENTIONS)], ids=["grid", "subset"]
)
def test_the_lists_are_what_the_rule_says(use, listed):
    ours = [name for name in registry.list_attentions() if registry.attention_info(name).distribution == "astrozoo"]
    assert listed == tuple(name for name in ours if not misfit(name, use))


@pytest.mark.parametrize("attention", GRID_ATTENTIONS)
def test_rolling_longitude_rolls_tokens_exactly_where_longitude_is_relative(attention):
    trunk = build(attention)
    tokens, condition = tokens_and_condition()

    def run(tokens):
        return trunk(trunk.place(tokens, CELLS), CELLS, condition).unflatten(1, GRID)

    error = (run(tokens.roll(2, 3)) - run(tokens).roll(2, 3)).abs().max()
    assert (error < 1e-12) == is_relative(attention)


@pytest.mark.parametrize("attention", GRID_ATTENTIONS)
def test_every_token_knows_its_latitude_level_and_condition(attention):
    trunk = build(attention)
    tokens, condition = tokens_and_condition()
    same = tokens[:, :1, :1, :1].expand_as(tokens)
    out = trunk(trunk.place(same, CELLS), CELLS, condition).unflatten(1, GRID)
    assert (out[:, 0] - out[:, 1]).abs().amax(-1).gt(1e-6).all()
    assert (out[:, :, 0] - out[:, :, 1]).abs().amax(-1).gt(1e-6).all()
    other = trunk(trunk.place(same, CELLS), CELLS, condition + 1).unflatten(1, GRID)
    assert (other - out).abs().amax(-1).gt(1e-6).all()


@pytest.mark.parametrize("attention", SUBSET_ATTENTIONS)
def test_leaving_tokens_out_equals_hiding_them(attention):
    trunk = build(attention, use=SUBSET_TOKENS)
    tokens, condition = tokens_and_condition()
    chosen = torch.tensor([[0, 3, 11, 29], [2, 7, 8, 20]])
    seen = torch.zeros(2, 30, dtype=torch.bool).scatter(1, chosen, True)
    picked = tokens.flatten(1, 3).take_along_dim(chosen[..., None], 1)
    few = trunk(trunk.place(picked, CELLS, chosen), CELLS, condition, chosen=chosen)
    all_tokens = trunk(trunk.place(tokens, CELLS), CELLS, condition, key_mask=seen)
    torch.testing.assert_close(few, all_tokens.take_along_dim(chosen[..., None], 1), rtol=0, atol=1e-10)


def test_aliases_work_by_name():
    tokens, condition = tokens_and_condition()
    for alias in ("mha", "multi_query", "alibi", "shifted_window", "cross"):
        trunk = build(alias)
        assert trunk(trunk.place(tokens, CELLS), CELLS, condition).isfinite().all()
    assert not is_relative("shifted_window")  # windows have fixed boundaries
    assert not is_relative("alibi")  # distances are those of the sequence
    assert "in a sequence" in misfit("alibi", SUBSET_TOKENS)
    assert is_relative("multi_query")


def test_longitude_steps():
    assert longitude_step(TokenConfig(), 4) == 4
    assert "edges" in longitude_step(TokenConfig(longitude="regional", poles="edge"), 4)
    assert "'axial' takes no relative longitudes" in longitude_step(TokenConfig(attention="axial"), 4)


def test_options_reach_the_attention_and_are_hashable():
    config = TokenConfig(attention="multiscale", attention_options={"pools": [[1, 2, 2]], "pooling": "mean"})
    assert config.attention_options == (("pooling", "mean"), ("pools", ((1, 2, 2),)))
    assert hash(config) == hash(TokenConfig(attention="multiscale", attention_options=config.attention_options))
    trunk = build("multiscale", attention_options=dict(config.attention_options))
    assert trunk.blocks[0].attention.config.pools == ((1, 2, 2),)


@pytest.mark.parametrize(
    ("field", "value", "wanted"),
    [
        ("attention", "gated_delta", "sees earlier tokens only"),
        ("attention", "graph", "geometry of kind graph"),
        ("attention", 3, "the name of an attention"),
        ("attention_options", 3, "mapping"),
        ("num_heads", 5, "a divisor of dim, 192"),
        ("depth", 0, "an integer of at least 1"),
        ("patch", True, "an integer of at least 1"),
        ("mlp_ratio", 0, "a number from"),
        ("drop_path", 1.0, "a number from 0"),
    ],
)
def test_a_bad_value_names_field_value_and_what_is_allowed(field, value, wanted):
    with pytest.raises(ConfigError, match=f"TokenConfig.{field} is {value!r}; allowed: .*{wanted}"):
        TokenConfig(**{field: value})


def test_an_unknown_attention_offers_the_nearest():
    with pytest.raises(UnknownModelError, match="flash"):
        TokenConfig(attention="flush")
