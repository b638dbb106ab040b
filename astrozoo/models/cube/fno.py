"""cube_fno: a Fourier neural operator for fields on a latitude-longitude grid, trained on one grid and used on another.

Papers: Li et al. (2020), "Fourier Neural Operator for Parametric Partial Differential Equations", arXiv:2010.08895;
Tran, Mathews, Xie, Ong (2021), "Factorized Fourier Neural Operators", arXiv:2111.13802; for `spectral="tucker"`
Kossaifi, Kovachki, Azizzadenesheli, Anandkumar (2023), "Multi-Grid Tensorized Fourier Neural Operator",
arXiv:2310.00120.
Where we differ, and why:
- Only longitude is a circle. Meridians are continued over the poles on the opposite one, levels and the edges of
  regions by their mirror image (`astrozoo.nn.spectral`): the papers' transform of all axes as if they were periodic
  makes the south pole the north pole's neighbour, and the surface that of the top of the atmosphere.
- `spectral="factorized"` (default) sums convolutions along single axes, as Tran et al.; weights grow with the sum of
  the modes, not with their product, so many waves are affordable. `dense` and `tucker` convolve over lat and lon
  together, with levels along their own axis.
- Blocks are `x + mlp(local + spectral)` of normalised features: the residual after the nonlinearity of Tran et al.,
  with the pointwise path of Li et al. inside, without which waves beyond `modes` would never meet the perceptron.
- Position enters as smooth functions of level and latitude, so turning the globe turns the output.

Everything between input and output is a product in wave space or a function of single cells, so weights do not know the
grid. Products of waves in the nonlinearities do: those beyond the grid's Nyquist wavenumber fold back (aliasing). On
fields resolved with several cells per wave, twice as fine a grid changes predictions by about a percent or less.

Layout: `x[batch, var, level, lat, lon]`, optional `static[batch, static, lat, lon]` (orography, land mask) and
`condition[batch, param]` (forcing, planetary parameters) -> `y[batch, out_var, level, lat, lon]`. Levels may be one.
Rows are cell centres between the poles (or a region's edges), equally spaced.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from astrozoo.models.fields import ConditionEmbedding, FieldConfig, FieldModel
from astrozoo.nn import ChannelNorm, DropPath, FiLM, Mlp, checks
from astrozoo.nn.spectral import AxisConv, PlaneConv, WavePosition, Waves, WaveTables, plane_table
from astrozoo.registry.family import Family
from astrozoo.registry.spec import Paper

__all__ = ["CubeFNO", "CubeFNOConfig"]

SPECTRAL = ("factorized", "tucker", "dense")


@dataclass(frozen=True, kw_only=True, slots=True)
class CubeFNOConfig(FieldConfig):
    """Configuration of `CubeFNO`.

    Attributes:
        in_vars, out_vars, static_vars, condition_dim, longitude, poles: As of every model of fields.
        width: Features per cell.
        depth: Blocks.
        modes: Waves with weights in level, lat and lon, the mean included; a grid uses those that it resolves.
        spectral: `factorized` convolves along single axes, `dense` over lat and lon together, `tucker` too with weights
            decomposed.
        rank: Of `tucker`: channels, lat and lon.
        share_weights: One set of spectral weights for all blocks, as Tran et al. for deep models.
        mlp_ratio: Width inside a block's perceptron, in units of `width`.
        head_width: Features in front of the output.
        position_waves: Cosines of latitude and level that say where a cell is; 0 for none.
        condition_width: Width of the embedding of `condition`.
        dropout: Probability of dropping an activation inside a perceptron during training.
        drop_path: Probability of dropping the last block; it rises linearly from 0 at the first.
    """

    width: int = 64
    depth: int = 6
    modes: tuple[int, ...] = (4, 24, 24)
    spectral: str = "factorized"
    rank: tuple[int, ...] = (32, 12, 12)
    share_weights: bool = False
    mlp_ratio: int = 2
    head_width: int = 128
    position_waves: int = 4
    condition_width: int = 128
    dropout: float = 0.0
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        FieldConfig.__post_init__(self)
        checks.at_least(self, 1, "width", "depth", "mlp_ratio", "head_width", "condition_width")
        checks.at_least(self, 0, "position_waves")
        checks.each_at_least(self, 1, "modes", "rank")
        checks.same_length(self, "modes", 3, "for level, lat and lon")
        checks.same_length(self, "rank", 3, "for channels, lat and lon")
        checks.one_of(self, SPECTRAL, "spectral")
        if not isinstance(self.share_weights, bool):
            raise checks.fail(self, "share_weights", "True, False")
        checks.between(self, 0, 1, "dropout", "drop_path")


def _waves(config: CubeFNOConfig) -> Waves:
    level, lat, lon = config.modes
    return Waves((level, lat, lon), longitude=config.longitude, poles=config.poles)


class SpectralConv(nn.Module):
    """The sum of convolutions in wave space that the configuration asks for, each over all of its axis or plane."""

    def __init__(self, config: CubeFNOConfig) -> None:
        super().__init__()
        (level, lat, lon), kinds, width = config.modes, _waves(config).kinds, config.width
        # The mean over levels is left out, so that a single level costs nothing; means over lat and lon remain.
        self.level = AxisConv(width, width, level, axis=1, kind=kinds[0], mean=False) if level > 1 else None
        self.lat = self.lon = self.plane = None
        if config.spectral == "factorized":
            self.lat = AxisConv(width, width, lat, axis=2, kind=kinds[1])
            self.lon = AxisConv(width, width, lon, axis=3, kind=kinds[2])
        else:
            rank = (config.rank[0], config.rank[1], config.rank[2]) if config.spectral == "tucker" else None
            self.plane = PlaneConv(width, (lat, lon), kinds=(kinds[1], kinds[2]), rank=rank)

    def forward(self, x: Tensor, tables: WaveTables, plane: Tensor | None) -> Tensor:
        """`x[batch, level, lat, lon, channel]` -> like `x`."""
        if self.lat is not None and self.lon is not None:
            y = self.lat(x, tables.lat) + self.lon(x, tables.lon)
        else:
            y = self.plane(x, tables, plane)  # type: ignore[misc]  # there where the other two are not
        if self.level is not None and x.shape[1] > 1:
            y = y + self.level(x, tables.level)
        return y


class OperatorBlock(nn.Module):
    """`x + mlp(local(norm(x)) + spectral(norm(x)))`, scaled and shifted by a condition after the norm."""

    def __init__(self, config: CubeFNOConfig, drop_path: float) -> None:
        super().__init__()
        self.norm = ChannelNorm(config.width)
        self.film = FiLM(config.condition_width, config.width) if config.condition_dim else None
        self.local = nn.Linear(config.width, config.width)
        self.mlp = Mlp(config.width, config.mlp_ratio * config.width, dropout=config.dropout)
        self.drop_path = DropPath(drop_path)

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.mlp.narrow.weight)  # a deep stack starts as the identity

    def forward(
        self, x: Tensor, spectral: SpectralConv, tables: WaveTables, plane: Tensor | None, condition: Tensor | None
    ) -> Tensor:
        """`x[batch, channel, level, lat, lon]`, channels last in memory, `condition[batch, embedding]` -> like `x`."""
        branch = self.norm(x)
        if self.film is not None:
            branch = self.film(branch, condition)
        branch = branch.movedim(1, -1)
        branch = self.mlp(self.local(branch) + spectral(branch, tables, plane))
        return x + self.drop_path(branch.movedim(-1, 1))


class CubeFNO(FieldModel):
    """The operator: fields lifted cell by cell, blocks, fields again."""

    config: CubeFNOConfig

    def __init__(
        self,
        config: CubeFNOConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(config)
        width, depth = config.width, config.depth
        self.waves = _waves(config)
        with torch.device("meta"):
            self.stem = nn.Linear(config.in_vars, width)
            self.static_stem = nn.Linear(config.static_vars, width, bias=False) if config.static_vars else None
            waves = config.position_waves
            self.position = WavePosition(width, waves, longitude=config.longitude) if waves else None
            self.embed = (
                ConditionEmbedding(config.condition_dim, config.condition_width) if config.condition_dim else None
            )
            self.spectral = nn.ModuleList(SpectralConv(config) for _ in range(1 if config.share_weights else depth))
            self.blocks = nn.ModuleList(
                OperatorBlock(config, config.drop_path * index / max(depth - 1, 1)) for index in range(depth)
            )
            self.norm = ChannelNorm(width)
            self.project = nn.Linear(width, config.head_width)
            self.head = nn.Linear(config.head_width, config.out_vars)
        self.materialize(device, dtype)

    def reset_parameters(self) -> None:
        """As the layers say; zero for the head."""
        super().reset_parameters()
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @classmethod
    def feature_stages(cls, config: CubeFNOConfig) -> tuple[str, ...]:
        """One per block."""
        return tuple(f"block{index}" for index in range(config.depth))

    def forward(self, x: Tensor, static: Tensor | None = None, condition: Tensor | None = None) -> Tensor:
        """Map fields to fields on the same grid.

        Args:
            x: `[batch, var, level, lat, lon]`, latitudes in either order.
            static: `[batch, static, lat, lon]`, exactly where `static_vars` is not 0.
            condition: `[batch, param]`, exactly where `condition_dim` is not 0.

        Returns:
            `[batch, out_var, level, lat, lon]`.
        """
        *_, x = self.features(x=x, static=static, condition=condition).values()
        y = self.head(F.gelu(self.project(self.norm(x).movedim(1, -1))))
        return y.movedim(-1, 1).contiguous()

    def features(  # type: ignore[override]
        self, x: Tensor, static: Tensor | None = None, condition: Tensor | None = None
    ) -> dict[str, Tensor]:
        """What follows each block, on the input's grid.

        Returns:
            `[batch, width, level, lat, lon]` per stage, in the order of computation.
        """
        self.check_inputs(x=x, static=static, condition=condition)
        features = self.stem(x.movedim(1, -1))  # channels last from here on: one cell's side by side
        if self.static_stem is not None and static is not None:
            features = features + self.static_stem(static.movedim(1, -1))[:, None]
        if self.position is not None:
            features = self.position(features)
        tables = self.waves.tables(features)
        plane = None if self.config.spectral == "factorized" else plane_table(tables, self.waves.kinds[1])
        embedding = None if self.embed is None or condition is None else self.embed(condition)
        x = features.movedim(-1, 1)
        stages = {}
        for index, block in enumerate(self.blocks):
            spectral = self.spectral[index % len(self.spectral)]
            stages[f"block{index}"] = x = self.run(block, x, spectral, tables, plane, embedding)
        return stages


FAMILY = Family(
    name="cube_fno",
    domain="cube",
    summary="Fourier neural operator on the sphere's own waves; weights independent of the grid",
    model=CubeFNO,
    config=CubeFNOConfig,
    miniature={
        "in_vars": 2,
        "out_vars": 2,
        "static_vars": 1,
        "condition_dim": 3,
        "width": 16,
        "depth": 2,
        "modes": (2, 4, 4),
        "rank": (8, 3, 3),
        "head_width": 16,
        "position_waves": 2,
        "condition_width": 8,
        "dropout": 0.1,
        "drop_path": 0.1,
    },
    paper=Paper(
        authors="Li et al.",
        year=2020,
        title="Fourier Neural Operator for Parametric Partial Differential Equations",
        arxiv="2010.08895",
    ),
    stems=("stem.",),
    heads=("head.",),
    blocks=("spectral.*", "blocks.*"),
)

cube_fno_tiny = FAMILY.variant("tiny", "Fields of one simulation, or a first run on a GPU.")
cube_fno_small = FAMILY.variant(
    "small", "An ensemble of simulations, or daily fields, on one GPU.", width=128, modes=(6, 32, 32)
)
# Factorised weights are few: tens of millions of them take hundreds of features on every cell of the grid.
# Decomposed ones are as many with a fraction of the features, and so of time and memory.
cube_fno_base = FAMILY.variant(
    "base",
    "Decades of reanalysis at 1 to 2 degrees.",
    width=96,
    depth=5,
    modes=(8, 24, 24),
    spectral="tucker",
    rank=(80, 20, 20),
    head_width=256,
)
cube_fno_large = FAMILY.variant(
    "large",
    "Reanalysis with many variables and levels, with fine waves, on several GPUs.",
    width=160,
    depth=8,
    modes=(8, 32, 32),
    spectral="tucker",
    rank=(128, 24, 24),
    head_width=512,
    drop_path=0.1,
)
