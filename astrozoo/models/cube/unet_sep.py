"""cube_unet_sep: a U-Net of depthwise-separable blocks with large kernels, for smooth fields with long-range structure.

Waves, jets and fronts span many cells; a large kernel per channel sees them in one block at little cost.

Paper: Roy, Koehler, Ulrich, Baumgartner, Petersen, Isensee, Jaeger, Maier-Hein (2023), "MedNeXt: Transformer-driven
Scaling of ConvNets for Medical Image Segmentation", arXiv:2303.09975. Its blocks are here (depthwise convolution, norm,
expansion, GELU, compression, residual), those that change the resolution too, and UpKern, which starts large kernels
from trained small ones (`CubeUNetSep.load_smaller_kernels`).
Where we differ, and why:
- Kernels are products of a planar one and one over levels, and reach around the globe (`astrozoo.nn.separable`).
- Normalisation is over channels instead of over the grid of each channel (GroupNorm with one group per channel): the
  result of a cell does not depend on the region that is cut out.
- Resampling blocks have a patch convolution as residual path; a pointwise one with a stride skips three cells of four.
  They expand from the narrower side, since the wide side has no need to be expanded on the fine grid.
- At scales with more than one branch, each block chooses among kernels of several sizes by a softmax per sample and
  channel: the selective kernel of Li, Wang, Hu, Yang (2019), arXiv:1903.06586.
- The U-shape is ours (`astrozoo.models.ushape`): skips are added as in MedNeXt, and an untrained model predicts the
  climatology. There is no deep supervision: `features` gives the scales to whoever wants to add it.

Layout: `x[batch, var, level, lat, lon]`, optional `static[batch, static, lat, lon]` (orography, land mask) and
`condition[batch, param]` (forcing, planetary parameters) -> `y[batch, out_var, level, lat, lon]`. Levels may be one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from astrozoo.models.ushape import UShapeConfig, UShapeModel
from astrozoo.nn import (
    ChannelNorm,
    Coarsen,
    DepthwiseCoarsen,
    DepthwiseGridConv3d,
    DepthwiseRefine,
    DropPath,
    FiLM,
    Refine,
    SelectiveDepthwise,
    checks,
    upkern,
)
from astrozoo.registry.family import Family
from astrozoo.registry.spec import Paper

__all__ = ["CubeUNetSep", "CubeUNetSepConfig"]


@dataclass(frozen=True, kw_only=True, slots=True)
class CubeUNetSepConfig(UShapeConfig):
    """Configuration of `CubeUNetSep`; all fields but these are those of `UShapeConfig`.

    Attributes:
        kernels: Cells that a depthwise kernel spans in lat and in lon, per scale; odd. Resampling between two scales
            uses that of the finer one.
        branches: Kernel sizes among which a block chooses for each sample, per scale: that of `kernels` and the next
            smaller odd ones, down to 3; 1 for no choice.
        expansions: Hidden units per channel of the perceptrons, per scale; likewise.
    """

    widths: tuple[int, ...] = (24, 48, 96, 192, 384)
    kernels: tuple[int, ...] = (5, 5, 5, 5, 5)
    branches: tuple[int, ...] = (1, 1, 1, 2, 2)
    expansions: tuple[int, ...] = (2, 3, 4, 4, 4)

    def __post_init__(self) -> None:
        UShapeConfig.__post_init__(self)
        checks.each_at_least(self, 1, "kernels", "branches", "expansions")
        for name in ("kernels", "branches", "expansions"):
            checks.same_length(self, name, len(self.widths), "one per entry of widths")
        if any(kernel % 2 == 0 for kernel in self.kernels):
            raise checks.fail(self, "kernels", "odd integers")
        for kernel, branches in zip(self.kernels, self.branches, strict=True):
            if branches > max(kernel // 2, 1):
                raise checks.fail(self, "branches", f"at most {max(kernel // 2, 1)} where the kernel is {kernel}")


class Perceptron(nn.Module):
    """Norm, expansion, GELU and compression of each cell, scaled and shifted by a condition after the norm."""

    def __init__(self, config: CubeUNetSepConfig, width: int, hidden: int, out: int, *, conditioned: bool) -> None:
        super().__init__()
        self.norm = ChannelNorm(width)
        self.film = FiLM(config.condition_width, width) if conditioned and config.condition_dim else None
        self.widen = nn.Linear(width, hidden)
        self.dropout = nn.Dropout3d(config.dropout)
        self.narrow = nn.Linear(hidden, out)

    def reset_parameters(self) -> None:
        """Variance-preserving expansion; zero compression, so that a deep stack starts as its residual paths."""
        nn.init.kaiming_normal_(self.widen.weight, nonlinearity="relu")
        for tensor in (self.widen.bias, self.narrow.weight, self.narrow.bias):
            nn.init.zeros_(tensor)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """`x[batch, width, level, lat, lon]`, `condition[batch, embedding]` -> `[batch, out, level, lat, lon]`."""
        x = self.norm(x)
        if self.film is not None:
            x = self.film(x, condition)
        hidden = self.dropout(F.gelu(self.widen(x.movedim(1, -1))).movedim(-1, 1))
        return self.narrow(hidden.movedim(1, -1)).movedim(-1, 1)


class SeparableBlock(nn.Module):
    """`x + perceptron(depthwise(x))`, with one kernel per channel or a choice among several."""

    def __init__(self, config: CubeUNetSepConfig, scale: int, drop_path: float) -> None:
        super().__init__()
        width, kernel, branches = config.widths[scale], config.kernels[scale], config.branches[scale]
        grid: dict[str, Any] = {
            "level_kernel": config.level_kernel,
            "longitude": config.longitude,
            "poles": config.poles,
        }
        self.depthwise: nn.Module
        if branches == 1:
            self.depthwise = DepthwiseGridConv3d(width, kernel=kernel, **grid)
        else:
            kernels = [kernel - 2 * branch for branch in range(branches)]
            self.depthwise = SelectiveDepthwise(width, kernels=kernels, **grid)
        self.perceptron = Perceptron(config, width, width * config.expansions[scale], width, conditioned=True)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """`x[batch, channel, level, lat, lon]`, `condition[batch, embedding]` -> like `x`."""
        return x + self.drop_path(self.perceptron(self.depthwise(x), condition))


class CoarsenBlock(nn.Module):
    """From one scale to the next coarser: patch convolution plus perceptron of a strided depthwise convolution."""

    def __init__(self, config: CubeUNetSepConfig, scale: int) -> None:
        super().__init__()
        fine, coarse = config.widths[scale : scale + 2]
        level, space = config.level_strides[scale], config.strides[scale]
        self.residual = Coarsen(fine, coarse, (level, space, space), longitude=config.longitude)
        self.depthwise = DepthwiseCoarsen(
            fine, (level, space), kernel=config.kernels[scale], level_kernel=config.level_kernel,
            longitude=config.longitude, poles=config.poles,
        )  # fmt: skip
        self.perceptron = Perceptron(config, fine, fine * config.expansions[scale], coarse, conditioned=False)

    def forward(self, x: Tensor) -> Tensor:
        """`x[batch, fine, level, lat, lon]` -> `[batch, coarse, ceil(size / stride), ...]`."""
        return self.residual(x) + self.perceptron(self.depthwise(x))


class RefineBlock(nn.Module):
    """Back to the finer scale: patch convolution plus perceptron of a transposed depthwise convolution."""

    def __init__(self, config: CubeUNetSepConfig, scale: int) -> None:
        super().__init__()
        fine, coarse = config.widths[scale : scale + 2]
        level, space = config.level_strides[scale], config.strides[scale]
        self.residual = Refine(coarse, fine, (level, space, space))
        self.depthwise = DepthwiseRefine(
            coarse, (level, space), kernel=config.kernels[scale], level_kernel=config.level_kernel,
            longitude=config.longitude, poles=config.poles,
        )  # fmt: skip
        self.perceptron = Perceptron(config, coarse, fine * config.expansions[scale], fine, conditioned=False)

    def forward(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        """`x[batch, coarse, level, lat, lon]` and the sizes wanted -> `[batch, fine, *sizes]`."""
        return self.residual(x, sizes) + self.perceptron(self.depthwise(x, sizes))


class CubeUNetSep(UShapeModel):
    """The U-Net of separable blocks; resampling is done by such blocks too."""

    def make_layers(self, config: CubeUNetSepConfig) -> None:
        """As of the U-shape, with resampling blocks in place of patch convolutions."""
        super().make_layers(config)
        scales = range(len(config.strides))
        self.coarsen = nn.ModuleList(CoarsenBlock(config, scale) for scale in scales)
        self.refine = nn.ModuleList(RefineBlock(config, scale) for scale in reversed(scales))

    def make_block(self, config: CubeUNetSepConfig, scale: int, drop_path: float) -> nn.Module:
        """A separable block."""
        return SeparableBlock(config, scale, drop_path)

    def load_smaller_kernels(self, state: Mapping[str, Tensor]) -> None:
        """Start from a trained model that differs only in smaller `kernels` (UpKern, see `astrozoo.nn.upkern`).

            large = create_model("cube_unet_sep_small", kernels=(7, 7, 5, 5, 5))
            large.load_smaller_kernels(small.state_dict())

        Args:
            state: `state_dict()` of the model with smaller kernels.
        """
        self.load_state_dict(upkern(self, state))


FAMILY = Family(
    name="cube_unet_sep",
    domain="cube",
    summary="3-D U-Net of depthwise-separable blocks with large kernels, chosen per sample at coarse scales (MedNeXt)",
    model=CubeUNetSep,
    config=CubeUNetSepConfig,
    miniature={
        "in_vars": 2,
        "out_vars": 2,
        "static_vars": 1,
        "condition_dim": 3,
        "widths": (8, 16),
        "depths": (1, 1),
        "decoder_depths": (1,),
        "strides": (2,),
        "level_strides": (2,),
        "condition_width": 8,
        "dropout": 0.1,
        "drop_path": 0.1,
        "kernels": (5, 5),
        "branches": (1, 2),
        "expansions": (2, 2),
    },
    paper=Paper(
        authors="Roy et al.",
        year=2023,
        title="MedNeXt: Transformer-driven Scaling of ConvNets for Medical Image Segmentation",
        arxiv="2303.09975",
    ),
    stems=("stem.",),
    heads=("head.",),
    blocks=("encoder.*.*", "coarsen.*", "refine.*", "decoder.*.*"),
)

cube_unet_sep_tiny = FAMILY.variant(
    "tiny",
    "Monthly fields of one simulation, or a first run on a GPU.",
    widths=(64, 128, 256),
    depths=(2, 2, 4),
    decoder_depths=(2, 2),
    strides=(2, 2),
    level_strides=(1, 2),
    kernels=(5, 5, 5),
    branches=(1, 1, 2),
    expansions=(2, 3, 4),
)
cube_unet_sep_small = FAMILY.variant(
    "small", "Daily fields, or an ensemble of simulations, on one GPU.", widths=(32, 64, 144, 352, 768)
)
cube_unet_sep_base = FAMILY.variant(
    "base",
    "Decades of 6-hourly reanalysis at 1 to 2 degrees.",
    widths=(48, 96, 224, 512, 1024),
    depths=(1, 1, 2, 3, 4),
    kernels=(7, 7, 7, 5, 5),
)
cube_unet_sep_large = FAMILY.variant(
    "large",
    "Reanalysis with many variables and levels, on several GPUs.",
    widths=(64, 128, 288, 768, 1536),
    depths=(1, 2, 3, 5, 8),
    kernels=(7, 7, 7, 7, 5),
    branches=(1, 1, 1, 3, 2),
    drop_path=0.1,
)
