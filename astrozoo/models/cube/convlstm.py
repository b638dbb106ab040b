"""cube_convlstm: convolutional LSTM for sequences of latitude-longitude fields, for forecasts and emulation.

Papers: Shi, Chen, Wang, Yeung, Wong, Woo (2015), "Convolutional LSTM Network", arXiv:1506.04214; the pyramid of scales
between encoder and forecaster is that of Shi, Gao, Lausen, Wang, Yeung, Wong, Woo (2017), arXiv:1706.03458.
An encoder reads the fields one after the other, every scale a recurrent layer and coarser than the one below; a
forecaster starts from its states and runs on, from the coarsest scale to the finest.
Where we differ, and why:
- Convolutions wrap around in longitude and continue across the poles: a planet has no edge.
- The forecaster sees the field before, at first the last that was observed, on its way down and just before the head
  (`feedback`; the papers' forecasters run on their states alone, as here where in and out variables differ): what is
  fine-grained need not pass through the states, and any number of steps is one recurrence.
- Peepholes are optional and per channel, see `astrozoo.nn.convlstm`. An untrained model predicts the climatology, or
  with `persistence=1.0` the last field.

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

from astrozoo.models.fields import ConditionEmbedding, FieldHead, FieldStem, grid_conv
from astrozoo.models.sequences import (
    Feedback,
    FieldSequenceConfig,
    FieldSequenceModel,
    feeds_back,
    flags,
    fold_time,
)
from astrozoo.nn import ChannelNorm, Coarsen, ConvLSTMCell, FiLM, Refine, checks
from astrozoo.registry.family import Family
from astrozoo.registry.spec import Paper

__all__ = ["CubeConvLSTM", "CubeConvLSTMConfig"]

States = tuple[Tensor, ...]  # h and c of every scale, finest first


@dataclass(frozen=True, kw_only=True, slots=True)
class CubeConvLSTMConfig(FieldSequenceConfig):
    """Configuration of `CubeConvLSTM`; tuples have one entry per scale, finest first.

    Attributes:
        in_vars, out_vars, static_vars, condition_dim, longitude, poles: As of every model of fields.
        out_steps, feedback, persistence, truth_schedule, truth_start, truth_steps: As of every model of sequences.
        stem_width: Channels on the grid of the fields, where nothing is recurrent.
        widths: Channels of the states per scale.
        strides: Factor by which lat and lon shrink to each scale, the first from the grid of the fields.
        level_strides: The same for level; 1 keeps the levels.
        kernel: Extent of the recurrent convolutions in lat and lon, odd: how far a state moves in one step.
        level_kernel: Extent of the convolutions in level: 3, or 1 where levels (or a single one) do not interact.
        peepholes: Whether the gates see the cell's memory.
        condition_width: Width of the embedding of `condition`.
        dropout: Probability of dropping a channel of what a cell gets from another scale during training.
    """

    stem_width: int = 16
    widths: tuple[int, ...] = (24, 48, 80)
    strides: tuple[int, ...] = (2, 2, 2)
    level_strides: tuple[int, ...] = (1, 2, 2)
    kernel: int = 3
    level_kernel: int = 3
    peepholes: bool = False
    condition_width: int = 128
    dropout: float = 0.0

    def __post_init__(self) -> None:
        FieldSequenceConfig.__post_init__(self)
        checks.at_least(self, 1, "stem_width", "kernel", "condition_width")
        checks.each_at_least(self, 1, "widths", "strides", "level_strides")
        if not self.widths:
            raise checks.fail(self, "widths", "one width per scale, at least one scale")
        for name in ("strides", "level_strides"):
            checks.same_length(self, name, len(self.widths), "one per entry of widths")
        if self.kernel % 2 == 0:
            raise checks.fail(self, "kernel", "an odd number")
        if self.level_kernel not in (1, 3):
            raise checks.fail(self, "level_kernel", "1, 3")
        flags(self, "peepholes")
        checks.between(self, 0, 1, "dropout")


class Layer(nn.Module):
    """A recurrent layer of one scale: what enters is activated, conditioned, thinned out, and moves the state."""

    def __init__(self, config: CubeConvLSTMConfig, in_channels: int, channels: int) -> None:
        super().__init__()
        conditioned = config.condition_dim and in_channels
        self.film = FiLM(config.condition_width, in_channels) if conditioned else None
        self.dropout = nn.Dropout3d(config.dropout)
        self.cell = ConvLSTMCell(
            in_channels,
            channels,
            longitude=config.longitude,
            poles=config.poles,
            kernel=config.kernel,
            level_kernel=config.level_kernel,
            peepholes=config.peepholes,
        )

    def project(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        """`x[time * batch, in_channel, ...]`, `embedding[batch, ...]` -> what the gates get of it."""
        x = F.silu(x)
        if self.film is not None and embedding is not None:
            times = x.shape[0] // embedding.shape[0]
            x = self.film(x, embedding if times == 1 else embedding.expand(times, -1, -1).flatten(0, 1))
        return self.cell.project(self.dropout(x))

    def forward(self, x: Tensor, embedding: Tensor | None, times: int) -> tuple[Tensor, Tensor, Tensor]:
        """`x[time * batch, in_channel, ...]` -> all hidden states `[time * batch, channel, ...]`, the last `h, c`."""
        gates = self.project(x, embedding).unflatten(0, (times, -1)).unbind(0)
        hidden, (h, c) = self.cell.sequence(gates)
        return torch.cat(hidden) if times > 1 else h, h, c


class Forecaster(nn.Module):
    """One step of the forecast: features of the field before go down the scales, states move, and up again."""

    def __init__(self, config: CubeConvLSTMConfig) -> None:
        super().__init__()
        widths, fed = config.widths, feeds_back(config)
        strides = list(zip(config.level_strides, config.strides, config.strides, strict=True))
        scales = range(len(widths))
        self.down = nn.ModuleList(
            Coarsen(width, widths[scale], strides[scale], longitude=config.longitude)
            for scale, width in zip(scales, (config.stem_width, *widths), strict=False)
            if fed
        )
        above = [*widths[1:], 0]  # channels that come from the coarser scale
        self.up = nn.ModuleList(Refine(above[scale], widths[scale], strides[scale + 1]) for scale in scales[:-1])
        coarsest = widths[-1] if fed else 0
        self.layers = nn.ModuleList(
            Layer(config, widths[scale] if above[scale] else coarsest, widths[scale]) for scale in scales
        )
        self.refine = Refine(widths[0], config.stem_width, strides[0])
        self.mix = grid_conv(config, config.stem_width, config.stem_width, level_kernel=config.level_kernel)
        self.norm = ChannelNorm(config.stem_width)
        self.head = FieldHead(config, config.stem_width)

    def forward(
        self, fed: Tensor | None, embedding: Tensor | None, sizes: tuple[int, ...], *states: Tensor
    ) -> tuple[Tensor, ...]:
        """One step.

        Args:
            fed: Features of the field before `[batch, stem_width, level, lat, lon]`; None without feedback.
            embedding: Of the condition.
            sizes: Of the grid of the fields.
            states: h and c of every scale, finest first.

        Returns:
            `[batch, out_var, level, lat, lon]`, then the next states.
        """
        entering: list[Tensor | None] = [None] * len(self.layers)
        after, x, above = list(states), fed, None
        for scale, coarsen in enumerate(self.down):  # none without feedback
            entering[scale] = x = coarsen(F.silu(x))  # type: ignore[arg-type]
        for scale in reversed(range(len(self.layers))):
            h, c = states[2 * scale : 2 * scale + 2]
            x = entering[scale]
            if above is not None:
                refined = self.up[scale](above, h.shape[2:])
                x = refined if x is None else x + refined
            layer: Any = self.layers[scale]
            gates = None if x is None else layer.project(x, embedding)
            above, after[2 * scale + 1] = layer.cell(gates, (h, c))
            after[2 * scale] = above
        x = self.refine(above, sizes)
        x = x if fed is None else x + fed
        x = self.mix(F.silu(x))
        return self.head(F.silu(self.norm(x))), *after


class CubeConvLSTM(FieldSequenceModel):
    """The encoder-forecaster."""

    def __init__(
        self,
        config: CubeConvLSTMConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(config)
        widths = (config.stem_width, *config.widths)
        strides = zip(config.level_strides, config.strides, config.strides, strict=True)
        with torch.device("meta"):
            self.stem = FieldStem(config, config.stem_width, level_kernel=config.level_kernel)
            self.embed = (
                ConditionEmbedding(config.condition_dim, config.condition_width) if config.condition_dim else None
            )
            self.coarsen = nn.ModuleList(
                Coarsen(width, coarser, stride, longitude=config.longitude)
                for width, coarser, stride in zip(widths, config.widths, strides, strict=False)
            )
            self.encoder = nn.ModuleList(Layer(config, width, width) for width in config.widths)
            self.forecaster = Forecaster(config)
            self.persistence = nn.Parameter(torch.empty(config.out_vars)) if feeds_back(config) else None
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
        """The encoder's states, finest first, then the forecaster's after its first step, coarsest first."""
        scales = range(len(config.widths))
        return tuple(f"encoder{scale}" for scale in scales) + tuple(f"forecaster{scale}" for scale in reversed(scales))

    def forecast(
        self, x: Tensor, static: Tensor | None, condition: Tensor | None, steps: int, feedback: Feedback
    ) -> Tensor:
        """The encoder's states, then one step of the forecaster after the other."""
        states, observed, surface, embedding = self.encode(x, static, condition)
        previous = x[:, -1]
        outputs: list[Tensor] = []
        for step in range(steps):
            if step and self.persistence is not None:
                previous = feedback(outputs[-1][:, None], step - 1)[:, 0]
                observed = self.observe(previous, surface)
            if step and feedback.detach:
                states = tuple(state.detach() for state in states)
            y, *states = self.run(self.forecaster, observed, embedding, x.shape[3:], *states)
            if self.persistence is not None:
                y = y + self.persistence.to(y.dtype)[:, None, None, None] * previous
            outputs.append(y)
        return torch.stack(outputs, 1)

    def encode(
        self, x: Tensor, static: Tensor | None, condition: Tensor | None
    ) -> tuple[States, Tensor | None, Tensor | None, Tensor | None]:
        """States after the last field, features of that field where they are fed, of `static`, and of `condition`."""
        times = x.shape[1]
        surface = None if self.stem.static is None or static is None else self.stem.static(static[:, :, None])
        embedding = None if self.embed is None or condition is None else self.embed(condition)
        features = self.observe(fold_time(x), surface)
        observed = None if self.persistence is None else features[-x.shape[0] :]
        states: list[Tensor] = []
        features = F.silu(features)  # of a convolution; hidden states, which follow, are activated
        for coarsen, layer in zip(self.coarsen, self.encoder, strict=True):
            features, h, c = self.run(self.encode_scale, coarsen, layer, features, embedding, times)
            states += [h, c]
        return tuple(states), observed, surface, embedding

    def encode_scale(
        self, coarsen: nn.Module, layer: nn.Module, x: Tensor, embedding: Tensor | None, times: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """All fields of a scale through its recurrent layer."""
        return layer(coarsen(x), embedding, times)

    def observe(self, fields: Tensor, surface: Tensor | None) -> Tensor:
        """Features of fields `[time * batch, var, level, lat, lon]`, those of `static` added to all times."""
        x = self.stem.fields(fields)
        if surface is None:
            return x
        return (x.unflatten(0, (-1, surface.shape[0])) + surface).flatten(0, 1)

    def features(  # type: ignore[override]
        self, x: Tensor, static: Tensor | None = None, condition: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Hidden states of the encoder after the last field, and of the forecaster after its first step.

        Returns:
            `[batch, widths[scale], level, lat, lon]` per stage, in the order of computation.
        """
        self.check_inputs(x=x, static=static, condition=condition)
        states, observed, _, embedding = self.encode(x, static, condition)
        _, *after = self.run(self.forecaster, observed, embedding, x.shape[3:], *states)
        hidden = [*states[::2], *reversed(after[::2])]
        return dict(zip(self.feature_stages(self.config), hidden, strict=True))


FAMILY = Family(
    name="cube_convlstm",
    domain="cube",
    summary="convolutional LSTM encoder-forecaster for sequences of fields on a latitude-longitude grid",
    model=CubeConvLSTM,
    config=CubeConvLSTMConfig,
    miniature={
        "in_vars": 2,
        "out_vars": 2,
        "static_vars": 1,
        "condition_dim": 3,
        "out_steps": 3,
        "stem_width": 8,
        "widths": (8, 12),
        "strides": (1, 2),
        "level_strides": (1, 2),
        "peepholes": True,
        "condition_width": 8,
        "dropout": 0.1,
    },
    paper=Paper(
        authors="Shi et al.",
        year=2015,
        title="Convolutional LSTM Network: A Machine Learning Approach for Precipitation Nowcasting",
        arxiv="1506.04214",
    ),
    stems=("stem.",),
    heads=("forecaster.head.", "persistence"),
    blocks=("encoder.*", "forecaster.layers.*.cell.*"),
)

cube_convlstm_tiny = FAMILY.variant(
    "tiny",
    "Sequences of monthly fields of one simulation, or a first run on a GPU.",
    stem_width=32,
    widths=(48, 72, 72),
)
cube_convlstm_small = FAMILY.variant(
    "small", "Daily fields, or an ensemble of simulations, on one GPU.", stem_width=24, widths=(40, 80, 160)
)
cube_convlstm_base = FAMILY.variant(
    "base",
    "Decades of 6-hourly reanalysis at 1 to 2 degrees; a fourth scale spans the planet.",
    stem_width=32,
    widths=(48, 96, 160, 256),
    strides=(2, 2, 2, 2),
    level_strides=(1, 2, 2, 2),
)
