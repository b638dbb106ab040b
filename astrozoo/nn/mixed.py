"""Mixed operations: what an edge of a differentiable architecture search chooses among (DARTS, arXiv:1806.09055).

An edge leads from one node of a cell to another. While searching, it carries every candidate, each weighted by an entry
of a softmax; once the search is over it carries one. Candidates:

none      nothing: no edge
identity  the node as it is
mean3     mean of 3 x 3 cells
max3      maximum of 3 x 3 cells
conv3     a full convolution of 3 x 3 cells and `level_kernel` levels
sep3/5/7  a depthwise convolution of 3 x 3, 5 x 5, 7 x 7 cells, then a pointwise one
dil3/5    the same with 3 x 3 or 5 x 5 cells of which every second is read: 5 or 9 cells wide
column    a depthwise convolution over `2 * level_kernel - 1` levels, then a pointwise one

All but `conv3` and `column` act within a level, so that the search also says where levels exchange.

How this differs from the paper, where every candidate has its own activation and batch norm, and why: candidates act on
a node that is normalised and activated once for all edges leaving it, and the kernel of each is divided by its norm.
The purpose is the same, to let candidates compete on equal terms (a weight cannot make up for a small share), but
nothing depends on the batch, the shares act on kernels instead of fields, no normalised copy per candidate is kept
for the gradient, and a node is extended beyond the edges of the grid once per reach instead of once per candidate.

Layout: planes `[batch * level, channel, lat, lon]`, the levels of a sample one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from astrozoo.nn.sphere import pad_grid

__all__ = ["OPERATIONS", "MixedOperation", "Node", "levels_to_planes", "planes_to_levels"]


def levels_to_planes(x: Tensor) -> Tensor:
    """`[batch, channel, level, lat, lon]` -> `[batch * level, channel, lat, lon]`; a view where channels are last."""
    return x.transpose(1, 2).flatten(0, 1)


def planes_to_levels(planes: Tensor, levels: int) -> Tensor:
    """`[batch * level, channel, lat, lon]` -> `[batch, channel, level, lat, lon]`, a view."""
    return planes.unflatten(0, (-1, levels)).transpose(1, 2)


class Node:
    """Planes of a cell's node, and the same beyond the edges of the grid, made once for all that ask.

    Attributes:
        planes: `[batch * level, channel, lat, lon]`.
        levels: Number of levels.
    """

    def __init__(self, planes: Tensor, levels: int, *, longitude: str, poles: str) -> None:
        self.planes = planes
        self.levels = levels
        self.longitude = longitude
        self.poles = poles
        self._padded: dict[int, Tensor] = {0: planes}

    def padded(self, reach: int) -> Tensor:
        """`[batch * level, channel, lat + 2 * reach, lon + 2 * reach]`."""
        if reach not in self._padded:
            self._padded[reach] = pad_grid(self.planes, reach, reach, longitude=self.longitude, poles=self.poles)
        return self._padded[reach]


def _scaled(weight: Tensor, norm: Tensor, share: Tensor | None) -> Tensor:
    """`weight[out, ...]` times `share / norm[out]`."""
    scale = norm.clamp_min(1e-6).reciprocal()
    scale = scale if share is None else scale * share
    return weight * scale.reshape(-1, *(1,) * (weight.ndim - 1))


class Identity(nn.Module):
    """The node as it is."""

    def forward(self, node: Node, share: Tensor | None) -> Tensor:
        """Planes of `node`, times `share`."""
        return node.planes if share is None else node.planes * share.to(node.planes.dtype)


class Pool(nn.Module):
    """Mean or maximum of the 3 x 3 cells around each."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.pool: Callable[..., Tensor] = F.avg_pool2d if kind == "mean" else F.max_pool2d

    def forward(self, node: Node, share: Tensor | None) -> Tensor:
        """Planes of `node`, pooled, times `share`."""
        y = self.pool(node.padded(1), 3, 1)
        return y if share is None else y * share.to(y.dtype)


class FullConv(nn.Module):
    """A convolution of 3 x 3 cells and `level_kernel` levels; zeros lie beyond the outermost levels."""

    def __init__(self, channels: int, level_kernel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, channels, level_kernel, 3, 3))

    def reset_parameters(self) -> None:
        """Kernels with a norm near 1, which is what they are divided by."""
        nn.init.kaiming_normal_(self.weight, nonlinearity="linear")

    def forward(self, node: Node, share: Tensor | None) -> Tensor:
        """Planes of `node`, convolved, times `share`."""
        half, planes = self.weight.shape[2] // 2, node.padded(1)
        weight = self.weight[:, :, half : half + 1] if node.levels == 1 else self.weight
        weight = _scaled(weight, torch.linalg.vector_norm(weight, dim=(1, 2, 3, 4)), share)
        if weight.shape[2] == 1:
            return F.conv2d(planes, weight.squeeze(2))
        x = planes_to_levels(planes, node.levels)
        if x.device.type == "cpu":  # see `GridConv3d`: oneDNN's own zero padding is not safe in half precision
            x, half = F.pad(x, (0, 0, 0, 0, half, half)), 0
        return levels_to_planes(F.conv3d(x, weight, padding=(half, 0, 0)))


