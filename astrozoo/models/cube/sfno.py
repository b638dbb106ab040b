"""cube_sfno: a spherical Fourier neural operator, for global fields whose dynamics know no preferred direction.

Paper: Bonev, Kurth, Hundt, Pathak, Baust, Kashinath, Anandkumar (2023), "Spherical Fourier Neural Operators: Learning
Stable Dynamics on the Sphere", arXiv:2306.03838. From it: filters with one matrix per spherical-harmonic degree (the
"linear" operator, on transforms of torch-harmonics), an inner skip, a perceptron per block, encoder and decoder per
cell, one big skip from input to decoder, no position embedding, blocks on an internal Gaussian grid that may be coarser
(`scale_factor`), residual branches scaled by the depth.
Where we differ, and why:
- Filters are real by default. The complex ones of the paper's code tell east from west, and so commute with turns about
  the polar axis only; real ones commute with every rotation. `filters="zonal"` gives the complex ones.
- The non-linear operator on coefficients is left out: it commutes with no rotation but those about the axis.
- Normalisation over channels per cell in front of each filter replaces statistics over the grid: rotating a field
  rotates the result, and the grid's crowded rows near the poles weigh no more than others.
- Weights belong to degrees, so one model takes any grid; degrees that a grid cannot hold are skipped, and degrees that
  its rows would not integrate exactly count as such.
- Levels exchange through a kernel per channel inside the perceptron; on a single level it is one product.

The planet itself breaks the symmetry: give the model what does (orography, land, sine of latitude) as `static`, or let
it learn a profile over latitude (`latitude_degrees`), whose order of rows it then remembers.

Layout: `x[batch, var, level, lat, lon]`, optional `static[batch, static, lat, lon]` and `condition[batch, param]` ->
`y[batch, out_var, level, lat, lon]`. Inside, `[lat, lon, batch, level, channel]`: see `astrozoo.nn.harmonics`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from astrozoo.models.fields import ConditionEmbedding, FieldConfig, FieldModel
from astrozoo.nn import ChannelNorm, DropPath, FiLM, Mlp, checks
from astrozoo.nn.harmonics import DegreeFilter, Harmonics, zonal_harmonics
from astrozoo.nn.latitudes import ROWS
from astrozoo.registry.family import Family
from astrozoo.registry.spec import Paper

__all__ = ["CubeSFNO", "CubeSFNOConfig"]


@dataclass(frozen=True, kw_only=True, slots=True)
class CubeSFNOConfig(FieldConfig):
    """Configuration of `CubeSFNO`.

    Attributes:
        in_vars, out_vars, static_vars, condition_dim: As of every model of fields.
        longitude, poles: Only `periodic` and `cross`: harmonics live on the whole sphere.
        rows: Where latitudes lie: `centres` of equal cells, `poles` (equal steps from pole to pole), `gauss`.
        width: Channels.
        depth: Blocks.
        degrees: Degrees of spherical harmonics that have weights; a grid may hold fewer.
        filters: `isotropic` commutes with every rotation, `zonal` tells east from west.
        scale_factor: Blocks work on a Gaussian grid coarser by this factor in lat and lon; 1 stays on the input's.
        mlp_ratio: Hidden width of the perceptrons, in units of `width`.
        level_kernel: Extent in level of what a perceptron sees: 3, or 1 where levels do not interact.
        latitude_degrees: Degrees of a learned profile over latitude; 0 keeps the symmetry under rotation.
        condition_width: Width of the embedding of `condition`.
        dropout: Probability of dropping a hidden activation of a perceptron during training.
        drop_path: Probability of dropping the last block; it rises linearly from 0 at the first.
    """

    rows: str = "centres"
    width: int = 128
    depth: int = 6
    degrees: int = 32
    filters: str = "isotropic"
    scale_factor: int = 1
    mlp_ratio: float = 2.0
    level_kernel: int = 3
    latitude_degrees: int = 0
    condition_width: int = 128
    dropout: float = 0.0
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        whole = "(spherical harmonics need the whole sphere; cube_unet takes regions)"
        if self.longitude == "regional":
            raise checks.fail(self, "longitude", f"'periodic' {whole}")
        if self.poles == "edge":
            raise checks.fail(self, "poles", "'cross' (spherical harmonics continue over the poles by themselves)")
        FieldConfig.__post_init__(self)
        checks.one_of(self, ROWS, "rows")
        checks.one_of(self, ("isotropic", "zonal"), "filters")
        checks.at_least(self, 1, "width", "depth", "degrees", "scale_factor", "condition_width")
        checks.at_least(self, 0, "latitude_degrees")
        checks.between(self, 0.25, 64, "mlp_ratio")
        checks.between(self, 0, 1, "dropout", "drop_path")
        if self.level_kernel not in (1, 3):
            raise checks.fail(self, "level_kernel", "1, 3")


class LevelKernel(nn.Module):
    """A kernel over level per channel: `[..., level, channel]` -> the same; beyond top and bottom lie zeros."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(3, channels))

    def reset_parameters(self) -> None:
        """Only the level itself."""
        nn.init.zeros_(self.weight)
        nn.init.ones_(self.weight[1])

    def forward(self, x: Tensor) -> Tensor:
        """`x[..., level, channel]` -> like `x`."""
        below, centre, above = self.weight.to(x.dtype).unbind(0)
        mixed = x * centre
        if x.shape[-2] > 1:
            mixed = mixed + F.pad(x[..., :-1, :], (0, 0, 1, 0)) * below + F.pad(x[..., 1:, :], (0, 0, 0, 1)) * above
        return mixed


