"""cube_unet: a 3-D residual U-Net for fields on a latitude-longitude grid with levels, from forecasts to emulators.

Paper: Cicek, Abdulkadir, Lienkamp, Brox, Ronneberger (2016), "3D U-Net", arXiv:1606.06650.
Where we differ, and why:
- Convolutions wrap around in longitude and continue across the poles (`astrozoo.nn.sphere`): a planet has no edge.
- Residual blocks with one normalisation over channels in front (as in ConvNeXt, arXiv:2201.03545) replace pairs of
  convolution and batch norm: results depend neither on the batch nor on the grid's extent, and half as many
  activations are kept for the gradient.
- Skips are added, not concatenated, and most parameters sit at coarse scales: a fine grid costs little, and context is
  what fields of a planet need.
- The head starts at zero, so an untrained model predicts the mean of normalised data: the climatology.

Layout: `x[batch, var, level, lat, lon]`, optional `static[batch, static, lat, lon]` (orography, land mask) and
`condition[batch, param]` (forcing, planetary parameters) -> `y[batch, out_var, level, lat, lon]`. Levels may be one.
Missing values: a NaN in `x` spreads over the receptive field, and the model does not look for it, since that would make
a GPU wait in every step. Fill gaps first and say where they were in a variable of their own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from astrozoo.module import ZooModel
from astrozoo.nn import ChannelNorm, Coarsen, DropPath, FiLM, GridConv3d, Refine, checks
from astrozoo.nn.sphere import LONGITUDES, POLES
from astrozoo.registry.family import Family
from astrozoo.registry.spec import Dim, Paper, TensorSpec

__all__ = ["CubeUNet", "CubeUNetConfig"]


@dataclass(frozen=True, kw_only=True, slots=True)
class CubeUNetConfig:
    """Configuration of `CubeUNet`; tuples have one entry per scale, finest first.

    Attributes:
        in_vars: Variables of the input.
        out_vars: Variables of the output.
        static_vars: Fields that do not change with level; 0 leaves the input `static` out.
        condition_dim: Length of the conditioning vector; 0 leaves the input `condition` out.
        longitude: `periodic` for a full circle, `regional` where the grid has a western and an eastern edge.
        poles: `cross` continues on the other side of the pole (needs a full circle), `edge` repeats the outermost row.
        widths: Channels per scale.
        depths: Residual blocks per scale on the way down, the coarsest included.
        decoder_depths: Residual blocks per scale on the way up; the coarsest scale has none.
        strides: Factor by which lat and lon shrink from each scale to the next.
        level_strides: The same for level; 1 keeps the levels.
        level_kernel: Extent of the convolutions in level: 3, or 1 where levels (or a single one) do not interact.
        condition_width: Width of the embedding of `condition`.
        dropout: Probability of dropping a channel inside a block during training.
        drop_path: Probability of dropping the last block; it rises linearly from 0 at the first.
    """

    in_vars: int = 5
    out_vars: int = 5
    static_vars: int = 0
    condition_dim: int = 0
    longitude: str = "periodic"
    poles: str = "cross"
    widths: tuple[int, ...] = (16, 32, 64, 128, 256)
    depths: tuple[int, ...] = (1, 1, 1, 1, 1)
    decoder_depths: tuple[int, ...] = (1, 1, 1, 1)
    strides: tuple[int, ...] = (2, 2, 2, 2)
    level_strides: tuple[int, ...] = (2, 2, 2, 2)
    level_kernel: int = 3
    condition_width: int = 128
    dropout: float = 0.0
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        checks.at_least(self, 1, "in_vars", "out_vars", "condition_width")
        checks.at_least(self, 0, "static_vars", "condition_dim")
        checks.one_of(self, LONGITUDES, "longitude")
        checks.one_of(self, POLES, "poles")
        if self.longitude == "regional" and self.poles == "cross":
            raise checks.fail(
                self, "poles", "'edge' with longitude='regional' (only a full circle reaches over a pole)"
            )
        checks.each_at_least(self, 1, "widths", "decoder_depths", "strides", "level_strides")
        checks.each_at_least(self, 0, "depths")
        if not self.widths:
            raise checks.fail(self, "widths", "one width per scale, at least one scale")
        checks.same_length(self, "depths", len(self.widths), "one per entry of widths")
        for name in ("decoder_depths", "strides", "level_strides"):
            checks.same_length(self, name, len(self.widths) - 1, "one less than widths")
        if self.level_kernel not in (1, 3):
            raise checks.fail(self, "level_kernel", "1, 3")
        checks.between(self, 0, 1, "dropout", "drop_path")


def _conv(config: CubeUNetConfig, in_channels: int, out_channels: int, level_kernel: int) -> GridConv3d:
    return GridConv3d(
        in_channels, out_channels, longitude=config.longitude, poles=config.poles, level_kernel=level_kernel
    )


class ResidualBlock(nn.Module):
    """`x + conv(silu(conv(norm(x))))`, scaled and shifted by a condition after the norm."""

    def __init__(self, config: CubeUNetConfig, width: int, drop_path: float) -> None:
        super().__init__()
        self.norm = ChannelNorm(width)
        self.film = FiLM(config.condition_width, width) if config.condition_dim else None
        self.conv1 = _conv(config, width, width, config.level_kernel)
        self.dropout = nn.Dropout3d(config.dropout)
        self.conv2 = _conv(config, width, width, config.level_kernel)
        self.drop_path = DropPath(drop_path)

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.conv2.weight)  # a deep stack starts as the identity

    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """`x[batch, channel, level, lat, lon]`, `condition[batch, embedding]` -> like `x`."""
        branch = self.norm(x)
        if self.film is not None:
            branch = self.film(branch, condition)
        branch = self.conv2(self.dropout(F.silu(self.conv1(branch))))
        return x + self.drop_path(branch)


class CubeUNet(ZooModel):
    """The U-Net: down through the scales, up again, adding at each scale what was seen on the way down."""

    task = "field_regression"

    def __init__(
        self, config: CubeUNetConfig, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__(config)
        widths, scales = config.widths, len(config.widths)
        strides = [(level, space, space) for level, space in zip(config.level_strides, config.strides, strict=True)]
        rates = iter(torch.linspace(0, config.drop_path, sum(config.depths) + sum(config.decoder_depths)).tolist())

        def stage(scale: int, depth: int) -> nn.ModuleList:
            return nn.ModuleList(ResidualBlock(config, widths[scale], next(rates)) for _ in range(depth))

        with torch.device("meta"):
            self.stem = _conv(config, config.in_vars, widths[0], config.level_kernel)
            self.static_stem = _conv(config, config.static_vars, widths[0], 1) if config.static_vars else None
            self.embed = nn.Linear(config.condition_dim, config.condition_width) if config.condition_dim else None
            self.encoder = nn.ModuleList(stage(scale, config.depths[scale]) for scale in range(scales))
            self.coarsen = nn.ModuleList(
                Coarsen(widths[scale], widths[scale + 1], strides[scale], longitude=config.longitude)
                for scale in range(scales - 1)
            )
            upwards = range(scales - 2, -1, -1)
            self.refine = nn.ModuleList(Refine(widths[scale + 1], widths[scale], strides[scale]) for scale in upwards)
            self.decoder = nn.ModuleList(stage(scale, config.decoder_depths[scale]) for scale in upwards)
            self.norm = ChannelNorm(widths[0])
            self.head = nn.Conv3d(widths[0], config.out_vars, 1)
        self.materialize(device, dtype)

    def reset_parameters(self) -> None:
        """He for convolutions; zero for the head and for the last convolution of each block."""
        super().reset_parameters()
        nn.init.zeros_(self.head.weight)
        if self.head.bias is not None:
            nn.init.zeros_(self.head.bias)

    @classmethod
    def input_specs(cls, config: CubeUNetConfig) -> tuple[TensorSpec, ...]:
        """`x`, and `static` and `condition` where the configuration has them."""
        batch, space = Dim("batch", 2), _space(config)
        specs = [
            TensorSpec(
                name="x", dims=(batch, Dim("var", config.in_vars, fixed=True), *space), quantity="fields, normalised"
            )
        ]
        if config.static_vars:
            dims = (batch, Dim("static", config.static_vars, fixed=True), *space[1:])
            specs.append(TensorSpec(name="static", dims=dims, quantity="fields without levels, such as orography"))
        if config.condition_dim:
            param = Dim("param", config.condition_dim, fixed=True)
            quantity = "forcing or planetary parameters, normalised"
            specs.append(TensorSpec(name="condition", dims=(batch, param), quantity=quantity))
        return tuple(specs)

    @classmethod
    def output_specs(cls, config: CubeUNetConfig) -> tuple[TensorSpec, ...]:
        """`y`, on the grid of `x`."""
        dims = (Dim("batch", 2), Dim("out_var", config.out_vars, fixed=True), *_space(config))
        return (TensorSpec(name="y", dims=dims, quantity="fields, normalised"),)

    @classmethod
    def feature_stages(cls, config: CubeUNetConfig) -> tuple[str, ...]:
        """`down0` (finest) to the coarsest, then back to `up0`."""
        scales = range(len(config.widths))
        return tuple(f"down{scale}" for scale in scales) + tuple(f"up{scale}" for scale in reversed(scales[:-1]))

    def forward(self, x: Tensor, static: Tensor | None = None, condition: Tensor | None = None) -> Tensor:
        """Map fields to fields on the same grid.

        Args:
            x: `[batch, var, level, lat, lon]`, latitudes in either order.
            static: `[batch, static, lat, lon]`, exactly where `static_vars` is not 0.
            condition: `[batch, param]`, exactly where `condition_dim` is not 0.

        Returns:
            `[batch, out_var, level, lat, lon]`.
        """
        stages = self.features(x=x, static=static, condition=condition)
        return self.head(self.norm(stages["up0" if self.coarsen else "down0"]))

    def features(  # type: ignore[override]
        self, x: Tensor, static: Tensor | None = None, condition: Tensor | None = None
    ) -> dict[str, Tensor]:
        """What each scale saw on the way down (`down0`, finest, ...) and on the way up (..., `up0`).

        Returns:
            `[batch, widths[scale], level, lat, lon]` per stage, in the order of computation.
        """
        self.check_inputs(x=x, static=static, condition=condition)
        # Channels of a cell side by side in memory: what the norm reads, and what tensor cores and oneDNN want.
        x = self.stem(x.contiguous(memory_format=torch.channels_last_3d))
        if self.static_stem is not None and static is not None:
            x = x + self.static_stem(static[:, :, None])  # the same at every level
        embedding = None if self.embed is None or condition is None else F.silu(self.embed(condition))
        stages: dict[str, Tensor] = {}
        for scale, blocks in enumerate(self.encoder):
            if scale:
                x = self.coarsen[scale - 1](x)
            stages[f"down{scale}"] = x = self._through(blocks, x, embedding)
        for scale, refine, blocks in zip(reversed(range(len(self.refine))), self.refine, self.decoder, strict=True):
            skip = stages[f"down{scale}"]
            stages[f"up{scale}"] = x = self._through(blocks, skip + refine(x, skip.shape[2:]), embedding)
        return stages

    def _through(self, blocks: nn.Module, x: Tensor, embedding: Tensor | None) -> Tensor:
        for block in blocks.children():
            x = self.run(block, x, embedding)
        return x


def _space(config: CubeUNetConfig) -> tuple[Dim, Dim, Dim]:
    coarsest = math.prod(config.strides)  # below this the coarsest grid would be mostly filling
    return Dim("level", 8), Dim("lat", 32, minimum=coarsest), Dim("lon", 64, minimum=coarsest)


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
    stems=("stem.", "static_stem."),
    heads=("head.",),
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
cube_unet_tiny = FAMILY.variant("tiny", "Monthly fields of one simulation, or a first run on a GPU.")
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
