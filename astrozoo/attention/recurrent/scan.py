"""States between chunks: S[c + 1] = T[c] S[c] + U[c] for all chunks, without a loop over them.

Chunks are taken in groups. All groups are first summed up at once, the states between groups are found by the same
rule, and then all groups are filled in at once: work O(chunks), and the number of operations grows with the logarithm
of the length only, so a compiled graph is the same over a wide range of lengths.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from astrozoo.attention.recurrent.chunks import leading

__all__ = ["states_between"]

GROUP = 8


def states_between(transition: Tensor, update: Tensor, initial: Tensor) -> tuple[Tensor, Tensor]:
    """The state before every chunk, and after the last.

    Args:
        transition: (..., chunk, key, key), or (..., chunk, 1, 1) where it is a scalar; leading dims broadcast.
        update: (..., chunk, key, value), one chunk at least.
        initial: (..., key, value).

    Returns:
        (..., chunk, key, value) and (..., key, value).
    """
    before = _states_before(transition, update, initial)
    return before, _apply(transition[..., -1, :, :], before[..., -1, :, :]) + update[..., -1, :, :]


def _states_before(transition: Tensor, update: Tensor, initial: Tensor) -> Tensor:
    chunks = update.shape[-3]
    if chunks == 1:
        return initial.unsqueeze(-3)
    groups = (chunks + GROUP - 1) // GROUP
    behind = (0, 0, 0, 0, 0, groups * GROUP - chunks)  # no state that depends on these zeros is returned
    transitions = F.pad(transition, behind).unflatten(-3, (groups, GROUP)).unbind(-3)
    updates = F.pad(update, behind).unflatten(-3, (groups, GROUP)).unbind(-3)
    if groups == 1:
        states = [initial.unsqueeze(-3)]
    else:
        over, gained = transitions[0], updates[0]
        for step, gain in zip(transitions[1:], updates[1:], strict=True):
            over, gained = _apply(step, over), _apply(step, gained) + gain
        states = [_states_before(over, gained, initial)]
    for step, gain in zip(transitions[:-1], updates[:-1], strict=True):
        states.append(_apply(step, states[-1]) + gain)
    return leading(torch.stack(states, dim=-3).flatten(-4, -3), chunks, -3)


def _apply(transition: Tensor, state: Tensor) -> Tensor:
    return transition * state if transition.shape[-1] == 1 else transition @ state
