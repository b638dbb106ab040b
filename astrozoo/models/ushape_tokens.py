"""What U-shaped families share that attend over the cells of a coarse grid.

The features of a coarse grid are its tokens: kept channels last, they lie in memory as tokens do, and no copy is made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from astrozoo.models.tokens import GRID_TOKENS, TokenTrunk, check_attention
from astrozoo.models.ushape import UShapeConfig
from astrozoo.nn import DropPath, checks

__all__ = ["FeatureTrunk", "UShapeTokensConfig"]


@dataclass(frozen=True, kw_only=True, slots=True)
class UShapeTokensConfig(UShapeConfig):
    """Configuration of U-shaped models with attention over the cells of coarse grids.

    Attributes:
        in_vars, out_vars, static_vars, condition_dim, longitude, poles: As of every model of fields.
        widths, depths, decoder_depths, strides, level_strides: As of every U-shape.
        level_kernel, condition_width, dropout, drop_path: As of every U-shape; dropout also of attention weights.
        head_dim: Width of a head of the attention; divides the width of its scale.
        mlp_ratio: Hidden width of the perceptrons, in units of the width of their scale.
        attention: Name of the attention; `spec.attentions` lists those that fit.
        attention_options: Further options of it, as a mapping such as `{"window": 64}`, or as pairs of name and value,
            which is how they are kept.
    """

    head_dim: int = 32
    mlp_ratio: float = 4.0
    attention: str = "flash"
    attention_options: Any = ()

    def __post_init__(self) -> None:
        UShapeConfig.__post_init__(self)
        checks.at_least(self, 1, "head_dim")
        checks.between(self, 0.125, 16, "mlp_ratio")
        check_attention(self, GRID_TOKENS)

    def check_heads(self, scales: Sequence[int]) -> None:
        """The widths of `scales` are made of whole heads."""
        for scale in scales:
            if self.widths[scale] % self.head_dim:
                raise checks.fail(self, "head_dim", f"a divisor of widths[{scale}], {self.widths[scale]}")


class FeatureTrunk(TokenTrunk):
    """Blocks of attention over the cells of a scale.

    Args:
        config: Of the U-shape.
        scale: Whose features they are.
        rates: Of every block, the probability that training drops its branches.
    """

    def __init__(self, config: UShapeTokensConfig, scale: int, rates: Sequence[float]) -> None:
        width, columns = config.widths[scale], math.prod(config.strides[:scale])
        super().__init__(
            width,
            len(rates),
            width // config.head_dim,
            longitude=config.longitude,
            patch=(math.prod(config.level_strides[:scale]), columns, columns),
            attention=config.attention,
            attention_options=dict(config.attention_options),
            mlp_ratio=config.mlp_ratio,
            dropout=config.dropout,
            condition_width=config.condition_width if config.condition_dim else 0,
        )
        for block, rate in zip(self.blocks, rates, strict=True):
            block.drop_path = DropPath(rate)

    def forward(  # type: ignore[override]
        self, x: Tensor, cells: Sequence[int], condition: Tensor | None, *, run: Callable[..., Any]
    ) -> Tensor:
        """Normalised features of cells that have seen each other.

        Args:
            x: `[batch, width, level, lat, lon]`.
            cells: Sizes (level, lat, lon) of the fields that the features cover.
            condition: `[batch, condition_width]`, where the configuration has one.
            run: `model.run`, through which blocks are checkpointed.

        Returns:
            Like `x`.
        """
        tokens = self.place(x.movedim(1, -1), cells)  # [batch, token, width]
        tokens = super().forward(tokens, cells, condition, run=run)
        return tokens.unflatten(1, x.shape[2:]).movedim(-1, 1)
