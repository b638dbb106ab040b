"""cube_hybrid: convolutions where the grid is fine, attention where it is coarse, for fields that need both.

Fine scales hold fronts and coasts, which a convolution knows how to look for from few samples; coarse scales hold what
acts over half a planet, which attention finds from many. Convolutions first and attention after, in two stages each,
generalises better than either alone (the paper's C-C-T-T).

Paper: Dai, Liu, Le, Tan (2021), "CoAtNet", arXiv:2106.04803.
Where we differ, and why:
- The output is a field: a decoder of residual convolutions brings the grid back, with skips from every scale.
- The stem keeps the grid, so that the finest skip has it all; the paper halves images at once.
- Relative attention is rotary in longitude (`astrozoo.nn.position`), with latitude and level absolute: any grid goes,
  the fast kernels stay, and turning the globe turns the output. The paper learns a table of biases for one image size.
- Layer normalisation over channels replaces batch normalisation, and global means are by area on a globe.

Layout: `x[batch, var, level, lat, lon]`, optional `static[batch, static, lat, lon]` and `condition[batch, param]` ->
`y[batch, out_var, level, lat, lon]`. Levels may be one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from astrozoo.models.tokens import GRID_ATTENTIONS, GRID_TOKENS, longitude_step
from astrozoo.models.ushape import UShapeModel, residual_block
from astrozoo.models.ushape_tokens import FeatureTrunk, UShapeTokensConfig
from astrozoo.nn import MBConv, checks
from astrozoo.registry.family import Family
from astrozoo.registry.spec import Paper

__all__ = ["CubeHybrid", "CubeHybridConfig"]


@dataclass(frozen=True, kw_only=True, slots=True)
class CubeHybridConfig(UShapeTokensConfig):
    """Configuration of `CubeHybrid`: that of the U-shape with attention, see `UShapeTokensConfig`, and this.

    Attributes:
        attention_scales: How many scales attend, from the coarsest up; the finer ones convolve. `depths` counts blocks
            of either kind.
        expansion: Channels between the convolutions of an inverted bottleneck, in units of the width.
    """

    widths: tuple[int, ...] = (16, 48, 96, 192)
    depths: tuple[int, ...] = (1, 2, 3, 4)
    decoder_depths: tuple[int, ...] = (1, 1, 1)
    strides: tuple[int, ...] = (2, 2, 2)
    level_strides: tuple[int, ...] = (2, 2, 1)
    attention_scales: int = 2
    expansion: int = 4

    def __post_init__(self) -> None:
        UShapeTokensConfig.__post_init__(self)
        checks.at_least(self, 1, "attention_scales", "expansion")
        if self.attention_scales > len(self.widths):
            raise checks.fail(self, "attention_scales", f"at most the number of scales, {len(self.widths)}")
        attending = range(self.convolving, len(self.widths))
        self.check_heads(attending)
        for scale in attending:
            if not self.depths[scale]:
                raise checks.fail(self, "depths", f"at least 1 at scale {scale}, which attends")

    @property
    def convolving(self) -> int:
        """How many scales convolve."""
        return len(self.widths) - self.attention_scales


class CubeHybrid(UShapeModel):
    """Inverted bottlenecks, then transformers on the way down; residual convolutions on the way up."""

    def make_stage(self, config: CubeHybridConfig, scale: int, rates: Sequence[float], *, up: bool) -> nn.Module:
        """The blocks of a scale."""
        if not up and scale >= config.convolving:
            return FeatureTrunk(config, scale, rates)
        make = self._residual if up else self._inverted
        return nn.ModuleList(make(config, scale, rate) for rate in rates)

    @staticmethod
    def _residual(config: CubeHybridConfig, scale: int, drop_path: float) -> nn.Module:
        return residual_block(config, config.widths[scale], drop_path)

    @staticmethod
    def _inverted(config: CubeHybridConfig, scale: int, drop_path: float) -> nn.Module:
        return MBConv(
            config.widths[scale],
            longitude=config.longitude,
            poles=config.poles,
            expansion=config.expansion,
            level_kernel=config.level_kernel,
            condition_width=config.condition_width if config.condition_dim else 0,
            dropout=config.dropout,
            drop_path=drop_path,
        )

    @classmethod
    def longitude_step(cls, config: CubeHybridConfig) -> int | str:
        """A column of the coarsest grid, where the attention sees differences of longitude."""
        return longitude_step(config, math.prod(config.strides))

    def encode(self, scale: int, x: Tensor, context: Tensor | None, cells: Sequence[int]) -> Tensor:
        """The blocks of a scale on the way down."""
        stage = self.encoder[scale]
        if isinstance(stage, FeatureTrunk):
            attended: Tensor = stage(x, cells, context, run=self.run)
            return attended
        return self.through(stage, x, context)


FAMILY = Family(
    name="cube_hybrid",
    domain="cube",
    summary="Inverted-bottleneck convolutions at fine scales, transformers at coarse ones, a convolutional decoder",
    model=CubeHybrid,
    config=CubeHybridConfig,
    miniature={
        "in_vars": 2,
        "out_vars": 2,
        "static_vars": 1,
        "condition_dim": 3,
        "widths": (8, 16),
        "depths": (1, 2),
        "decoder_depths": (1,),
        "strides": (2,),
        "level_strides": (2,),
        "attention_scales": 1,
        "head_dim": 8,
        "condition_width": 8,
        "dropout": 0.1,
        "drop_path": 0.1,
    },
    default_attention="flash",
    attentions=GRID_ATTENTIONS,
    attention_use=GRID_TOKENS,
    paper=Paper(
        authors="Dai et al.",
        year=2021,
        title="CoAtNet: Marrying Convolution and Attention for All Data Sizes",
        arxiv="2106.04803",
    ),
    stems=("stem.",),
    heads=("head.",),
    blocks=("encoder.*.[0-9]*", "encoder.*.blocks.*", "decoder.*.*"),
)

cube_hybrid_tiny = FAMILY.variant(
    "tiny",
    "Monthly fields of one simulation, or a first run on a GPU.",
    widths=(48, 96, 160),
    depths=(2, 2, 4),
    decoder_depths=(2, 2),
    strides=(2, 2),
    level_strides=(1, 2),
    attention_scales=1,
)
cube_hybrid_small = FAMILY.variant(
    "small",
    "Daily fields of an ensemble, on one GPU.",
    widths=(24, 64, 192, 384),
    depths=(1, 3, 5, 6),
)
cube_hybrid_base = FAMILY.variant(
    "base",
    "Decades of 6-hourly reanalysis at 1 to 2 degrees.",
    widths=(32, 96, 320, 640),
    depths=(1, 3, 8, 8),
    head_dim=64,
)
cube_hybrid_large = FAMILY.variant(
    "large",
    "Reanalysis with many variables and levels, on several GPUs.",
    widths=(48, 128, 512, 1024),
    depths=(2, 4, 12, 12),
    head_dim=64,
    drop_path=0.1,
)
