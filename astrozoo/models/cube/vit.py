"""cube_vit: a vision transformer over patches of fields on a latitude-longitude grid, for forecasts and emulators.

Paper: Nguyen, Brandstetter, Kapoor, Gupta, Grover (2023), "ClimaX", arXiv:2301.10343: each variable has its own patch
embedding, an attention aggregates the variables, a vision transformer (Dosovitskiy et al. 2020, arXiv:2010.11929) mixes
the patches, a perceptron per patch decodes them.
Where we differ, and why:
- Patches have a share of the levels too, and any attention mixes them by name.
- Positions are those of the planet: absolute latitude and level, relative longitude (`astrozoo.nn.position`), so that
  turning the globe by a patch turns the output exactly.
- The linear maps of the aggregation are multiplied out (`astrozoo.models.patches`): the same function for less.
- Patches alone leave seams and lose what is finer. The decoder adds a convolution of the input to what the patches say
  and ends with convolutions across their edges. Its last layer starts at zero: an untrained model predicts the
  climatology.

Layout: `x[batch, var, level, lat, lon]`, optional `static[batch, static, lat, lon]` (orography, land mask) and
`condition[batch, param]` (forcing, lead time, planetary parameters) -> `y[batch, out_var, level, lat, lon]`. Levels may
be one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from astrozoo.errors import ConfigError
from astrozoo.models.fields import FieldHead, FieldModel, FieldStem
from astrozoo.models.patches import FieldEncoder
from astrozoo.models.tokens import GRID_ATTENTIONS, GRID_TOKENS, TokenConfig, longitude_step
from astrozoo.nn import Refine, ResidualBlock, checks
from astrozoo.registry.family import Family
from astrozoo.registry.spec import Paper

__all__ = ["CubeViT", "CubeViTConfig"]


@dataclass(frozen=True, kw_only=True, slots=True)
class CubeViTConfig(TokenConfig):
    """Configuration of `CubeViT`: that of token models, see `TokenConfig`, and the decoder's.

    Attributes:
        cell_width: Channels of the convolutions on the full grid.
        cell_depth: Residual blocks of them, after the tokens.
        level_kernel: Extent of these in level: 3, or 1 where levels (or a single one) do not interact beyond patches.
    """

    cell_width: int = 32
    cell_depth: int = 2
    level_kernel: int = 3

    def __post_init__(self) -> None:
        TokenConfig.__post_init__(self)
        checks.at_least(self, 1, "cell_width")
        checks.at_least(self, 0, "cell_depth")
        if self.level_kernel not in (1, 3):
            raise checks.fail(self, "level_kernel", "1, 3")


class PatchDecoder(nn.Module):
    """Tokens into fields: a perceptron per patch, and residual convolutions across the patches' edges."""

    def __init__(self, config: CubeViTConfig) -> None:
        super().__init__()
        self.widen = nn.Linear(config.dim, config.dim)
        self.refine = Refine(config.dim, config.cell_width, config.cell_patch)
        self.blocks = nn.ModuleList(
            ResidualBlock(
                config.cell_width, longitude=config.longitude, poles=config.poles, level_kernel=config.level_kernel
            )
            for _ in range(config.cell_depth)
        )

    def forward(self, tokens: Tensor, cells: Tensor) -> Tensor:
        """`tokens[batch, level, lat, lon, dim]`, `cells[batch, channel, level, lat, lon]` -> like `cells`."""
        hidden = F.gelu(self.widen(tokens)).movedim(-1, 1)
        cells = cells + self.refine(hidden, cells.shape[2:])
        for block in self.blocks:
            cells = block(cells)
        return cells


