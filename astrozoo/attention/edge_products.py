"""Products and sums along edges that keep nothing of the size of edges times features for the backward pass.

Autograd of `(query[target] * key[source]).sum(-1)` would keep both gathered factors; here the backward pass gathers
them again from the nodes. The two operations are each other's gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["edge_products", "edge_sums"]


def edge_products(own: Tensor, other: Tensor, target: Tensor, source: Tensor) -> Tensor:
    """Scalar products (edge, row, key head, group) of the features of both ends of each edge.

    Args:
        own: (query node, row, key head, group, feature).
        other: (key node, row, key head, 1, feature).
        target: int64 (edge,), query node.
        source: int64 (edge,), key node.
    """
    found: Tensor = _Products.apply(own, other, target, source)
    return found


def edge_sums(weights: Tensor, content: Tensor, target: Tensor, source: Tensor, nodes: int) -> Tensor:
    """Weighted sums (query node, row, key head, group, feature) of what lies at the other end of the edges of a node.

    Args:
        weights: (edge, row, key head, group).
        content: (key node, row, key head, 1, feature).
        target: int64 (edge,), query node.
        source: int64 (edge,), key node.
        nodes: Number of query nodes.
    """
    found: Tensor = _Sums.apply(weights, content, target, source, nodes)
    return found


class _Products(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(own: Tensor, other: Tensor, target: Tensor, source: Tensor) -> Tensor:
        return (own.index_select(0, target) @ other.index_select(0, source).transpose(-1, -2)).squeeze(-1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        own, other, target, source = ctx.saved_tensors
        asked = edge_sums(grad, other, target, source, own.shape[0]) if ctx.needs_input_grad[0] else None
        answered = _returned(grad, own, target, source, other) if ctx.needs_input_grad[1] else None
        return asked, answered, None, None


class _Sums(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(weights: Tensor, content: Tensor, target: Tensor, source: Tensor, nodes: int) -> Tensor:
        total = content.new_zeros(nodes, *weights.shape[1:], content.shape[-1])
        return total.index_add(0, target, weights[..., None] * content.index_select(0, source))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        ctx.save_for_backward(*inputs[:4])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        weights, content, target, source = ctx.saved_tensors
        asked = edge_products(grad, content, target, source) if ctx.needs_input_grad[0] else None
        answered = _returned(weights, grad, target, source, content) if ctx.needs_input_grad[1] else None
        return asked, answered, None, None, None


def _returned(weights: Tensor, own: Tensor, target: Tensor, source: Tensor, like: Tensor) -> Tensor:
    """Weighted sums of what lies at the queries, at the keys (key node, row, key head, 1, feature)."""
    values = (weights[..., None] * own.index_select(0, target)).sum(dim=3, keepdim=True)
    return torch.zeros_like(like).index_add(0, source, values)
