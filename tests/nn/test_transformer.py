from __future__ import annotations

import pytest
import torch

import astrozoo
from astrozoo import registry
from astrozoo.errors import ConfigError
from astrozoo.nn import TransformerBlock, TransformerStack
from astrozoo.registry.fit import TokenUse, misuse

TOKENS = 24


def example(name):
    """Options of a small instance and a geometry for 24 tokens, as the implementation itself offers them."""
    implementation = registry.load_attention(name)
    make = implementation.example_geometry
    return dict(implementation.example), None if make is None else make(TOKENS)


def uses(name):
    spec = astrozoo.attention_info(name)
    geometries = () if spec.geometry is None else (spec.geometry,)
    return TokenUse(causal=spec.causal_only, geometries=geometries)


@pytest.mark.parametrize("name", astrozoo.list_attentions())
def test_stack_trains_a_step_with_every_attention(name):
    """The loss falls when the step follows the gradient, and every parameter has one."""
    torch.manual_seed(0)
    options, geometry = example(name)
    stack = TransformerStack(32, 2, 4, attention=name, attention_options=options, use=uses(name))
    head = torch.nn.Linear(32, 1)
    x, y = torch.randn(3, TOKENS, 32), torch.randn(3, TOKENS, 1)
    parameters = [*stack.parameters(), *head.parameters()]

    def loss():
        return (head(stack(x, geometry=geometry)) - y).square().mean()

    torch.manual_seed(1)
    before = loss()
    gradients = torch.autograd.grad(before, parameters, allow_unused=True)
    unused = [n for (n, _), g in zip(stack.named_parameters(), gradients, strict=False) if g is None]
    assert unused == []
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter -= 0.01 * gradient / torch.linalg.vector_norm(torch.stack([g.norm() for g in gradients]))
    torch.manual_seed(1)
    assert loss() < before


@pytest.mark.parametrize(
    ("name", "use", "reason"),
    [
        ("multiscale", TokenUse(causal=True), "it cannot keep tokens from seeing later ones"),
        ("mamba2", TokenUse(), "it sees earlier tokens only"),
        ("sliding_window", TokenUse(cross=True), "its keys cannot come from another sequence"),
        ("linear", TokenUse(masks=("bias",)), "it honours no bias"),
        ("graph", TokenUse(geometries=("grid",)), "it needs a geometry of kind graph"),
    ],
)
def test_attention_that_does_not_fit_is_refused_with_the_reason_and_those_that_do(name, use, reason):
    with pytest.raises(ConfigError, match=f"attention {name!r} does not fit: {reason}. Those that fit:.*flash"):
        TransformerBlock(32, 4, attention=name, use=use)


def test_every_refusal_is_true_and_every_fit_holds():
    use = TokenUse(causal=True, masks=("key_mask",))
    fitting = [name for name in astrozoo.list_attentions() if not misuse(astrozoo.attention_info(name), use)]
    assert "flash" in fitting
    for name in astrozoo.list_attentions():
        options, _ = example(name)
        if name in fitting:
            block = TransformerBlock(32, 4, attention=name, attention_options=options, use=use)
            geometry = example(name)[1]
            mask = torch.ones(2, TOKENS, dtype=torch.bool)
            assert block(torch.randn(2, TOKENS, 32), key_mask=mask, geometry=geometry).shape == (2, TOKENS, 32)
        else:
            with pytest.raises(ConfigError):
                TransformerBlock(32, 4, attention=name, attention_options=options, use=use)


def test_block_is_the_residual_stream_when_its_outputs_are_zero():
    block = TransformerBlock(16, 2)
    torch.nn.init.zeros_(block.attention.output.weight)
    torch.nn.init.zeros_(block.mlp.narrow.weight)
    x = torch.randn(2, 5, 16)
    assert torch.equal(block(x), x)


def test_causal_stack_does_not_look_ahead():
    stack = TransformerStack(16, 2, 2, use=TokenUse(causal=True)).double()
    x = torch.randn(1, 8, 16, dtype=torch.float64)
    changed = x.clone()
    changed[:, 5:] += 1
    torch.testing.assert_close(stack(changed)[:, :5], stack(x)[:, :5])


def test_stack_attends_to_a_context():
    stack = TransformerStack(16, 2, 2, attention="perceiver", attention_options={"context_dim": 6})
    assert stack(torch.randn(2, 3, 16), torch.randn(2, 9, 6)).shape == (2, 3, 16)


def test_a_condition_scales_and_shifts_the_normalised_tokens():
    torch.manual_seed(0)
    block = TransformerBlock(8, 2, condition_dim=3).double()
    tokens, condition = torch.randn(2, 5, 8).double(), torch.randn(2, 3).double()
    plain = block(tokens, condition=torch.zeros_like(condition))
    torch.testing.assert_close(block(tokens, condition=condition), plain)  # starts as the identity
    for film in block.films:
        torch.nn.init.normal_(film.affine.weight)

    def modulated(normed, film):
        scale, shift = film.affine(condition)[:, None].chunk(2, -1)
        return normed * (1 + scale) + shift

    expected = tokens + block.attention(modulated(block.attention_norm(tokens), block.films[0]))
    expected = expected + block.mlp(modulated(block.mlp_norm(expected), block.films[1]))
    torch.testing.assert_close(block(tokens, condition=condition), expected)


def test_an_attention_that_needs_a_context_gets_the_positions_of_its_tokens():
    torch.manual_seed(0)
    options = {"attention_options": {"rope": True}}
    cross, own = (TransformerBlock(8, 2, attention=name, **options).double() for name in ("perceiver", "flash"))
    own.load_state_dict(cross.state_dict())
    tokens, positions = torch.randn(2, 5, 8).double(), torch.rand(1, 5, 1).double()
    torch.testing.assert_close(cross(tokens, positions=positions), own(tokens, positions=positions))
