"""The U-shape that several families of fields share: down through the scales, up again, skips added.

A family gives the block; what surrounds it is here. Skips are added, not concatenated, and most parameters sit at
coarse scales: a fine grid costs little, and context is what fields of a planet need. The head starts at zero, so an
untrained model predicts the mean of normalised data: the climatology.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from astrozoo.models.fields import ConditionEmbedding, FieldConfig, FieldHead, FieldModel, FieldStem
from astrozoo.nn import Coarsen, Refine, ResidualBlock, checks

__all__ = ["UShapeConfig", "UShapeModel", "residual_block"]


@dataclass(frozen=True, kw_only=True, slots=True)
class UShapeConfig(FieldConfig):
    """Configuration of U-shaped models; tuples have one entry per scale, finest first.

    Attributes:
        in_vars, out_vars, static_vars, condition_dim, longitude, poles: As of every model of fields.
        widths: Channels per scale.
        depths: Blocks per scale on the way down, the coarsest included.
        decoder_depths: Blocks per scale on the way up; the coarsest scale has none.
        strides: Factor by which lat and lon shrink from each scale to the next.
        level_strides: The same for level; 1 keeps the levels.
        level_kernel: Extent of the convolutions in level: 3, or 1 where levels (or a single one) do not interact.
        condition_width: Width of the embedding of `condition`.
        dropout: Probability of dropping a channel inside a block during training.
        drop_path: Probability of dropping the last block; it rises linearly from 0 at the first.
    """

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
        FieldConfig.__post_init__(self)
        checks.at_least(self, 1, "condition_width")
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


def residual_block(config: UShapeConfig, width: int, drop_path: float) -> ResidualBlock:
    """A residual block of convolutions, as the configuration says."""
    return ResidualBlock(
        width,
        longitude=config.longitude,
        poles=config.poles,
        level_kernel=config.level_kernel,
        condition_width=config.condition_width if config.condition_dim else 0,
        dropout=config.dropout,
        drop_path=drop_path,
    )


class UShapeModel(FieldModel):
    """Base of U-shaped families; they override `make_block`, and what else differs.

    A block is called with features `[batch, widths[scale], level, lat, lon]` and the embedded condition
    `[batch, condition_width]` or None, and returns features of the same shape.
    """

    def __init__(
        self, config: Any, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__(config)
        with torch.device("meta"):
            self.make_layers(config)
        self.materialize(device, dtype)

    def make_layers(self, config: Any) -> None:
        """Create all layers, on the meta device."""
        widths, scales = config.widths, len(config.widths)
        strides = [(level, space, space) for level, space in zip(config.level_strides, config.strides, strict=True)]
        blocks = sum(config.depths) + sum(config.decoder_depths)
        rates = iter([config.drop_path * index / max(blocks - 1, 1) for index in range(blocks)])

        def stage(scale: int, depth: int, up: bool) -> nn.Module:
            return self.make_stage(config, scale, [next(rates) for _ in range(depth)], up=up)

        self.stem = FieldStem(config, widths[0], level_kernel=config.level_kernel)
        self.embed = ConditionEmbedding(config.condition_dim, config.condition_width) if config.condition_dim else None
        self.encoder = nn.ModuleList(stage(scale, config.depths[scale], False) for scale in range(scales))
        self.coarsen = nn.ModuleList(
            Coarsen(widths[scale], widths[scale + 1], strides[scale], longitude=config.longitude)
            for scale in range(scales - 1)
        )
        upwards = range(scales - 2, -1, -1)
        self.refine = nn.ModuleList(Refine(widths[scale + 1], widths[scale], strides[scale]) for scale in upwards)
        self.decoder = nn.ModuleList(stage(scale, config.decoder_depths[scale], True) for scale in upwards)
        self.head = FieldHead(config, widths[0])

    def make_stage(self, config: Any, scale: int, rates: Sequence[float], *, up: bool) -> nn.Module:  # noqa: ARG002
        """The blocks of a scale, one per entry of `rates` (their `drop_path`), on the way down or `up`."""
        return nn.ModuleList(self.make_block(config, scale, rate) for rate in rates)

    def make_block(self, config: Any, scale: int, drop_path: float) -> nn.Module:
        """One block of the scale; `drop_path` is the probability that training drops it."""
        raise NotImplementedError(f"{type(self).__name__} must define make_block(config, scale, drop_path)")

    @classmethod
    def grid_minimum(cls, config: Any) -> tuple[int, int, int]:
        """Below the product of the strides the coarsest grid would be mostly filling."""
        coarsest = math.prod(config.strides)
        return 1, coarsest, coarsest

    @classmethod
    def longitude_step(cls, config: Any) -> int | str:
        """A column of the coarsest grid."""
        return math.prod(config.strides)

    @classmethod
    def feature_stages(cls, config: Any) -> tuple[str, ...]:
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
        return self.to_fields(stages)

    def to_fields(self, stages: dict[str, Tensor]) -> Tensor:
        """Output fields from the last stage at full resolution."""
        fields: Tensor = self.head(stages["up0" if self.coarsen else "down0"])
        return fields

    def features(  # type: ignore[override]
        self, x: Tensor, static: Tensor | None = None, condition: Tensor | None = None
    ) -> dict[str, Tensor]:
        """What each scale saw on the way down (`down0`, finest, ...) and on the way up (..., `up0`).

        Returns:
            `[batch, widths[scale], level, lat, lon]` per stage, in the order of computation.
        """
        self.check_inputs(x=x, static=static, condition=condition)
        # Channels of a cell side by side in memory: what the norm reads, and what tensor cores and oneDNN want.
        x = self.stem(x.contiguous(memory_format=torch.channels_last_3d), static)
        return self.scales(x, None if self.embed is None or condition is None else self.embed(condition))

    def scales(self, x: Tensor, context: Any) -> dict[str, Tensor]:
        """Down through the scales and up again.

        Args:
            x: `[batch, widths[0], level, lat, lon]`, what the stem made of the fields.
            context: What blocks are called with beside features: the embedded condition or None.

        Returns:
            As `features`.
        """
        cells = x.shape[2:]
        stages: dict[str, Tensor] = {}
        for scale in range(len(self.encoder)):
            if scale:
                x = self.coarsen[scale - 1](x)
            stages[f"down{scale}"] = x = self.encode(scale, x, context, cells)
        for scale, refine, blocks in zip(reversed(range(len(self.refine))), self.refine, self.decoder, strict=True):
            skip = stages[f"down{scale}"]
            stages[f"up{scale}"] = x = self.through(blocks, skip + refine(x, skip.shape[2:]), context)
        return stages

    def encode(self, scale: int, x: Tensor, context: Any, cells: Sequence[int]) -> Tensor:  # noqa: ARG002
        """What happens at a scale on the way down; `cells` are the sizes (level, lat, lon) of the fields."""
        return self.through(self.encoder[scale], x, context)

    def through(self, blocks: nn.Module, x: Tensor, context: Any) -> Tensor:
        """One block after the other, checkpointed where that is switched on."""
        for block in blocks.children():
            x = self.run(block, x, context)
        return x
