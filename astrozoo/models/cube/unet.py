"""cube_unet: a 3-D residual U-Net for fields on a latitude-longitude grid with levels, from forecasts to emulators.

Paper: Cicek, Abdulkadir, Lienkamp, Brox, Ronneberger (2016), "3D U-Net", arXiv:1606.06650.
Where we differ, and why:
- Convolutions wrap around in longitude and continue across the poles (`astrozoo.nn.sphere`): a planet has no edge.
- Residual blocks with one normalisation over channels in front (as in ConvNeXt, arXiv:2201.03545) replace pairs of
  convolution and batch norm: results depend neither on the batch nor on the grid's extent, and half as many
  activations are kept for the gradient.
- The U-shape is ours (`astrozoo.models.ushape`): skips are added, and an untrained model predicts the climatology.

Layout: `x[batch, var, level, lat, lon]`, optional `static[batch, static, lat, lon]` (orography, land mask) and
`condition[batch, param]` (forcing, planetary parameters) -> `y[batch, out_var, level, lat, lon]`. Levels may be one.
Missing values: a NaN in `x` spreads over the receptive field, and the model does not look for it, since that would make
a GPU wait in every step. Fill gaps first and say where they were in a variable of their own.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from astrozoo.models.ushape import UShapeConfig, UShapeModel, residual_block
from astrozoo.registry.family import Family
from astrozoo.registry.spec import Paper

__all__ = ["CubeUNet", "CubeUNetConfig"]


@dataclass(frozen=True, kw_only=True, slots=True)
class CubeUNetConfig(UShapeConfig):
    """Configuration of `CubeUNet`: that of the U-shape, see `UShapeConfig`."""


class CubeUNet(UShapeModel):
    """The U-Net: residual blocks down through the scales and up again."""

    def make_block(self, config: CubeUNetConfig, scale: int, drop_path: float) -> nn.Module:
        """A residual block."""
        return residual_block(config, config.widths[scale], drop_path)


FAMILY = Family(
    name="cube_unet",
    domain="cube",
    summary="3-D residual U-Net for fields with levels on a latitude-longitude grid",
    model=CubeUNet,
    config=CubeUNetConfig,
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
    },
    paper=Paper(
        authors="Cicek et al.",
        year=2016,
        title="3D U-Net: Learning Dense Volumetric Segmentation from Sparse Annotation",
        arxiv="1606.06650",
    ),
    stems=("stem.",),
    heads=("head.",),
    blocks=("encoder.*.*", "decoder.*.*"),
)

cube_unet_nano = FAMILY.variant(
    "nano",
    "A few decades of annual fields, trained in minutes on a laptop.",
    widths=(8, 24, 56, 112),
    depths=(0, 1, 1, 1),
    decoder_depths=(1, 1, 1),
    strides=(2, 2, 2),
    level_strides=(2, 2, 2),
    dropout=0.1,
)
# Small data say little about wide scales: three scales with their weights at fine ones learn more from a few hundred
# samples than five (measured by `astrozoo bench fields`).
cube_unet_tiny = FAMILY.variant(
    "tiny",
    "Monthly fields of one simulation, or a first run on a GPU.",
    widths=(48, 96, 160),
    depths=(2, 2, 2),
    decoder_depths=(2, 2),
    strides=(2, 2),
    level_strides=(1, 2),
)
cube_unet_small = FAMILY.variant(
    "small", "Daily fields, or an ensemble of simulations, on one GPU.", widths=(24, 48, 96, 224, 448)
)
cube_unet_base = FAMILY.variant(
    "base",
    "Decades of 6-hourly reanalysis at 1 to 2 degrees.",
    widths=(32, 64, 128, 320, 640),
    depths=(1, 1, 2, 2, 2),
)
cube_unet_large = FAMILY.variant(
    "large",
    "Reanalysis with many variables and levels, on several GPUs.",
    widths=(48, 96, 192, 448, 896),
    depths=(1, 2, 2, 2, 4),
    drop_path=0.1,
)
cube_unet_huge = FAMILY.variant(
    "huge",
    "Pretraining on multi-model archives with sharded training.",
    widths=(64, 128, 256, 640, 1280),
    depths=(1, 2, 2, 2, 6),
    drop_path=0.2,
)
