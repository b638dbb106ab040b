"""cube_swin: a 3-D shifted-window transformer for fields on a latitude-longitude grid with levels.

For forecasts and emulators whose patterns move with the flow: attention within windows of (level, lat, lon) sees where
on Earth it is, at a cost linear in the grid.

Papers: Bi, Xie, Zhang, Chen, Gu, Tian (2022), "Pangu-Weather", arXiv:2211.02556; Liu, Lin, Cao, Hu, Wei, Zhang, Lin,
Guo (2021), "Swin Transformer", arXiv:2103.14030.
Where we differ, and why:
- The Earth-specific bias is one function on any grid (`astrozoo.models.windows`): a table over offsets at reference
  latitudes and levels, linear in between. Pangu's has an entry for every window of its own 0.25 degree grid.
- Offsets in latitude and level are relative to the query's row; Pangu learns every pair of places in a window apart,
  which takes 16 times the parameters and more data than most archives hold.
- Windows are as even as the grid allows, and the circle of longitudes is never filled with masked cells.
- The U-shape (`astrozoo.models.ushape`) keeps a thin convolutional scale on the full grid around the patches. Its block
  on the way up, after the patches were recovered, hides their seams. Surface and upper air share the variables.

Layout: `x[batch, var, level, lat, lon]`, optional `static[batch, static, lat, lon]` (orography, land mask) and
`condition[batch, param]` (forcing, planetary parameters) -> `y[batch, out_var, level, lat, lon]`. Levels may be one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from astrozoo.models.fields import grid_conv
from astrozoo.models.ushape import UShapeConfig, UShapeModel
from astrozoo.models.windows import WindowAttention, WindowPlan
from astrozoo.nn import ChannelNorm, DropPath, FiLM, Mlp, checks
from astrozoo.registry.family import Family
from astrozoo.registry.spec import Paper

__all__ = ["CubeSwin", "CubeSwinConfig"]


@dataclass(frozen=True, kw_only=True, slots=True)
class CubeSwinConfig(UShapeConfig):
    """Configuration of `CubeSwin`.

    Attributes:
        in_vars, out_vars, static_vars, condition_dim, longitude, poles: As of every model of fields.
        widths, depths, decoder_depths, strides, level_strides, level_kernel, condition_width, dropout, drop_path: As of
            the U-shape. The first scale is the grid itself with blocks of convolution, the first strides are those of
            the patches; from the second scale on blocks are of attention.
        window: Levels, latitudes and longitudes that a window has at most, in cells of its scale.
        head_width: Channels of a head; divides every width but the first.
        references: Levels and latitudes at which the bias of the attention is learnt.
        mlp_ratio: Hidden width of the perceptrons, in units of the block's.
    """

    widths: tuple[int, ...] = (24, 96, 192)
    depths: tuple[int, ...] = (0, 2, 4)
    decoder_depths: tuple[int, ...] = (1, 2)
    strides: tuple[int, ...] = (2, 2)
    level_strides: tuple[int, ...] = (2, 1)
    window: tuple[int, ...] = (2, 8, 8)
    head_width: int = 32
    references: tuple[int, ...] = (2, 8)
    mlp_ratio: int = 4

    def __post_init__(self) -> None:
        UShapeConfig.__post_init__(self)
        checks.at_least(self, 1, "head_width", "mlp_ratio")
        checks.each_at_least(self, 1, "window", "references")
        checks.same_length(self, "window", 3, "of level, latitude and longitude")
        checks.same_length(self, "references", 2, "of level and latitude")
        if len(self.widths) < 2:
            raise checks.fail(self, "widths", "at least two scales: the grid and its patches")
        if any(width % self.head_width for width in self.widths[1:]):
            raise checks.fail(self, "widths", f"from the second on multiples of head_width, {self.head_width}")


class SeamBlock(nn.Module):
    """`x + conv(silu(norm(x)))` on the full grid, scaled and shifted by a condition after the norm."""

    def __init__(self, config: CubeSwinConfig, width: int, drop_path: float) -> None:
        super().__init__()
        self.norm = ChannelNorm(width)
        self.film = FiLM(config.condition_width, width) if config.condition_dim else None
        self.conv = grid_conv(config, width, width, level_kernel=config.level_kernel)
        self.drop_path = DropPath(drop_path)

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.conv.weight)  # a deep stack starts as the identity

    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """`x[batch, channel, level, lat, lon]`, `condition[batch, embedding]` -> like `x`."""
        branch = self.norm(x)
        if self.film is not None:
            branch = self.film(branch, condition)
        return x + self.drop_path(self.conv(F.silu(branch)))


class WindowBlock(nn.Module):
    """Attention within windows, then a perceptron, each on normalised and conditioned features and added to them."""

    def __init__(self, config: CubeSwinConfig, width: int, drop_path: float) -> None:
        super().__init__()
        self.shifted = False  # by half a window; the stage says
        self.attention_norm = ChannelNorm(width)
        self.attention_film = FiLM(config.condition_width, width) if config.condition_dim else None
        references = (config.references[0], config.references[1])
        self.attention = WindowAttention(width, width // config.head_width, config.window, references)
        self.mlp_norm = ChannelNorm(width)
        self.mlp_film = FiLM(config.condition_width, width) if config.condition_dim else None
        self.mlp = Mlp(width, config.mlp_ratio * width, dropout=config.dropout)
        self.drop_path = DropPath(drop_path)

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.attention.output.weight)  # a deep stack starts as the identity
        nn.init.zeros_(self.mlp.narrow.weight)

    def forward(self, x: Tensor, condition: Tensor | None, plan: WindowPlan) -> Tensor:
        """`x[batch, channel, level, lat, lon]`, `condition[batch, embedding]` -> like `x`."""
        tokens = _tokens(self.attention_norm(x), self.attention_film, condition)
        x = x + self.drop_path(self.attention(tokens, plan).movedim(-1, 1))
        tokens = _tokens(self.mlp_norm(x), self.mlp_film, condition)
        return x + self.drop_path(self.mlp(tokens).movedim(-1, 1))


def _tokens(x: Tensor, film: nn.Module | None, condition: Tensor | None) -> Tensor:
    """`[batch, channel, level, lat, lon]`, conditioned, as `[batch, level, lat, lon, channel]`."""
    return (x if film is None else film(x, condition)).movedim(1, -1)


class CubeSwin(UShapeModel):
    """Shifted-window transformer blocks on patches, down through the scales and up again."""

    def make_block(self, config: CubeSwinConfig, scale: int, drop_path: float) -> nn.Module:
        """A block of convolution on the grid itself, of attention on the scales below."""
        block = SeamBlock if scale == 0 else WindowBlock
        return block(config, config.widths[scale], drop_path)

    def make_layers(self, config: CubeSwinConfig) -> None:
        """As of the U-shape; in every stage the second, fourth, ... block of attention has shifted windows."""
        super().make_layers(config)
        for blocks in (*self.encoder, *self.decoder):
            for number, block in enumerate(blocks.children()):
                if isinstance(block, WindowBlock):
                    block.shifted = number % 2 == 1

    @classmethod
    def longitude_step(cls, config: CubeSwinConfig) -> int | str:
        """A window of the coarsest scale, where windows divide the longitudes of every scale; see `WindowPlan`."""
        return config.window[2] * math.prod(config.strides)

    def through(self, blocks: nn.Module, x: Tensor, embedding: Tensor | None) -> Tensor:
        """One block after the other; those of attention share the two plans of their grid."""
        plans: dict[bool, WindowPlan] = {}
        for block in blocks.children():
            if not isinstance(block, WindowBlock):
                x = self.run(block, x, embedding)
                continue
            if block.shifted not in plans:
                plans[block.shifted] = self.plan(x, shifted=block.shifted)
            x = self.run(block, x, embedding, plans[block.shifted])
        return x

    def plan(self, x: Tensor, *, shifted: bool) -> WindowPlan:
        """How the grid of features `[batch, channel, level, lat, lon]` is cut into windows."""
        config = self.config
        return WindowPlan.make(
            x.shape[2:], config.window, shifted=shifted, longitude=config.longitude,
            references=config.references, device=x.device, dtype=self.head.weight.dtype,
        )  # fmt: skip


FAMILY = Family(
    name="cube_swin",
    domain="cube",
    summary="3-D shifted-window transformer with an Earth-specific bias for fields with levels",
    model=CubeSwin,
    config=CubeSwinConfig,
    miniature={
        "in_vars": 2,
        "out_vars": 2,
        "static_vars": 1,
        "condition_dim": 3,
        "widths": (8, 16, 16),
        "depths": (0, 2, 1),
        "decoder_depths": (1, 1),
        "strides": (2, 2),
        "level_strides": (1, 1),
        "window": (2, 4, 4),
        "head_width": 8,
        "references": (2, 3),
        "mlp_ratio": 2,
        "condition_width": 8,
        "dropout": 0.1,
        "drop_path": 0.1,
    },
    paper=Paper(
        authors="Bi et al.",
        year=2022,
        title="Pangu-Weather: A 3D High-Resolution Model for Fast and Accurate Global Weather Forecast",
        arxiv="2211.02556",
    ),
    stems=("stem.",),
    heads=("head.",),
    blocks=("encoder.*.*", "decoder.*.*"),
)

cube_swin_tiny = FAMILY.variant("tiny", "Monthly fields of one simulation, or a first run on a GPU.")
cube_swin_small = FAMILY.variant(
    "small",
    "Daily fields, or an ensemble of simulations, on one GPU.",
    widths=(32, 128, 256, 512),
    depths=(0, 2, 2, 4),
    decoder_depths=(1, 2, 2),
    strides=(2, 2, 2),
    level_strides=(2, 1, 1),
    drop_path=0.05,
)
cube_swin_base = FAMILY.variant(
    "base",
    "Decades of 6-hourly reanalysis at 1 to 2 degrees.",
    widths=(48, 192, 384, 768),
    depths=(0, 2, 2, 6),
    decoder_depths=(1, 2, 2),
    strides=(2, 2, 2),
    level_strides=(2, 1, 1),
    drop_path=0.1,
)
cube_swin_large = FAMILY.variant(
    "large",
    "Reanalysis with many variables and levels, on several GPUs.",
    widths=(64, 256, 512, 1024),
    depths=(0, 2, 6, 12),
    decoder_depths=(1, 2, 6),
    strides=(2, 2, 2),
    level_strides=(2, 1, 1),
    drop_path=0.2,
)