class SphericalBlock(nn.Module):
    """`x + mlp(n + filter(n))` with `n` the normalised features, scaled and shifted by a condition."""

    def __init__(self, config: CubeSFNOConfig, drop_path: float) -> None:
        super().__init__()
        self.depth = config.depth
        self.norm = ChannelNorm(config.width)
        self.film = FiLM(config.condition_width, config.width) if config.condition_dim else None
        self.filter = DegreeFilter(config.width, config.degrees, kind=config.filters)
        self.levels = LevelKernel(config.width) if config.level_kernel == 3 else None
        self.mlp = Mlp(config.width, int(config.width * config.mlp_ratio), dropout=config.dropout)
        self.drop_path = DropPath(drop_path)

    def reset_parameters(self) -> None:
        """The sum of all branches is as large as the stem's features, whatever the depth."""
        with torch.no_grad():
            self.mlp.narrow.weight.div_(math.sqrt(self.depth))

    def forward(self, x: Tensor, condition: Tensor | None, harmonics: Harmonics) -> Tensor:
        """`x[lat, lon, batch, level, channel]`, `condition[batch, embedding]` -> like `x`."""
        branch = self.norm(x.movedim(-1, 1)).movedim(1, -1)
        if self.film is not None:  # which wants [batch, channel, lat, lon, level]; memory stays in order
            branch = self.film(branch.permute(2, 4, 0, 1, 3), condition).permute(2, 3, 0, 4, 1)
        branch = branch + self.filter(branch, harmonics)
        if self.levels is not None:
            branch = self.levels(branch)
        return x + self.drop_path(self.mlp(branch).movedim(2, 0)).movedim(0, 2)


