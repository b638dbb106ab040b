"""Depthwise convolutions with large kernels on latitude-longitude grids: one kernel per channel.

A channel's kernel is the product of a planar kernel and a kernel over levels. Depthwise kernels in three dimensions are
among the slowest operations of a GPU: a block with one of 5 x 5 x 3 cells takes 15.1 ms on an H100, with the product
4.5 ms (16 samples, 32 channels, 8 levels, 64 x 128 cells, bfloat16, compiled, gradients included). What a product
cannot express, the pointwise convolutions between two of them can.

`DepthwiseGridConv3d` keeps the grid, `DepthwiseCoarsen` and `DepthwiseRefine` change it (any size, as `nn.resample`),
`SelectiveDepthwise` mixes kernels of several sizes for each sample, and `upkern` grows trained kernels.

Layout: `[batch, channel, level, lat, lon]`. Beyond the top and bottom level lie zeros. A single level meets only one
entry of the kernel over levels, which then scales the planar kernel: one planar convolution, with the same result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from astrozoo.errors import ConfigError
from astrozoo.nn.gates import area_mean
from astrozoo.nn.precision import full_precision
from astrozoo.nn.sphere import pad_grid

__all__ = ["DepthwiseCoarsen", "DepthwiseGridConv3d", "DepthwiseRefine", "SelectiveDepthwise", "upkern"]


class _Depthwise(nn.Module):
    """Kernels over a cell (of `stride` fine cells, where the grid changes) and a halo around it.

    `kernel` and `level_kernel` are what the window measures on a grid that keeps its size. Where `stride` fine cells
    make one, it is `stride - 1` larger, so that it stays centred: north and south, east and west are treated alike.

    Attributes:
        weight: Planar kernels `[channel, 1, window, window]`.
        level_weight: Kernels over levels `[channel, level_window]`; None where that window is 1.
        bias: `[channel]`.
    """

    def __init__(
        self,
        channels: int,
        *,
        kernel: int,
        level_kernel: int,
        longitude: str,
        poles: str,
        stride: tuple[int, int] = (1, 1),
    ) -> None:
        super().__init__()
        for name, size in (("kernel", kernel), ("level_kernel", level_kernel)):
            if size < 1 or size % 2 == 0:
                raise ConfigError(f"{name} of {type(self).__name__} is {size}; allowed: an odd integer of at least 1.")
        self.longitude = longitude
        self.poles = poles
        self.level_stride, self.stride = stride
        window, level_window = kernel + self.stride - 1, level_kernel + self.level_stride - 1
        self.halo, self.level_halo = kernel // 2, level_kernel // 2
        self.weight = nn.Parameter(torch.empty(channels, 1, window, window))
        self.level_weight = nn.Parameter(torch.empty(channels, level_window)) if level_window > 1 else None
        self.bias = nn.Parameter(torch.empty(channels))

    def reset_parameters(self) -> None:
        """Variance-preserving in the plane; over levels 1 for the cell itself, a little of the halo; zero bias."""
        nn.init.kaiming_normal_(self.weight, nonlinearity="linear")
        if self.level_weight is not None:
            nn.init.normal_(self.level_weight, std=0.1)
            nn.init.ones_(self.level_weight[:, self.level_halo : self.level_halo + self.level_stride])
        nn.init.zeros_(self.bias)

    def kernels(self, levels: int) -> tuple[Tensor, Tensor | None]:
        """Planar kernels and, where there is more than one level, those over levels."""
        if levels > 1 or self.level_weight is None:
            return self.weight, self.level_weight
        return self.weight * self.level_weight[:, self.level_halo, None, None, None], None

    def pad(self, planes: Tensor, halo: int) -> Tensor:
        """The halo of the grid, channels side by side in memory: the one layout whose kernels are fast on a GPU."""
        planes = planes.contiguous(memory_format=torch.channels_last)
        return pad_grid(planes, halo, halo, longitude=self.longitude, poles=self.poles)

    def extra_repr(self) -> str:
        """Channels, kernels, strides and edges."""
        kernel, level_kernel = 2 * self.halo + 1, 2 * self.level_halo + 1
        stride = "" if self.stride == self.level_stride == 1 else f"stride={(self.level_stride, self.stride)}, "
        return (
            f"{self.bias.numel()}, kernel={kernel}, level_kernel={level_kernel}, {stride}"
            f"longitude={self.longitude!r}, poles={self.poles!r}"
        )


class DepthwiseGridConv3d(_Depthwise):
    """A size-preserving depthwise convolution of `level_kernel` x `kernel` x `kernel` cells with the globe's halo."""

    def __init__(self, channels: int, *, kernel: int, level_kernel: int, longitude: str, poles: str) -> None:
        super().__init__(channels, kernel=kernel, level_kernel=level_kernel, longitude=longitude, poles=poles)

    def forward(self, x: Tensor) -> Tensor:
        """`x[batch, channel, level, lat, lon]` -> like `x`."""
        weight, taps = self.kernels(x.shape[2])
        planes = self.pad(_fold(x), self.halo)
        y = _unfold(F.conv2d(planes, weight, self.bias if taps is None else None, groups=weight.shape[0]), x.shape[2])
        # Levels last: compiled, they cost nothing of their own, since they become part of the norm that reads them.
        return y if taps is None else _mix_levels(y, taps, self.level_halo, bias=self.bias)


