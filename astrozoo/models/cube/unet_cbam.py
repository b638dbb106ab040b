"""cube_unet_cbam: a U-Net whose blocks weigh channels, levels and places, for fields with localised or layered signals.

Where what matters is a storm, a terminator or one cloud deck, a gate can silence the rest of the globe.

Paper: Woo, Park, Lee, Kweon (2018), "CBAM: Convolutional Block Attention Module", arXiv:1807.06521.
Where we differ, and why:
- A gate per level stands beside those per channel and per cell; means are over area, and gates start at 1
  (`astrozoo.nn.gates`).
- The network around the module is a U-shape for fields (`astrozoo.models.ushape`) rather than a classifier. As in the
  paper, the module refines the branch of a residual block before it is added.

Layout: `x[batch, var, level, lat, lon]`, optional `static[batch, static, lat, lon]` (orography, land mask) and
`condition[batch, param]` (forcing, planetary parameters) -> `y[batch, out_var, level, lat, lon]`. Levels may be one.
Pooled statistics see the whole grid: a model of a region cannot be applied to another cut of it as if it were local.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from astrozoo.models.fields import grid_conv
from astrozoo.models.ushape import UShapeConfig, UShapeModel
from astrozoo.nn import CBAM3d, ChannelNorm, DropPath, FiLM, checks
from astrozoo.nn.gates import GATES
from astrozoo.registry.family import Family
from astrozoo.registry.spec import Paper

__all__ = ["CubeUNetCBAM", "CubeUNetCBAMConfig"]


@dataclass(frozen=True, kw_only=True, slots=True)
class CubeUNetCBAMConfig(UShapeConfig):
    """Configuration of `CubeUNetCBAM`; all fields but these are those of `UShapeConfig`.

    Attributes:
        gates: Which of `channel`, `level`, `spatial` each block has; they are applied in this order.
        reduction: Channels per hidden unit of the perceptrons of the channel and level gates.
        gate_kernel: Width in cells of the convolution of the spatial gate; odd.
    """

    gates: tuple[str, ...] = GATES
    reduction: int = 16
    gate_kernel: int = 7

    def __post_init__(self) -> None:
        UShapeConfig.__post_init__(self)
        if isinstance(self.gates, list):  # from YAML or JSON
            object.__setattr__(self, "gates", tuple(self.gates))
        if not isinstance(self.gates, tuple) or not self.gates or not set(self.gates) <= set(GATES):
            raise checks.fail(self, "gates", f"a tuple of one or more of {', '.join(map(repr, GATES))}")
        checks.at_least(self, 1, "reduction", "gate_kernel")
        if self.gate_kernel % 2 == 0:
            raise checks.fail(self, "gate_kernel", "an odd integer")


class GatedResidualBlock(nn.Module):
    """`x + cbam(conv(silu(conv(norm(x)))))`, scaled and shifted by a condition after the norm."""

    def __init__(self, config: CubeUNetCBAMConfig, width: int, drop_path: float) -> None:
        super().__init__()
        self.norm = ChannelNorm(width)
        self.film = FiLM(config.condition_width, width) if config.condition_dim else None
        self.conv1 = grid_conv(config, width, width, level_kernel=config.level_kernel)
        self.dropout = nn.Dropout3d(config.dropout)
        self.conv2 = grid_conv(config, width, width, level_kernel=config.level_kernel)
        self.cbam = CBAM3d(
            width,
            longitude=config.longitude,
            poles=config.poles,
            reduction=config.reduction,
            kernel=config.gate_kernel,
            gates=config.gates,
        )
        self.drop_path = DropPath(drop_path)

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.conv2.weight)  # a deep stack starts as the identity

    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """`x[batch, channel, level, lat, lon]`, `condition[batch, embedding]` -> like `x`."""
        branch = self.norm(x)
        if self.film is not None:
            branch = self.film(branch, condition)
        branch = self.conv2(self.dropout(F.silu(self.conv1(branch))))
        return x + self.drop_path(self.cbam(branch))


class CubeUNetCBAM(UShapeModel):
    """The U-Net of residual blocks with gates."""

    def make_block(self, config: CubeUNetCBAMConfig, scale: int, drop_path: float) -> nn.Module:
        """A residual block with gates."""
        return GatedResidualBlock(config, config.widths[scale], drop_path)


FAMILY = Family(
    name="cube_unet_cbam",
    domain="cube",
    summary="3-D residual U-Net with gates per channel, per level and per place (CBAM)",
    model=CubeUNetCBAM,
    config=CubeUNetCBAMConfig,
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
        "reduction": 4,
    },
    paper=Paper(
        authors="Woo et al.", year=2018, title="CBAM: Convolutional Block Attention Module", arxiv="1807.06521"
    ),
    stems=("stem.",),
    heads=("head.",),
    blocks=("encoder.*.*", "decoder.*.*"),
)

cube_unet_cbam_tiny = FAMILY.variant(
    "tiny",
    "Monthly fields of one simulation with localised signals, on one GPU.",
    widths=(48, 96, 160),
    depths=(2, 2, 2),
    decoder_depths=(2, 2),
    strides=(2, 2),
    level_strides=(1, 2),
)
cube_unet_cbam_small = FAMILY.variant(
    "small", "Daily fields, or an ensemble of simulations, on one GPU.", widths=(24, 48, 96, 224, 448)
)
cube_unet_cbam_base = FAMILY.variant(
    "base",
    "Decades of 6-hourly reanalysis at 1 to 2 degrees.",
    widths=(32, 64, 128, 320, 640),
    depths=(1, 1, 2, 2, 2),
)
cube_unet_cbam_large = FAMILY.variant(
    "large",
    "Reanalysis with many variables and levels, on several GPUs.",
    widths=(48, 96, 192, 448, 896),
    depths=(1, 2, 2, 2, 4),
    drop_path=0.1,
)