class CubeSFNO(FieldModel):
    """Encoder per cell, blocks of filters on the sphere, decoder per cell that also sees the input."""

    def __init__(
        self, config: CubeSFNOConfig, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__(config)
        width = config.width
        with torch.device("meta"):
            self.stem = nn.ModuleDict({"fields": nn.Linear(config.in_vars, width)})
            if config.static_vars:
                self.stem["static"] = nn.Linear(config.static_vars, width, bias=False)
            self.profile = (
                nn.Parameter(torch.empty(config.latitude_degrees, width)) if config.latitude_degrees else None
            )
            self.lift = nn.Linear(width, width)
            self.embed = (
                ConditionEmbedding(config.condition_dim, config.condition_width) if config.condition_dim else None
            )
            self.blocks = nn.ModuleList(
                SphericalBlock(config, config.drop_path * index / max(config.depth - 1, 1))
                for index in range(config.depth)
            )
            self.norm = ChannelNorm(width)
            self.decoder = nn.Linear(width, width)
            self.stem["skip"] = nn.Linear(config.in_vars, width, bias=False)
            self.head = nn.Linear(width, config.out_vars)
        self.materialize(device, dtype)

    def reset_parameters(self) -> None:
        """As the layers say; zero for the head (an untrained model predicts the climatology) and the profile."""
        super().reset_parameters()
        with torch.no_grad():
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)
            if self.profile is not None:
                nn.init.zeros_(self.profile)

    @classmethod
    def grid_minimum(cls, config: Any) -> tuple[int, int, int]:
        """Two degrees at least, also on the internal grid."""
        return 1, 4 * config.scale_factor, 4 * config.scale_factor

    @classmethod
    def longitude_step(cls, config: Any) -> int | str:
        """A column of the internal grid."""
        return config.scale_factor

    @classmethod
    def feature_stages(cls, config: Any) -> tuple[str, ...]:
        """`stem`, then each block."""
        return ("stem", *(f"block{index}" for index in range(config.depth)))

    def forward(self, x: Tensor, static: Tensor | None = None, condition: Tensor | None = None) -> Tensor:
        """Map global fields to fields on the same grid.

        Args:
            x: `[batch, var, level, lat, lon]`, latitudes in either order (but in one, with `latitude_degrees`).
            static: `[batch, static, lat, lon]`, exactly where `static_vars` is not 0.
            condition: `[batch, param]`, exactly where `condition_dim` is not 0.

        Returns:
            `[batch, out_var, level, lat, lon]`.
        """
        self.check_inputs(x=x, static=static, condition=condition)
        for _, state in self.stages(x, static, condition):
            features = state
        outer, inner = self.grids(x)
        if inner != outer:
            features = outer.synthesis(inner.analysis(features)).to(features.dtype)
        features = self.norm(features.movedim(-1, 1)).movedim(1, -1)
        cells = x.permute(3, 4, 0, 2, 1)  # [lat, lon, batch, level, var]
        y: Tensor = self.head(F.gelu(self.decoder(features) + self.stem["skip"](cells)))
        return y.permute(2, 4, 3, 0, 1).contiguous()

    def features(  # type: ignore[override]
        self, x: Tensor, static: Tensor | None = None, condition: Tensor | None = None
    ) -> dict[str, Tensor]:
        """What the encoder and each block made, on the internal grid.

        Returns:
            `[batch, width, level, lat, lon]` per stage, lat and lon smaller by `scale_factor`.
        """
        self.check_inputs(x=x, static=static, condition=condition)
        return {name: state.permute(2, 4, 3, 0, 1) for name, state in self.stages(x, static, condition)}

    def grids(self, x: Tensor) -> tuple[Harmonics, Harmonics]:
        """Transforms of the grid of `x` and of the internal grid, with the degrees that both hold.

        The internal grid keeps all longitudes where `scale_factor` does not divide them: turning the globe by columns
        would not turn it by columns.
        """
        config = self.config
        lat, lon = x.shape[-2:]
        outer = Harmonics.of(config.rows, lat, lon, config.degrees)
        scale = config.scale_factor
        if scale == 1:
            return outer, outer
        inner = Harmonics.of("gauss", -(-lat // scale), lon // scale if lon % scale == 0 else lon, outer.degrees)
        return Harmonics.of(config.rows, lat, lon, inner.degrees), inner

    def stages(self, x: Tensor, static: Tensor | None, condition: Tensor | None) -> Iterator[tuple[str, Tensor]]:
        """Features `[lat, lon, batch, level, width]` by stage, as they are made."""
        outer, inner = self.grids(x)
        state = self.stem["fields"](x.permute(3, 4, 0, 2, 1))  # [lat, lon, batch, level, width]
        if static is not None:
            state = state + self.stem["static"](static.permute(2, 3, 0, 1))[:, :, :, None]
        if self.profile is not None:
            zonal = zonal_harmonics(outer.rows, outer.lat, self.config.latitude_degrees, like=state)
            state = state + (zonal.T.to(self.profile.dtype) @ self.profile).to(state.dtype)[:, None, None, None]
        state = self.lift(F.gelu(state))
        if inner != outer:
            state = inner.synthesis(outer.analysis(state)).to(state.dtype)
        yield "stem", state
        embedding = None if self.embed is None or condition is None else self.embed(condition)
        for index, block in enumerate(self.blocks):
            state = self.run(block, state, embedding, inner)
            yield f"block{index}", state


FAMILY = Family(
    name="cube_sfno",
    domain="cube",
    summary="Spherical Fourier neural operator: filters by spherical-harmonic degree, for global fields",
    model=CubeSFNO,
    config=CubeSFNOConfig,
    miniature={
        "in_vars": 2,
        "out_vars": 2,
        "static_vars": 1,
        "condition_dim": 3,
        "width": 16,
        "depth": 2,
        "degrees": 2,
        "latitude_degrees": 2,
        "condition_width": 8,
        "dropout": 0.1,
        "drop_path": 0.1,
    },
    paper=Paper(
        authors="Bonev et al.",
        year=2023,
        title="Spherical Fourier Neural Operators: Learning Stable Dynamics on the Sphere",
        arxiv="2306.03838",
    ),
    requires=("torch-harmonics>=0.8,<0.9",),
    stems=("stem.",),
    heads=("head.",),
    blocks=("blocks.*",),
)

cube_sfno_tiny = FAMILY.variant("tiny", "Monthly or daily fields of one simulation on a coarse global grid.")
cube_sfno_small = FAMILY.variant(
    "small", "Daily fields, or an ensemble of simulations, on one GPU.", width=256, depth=8, degrees=32
)
cube_sfno_base = FAMILY.variant(
    "base", "Decades of 6-hourly reanalysis at 1 to 2 degrees.", width=384, depth=8, degrees=64, drop_path=0.1
)