class CubeViT(FieldModel):
    """The transformer: patches of all variables into tokens, blocks, fields again."""

    def __init__(
        self, config: CubeViTConfig, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__(config)
        with torch.device("meta"):
            self.encoder = FieldEncoder(config)
            self.stem = FieldStem(config, config.cell_width, level_kernel=config.level_kernel)
            self.decoder = PatchDecoder(config)
            self.head = FieldHead(config, config.cell_width)
        self.materialize(device, dtype)

    @classmethod
    def grid_minimum(cls, config: CubeViTConfig) -> tuple[int, int, int]:
        """A patch."""
        return 1, config.patch, config.patch

    @classmethod
    def longitude_step(cls, config: CubeViTConfig) -> int | str:
        """A patch, with attentions that take relative longitudes."""
        return longitude_step(config, config.patch)

    @classmethod
    def feature_stages(cls, config: CubeViTConfig) -> tuple[str, ...]:
        """`tokens` as they enter the trunk, `block1` to the last, and `cells`, on the full grid."""
        return ("tokens", *(f"block{index + 1}" for index in range(config.depth)), "cells")

    def forward(self, x: Tensor, static: Tensor | None = None, condition: Tensor | None = None) -> Tensor:
        """Map fields to fields on the same grid.

        Args:
            x: `[batch, var, level, lat, lon]`, latitudes in either order.
            static: `[batch, static, lat, lon]`, exactly where `static_vars` is not 0.
            condition: `[batch, param]`, exactly where `condition_dim` is not 0.

        Returns:
            `[batch, out_var, level, lat, lon]`.
        """
        self.check_inputs(x=x, static=static, condition=condition)
        return self.head(self._cells(x, static, condition))

    def features(  # type: ignore[override]
        self, x: Tensor, static: Tensor | None = None, condition: Tensor | None = None
    ) -> dict[str, Tensor]:
        """What enters the trunk, what each block makes of it, and the decoded cells.

        Returns:
            `[batch, dim, level, lat, lon]` of patches for `tokens`, `block1`, ...; `[batch, cell_width, ...]` of cells.
        """
        self.check_inputs(x=x, static=static, condition=condition)
        taps: list[Tensor] = []
        cells = self._cells(x, static, condition, taps)
        sizes = self.encoder.trunk.position.sizes(x.shape[2:])
        grids = [tokens.unflatten(1, sizes).movedim(-1, 1) for tokens in taps]
        return dict(zip(self.feature_stages(self.config), [*grids, cells], strict=True))

    def load_encoder(self, pretrained: nn.Module) -> None:
        """Take over the encoder of a pretrained model, such as a `CubeMAE`; stem, decoder and head stay as they are.

        Args:
            pretrained: A model with an `encoder` like this one's, on any device and in any dtype.

        Raises:
            ConfigError: It has none, or names or shapes of its tensors differ: the two were configured differently.
        """
        given = getattr(pretrained, "encoder", None)
        if not isinstance(given, FieldEncoder):
            raise ConfigError(
                f"{type(pretrained).__name__} has no encoder of fields; expected a cube_mae or a cube_vit."
            )
        own, state = self.encoder.state_dict(), given.state_dict()
        shapes = {name: [_shape(own, name), _shape(state, name)] for name in sorted(own.keys() | state.keys())}
        wrong = [f"{name} is {ours}, given {theirs}" for name, (ours, theirs) in shapes.items() if ours != theirs]
        if wrong:
            raise ConfigError(
                f"{len(wrong)} of {len(shapes)} tensors of the encoders differ: {'; '.join(wrong[:3])}. Configure both "
                "alike: in_vars, static_vars, condition_dim, condition_width, longitude, dim, depth, num_heads, "
                "mlp_ratio, patch, level_patch, attention."
            )
        self.encoder.load_state_dict(state)

    def _cells(
        self, x: Tensor, static: Tensor | None, condition: Tensor | None, taps: list[Tensor] | None = None
    ) -> Tensor:
        encoder = self.encoder
        tokens = encoder(x, static, encoder.embedded(condition), run=self.run, taps=taps)
        tokens = tokens.unflatten(1, encoder.trunk.position.sizes(x.shape[2:]))
        # Channels of a cell side by side in memory: what the norm reads, and what tensor cores and oneDNN want.
        cells = self.stem(x.contiguous(memory_format=torch.channels_last_3d), static)
        decoded: Tensor = self.run(self.decoder, tokens, cells)
        return decoded


def _shape(state: Mapping[str, Any], name: str) -> list[int] | None:
    return list(state[name].shape) if name in state else None


FAMILY = Family(
    name="cube_vit",
    domain="cube",
    summary="3-D patch transformer for fields, with per-variable tokens and positions on the sphere",
    model=CubeViT,
    config=CubeViTConfig,
    miniature={
        "in_vars": 2,
        "out_vars": 2,
        "static_vars": 1,
        "condition_dim": 3,
        "dim": 16,
        "depth": 2,
        "num_heads": 2,
        "mlp_ratio": 2.0,
        "patch": 2,
        "cell_width": 8,
        "condition_width": 8,
        "dropout": 0.1,
        "drop_path": 0.1,
    },
    paper=Paper(
        authors="Nguyen et al.",
        year=2023,
        title="ClimaX: A foundation model for weather and climate",
        arxiv="2301.10343",
    ),
    default_attention="flash",
    attentions=GRID_ATTENTIONS,
    attention_use=GRID_TOKENS,
    stems=("encoder.embed.", "stem."),
    heads=("head.",),
    blocks=("encoder.trunk.blocks.*",),
)

cube_vit_tiny = FAMILY.variant("tiny", "Daily fields of one simulation, or a first run on a GPU.")
cube_vit_small = FAMILY.variant(
    "small", "Ensembles of simulations, or reanalysis at 2 to 5 degrees.", dim=384, depth=8, num_heads=6
)
cube_vit_base = FAMILY.variant(
    "base",
    "Decades of 6-hourly reanalysis at 1 to 2 degrees.",
    dim=768,
    depth=10,
    num_heads=12,
    condition_width=256,
    drop_path=0.1,
)
cube_vit_large = FAMILY.variant(
    "large",
    "Reanalysis with many variables and levels, on several GPUs.",
    dim=1024,
    depth=20,
    num_heads=16,
    cell_width=48,
    condition_width=512,
    drop_path=0.1,
)
cube_vit_huge = FAMILY.variant(
    "huge",
    "Pretraining on multi-model archives with sharded training.",
    dim=1536,
    depth=28,
    num_heads=24,
    cell_width=64,
    condition_width=512,
    drop_path=0.2,
)
