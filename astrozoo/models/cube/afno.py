"""cube_afno: patches mixed in wave space by one small network for all waves, for high resolution at low cost.

Papers: Guibas, Mardani, Li, Tao, Anandkumar, Catanzaro (2021), "Adaptive Fourier Neural Operators", arXiv:2111.13587;
Pathak et al. (2022), "FourCastNet", arXiv:2202.11214.
Where we differ, and why:
- The network in wave space acts on amplitudes and leaves phases alone: a threshold on the modulus (modReLU) and no
  complex bias, instead of rectifying real and imaginary parts. What a storm becomes does not depend on the meridian
  from which longitudes are counted.
- Amplitudes are scaled by a learned smooth function of the wavenumbers. It starts at 1, the papers' network, which
  can tell waves apart only by their amplitude.
- Waves are those of the sphere (`astrozoo.nn.spectral`): meridians go on over the poles. Levels are one more axis.
- Position enters as smooth functions of level and latitude instead of a learned table for one grid.
- Patches are made from features of a 3 x 3 convolution, which are added again in front of the head, itself a
  convolution: fine detail does not pass the patches, and their seams are smoothed.

Weights do not know the grid. Turning the globe by a patch turns the output.

Layout: `x[batch, var, level, lat, lon]`, optional `static[batch, static, lat, lon]` (orography, land mask) and
`condition[batch, param]` (forcing, planetary parameters) -> `y[batch, out_var, level, lat, lon]`. Levels may be one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from astrozoo.models.fields import ConditionEmbedding, FieldConfig, FieldModel, FieldStem, grid_conv
from astrozoo.nn import ChannelNorm, Coarsen, DropPath, FiLM, Mlp, Refine, checks
from astrozoo.nn.precision import full_precision
from astrozoo.nn.spectral import (
    WavePosition,
    Waves,
    WaveTables,
    analysis,
    plane_analysis,
    plane_table,
    rotations,
    synthesis,
)
from astrozoo.registry.family import Family
from astrozoo.registry.spec import Paper

__all__ = ["CubeAFNO", "CubeAFNOConfig"]


@dataclass(frozen=True, kw_only=True, slots=True)
class CubeAFNOConfig(FieldConfig):
    """Configuration of `CubeAFNO`.

    Attributes:
        in_vars, out_vars, static_vars, condition_dim, longitude, poles: As of every model of fields.
        width: Features per patch.
        depth: Blocks.
        patch: Cells of a patch in level, lat and lon.
        channel_blocks: Groups of features that mix in wave space; more are cheaper.
        kept_waves: Fraction of the waves of each axis that are mixed, the longest first.
        threshold: Amplitude up to which a wave is set to zero, in units of the normalised features; others lose it.
        mlp_ratio: Width inside the perceptrons, in units of `width`.
        detail_width: Features per cell in front of the patches and the head.
        position_waves: Cosines of latitude and level that say where a patch is; 0 for none.
        condition_width: Width of the embedding of `condition`.
        dropout: Probability of dropping an activation inside a perceptron during training.
        drop_path: Probability of dropping the last block; it rises linearly from 0 at the first.
    """

    width: int = 192
    depth: int = 8
    patch: tuple[int, ...] = (2, 4, 4)
    channel_blocks: int = 8
    kept_waves: float = 1.0
    threshold: float = 0.001
    mlp_ratio: int = 4
    detail_width: int = 32
    position_waves: int = 8
    condition_width: int = 128
    dropout: float = 0.0
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        FieldConfig.__post_init__(self)
        checks.at_least(self, 1, "width", "depth", "channel_blocks", "mlp_ratio", "detail_width", "condition_width")
        checks.at_least(self, 0, "position_waves")
        checks.each_at_least(self, 1, "patch")
        checks.same_length(self, "patch", 3, "for level, lat and lon")
        if self.width % self.channel_blocks:
            raise checks.fail(self, "channel_blocks", f"a divisor of the width {self.width}")
        if type(self.kept_waves) not in (int, float) or not 0 < self.kept_waves <= 1:
            raise checks.fail(self, "kept_waves", "a number above 0, at most 1")
        checks.between(self, 0, math.inf, "threshold")
        checks.between(self, 0, 1, "dropout", "drop_path")


def _shrink(waves: Tensor, threshold: Tensor | float) -> Tensor:
    """Lower the modulus of `waves[..., phase, channel]` by the threshold, to no less than 0; phases stay."""
    modulus = (waves.square().sum(-2, keepdim=True) + 1e-12).sqrt()
    return waves * (F.relu(modulus - threshold) / modulus)


def _scales(plane: Tensor, levels: int) -> Tensor:
    """What is known of a wave: logarithms of its numbers, and their squares, `[lon_mode, lat_mode, level_mode, 6]`."""
    number = [torch.arange(size, device=plane.device, dtype=plane.dtype) for size in (*plane.shape[:2], levels)]
    grids = torch.stack(torch.meshgrid(*((1 + n).log() / 4 for n in number), indexing="ij"), -1)
    return torch.cat([grids, grids.square()], -1)


class WaveMixer(nn.Module):
    """Features into waves, a two-layer complex perceptron of groups of channels, thresholds, and back."""

    def __init__(self, config: CubeAFNOConfig) -> None:
        super().__init__()
        self.threshold = config.threshold
        self.phases = 2 if config.longitude == "periodic" else 1
        groups, channels = config.channel_blocks, config.width // config.channel_blocks
        self.weight1 = nn.Parameter(torch.empty(2, groups, channels, channels))
        self.weight2 = nn.Parameter(torch.empty(2, groups, channels, channels))
        self.bias = nn.Parameter(torch.empty(groups, 1, 1, channels))
        self.gain = nn.Parameter(torch.empty(6, config.width))

    def reset_parameters(self) -> None:
        """Variance of a wave preserved; all waves alike."""
        for weight in (self.weight1, self.weight2):
            nn.init.normal_(weight, std=(2 * weight.shape[-1]) ** -0.5)
        nn.init.zeros_(self.bias)
        nn.init.zeros_(self.gain)

    def forward(self, x: Tensor, tables: WaveTables, plane: Tensor) -> Tensor:
        """`x[batch, level, lat, lon, channel]`, tables of the waves kept -> like `x`."""
        batch, level, lat, lon, width = x.shape
        groups = self.weight1.shape[1]
        if level > 1:
            x = analysis(x.reshape(batch, level, -1), tables.level[:, :1]).view(batch, -1, lat, lon, width)
        levels = x.shape[1]
        waves = plane_analysis(x, tables, plane, self.phases)
        lon_modes, lat_modes, outer, _ = waves.shape
        # (group, wave of lon, wave of lat, batch * wave of level, phase * channel): one product per group
        rows = waves.view(lon_modes, lat_modes, outer, self.phases, groups, -1).movedim(4, 0).flatten(-2).flatten(1, 3)
        first, second = self.weight1.to(x.dtype), self.weight2.to(x.dtype)
        hidden = rows @ (rotations(first) if self.phases == 2 else torch.cat(first.unbind(0), -1))
        with full_precision(x):  # squares of small amplitudes
            gain = 1 + _scales(plane, levels) @ self.gain.to(plane.dtype)  # (lon_mode, lat_mode, level_mode, width)
            gain = gain.unflatten(-1, (groups, 1, -1)).movedim(3, 0)[:, :, :, None]  # group first, any batch
            hidden = hidden.to(plane.dtype).view(groups, lon_modes, lat_modes, batch, levels, 2, -1)
            hidden = _shrink((hidden * gain).flatten(1, 4), -self.bias.to(plane.dtype)).to(x.dtype)
        mixed = hidden.flatten(-2) @ rotations(second)
        with full_precision(x):
            mixed = _shrink(mixed.to(plane.dtype).unflatten(-1, (2, -1)), self.threshold).to(x.dtype)
        mixed = mixed.view(groups, lon_modes, lat_modes, outer, 2, -1).movedim(0, 4)
        y = plane.mT.to(x.dtype) @ mixed.reshape(lon_modes, lat_modes, -1)  # (lon_mode, lat, outer * phase * width)
        y = y.view(lon_modes, lat, outer, 2, width).permute(2, 1, 0, 3, 4)
        y = synthesis(y.reshape(outer * lat, lon_modes * 2, width), tables.lon)
        if level > 1:
            y = synthesis(y.view(batch, levels, -1), tables.level[:, :1])
        return y.view(batch, level, lat, lon, width)


class AFNOBlock(nn.Module):
    """`x + waves(norm(x))`, then `x + mlp(norm(x))`, each scaled and shifted by a condition after the norm."""

    def __init__(self, config: CubeAFNOConfig, drop_path: float) -> None:
        super().__init__()
        width = config.width
        self.wave_norm, self.mlp_norm = ChannelNorm(width), ChannelNorm(width)
        self.wave_film = FiLM(config.condition_width, width) if config.condition_dim else None
        self.mlp_film = FiLM(config.condition_width, width) if config.condition_dim else None
        self.waves = WaveMixer(config)
        self.mlp = Mlp(width, config.mlp_ratio * width, dropout=config.dropout)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, tables: WaveTables, plane: Tensor, condition: Tensor | None) -> Tensor:
        """`x[batch, channel, level, lat, lon]`, channels last in memory, `condition[batch, embedding]` -> like `x`."""
        branch = self.wave_norm(x)
        if self.wave_film is not None:
            branch = self.wave_film(branch, condition)
        x = x + self.drop_path(self.waves(branch.movedim(1, -1), tables, plane).movedim(-1, 1))
        branch = self.mlp_norm(x)
        if self.mlp_film is not None:
            branch = self.mlp_film(branch, condition)
        return x + self.drop_path(self.mlp(branch.movedim(1, -1)).movedim(-1, 1))


class CubeAFNO(FieldModel):
    """Detail into patches, blocks in wave space, patches into detail."""

    config: CubeAFNOConfig

    def __init__(
        self,
        config: CubeAFNOConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(config)
        width, detail, depth = config.width, config.detail_width, config.depth
        level, lat, lon = config.patch
        self.waves = Waves(None, longitude=config.longitude, poles=config.poles)
        with torch.device("meta"):
            self.stem = FieldStem(config, detail, level_kernel=1)
            self.patches = Coarsen(detail, width, (level, lat, lon), longitude=config.longitude)
            waves = config.position_waves
            self.position = WavePosition(width, waves, longitude=config.longitude) if waves else None
            self.embed = (
                ConditionEmbedding(config.condition_dim, config.condition_width) if config.condition_dim else None
            )
            self.blocks = nn.ModuleList(
                AFNOBlock(config, config.drop_path * index / max(depth - 1, 1)) for index in range(depth)
            )
            self.norm = ChannelNorm(width)
            self.refine = Refine(width, detail, (level, lat, lon))
            self.detail_norm = ChannelNorm(detail)
            self.head = grid_conv(config, detail, config.out_vars, level_kernel=1 if level == 1 else 3)
        self.materialize(device, dtype)

    def reset_parameters(self) -> None:
        """As the layers say; zero for the head."""
        super().reset_parameters()
        nn.init.zeros_(self.head.weight)

    @classmethod
    def grid_minimum(cls, config: CubeAFNOConfig) -> tuple[int, int, int]:
        """A patch; levels may be fewer."""
        return 1, config.patch[1], config.patch[2]

    @classmethod
    def longitude_step(cls, config: CubeAFNOConfig) -> int | str:
        """A patch."""
        return config.patch[2]

    @classmethod
    def feature_stages(cls, config: CubeAFNOConfig) -> tuple[str, ...]:
        """Features per cell, then one stage per block."""
        return ("detail", *(f"block{index}" for index in range(config.depth)))

    def forward(self, x: Tensor, static: Tensor | None = None, condition: Tensor | None = None) -> Tensor:
        """Map fields to fields on the same grid.

        Args:
            x: `[batch, var, level, lat, lon]`, latitudes in either order.
            static: `[batch, static, lat, lon]`, exactly where `static_vars` is not 0.
            condition: `[batch, param]`, exactly where `condition_dim` is not 0.

        Returns:
            `[batch, out_var, level, lat, lon]`.
        """
        detail, *_, patches = self.features(x=x, static=static, condition=condition).values()
        detail = detail + self.refine(self.norm(patches), detail.shape[2:])
        return self.head(F.gelu(self.detail_norm(detail)))

    def features(  # type: ignore[override]
        self, x: Tensor, static: Tensor | None = None, condition: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Features per cell (`detail`) and per patch after each block.

        Returns:
            `[batch, detail_width, level, lat, lon]`, then `[batch, width, ceil(size / patch), ...]` per block.
        """
        self.check_inputs(x=x, static=static, condition=condition)
        # Channels of a cell side by side in memory: what norms and perceptrons read, and tensor cores want.
        detail = self.stem(x.contiguous(memory_format=torch.channels_last_3d), static)
        patches = self.patches(detail).movedim(1, -1).contiguous()
        if self.position is not None:
            patches = self.position(patches)
        tables = WaveTables(*(table[: self._kept(table)] for table in self.waves.tables(patches)))
        plane = plane_table(tables, self.waves.kinds[1])
        embedding = None if self.embed is None or condition is None else self.embed(condition)
        stages = {"detail": detail}
        x = patches.movedim(-1, 1)
        for index, block in enumerate(self.blocks):
            stages[f"block{index}"] = x = self.run(block, x, tables, plane, embedding)
        return stages

    def _kept(self, table: Tensor) -> int:
        return math.ceil(self.config.kept_waves * table.shape[0])


