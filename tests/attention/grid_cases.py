"""What the tests of attentions on grids share: comparisons with the reference, and what a token reaches."""

from __future__ import annotations

import torch
from torch import nn


def equal_with_gradients(attention, x, *, atol=1e-11, **terms):
    """`forward` equals `forward_reference`, and so do the gradients of the tokens and of every parameter."""
    x = x.clone().requires_grad_()
    inputs = [x, *attention.parameters()]
    direction = torch.randn_like(x)
    results = [run(x, **terms) for run in (attention, attention.forward_reference)]
    gradients = [torch.autograd.grad(out, inputs, direction) for out in results]
    torch.testing.assert_close(*results, rtol=0, atol=atol)
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


def reach(attention, x, **terms):
    """bool (query, key): which tokens change which rows of the output when they change."""
    with torch.no_grad():
        base = attention(x, **terms)
        columns = []
        for token in range(x.shape[1]):
            moved = x.clone()
            moved[:, token] += 1
            columns.append((attention(moved, **terms) != base).any(dim=-1).any(dim=0))
    return torch.stack(columns, dim=1)


def with_parameters_of(attention, other):
    """`attention` with the parameters of `other` that it has, too."""
    missing, unexpected = attention.load_state_dict(other.state_dict(), strict=False)
    assert not unexpected
    assert not missing
    return attention


def randomized(attention):
    """`attention` with parameters that are all away from where they start."""
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=0.4)
    return attention
