"""cube_unet_former: a U-Net whose coarsest scale is a transformer, for fields with teleconnections.

Convolutions see weather; a planet's waves and overturning cells span the globe. The tokens of the coarsest grid are
few, so that each may attend to all others at hardly any cost.

Paper: Chen, Lu, Yu, et al. (2021), "TransUNet", arXiv:2102.04306.
Where we differ, and why:
- Positions (`astrozoo.nn.position`) are functions of latitude and level, and differences of longitude, in the place of
  a learned table: any grid goes, and turning the globe turns the output.
- What the transformer found is added to the coarsest features through a convolution that starts at zero, where the
  paper replaces them: an untrained model is a U-Net, and trains like one from the first step.
- The convolutions around it are those of cube_unet; skips are added, not concatenated.

Layout: `x[batch, var, level, lat, lon]`, optional `static[batch, static, lat, lon]` and `condition[batch, param]` ->
`y[batch, out_var, level, lat, lon]`. Levels may be one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from astrozoo.models.fields import grid_conv
from astrozoo.models.tokens import GRID_ATTENTIONS, GRID_TOKENS, longitude_step
from astrozoo.models.ushape import UShapeModel, residual_block
from astrozoo.models.ushape_tokens import FeatureTrunk, UShapeTokensConfig
from astrozoo.nn import checks
from astrozoo.registry.family import Family
from astrozoo.registry.spec import Paper

__all__ = ["CubeUNetFormer", "CubeUNetFormerConfig"]


@dataclass(frozen=True, kw_only=True, slots=True)
class CubeUNetFormerConfig(UShapeTokensConfig):
    """Configuration of `CubeUNetFormer`: that of the U-shape with attention, see `UShapeTokensConfig`, and this.

    Attributes:
        trunk_depth: Blocks of the transformer; its tokens are as wide as the last of `widths`.
    """

    widths: tuple[int, ...] = (16, 32, 64, 192)
    depths: tuple[int, ...] = (1, 1, 2, 0)
    decoder_depths: tuple[int, ...] = (1, 1, 1)
    strides: tuple[int, ...] = (2, 2, 2)
    level_strides: tuple[int, ...] = (2, 2, 1)
    trunk_depth: int = 6

    def __post_init__(self) -> None:
        UShapeTokensConfig.__post_init__(self)
        checks.at_least(self, 1, "trunk_depth")
        self.check_heads([len(self.widths) - 1])


class CubeUNetFormer(UShapeModel):
    """The U-Net with a transformer at its bottom."""

    def make_layers(self, config: CubeUNetFormerConfig) -> None:
        """Those of the U-shape, the transformer, and the convolution through which it is added."""
        super().make_layers(config)
        width = config.widths[-1]
        rates = [config.drop_path * index / config.trunk_depth for index in range(1, config.trunk_depth + 1)]
        self.trunk = FeatureTrunk(config, len(config.widths) - 1, rates)
        self.join = grid_conv(config, width, width, level_kernel=1)  # levels have attended to each other

    def make_block(self, config: CubeUNetFormerConfig, scale: int, drop_path: float) -> nn.Module:
        """A residual block."""
        return residual_block(config, config.widths[scale], drop_path)

    def reset_parameters(self) -> None:
        """As the layers say; zero for the head, and where the transformer is added."""
        super().reset_parameters()
        nn.init.zeros_(self.join.weight)

    @classmethod
    def longitude_step(cls, config: CubeUNetFormerConfig) -> int | str:
        """A column of the coarsest grid, where the attention sees differences of longitude."""
        return longitude_step(config, math.prod(config.strides))

    def encode(self, scale: int, x: Tensor, context: Tensor | None, cells: Sequence[int]) -> Tensor:
        """Convolutions; at the coarsest scale the transformer after them."""
        x = super().encode(scale, x, context, cells)
        if scale < len(self.encoder) - 1:
            return x
        return x + self.join(self.trunk(x, cells, context, run=self.run))


FAMILY = Family(
    name="cube_unet_former",
    domain="cube",
    summary="U-Net with a transformer over the coarsest grid, for fields with global teleconnections",
    model=CubeUNetFormer,
    config=CubeUNetFormerConfig,
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
        "trunk_depth": 2,
        "head_dim": 8,
        "condition_width": 8,
        "dropout": 0.1,
        "drop_path": 0.1,
    },
    default_attention="flash",
    attentions=GRID_ATTENTIONS,
    attention_use=GRID_TOKENS,
    paper=Paper(
        authors="Chen et al.",
        year=2021,
        title="TransUNet: Transformers Make Strong Encoders for Medical Image Segmentation",
        arxiv="2102.04306",
    ),
    stems=("stem.",),
    heads=("head.",),
    blocks=("encoder.*.*", "trunk.blocks.*", "decoder.*.*"),
)

cube_unet_former_tiny = FAMILY.variant(
    "tiny",
    "Monthly fields of one simulation, or a first run on a GPU.",
    widths=(48, 96, 160),
    depths=(2, 2, 0),
    decoder_depths=(2, 2),
    strides=(2, 2),
    level_strides=(1, 2),
    trunk_depth=4,
)
cube_unet_former_small = FAMILY.variant(
    "small",
    "Daily fields of an ensemble, where distant regions act on each other.",
    widths=(24, 48, 128, 384),
    depths=(1, 1, 2, 0),
    trunk_depth=8,
    head_dim=64,
)
cube_unet_former_base = FAMILY.variant(
    "base",
    "Decades of 6-hourly reanalysis at 1 to 2 degrees.",
    widths=(32, 64, 192, 768),
    depths=(1, 2, 2, 0),
    trunk_depth=10,
    head_dim=64,
)
cube_unet_former_large = FAMILY.variant(
    "large",
    "Reanalysis with many variables and levels, on several GPUs.",
    widths=(48, 96, 256, 1024),
    depths=(1, 2, 3, 0),
    trunk_depth=20,
    head_dim=64,
    drop_path=0.1,
)