FAMILY = Family(
    name="cube_afno",
    domain="cube",
    summary="Adaptive Fourier token mixing (FourCastNet) with the waves of the sphere, for fields of high resolution",
    model=CubeAFNO,
    config=CubeAFNOConfig,
    miniature={
        "in_vars": 2,
        "out_vars": 2,
        "static_vars": 1,
        "condition_dim": 3,
        "width": 16,
        "depth": 2,
        "patch": (1, 2, 1),
        "channel_blocks": 2,
        "mlp_ratio": 2,
        "detail_width": 8,
        "position_waves": 2,
        "condition_width": 8,
        "dropout": 0.1,
        "drop_path": 0.1,
    },
    paper=Paper(
        authors="Pathak et al.",
        year=2022,
        title="FourCastNet: A Global Data-driven High-resolution Weather Model using Adaptive Fourier Neural Operators",
        arxiv="2202.11214",
    ),
    stems=("stem.",),
    heads=("head.",),
    blocks=("blocks.*",),
)

cube_afno_tiny = FAMILY.variant("tiny", "Fields of one simulation, or a first run on a GPU.")
cube_afno_small = FAMILY.variant(
    "small", "Daily fields, or an ensemble of simulations, on one GPU.", width=384, depth=12, detail_width=48
)
cube_afno_base = FAMILY.variant(
    "base",
    "Decades of reanalysis; the width and depth of FourCastNet, whose grid of a quarter degree wants patch=(1, 8, 8).",
    width=768,
    depth=12,
    detail_width=64,
)
cube_afno_large = FAMILY.variant(
    "large",
    "Reanalysis with many variables and levels at high resolution, on several GPUs.",
    width=1280,
    depth=16,
    channel_blocks=10,
    detail_width=96,
    drop_path=0.1,
)
