from __future__ import annotations

import pytest
import torch

from astrozoo.attention.flash import flash
from astrozoo.attention.linformer import linformer
from astrozoo.errors import ConfigError, InputError, UnsupportedArgument

DIM, HEADS, WIDTH = 32, 4, 8


def build(**options):
    torch.manual_seed(0)
    options = {"dim": DIM, "num_heads": HEADS, "rank": 5, "max_len": 40, "dtype": torch.float64, **options}
    return linformer.build(**options).eval()


def tokens(length, batch=2, seed=1):
    return torch.randn(batch, length, DIM, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_the_paper(attention, x, context, real):
    """Equation 7 of the paper, head by head, with the tokens that are not real left out of the sums."""
    weight, heads = attention.state_dict(), []
    group = HEADS // attention.config.num_kv_heads
    columns = slice(context.shape[1])
    for head in range(HEADS):
        own = head // group
        query = x @ weight["query.weight"][WIDTH * head :][:WIDTH].T
        mixed = []
        for name in ("key", "value"):
            mixing = weight[f"{name}_mixing"][0 if attention.config.shared else own][:, columns]
            projected = context @ weight[f"{name}.weight"][WIDTH * own :][:WIDTH].T
            rows = [mixing[:, keep] @ part[keep] for part, keep in zip(projected, real, strict=True)]
            mixed.append(torch.stack(rows))
        heads.append(torch.softmax(query @ mixed[0].transpose(1, 2) / WIDTH**0.5, dim=-1) @ mixed[1])
    return torch.cat(heads, dim=-1) @ weight["output.weight"].T


def with_gradients(compute, parameters, x, **terms):
    leaf = x.clone().requires_grad_()
    y = compute(leaf, **terms)
    return [y, *torch.autograd.grad(y.square().sum(), [leaf, *parameters])]


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])
@pytest.mark.parametrize("kv_heads", [1, 2, HEADS])
@pytest.mark.parametrize("keys", [1, 17, 40])
def test_equals_the_equation_of_the_paper(shared, kv_heads, keys):
    attention = build(shared=shared, num_kv_heads=kv_heads)
    x, context = tokens(11), tokens(keys, seed=2)
    real = torch.rand(2, keys, generator=torch.Generator().manual_seed(3)) > 0.3
    want = by_the_paper(attention, x, context, real)
    for compute in (attention, attention.forward_reference):
        torch.testing.assert_close(compute(x, context, key_mask=real), want, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "options", [{}, {"shared": False, "num_kv_heads": 2, "rope": True, "bias": True, "v_head_dim": 6}], ids=str
)
def test_gradients_equal_those_of_the_reference(options):
    attention = build(**options)
    real = torch.arange(17)[None] < torch.tensor([[17], [9]])
    got, want = (
        with_gradients(compute, list(attention.parameters()), tokens(17), key_mask=real)
        for compute in (attention.forward, attention.forward_reference)
    )
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])
def test_identity_projections_are_flash_and_so_are_the_gradients(shared):
    attention = build(rank=12, max_len=12, shared=shared, rope=True, num_kv_heads=2)
    full = flash.build(dim=DIM, num_heads=HEADS, num_kv_heads=2, rope=True, dtype=torch.float64).eval()
    with torch.no_grad():
        for mixing in (attention.key_mixing, attention.value_mixing):
            mixing.copy_(torch.eye(12))
    full.load_state_dict({name: tensor for name, tensor in attention.state_dict().items() if "mixing" not in name})
    x = tokens(12)
    got, want = (with_gradients(module, [module.query.weight, module.key.weight], x) for module in (attention, full))
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_shorter_sequence_uses_the_first_columns():
    attention = build()
    y = attention(tokens(9))
    with torch.no_grad():
        attention.key_mixing[..., 9:] = torch.nan
        attention.value_mixing[..., 9:] = torch.nan
    assert torch.equal(attention(tokens(9)), y)


def test_longer_sequence_than_max_len_is_refused():
    attention = build()
    attention(tokens(40))
    attention(tokens(99), tokens(40))  # queries may be as many as one likes
    for compute in (attention, attention.forward_reference):
        with pytest.raises(InputError, match="linformer got 41 keys; it mixes at most max_len=40"):
            compute(tokens(3), tokens(41))


