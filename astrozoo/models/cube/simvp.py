"""cube_simvp: SimVP forecaster of fields on a latitude-longitude grid, without recurrence, for forecasts and emulation.

Paper: Tan, Gao, Li, Li (2022), "SimVP: Towards Simple yet Powerful Spatiotemporal Predictive Learning" (SimVP v2),
arXiv:2211.12509. An encoder turns every field into features of a coarser grid, a translator of gated spatiotemporal
attention (`astrozoo.nn.gsta`) turns the features of all times into those of all times to come, a decoder makes fields
of them, helped by features of the encoder's first layer.
Where we differ, and why:
- Any number of times: of more than `in_steps` fields the last are used, and before fewer the earliest is repeated, as
  if nothing had changed before; `block_steps` fields are predicted at once, and further ones from those (`feedback`),
  whose features join those of the fields that are known already.
- The paper pairs the first layer's features of the first field in with the first field out. We let every field out
  take a learnt sum over the times, the last field at first: the nearest in time, and the two numbers may differ.
- Normalisation over channels replaces group and batch norm, and widths grow towards the coarse grid, where a cell sees
  more: a fine grid costs little. Convolutions wrap around in longitude and continue across the poles.
- An untrained model predicts the climatology, or with `persistence=1.0` the last field.

Layout: `x[batch, time, var, level, lat, lon]`, any number of times, optional `static[batch, static, lat, lon]` and
`condition[batch, param]` -> `y[batch, out_time, out_var, level, lat, lon]`. Levels may be one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from astrozoo.errors import ConfigError
from astrozoo.models.fields import ConditionEmbedding, FieldHead, FieldStem, grid_conv
from astrozoo.models.sequences import (
    Feedback,
    FieldSequenceConfig,
    FieldSequenceModel,
    feeds_back,
    fold_time,
    unfold_time,
)
from astrozoo.nn import ChannelNorm, Coarsen, GatedSpatiotemporalBlock, Refine, checks
from astrozoo.registry.family import Family
from astrozoo.registry.spec import Paper

__all__ = ["CubeSimVP", "CubeSimVPConfig"]


@dataclass(frozen=True, kw_only=True, slots=True)
class CubeSimVPConfig(FieldSequenceConfig):
    """Configuration of `CubeSimVP`; tuples have one entry per scale, finest first.

    Attributes:
        in_vars, out_vars, static_vars, condition_dim, longitude, poles: As of every model of fields.
        out_steps, feedback, persistence, truth_schedule, truth_start, truth_steps: As of every model of sequences.
        in_steps: Fields that the translator sees.
        block_steps: Fields that it predicts at once.
        widths: Channels of a field's features per scale, the first on the grid of the fields.
        strides: Factor by which lat and lon shrink from each scale to the next.
        level_strides: The same for level; 1 keeps the levels.
        level_kernel: Extent of the convolutions in level: 3, or 1 where levels (or a single one) do not interact.
        translator_width: Channels of the translator, for all times together.
        depth: Blocks of the translator.
        mlp_ratio: Hidden channels of the perceptrons per channel.
        condition_width: Width of the embedding of `condition`.
        dropout: Probability of dropping a value inside the perceptrons during training.
        drop_path: Probability of dropping the last block; it rises linearly from 0 at the first.
    """

    in_steps: int = 4
    block_steps: int = 4
    widths: tuple[int, ...] = (16, 32, 64)
    strides: tuple[int, ...] = (2, 2)
    level_strides: tuple[int, ...] = (1, 2)
    level_kernel: int = 3
    translator_width: int = 192
    depth: int = 6
    mlp_ratio: float = 4.0
    condition_width: int = 128
    dropout: float = 0.0
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        FieldSequenceConfig.__post_init__(self)
        checks.at_least(self, 1, "in_steps", "block_steps", "translator_width", "depth", "condition_width")
        checks.each_at_least(self, 1, "widths", "strides", "level_strides")
        if len(self.widths) < 2:
            raise checks.fail(self, "widths", "one width per scale, at least two scales")
        for name in ("strides", "level_strides"):
            checks.same_length(self, name, len(self.widths) - 1, "one less than widths")
        if self.level_kernel not in (1, 3):
            raise checks.fail(self, "level_kernel", "1, 3")
        checks.between(self, 0.1, 64, "mlp_ratio")
        checks.between(self, 0, 1, "dropout", "drop_path")
        if self.out_steps > self.block_steps and not feeds_back(self):
            reason = "without feedback (feedback=True and in_vars equal to out_vars), at most block_steps"
            raise checks.fail(self, "out_steps", f"{reason}, {self.block_steps}")


class ConvUnit(nn.Module):
    """`silu(norm(conv(x)))`."""

    def __init__(self, config: CubeSimVPConfig, channels: int) -> None:
        super().__init__()
        self.conv = grid_conv(config, channels, channels, level_kernel=config.level_kernel)
        self.norm = ChannelNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """`x[batch, channel, level, lat, lon]` -> like `x`."""
        return F.silu(self.norm(self.conv(x)))


class TimeMixture(nn.Module):
    """Sums over times, one per time to come; at first the last of the times."""

    def __init__(self, in_steps: int, out_steps: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_steps, in_steps))

    def reset_parameters(self) -> None:
        """1 for the last time, 0 for the others."""
        nn.init.zeros_(self.weight)
        nn.init.ones_(self.weight[:, -1])

    def forward(self, x: Tensor, steps: int) -> Tensor:
        """`x[in_time * batch, channel, ...]` -> the first `[steps * batch, channel, ...]`."""
        by_time = x.movedim(1, -1).unflatten(0, (self.weight.shape[1], -1))  # as it lies in memory
        mixed = self.weight[:steps].to(x.dtype) @ by_time.flatten(1)
        return mixed.unflatten(1, by_time.shape[1:]).flatten(0, 1).movedim(-1, 1)


class CubeSimVP(FieldSequenceModel):
    """Encoder of single fields, translator of all of them, decoder of single fields."""

    def __init__(
        self, config: CubeSimVPConfig, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__(config)
        widths, scales = config.widths, range(len(config.strides))
        strides = [(level, space, space) for level, space in zip(config.level_strides, config.strides, strict=True)]
        with torch.device("meta"):
            self.stem = FieldStem(config, widths[0], level_kernel=config.level_kernel)
            self.stem_norm = ChannelNorm(widths[0])
            self.embed = (
                ConditionEmbedding(config.condition_dim, config.condition_width) if config.condition_dim else None
            )
            self.coarsen = nn.ModuleList(
                Coarsen(widths[scale], widths[scale + 1], strides[scale], longitude=config.longitude)
                for scale in scales
            )
            self.encoder = nn.ModuleList(ConvUnit(config, width) for width in widths[1:])
            self.enter = nn.Conv3d(config.in_steps * widths[-1], config.translator_width, 1)
            self.translator = nn.ModuleList(
                GatedSpatiotemporalBlock(
                    config.translator_width,
                    longitude=config.longitude,
                    poles=config.poles,
                    level_kernel=config.level_kernel,
                    mlp_ratio=config.mlp_ratio,
                    condition_width=config.condition_width if config.condition_dim else 0,
                    dropout=config.dropout,
                    drop_path=config.drop_path * index / max(config.depth - 1, 1),
                )
                for index in range(config.depth)
            )
            self.leave = nn.Conv3d(config.translator_width, config.block_steps * widths[-1], 1)
            self.refine = nn.ModuleList(
                Refine(widths[scale + 1], widths[scale], strides[scale]) for scale in reversed(scales)
            )
            self.decoder = nn.ModuleList(ConvUnit(config, widths[scale]) for scale in reversed(scales))
            self.skip = TimeMixture(config.in_steps, config.block_steps)
            self.head = FieldHead(config, widths[0])
            fed = feeds_back(config)
            self.persistence = nn.Parameter(torch.empty(config.block_steps, config.out_vars)) if fed else None
        self.materialize(device, dtype)

    def reset_parameters(self) -> None:
        """As the layers say; the configured persistence."""
        super().reset_parameters()
        if self.persistence is not None:
            nn.init.constant_(self.persistence, self.config.persistence)

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
        """The encoder's scales, finest first, the translator's blocks, the decoder's scales back to the finest."""
        scales = range(len(config.widths))
        return (
            *(f"encoder{scale}" for scale in scales),
            *(f"translator{index}" for index in range(config.depth)),
            *(f"decoder{scale}" for scale in reversed(scales[:-1])),
        )

    def forecast(
        self, x: Tensor, static: Tensor | None, condition: Tensor | None, steps: int, feedback: Feedback
    ) -> Tensor:
        """Blocks of `block_steps` fields, each from the last `in_steps` fields known or predicted."""
        config, batch = self.config, x.shape[0]
        if steps > config.block_steps and self.persistence is None:
            raise ConfigError(
                f"{self._label()} predicts {config.block_steps} steps at once and feeds nothing back (in_vars="
                f"{config.in_vars}, out_vars={config.out_vars}, feedback={config.feedback}); {steps} steps need "
                "feedback=True and out_vars equal to in_vars, or a block_steps as large."
            )
        surface = None if self.stem.static is None or static is None else self.stem.static(static[:, :, None])
        embedding = None if self.embed is None or condition is None else self.embed(condition)
        known = x[:, -config.in_steps :]
        stages = self.encode(known, surface)
        fine, coarse = stages[0], stages[-1]
        outputs: list[Tensor] = []
        for first in range(0, steps, config.block_steps):
            if first:
                known = feedback(outputs[-1], first - config.block_steps)[:, -config.in_steps :]
                if feedback.detach:
                    fine, coarse = fine.detach(), coarse.detach()
                stages = self.encode(known, surface)
                fine, coarse = torch.cat([fine, stages[0]]), torch.cat([coarse, stages[-1]])
            # What leaves the window is forgotten; before few fields, the earliest is repeated.
            fine, coarse = self.window(fine, batch), self.window(coarse, batch)
            count = min(config.block_steps, steps - first)
            decoded = self.decode(self.translate(coarse, embedding)[-1], fine, count)
            y = unfold_time(self.head(decoded[-1]), batch)
            if self.persistence is not None:
                y = y + self.persistence[:count].to(y.dtype)[..., None, None, None] * known[:, -1:]
            outputs.append(y)
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1)

    def window(self, features: Tensor, batch: int) -> Tensor:
        """The last `in_steps` of `features[time * batch, ...]`, the earliest repeated in front of fewer."""
        missing = self.config.in_steps - features.shape[0] // batch
        if missing > 0:
            return torch.cat([features[:batch]] * missing + [features])
        return features[-self.config.in_steps * batch :] if missing else features

    def encode(self, x: Tensor, surface: Tensor | None) -> list[Tensor]:
        """Features `[time * batch, widths[scale], level, lat, lon]` of every scale, each field by itself."""
        stages = [self.run(self.observe, fold_time(x), surface)]
        for coarsen, unit in zip(self.coarsen, self.encoder, strict=True):
            stages.append(self.run(unit, coarsen(stages[-1])))
        return stages

    def observe(self, fields: Tensor, surface: Tensor | None) -> Tensor:
        """The first layer, fields `[time * batch, var, level, lat, lon]` -> `[time * batch, widths[0], ...]`."""
        x = self.stem.fields(fields)
        if surface is not None:
            x = (x.unflatten(0, (-1, surface.shape[0])) + surface).flatten(0, 1)
        return F.silu(self.stem_norm(x))

    def translate(self, features: Tensor, embedding: Tensor | None) -> list[Tensor]:
        """What the blocks make of `features[in_time * batch, channel, ...]`, times as channels: the output of each."""
        stacked = features.unflatten(0, (self.config.in_steps, -1)).transpose(0, 1).flatten(1, 2)
        x = self.enter(stacked.contiguous(memory_format=torch.channels_last_3d))
        stages = []
        for block in self.translator:
            x = self.run(block, x, embedding)
            stages.append(x)
        return stages

    def decode(self, translated: Tensor, fine: Tensor, steps: int) -> list[Tensor]:
        """Features `[steps * batch, widths[scale], ...]` of the next fields, coarse to fine."""
        x = fold_time(self.leave(translated).unflatten(1, (self.config.block_steps, -1))[:, :steps])
        stages: list[Tensor] = []
        scales = len(self.refine)
        for index, (refine, unit) in enumerate(zip(self.refine, self.decoder, strict=True)):
            sizes = self.grid_sizes(fine.shape[2:])[scales - 1 - index]
            x = refine(x, sizes)
            if index == scales - 1:
                x = x + self.skip(fine, steps)
            x = self.run(unit, x)
            stages.append(x)
        return stages

    def grid_sizes(self, sizes: torch.Size) -> list[tuple[int, ...]]:
        """Level, lat and lon per scale, finest first."""
        grids = [tuple(sizes)]
        for level, space in zip(self.config.level_strides, self.config.strides, strict=True):
            grids.append(tuple(-(-size // step) for size, step in zip(grids[-1], (level, space, space), strict=True)))
        return grids

    def features(  # type: ignore[override]
        self, x: Tensor, static: Tensor | None = None, condition: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Features of the fields used and of those in the first block of the forecast, and the translator's between.

        Returns:
            `[batch, time, widths[scale], level, lat, lon]` of the encoder and (times to come) of the decoder,
            `[batch, translator_width, level, lat, lon]` of the translator, in the order of computation.
        """
        self.check_inputs(x=x, static=static, condition=condition)
        batch = x.shape[0]
        surface = None if self.stem.static is None or static is None else self.stem.static(static[:, :, None])
        embedding = None if self.embed is None or condition is None else self.embed(condition)
        encoded = self.encode(x[:, -self.config.in_steps :], surface)
        translated = self.translate(self.window(encoded[-1], batch), embedding)
        decoded = self.decode(translated[-1], self.window(encoded[0], batch), self.config.block_steps)
        stages = [
            *(unfold_time(stage, batch) for stage in encoded),
            *translated,
            *(unfold_time(stage, batch) for stage in decoded),
        ]
        return dict(zip(self.feature_stages(self.config), stages, strict=True))


FAMILY = Family(
    name="cube_simvp",
    domain="cube",
    summary="SimVP v2 gated spatiotemporal attention for sequences of fields on a latitude-longitude grid",
    model=CubeSimVP,
    config=CubeSimVPConfig,
    miniature={
        "in_vars": 2,
        "out_vars": 2,
        "static_vars": 1,
        "condition_dim": 3,
        "out_steps": 3,
        "in_steps": 3,
        "block_steps": 2,
        "widths": (8, 12),
        "strides": (2,),
        "level_strides": (2,),
        "translator_width": 16,
        "depth": 2,
        "mlp_ratio": 2.0,
        "condition_width": 8,
        "dropout": 0.1,
        "drop_path": 0.1,
    },
    paper=Paper(
        authors="Tan et al.",
        year=2022,
        title="SimVP: Towards Simple yet Powerful Spatiotemporal Predictive Learning",
        arxiv="2211.12509",
    ),
    stems=("stem.",),
    heads=("head.", "persistence"),
    blocks=("translator.*",),
)

cube_simvp_tiny = FAMILY.variant("tiny", "Sequences of monthly fields of one simulation, or a first run on a GPU.")
cube_simvp_small = FAMILY.variant(
    "small",
    "Daily fields, or an ensemble of simulations, on one GPU.",
    widths=(24, 48, 96),
    translator_width=384,
    depth=8,
)
cube_simvp_base = FAMILY.variant(
    "base",
    "Decades of 6-hourly reanalysis at 1 to 2 degrees.",
    widths=(32, 64, 128),
    translator_width=640,
    depth=12,
    drop_path=0.1,
)