class SeparableConv(nn.Module):
    """A depthwise convolution of `kernel` x `kernel` cells, every `dilation`-th, then a pointwise one."""

    def __init__(self, channels: int, kernel: int, dilation: int = 1) -> None:
        super().__init__()
        self.dilation = dilation
        self.depthwise = nn.Parameter(torch.empty(channels, 1, kernel, kernel))
        self.pointwise = nn.Parameter(torch.empty(channels, channels, 1, 1))

    def reset_parameters(self) -> None:
        """Kernels whose product has a norm near 1, which is what it is divided by."""
        nn.init.kaiming_normal_(self.depthwise, nonlinearity="linear")
        nn.init.kaiming_normal_(self.pointwise, nonlinearity="linear")

    def forward(self, node: Node, share: Tensor | None) -> Tensor:
        """Planes of `node`, convolved, times `share`."""
        reach = self.depthwise.shape[-1] // 2 * self.dilation
        y = F.conv2d(node.padded(reach), self.depthwise, dilation=self.dilation, groups=self.depthwise.shape[0])
        return F.conv2d(y, _separable_weight(self.pointwise, self.depthwise, share))


class ColumnConv(nn.Module):
    """A depthwise convolution over `kernel` levels, then a pointwise one; zeros lie beyond the outermost levels."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.depthwise = nn.Parameter(torch.empty(channels, kernel))
        self.pointwise = nn.Parameter(torch.empty(channels, channels, 1, 1))

    def reset_parameters(self) -> None:
        """Kernels whose product has a norm near 1, which is what it is divided by."""
        nn.init.normal_(self.depthwise, std=self.depthwise.shape[1] ** -0.5)
        nn.init.kaiming_normal_(self.pointwise, nonlinearity="linear")

    def forward(self, node: Node, share: Tensor | None) -> Tensor:
        """Planes of `node`, convolved, times `share`."""
        half, planes = self.depthwise.shape[1] // 2, node.planes
        if node.levels == 1 or half == 0:
            centre = self.depthwise[:, half]
            weight = _separable_weight(self.pointwise * centre[:, None, None], centre.new_ones(len(centre), 1), share)
            return F.conv2d(planes, weight)
        x = F.pad(planes.unflatten(0, (-1, node.levels)), (0, 0, 0, 0, 0, 0, half, half))  # [batch, level, channel, ..]
        taps = self.depthwise.to(x.dtype)[..., None, None].unbind(1)  # each [channel, 1, 1]
        y = taps[0] * x[:, : node.levels]
        for offset, tap in enumerate(taps[1:], 1):
            y = y + tap * x[:, offset : offset + node.levels]
        return F.conv2d(y.flatten(0, 1), _separable_weight(self.pointwise, self.depthwise, share))


def _separable_weight(pointwise: Tensor, depthwise: Tensor, share: Tensor | None) -> Tensor:
    """The pointwise kernel `[out, in, 1, 1]` that gives its product with `depthwise[in, ...]` the norm `share`."""
    energy = pointwise.flatten(1).square() * depthwise.flatten(1).square().sum(1)  # [out, in]
    return _scaled(pointwise, energy.sum(1).clamp_min(1e-12).sqrt(), share)


# Each is made with the number of channels and the extent of convolutions in level.
OPERATIONS: dict[str, Callable[[int, int], nn.Module] | None] = {
    "none": None,
    "identity": lambda channels, level_kernel: Identity(),  # noqa: ARG005
    "mean3": lambda channels, level_kernel: Pool("mean"),  # noqa: ARG005
    "max3": lambda channels, level_kernel: Pool("max"),  # noqa: ARG005
    "conv3": FullConv,
    "sep3": lambda channels, level_kernel: SeparableConv(channels, 3),  # noqa: ARG005
    "sep5": lambda channels, level_kernel: SeparableConv(channels, 5),  # noqa: ARG005
    "sep7": lambda channels, level_kernel: SeparableConv(channels, 7),  # noqa: ARG005
    "dil3": lambda channels, level_kernel: SeparableConv(channels, 3, 2),  # noqa: ARG005
    "dil5": lambda channels, level_kernel: SeparableConv(channels, 5, 2),  # noqa: ARG005
    "column": lambda channels, level_kernel: ColumnConv(channels, 2 * level_kernel - 1),
}


class MixedOperation(nn.ModuleDict):
    """The sum of candidate operations on a node, each times its share; one candidate without shares is that operation.

    Its modules are those of the candidates by name, so that what the search chose loads into an edge of that one.
    """

    def __init__(self, operations: Sequence[str], channels: int, level_kernel: int) -> None:
        makers = {name: OPERATIONS[name] for name in operations}
        super().__init__({name: make(channels, level_kernel) for name, make in makers.items() if make is not None})
        self.shares_of = [index for index, make in enumerate(makers.values()) if make is not None]

    def forward(self, node: Node, shares: Sequence[Tensor] | None) -> Tensor:
        """Planes of `node` and one scalar per candidate, those of `none` included -> planes."""
        terms = [
            operation(node, None if shares is None else shares[index])
            for index, operation in zip(self.shares_of, self.values(), strict=True)
        ]
        total: Tensor = terms[0]
        for term in terms[1:]:
            total = total + term
        return total