@pytest.mark.parametrize("junk", [float("nan"), float("inf")])
def test_masked_tokens_enter_no_mixture(junk):
    """Whatever is in them, and though a bias of the projections would make something of nothing."""
    attention = build(bias=True)
    with torch.no_grad():
        for layer in (attention.key, attention.value):
            layer.bias.fill_(1.0)
    real = torch.rand(2, 17, generator=torch.Generator().manual_seed(3)) > 0.4
    x, found = tokens(17), []
    for fill in (0.0, junk):
        y, *gradients = with_gradients(
            attention, list(attention.parameters()), x.masked_fill(~real[..., None], fill), key_mask=real
        )
        found.append([y, *gradients])
    for got, want in zip(*found, strict=True):
        assert torch.equal(got, want)
    short = attention(x[:, :9])
    padded = attention(x, key_mask=(torch.arange(17) < 9).expand(2, -1))
    torch.testing.assert_close(padded[:, :9], short, rtol=0, atol=1e-13)


def test_row_without_real_tokens_gives_zero_and_finite_gradients():
    attention = build()
    real = torch.tensor([[True] * 9, [False] * 9])
    y, *gradients = with_gradients(attention, list(attention.parameters()), tokens(9), key_mask=real)
    assert not y[1].any()
    assert y[0].any()
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    seen = attention.forward_with(tokens(9), key_mask=real, want=("weights", "lse"))[1]
    assert not seen["weights"][1].any()
    assert (seen["lse"][1] == -torch.inf).all()
    assert not attention(tokens(3), tokens(0)).any()


def test_weights_are_those_of_the_mixtures():
    attention = build(shared=False)
    y, seen = attention.forward_with(tokens(9), want=("weights", "heads"))
    assert torch.equal(y, attention(tokens(9)))
    assert seen["weights"].shape == (2, HEADS, 9, 5)
    mixed = attention.value_mixing[..., :9] @ attention.project(tokens(9))[2]
    torch.testing.assert_close(seen["weights"] @ mixed, seen["heads"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])
def test_cost_is_linear_in_the_tokens(shared):
    from torch.utils.flop_counter import FlopCounterMode

    attention, flops = build(max_len=1024, shared=shared, backend="math"), []
    for length in (256, 512, 1024):
        with FlopCounterMode(display=False) as counter:
            attention(tokens(length, batch=1))
        flops.append(counter.get_total_flops())
    assert flops[1] == 2 * flops[0]
    assert flops[2] == 4 * flops[0]


def test_heads_of_their_own_mixtures_differ():
    attention = build(shared=False, num_kv_heads=2)
    assert attention.key_mixing.shape == (2, 5, 40)
    assert build(num_kv_heads=2).key_mixing.shape == (1, 5, 40)
    assert not torch.equal(attention.key_mixing[0], attention.key_mixing[1])


def test_mixtures_start_as_large_as_tokens():
    attention = build(rank=64, max_len=2048)
    key = torch.randn(1, 1, 2048, 8, dtype=torch.float64)
    assert (attention.key_mixing @ key).std().item() == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize(
    ("terms", "name"),
    [
        ({"causal": True}, "causal"),
        ({"mask": torch.ones(9, 9, dtype=torch.bool)}, "mask"),
        ({"bias": torch.zeros(9, 9)}, "bias"),
        ({"segments": torch.zeros(2, 9, dtype=torch.int64)}, "segments"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_mixed_tokens_cannot_honour_is_refused(terms, name):
    with pytest.raises(UnsupportedArgument, match=f"'linformer' cannot honour {name}. Those that can: .*flash"):
        build()(tokens(9), **terms)


@pytest.mark.parametrize("name", ["rank", "max_len"])
def test_options_that_cannot_be_are_refused(name):
    with pytest.raises(ConfigError, match=f"{name} is 0"):
        build(**{name: 0})


def test_lengths_under_compilation_share_a_graph():
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    attention = build(max_len=128).float()
    compiled = torch.compile(attention, fullgraph=True, backend=counter)
    for length in (16, 23, 37, 64, 100):
        x = tokens(length).float()
        key_mask = torch.arange(length)[None] < torch.tensor([[length], [length - 3]])
        torch.testing.assert_close(compiled(x, key_mask=key_mask), attention(x, key_mask=key_mask))
    assert counter.frame_count <= 2