class DepthwiseCoarsen(_Depthwise):
    """Every `stride` cells become one: `[batch, channel, level, lat, lon]` -> `[batch, channel, ceil(size / stride)]`.

    Args:
        channels: Of the features.
        stride: `(level, lat and lon)`.
        kernel, level_kernel: Window on the fine grid, less `stride - 1`.
        longitude, poles: Edges of the grid.
    """

    def __init__(
        self, channels: int, stride: tuple[int, int], *, kernel: int, level_kernel: int, longitude: str, poles: str
    ) -> None:
        super().__init__(
            channels, kernel=kernel, level_kernel=level_kernel, longitude=longitude, poles=poles, stride=stride
        )

    def forward(self, x: Tensor) -> Tensor:
        """`x[batch, channel, level, lat, lon]` -> `[batch, channel, ceil(size / stride), ...]`."""
        weight, taps = self.kernels(x.shape[2])
        if taps is not None:
            x = _mix_levels(x, taps, self.level_halo, self.level_stride)  # first: that leaves fewer planes
        lat, lon = (-size % self.stride for size in x.shape[3:])  # missing to a multiple: more of what lies beyond
        more = max(lat, lon)
        planes = self.pad(_fold(x), self.halo + more)
        planes = planes[..., more : planes.shape[-2] - more + lat, more : planes.shape[-1] - more + lon]
        return _unfold(F.conv2d(planes, weight, self.bias, self.stride, groups=weight.shape[0]), x.shape[2])


