from __future__ import annotations

import pytest
import torch

from astrozoo.attention import Rotary
from astrozoo.attention.flash import flash
from astrozoo.attention.rotary import as_rotary
from astrozoo.errors import ConfigError, InputError


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_turned_pairs_are_complex_numbers_times_a_phase():
    heads, positions = normal(1, 2, 5, 8), torch.arange(5.0).double() * 1.5
    turned = Rotary(base=100.0).turn(heads, positions[None])
    phases = positions[:, None] * 100.0 ** -(torch.arange(4) / 4).double()
    number = torch.complex(heads[..., :4], heads[..., 4:]) * torch.polar(torch.ones_like(phases), phases)
    torch.testing.assert_close(turned, torch.cat((number.real, number.imag), -1))


def test_logits_depend_on_differences_of_positions_only():
    query, key, rotary = normal(1, 1, 6, 16), normal(1, 1, 6, 16), Rotary()
    positions = torch.arange(6)[None]
    near, far = (rotary.turn(query, positions + shift) @ rotary.turn(key, positions + shift).mT for shift in (0, 1000))
    torch.testing.assert_close(near, far, rtol=0, atol=1e-9)


def test_share_that_does_not_turn_stays():
    heads = normal(1, 1, 4, 12)
    turned = Rotary(fraction=0.5).turn(heads, torch.arange(4)[None])
    assert torch.equal(turned[..., 6:], heads[..., 6:])
    assert not torch.equal(turned[..., 1:, :6], heads[..., 1:, :6])


def test_each_axis_turns_its_own_share():
    heads, rotary = normal(1, 1, 4, 8), Rotary(axes=2)
    along_first = rotary.turn(heads, torch.stack((torch.arange(4), torch.zeros(4)), -1)[None])
    changed = (along_first != heads).any(dim=2).flatten()
    assert changed.sum() == 4


def test_positions_of_another_number_of_axes_are_refused():
    attention = flash.build(dim=32, num_heads=2, rope={"axes": 3})
    with pytest.raises(InputError, match="positions have 1 axes"):
        attention(torch.randn(1, 4, 32))
    assert attention(torch.randn(1, 4, 32), positions=torch.rand(1, 4, 3)).shape == (1, 4, 32)


@pytest.mark.parametrize(
    ("given", "expected"),
    [(None, None), (False, None), (True, Rotary()), (500, Rotary(500.0)), ({"axes": 2}, Rotary(axes=2))],
)
def test_argument_takes_several_forms(given, expected):
    assert as_rotary(given) == expected


@pytest.mark.parametrize("given", ["yes", {"radius": 3}, {"base": 0.5}, {"fraction": 1.5}, {"axes": 0}])
def test_nonsense_is_refused(given):
    with pytest.raises(ConfigError):
        as_rotary(given)


def test_head_too_narrow_for_the_axes_is_refused():
    with pytest.raises(ConfigError, match="head_dim 4 is too narrow"):
        flash.build(dim=8, num_heads=2, rope={"axes": 3})


def test_angles_are_exact_in_half_precision():
    """At position 10000 a bfloat16 angle would be off by more than a turn."""
    heads, positions = normal(1, 1, 1, 8), torch.tensor([[10007]])
    exact = Rotary().turn(heads, positions)
    half = Rotary().turn(heads.bfloat16(), positions)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.double(), exact, rtol=0, atol=0.03)


def test_harmonics_do_not_see_full_turns_and_keep_differences():
    query, key, rotary = normal(1, 1, 6, 16), normal(1, 1, 6, 16), Rotary(spacing="harmonic")
    angles = torch.arange(6.0).double()[None]
    torch.testing.assert_close(rotary.turn(query, angles), rotary.turn(query, angles + 2 * torch.pi))
    still, turned = (rotary.turn(query, angles + by) @ rotary.turn(key, angles + by).mT for by in (0, 1.234))
    torch.testing.assert_close(still, turned)


def test_harmonics_turn_by_whole_multiples_of_the_position():
    heads, angles = normal(1, 1, 5, 8), torch.linspace(0, 6, 5).double()
    turned = Rotary(spacing="harmonic").turn(heads, angles[None])
    phases = angles[:, None] * torch.arange(1, 5)
    number = torch.complex(heads[..., :4], heads[..., 4:]) * torch.polar(torch.ones_like(phases), phases)
    torch.testing.assert_close(turned, torch.cat((number.real, number.imag), -1))


def test_spacing_is_geometric_or_harmonic():
    assert as_rotary({"spacing": "harmonic", "fraction": 0.5}) == Rotary(spacing="harmonic", fraction=0.5)
    with pytest.raises(ConfigError, match=r"Rotary\.spacing is 'linear'; allowed: 'geometric', 'harmonic'"):
        Rotary(spacing="linear")