class DepthwiseRefine(_Depthwise):
    """The transpose of `DepthwiseCoarsen`: `[batch, channel, level, lat, lon]` -> `[batch, channel, *sizes]`."""

    def __init__(
        self, channels: int, stride: tuple[int, int], *, kernel: int, level_kernel: int, longitude: str, poles: str
    ) -> None:
        super().__init__(
            channels, kernel=kernel, level_kernel=level_kernel, longitude=longitude, poles=poles, stride=stride
        )

    def reset_parameters(self) -> None:
        """Variance-preserving in the plane, where a fine cell meets every `stride`-th entry; otherwise as its kin."""
        super().reset_parameters()
        self.weight.mul_(self.stride)

    def forward(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        """`x[batch, channel, level, lat, lon]` and the sizes `(level, lat, lon)` wanted, at most `stride` as fine."""
        weight, taps = self.kernels(sizes[0])
        halo = -(-self.halo // self.stride)
        planes = F.conv_transpose2d(
            self.pad(_fold(x), halo), weight, self.bias if taps is None else None, self.stride,
            padding=halo * self.stride + self.halo, groups=weight.shape[0],
        )  # fmt: skip
        x = _unfold(planes, x.shape[2])[..., : sizes[1], : sizes[2]]
        if taps is None:
            return x[:, :, : sizes[0]]
        x = _spread_levels(x, taps, self.level_halo, self.level_stride)[:, :, : sizes[0]]
        return x + self.bias.to(x.dtype)[:, None, None, None]


class SelectiveDepthwise(nn.Module):
    """Depthwise convolutions of several sizes, mixed for each sample and channel by what the whole field looks like.

    The selective kernel of Li, Wang, Hu, Yang (2019), arXiv:1903.06586: the branches are added and averaged (over area,
    `nn.gates`), a perceptron turns the averages into one logit per branch and channel, and a softmax over branches
    mixes them. Starts as the mean of its branches.
    """

    def __init__(
        self,
        channels: int,
        *,
        kernels: Sequence[int],
        level_kernel: int,
        longitude: str,
        poles: str,
        reduction: int = 16,
    ) -> None:
        super().__init__()
        self.poles = poles
        self.branches = nn.ModuleList(
            DepthwiseGridConv3d(channels, kernel=kernel, level_kernel=level_kernel, longitude=longitude, poles=poles)
            for kernel in kernels
        )
        hidden = max(channels // reduction, 8)
        self.squeeze = nn.Linear(channels, hidden)
        self.choose = nn.Linear(hidden, len(self.branches) * channels)

    def reset_parameters(self) -> None:
        """He initialisation of the first layer; zero for the second: all branches count alike."""
        nn.init.kaiming_normal_(self.squeeze.weight, nonlinearity="relu")
        for tensor in (self.squeeze.bias, self.choose.weight, self.choose.bias):
            nn.init.zeros_(tensor)

    def shares(self, branches: Sequence[Tensor]) -> Tensor:
        """Branches `[batch, channel, level, lat, lon]` -> their shares `[batch, branch, channel]`, which sum to 1."""
        with full_precision(branches[0]):
            seen = sum(area_mean(branch, poles=self.poles).mean(-1) for branch in branches)  # [batch, channel]
            hidden = F.relu(self.squeeze(seen.to(self.squeeze.weight.dtype)))  # type: ignore[union-attr]
            logits = self.choose(hidden).unflatten(-1, (len(branches), -1))
            return logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(1)

    def forward(self, x: Tensor) -> Tensor:
        """`x[batch, channel, level, lat, lon]` -> like `x`."""
        branches = [branch(x) for branch in self.branches]
        shares = self.shares(branches).to(branches[0].dtype)[..., None, None, None].unbind(1)
        mixed = branches[0] * shares[0]
        for branch, share in zip(branches[1:], shares[1:], strict=True):
            mixed = mixed + branch * share
        return mixed


def upkern(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a model with small depthwise kernels, for the same model with larger ones.

    UpKern of MedNeXt (Roy et al. 2023, arXiv:2303.09975): large kernels are hard to train from scratch, so train small
    ones first and stretch them, trilinearly; all else is taken over. Kernels are stretched in the plane and over
    levels; the product of both is the trilinear stretch. Unlike there, they are divided by their gain in entries, so
    that smooth fields give much the same as before.

        large.load_state_dict(upkern(large, small.state_dict()))

    Args:
        model: The model with larger kernels; it is not changed.
        state: `state_dict()` of the smaller one.

    Raises:
        ConfigError: The two differ in something other than the sizes of depthwise kernels.
    """
    wanted = model.state_dict()
    kernels = {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        if isinstance(module, _Depthwise)
        for name in ("weight", "level_weight")
    }
    shared = [name for name in state if name in wanted]
    differing = sorted(set(wanted) ^ set(state))
    differing += [name for name in shared if not _fits(state[name], wanted[name], grows=name in kernels)]
    if differing:
        raise ConfigError(
            f"upkern grows depthwise kernels, but {len(differing)} of the tensors do not fit, first {differing[0]!r}; "
            "give both models the same configuration except for kernels, which must not shrink."
        )
    return {name: _stretch(tensor, wanted[name].shape) if name in kernels else tensor for name, tensor in state.items()}


def _fits(tensor: Tensor, wanted: Tensor, *, grows: bool) -> bool:
    if not grows or tensor.ndim != wanted.ndim or tensor.shape[0] != wanted.shape[0]:
        return tensor.shape == wanted.shape
    return all(old <= new for old, new in zip(tensor.shape, wanted.shape, strict=True))


def _stretch(kernels: Tensor, shape: torch.Size) -> Tensor:
    """Planar `[channel, 1, window, window]` or level kernels `[channel, window]` at the windows of `shape`."""
    if kernels.shape == shape:
        return kernels
    if kernels.ndim == 4:
        stretched = F.interpolate(kernels, shape[2:], mode="bilinear")
    else:
        stretched = F.interpolate(kernels[:, None], shape[1:], mode="linear")[:, 0]
    return stretched * (kernels[0].numel() / stretched[0].numel())


def _fold(x: Tensor) -> Tensor:
    """`[batch, channel, level, lat, lon]` -> `[batch * level, channel, lat, lon]`."""
    return x.squeeze(2) if x.shape[2] == 1 else x.transpose(1, 2).flatten(0, 1)


def _unfold(planes: Tensor, levels: int) -> Tensor:
    """`[batch * level, channel, lat, lon]` -> `[batch, channel, level, lat, lon]`."""
    return planes.unsqueeze(2) if levels == 1 else planes.unflatten(0, (-1, levels)).transpose(1, 2)


# Level kernels as sums of shifted fields, not as convolutions: those take as long as the planar kernel several times
# over, and these the compiler fuses into what comes next.


def _mix_levels(x: Tensor, taps: Tensor, halo: int, stride: int = 1, *, bias: Tensor | None = None) -> Tensor:
    """Convolve levels of `x` with `taps[channel, window]`, zeros beyond the ends; every `stride` levels become one."""
    coarse = -(-x.shape[2] // stride)
    padded = F.pad(x, (0, 0, 0, 0, halo, halo + coarse * stride - x.shape[2]))
    last = stride * (coarse - 1) + 1
    columns = taps.to(x.dtype)[..., None, None, None].unbind(1)
    mixed = torch.zeros_like(columns[0]) if bias is None else bias.to(x.dtype)[:, None, None, None]
    for offset, tap in enumerate(columns):
        mixed = torch.addcmul(mixed, tap, padded[:, :, offset : offset + last : stride])
    return mixed


def _spread_levels(x: Tensor, taps: Tensor, halo: int, stride: int) -> Tensor:
    """The transpose of `_mix_levels`: every level of `x` becomes `stride`."""
    levels, ends = x.shape[2], -(-halo // stride)
    padded = F.pad(x, (0, 0, 0, 0, ends, ends))
    columns = taps.to(x.dtype)[..., None, None, None].unbind(1)
    phases = []
    for phase in range(stride):  # fine level stride * i + phase meets every stride-th entry of the kernel
        parts = []
        for entry in range((phase + halo) % stride, len(columns), stride):
            offset = ends + (phase + halo - entry) // stride
            parts.append(columns[entry] * padded[:, :, offset : offset + levels])
        phases.append(sum(parts[1:], parts[0]))
    return phases[0] if stride == 1 else torch.stack(phases, 3).flatten(2, 3)
