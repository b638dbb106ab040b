"""cube_unet5d: a U-Net in space with attention along two axes of time, for runs of a planet through its eras.

A simulation archive has fast time inside slow time: months or years of weather (`climate_time`) for every epoch of
geology, orbit or composition (`geo_time`). Each field is seen by a U-Net of space; at coarse scales every cell then
looks along climate time within its epoch, and along geological time at its own climate time. Full attention over both
times and space would cost the square of their product.

Paper: Bertasius, Wang, Torresani (2021), "Is Space-Time Attention All You Need for Video Understanding?" (TimeSformer,
divided attention), arXiv:2102.05095.
Where we differ, and why:
- Space is convolved, not attended: a U-Net, with residual blocks as cube_unet has them. There are two times, one after
  the other. Each block convolves first, so that what is compared over time is already a feature.
- Times are relative, by rotary positions, so that any number of them goes and their order is known. They are counted:
  steps of each time are taken as equal.
- Fine scales do not attend: what they hold (fronts, coasts) is compared over time once it is coarse.
As in the paper, attention over time enters through a linear layer that starts at zero: an untrained model treats every
time alike, as the U-Net of space does. A time of length one has nothing to look at: its attention is left out.

Layout: `x[batch, var, climate_time, geo_time, level, lat, lon]`, optional `static[batch, static, lat, lon]` and
`condition[batch, param]` -> `y[batch, out_var, climate_time, geo_time, level, lat, lon]`. Times and levels may be one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from astrozoo import registry
from astrozoo.attention.geometry import Grid, Points
from astrozoo.factory import create_attention
from astrozoo.models.fields import field_tensor, side_inputs
from astrozoo.models.tokens import GRID_ATTENTIONS, GRID_TOKENS, check_attention
from astrozoo.models.ushape import UShapeConfig, UShapeModel, residual_block
from astrozoo.nn import ChannelNorm, DropPath, checks
from astrozoo.registry.family import Family
from astrozoo.registry.fit import TokenUse
from astrozoo.registry.spec import Dim, Paper, TensorSpec

__all__ = ["TIMES", "CubeUNet5D", "CubeUNet5DConfig", "TimeAttention"]

TIMES = ("climate_time", "geo_time")
_TIME_ROTARY: Mapping[str, Any] = {"base": 1000.0}  # waves of 6 to 6,000 steps
_ONWARD_ATTENTIONS = ("gated_delta", "mamba2")  # see earlier tokens only
_MOST_LINES = 65535  # that CUDA's attention kernels take in one launch (PyTorch issue 146704)


@dataclass(frozen=True, kw_only=True, slots=True)
class CubeUNet5DConfig(UShapeConfig):
    """Configuration of `CubeUNet5D`.

    Attributes:
        in_vars, out_vars, static_vars, condition_dim, longitude, poles: As of every model of fields.
        widths, depths, decoder_depths, strides, level_strides: As of every U-shape.
        level_kernel, condition_width, dropout, drop_path: As of every U-shape.
        times: Which of `climate_time` and `geo_time` are attended along, in this order. Leave one out whose length is
            always one: it then has no parameters.
        attention_scales: How many scales attend over time, from the coarsest up, after every block of theirs.
        head_dim: Width of a head of the attention; divides the widths of these scales.
        causal_time: Whether a time sees no later one, as a forecast needs it. An attention that sees earlier tokens
            only (`gated_delta`, `mamba2`) makes it so in any case.
        time_positions: Whether the attention knows the order of times; without, they are a set.
        attention: Name of the attention; `spec.attentions` lists those that fit.
        attention_options: Further options of it, as a mapping such as `{"window": 64}`, or as pairs of name and value,
            which is how they are kept.
    """

    widths: tuple[int, ...] = (16, 32, 64, 128)
    depths: tuple[int, ...] = (1, 1, 1, 2)
    decoder_depths: tuple[int, ...] = (1, 1, 1)
    strides: tuple[int, ...] = (2, 2, 2)
    level_strides: tuple[int, ...] = (2, 2, 1)
    times: tuple[str, ...] = TIMES
    attention_scales: int = 2
    head_dim: int = 32
    causal_time: bool = False
    time_positions: bool = True
    attention: str = "flash"
    attention_options: Any = ()

    def __post_init__(self) -> None:
        UShapeConfig.__post_init__(self)
        if isinstance(self.times, list):
            object.__setattr__(self, "times", tuple(self.times))  # from YAML or JSON
        named = isinstance(self.times, tuple) and set(self.times) <= set(TIMES)
        if not named or len(set(self.times)) < len(self.times):
            raise checks.fail(self, "times", f"different ones of {', '.join(map(repr, TIMES))}")
        checks.at_least(self, 0, "attention_scales")
        checks.at_least(self, 1, "head_dim")
        if self.attention_scales > len(self.widths):
            raise checks.fail(self, "attention_scales", f"at most the number of scales, {len(self.widths)}")
        for scale in range(self.unattended, len(self.widths)):
            if self.widths[scale] % self.head_dim:
                raise checks.fail(self, "head_dim", f"a divisor of widths[{scale}], {self.widths[scale]}")
        for name in ("causal_time", "time_positions"):
            if not isinstance(getattr(self, name), bool):
                raise checks.fail(self, name, "True, False")
        check_attention(self, self.use)

    @property
    def unattended(self) -> int:
        """How many scales, from the finest down, do not attend."""
        return len(self.widths) - self.attention_scales

    @property
    def causal(self) -> bool:
        """Whether a time sees no later one, because it shall not or because the attention cannot."""
        return self.causal_time or registry.attention_info(self.attention).causal_only

    @property
    def use(self) -> TokenUse:
        """What is asked of the attention."""
        return TokenUse(causal=self.causal, geometries=GRID_TOKENS.geometries)


class TimeAttention(nn.Module):
    """Every cell looks at itself at other times, along one of the two axes.

    Args:
        config: Of the model.
        width: Channels.
        time: `climate_time` or `geo_time`.
        drop_path: Probability that training drops the branch.
    """

    def __init__(self, config: CubeUNet5DConfig, width: int, time: str, drop_path: float) -> None:
        super().__init__()
        self.axis = TIMES.index(time)
        self.spec = registry.attention_info(config.attention)
        self.norm = ChannelNorm(width)
        turned = config.time_positions and self.spec.softmax  # others have no logits that depend on differences
        self.encode = nn.Linear(width, width, bias=False) if config.time_positions and not turned else None
        options = {"rope": _TIME_ROTARY} if turned else {}
        self.attention = create_attention(
            config.attention,
            dim=width,
            num_heads=width // config.head_dim,
            causal=config.causal,
            **{**options, **dict(config.attention_options)},
        )
        self.enter = nn.Linear(width, width)
        self.drop_path = DropPath(drop_path)

    def reset_parameters(self) -> None:
        """The last layer starts at zero: at first, no time sees another."""
        nn.init.zeros_(self.enter.weight)
        nn.init.zeros_(self.enter.bias)

    def forward(self, x: Tensor, times: tuple[int, int]) -> Tensor:
        """`x[batch * climate_time * geo_time, width, level, lat, lon]`, lengths of the two times -> like `x`."""
        length = times[self.axis]
        if length == 1:
            return x
        fields = self.norm(x).movedim(1, -1).unflatten(0, (-1, *times))  # [batch, climate, geo, level, lat, lon, width]
        lines = fields.movedim(1 + self.axis, -2)  # [batch, other time, level, lat, lon, time, width]
        tokens = lines.flatten(0, -3)  # [batch * other time * level * lat * lon, time, width]
        if self.encode is not None:
            tokens = tokens + self.encode(_waves(length, tokens))
        terms, most = self._terms(length, tokens), _MOST_LINES if tokens.is_cuda else None
        seen = self.enter(_in_parts(lambda part: self.attention(part, *self._context(part), **terms), tokens, most))
        seen = seen.unflatten(0, lines.shape[:-2]).movedim(-2, 1 + self.axis)
        return x + self.drop_path(seen.flatten(0, 2).movedim(-1, 1))

    def _context(self, tokens: Tensor) -> tuple[Tensor, ...]:
        return (tokens,) if self.spec.needs_context else ()

    def _terms(self, length: int, tokens: Tensor) -> dict[str, Any]:
        if self.spec.geometry == "grid":
            return {"geometry": Grid((length,))}
        if self.spec.geometry == "points":
            steps = torch.arange(length, device=tokens.device, dtype=torch.promote_types(tokens.dtype, torch.float32))
            return {"geometry": Points(steps[None, :, None], metric="time")}
        return {}


def _in_parts(function: Callable[[Tensor], Tensor], lines: Tensor, most: int | None) -> Tensor:
    """`function(lines[line, time, width])`, of at most so many lines at once, or of all."""
    if most is None or lines.shape[0] <= most:
        return function(lines)
    return torch.cat([function(part) for part in lines.split(most)])


def _waves(length: int, like: Tensor) -> Tensor:
    """`[time, width]`: sines and cosines of the number of each time, as of Vaswani et al. 2017 (arXiv:1706.03762)."""
    width, dtype = like.shape[-1], torch.promote_types(like.dtype, torch.float32)
    rates = 1000.0 ** -(torch.arange(width // 2, device=like.device, dtype=dtype) / (width // 2))
    angles = torch.arange(length, device=like.device, dtype=dtype)[:, None] * rates
    waves = torch.cat([angles.sin(), angles.cos()], -1)
    return nn.functional.pad(waves, (0, width % 2)).to(like.dtype)


class SpaceTimeBlock(nn.Module):
    """Convolutions in space, then attention along one time after the other."""

    def __init__(self, config: CubeUNet5DConfig, scale: int, drop_path: float) -> None:
        super().__init__()
        width = config.widths[scale]
        self.space = residual_block(config, width, drop_path)
        attended = config.times if scale >= config.unattended else ()
        self.times = nn.ModuleList(TimeAttention(config, width, time, drop_path) for time in attended)

    def forward(self, x: Tensor, context: tuple[Tensor | None, tuple[int, int]]) -> Tensor:
        """`x[batch * climate_time * geo_time, width, level, lat, lon]` -> like `x`.

        Args:
            x: Features.
            context: The embedded condition of every field, or None; and the lengths of the two times.
        """
        condition, times = context
        x = self.space(x, condition)
        for attention in self.times:
            x = attention(x, times)
        return x


class CubeUNet5D(UShapeModel):
    """The U-Net of every time's fields, whose blocks at coarse scales attend over times."""

    def make_block(self, config: CubeUNet5DConfig, scale: int, drop_path: float) -> nn.Module:
        """Convolutions, and attention over times where the scale has it."""
        return SpaceTimeBlock(config, scale, drop_path)

    @classmethod
    def input_specs(cls, config: CubeUNet5DConfig) -> tuple[TensorSpec, ...]:
        """`x` with its two times, and `static` and `condition` where the configuration has them."""
        minimum = cls.grid_minimum(config)
        return _with_times(field_tensor("x", "var", config.in_vars, minimum)), *side_inputs(config, minimum)

    @classmethod
    def output_specs(cls, config: CubeUNet5DConfig) -> tuple[TensorSpec, ...]:
        """`y`, at the times and on the grid of `x`."""
        return (_with_times(field_tensor("y", "out_var", config.out_vars, cls.grid_minimum(config))),)

    def forward(self, x: Tensor, static: Tensor | None = None, condition: Tensor | None = None) -> Tensor:
        """Map fields at two times to fields at the same times, on the same grid.

        Args:
            x: `[batch, var, climate_time, geo_time, level, lat, lon]`, latitudes in either order.
            static: `[batch, static, lat, lon]`, exactly where `static_vars` is not 0.
            condition: `[batch, param]`, exactly where `condition_dim` is not 0.

        Returns:
            `[batch, out_var, climate_time, geo_time, level, lat, lon]`.
        """
        stages = self._folded(x, static, condition)
        return _unfold(self.to_fields(stages), x)

    def features(  # type: ignore[override]
        self, x: Tensor, static: Tensor | None = None, condition: Tensor | None = None
    ) -> dict[str, Tensor]:
        """What each scale saw on the way down (`down0`, finest, ...) and on the way up (..., `up0`).

        Returns:
            `[batch, widths[scale], climate_time, geo_time, level, lat, lon]` per stage, in the order of computation.
        """
        return {name: _unfold(stage, x) for name, stage in self._folded(x, static, condition).items()}

    def _folded(self, x: Tensor, static: Tensor | None, condition: Tensor | None) -> dict[str, Tensor]:
        self.check_inputs(x=x, static=static, condition=condition)
        times = x.shape[2], x.shape[3]
        fields = x.movedim(1, -1).flatten(0, 2).movedim(-1, 1)  # [batch * climate * geo, var, level, lat, lon]
        features = self.stem.fields(fields.contiguous(memory_format=torch.channels_last_3d))
        if self.stem.static is not None and static is not None:
            features = features + _repeat(self.stem.static(static[:, :, None]), times)
        embedding = None
        if self.embed is not None and condition is not None:
            embedding = _repeat(self.embed(condition), times)
        return self.scales(features, (embedding, times))


def _repeat(x: Tensor, times: tuple[int, int]) -> Tensor:
    """`[batch, ...]`, the same at all times -> `[batch * climate_time * geo_time, ...]`."""
    count = times[0] * times[1]
    return x[:, None].expand(-1, count, *x.shape[1:]).flatten(0, 1)


def _unfold(features: Tensor, x: Tensor) -> Tensor:
    """`[batch * climate * geo, channel, level, lat, lon]` -> `[batch, channel, climate, geo, level, lat, lon]`."""
    return features.unflatten(0, (-1, x.shape[2], x.shape[3])).movedim(3, 1)


def _with_times(tensor: TensorSpec) -> TensorSpec:
    batch, channel, *space = tensor.dims
    times = Dim(TIMES[0], 4), Dim(TIMES[1], 3)
    return TensorSpec(name=tensor.name, dims=(batch, channel, *times, *space), quantity=tensor.quantity)


FAMILY = Family(
    name="cube_unet5d",
    domain="cube",
    summary="U-Net of space with attention along climate time and geological time, for archives of a planet's eras",
    model=CubeUNet5D,
    config=CubeUNet5DConfig,
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
        "attention_scales": 1,
        "head_dim": 8,
        "condition_width": 8,
        "dropout": 0.1,
        "drop_path": 0.1,
    },
    default_attention="flash",
    attentions=(*GRID_ATTENTIONS, *_ONWARD_ATTENTIONS),
    attention_use=GRID_TOKENS,
    paper=Paper(
        authors="Bertasius, Wang, Torresani",
        year=2021,
        title="Is Space-Time Attention All You Need for Video Understanding?",
        arxiv="2102.05095",
    ),
    stems=("stem.",),
    heads=("head.",),
    blocks=("encoder.*.*", "decoder.*.*"),
)

cube_unet5d_tiny = FAMILY.variant(
    "tiny",
    "A few decades of a few epochs, or a first run on a GPU.",
    widths=(48, 96, 128),
    depths=(2, 2, 2),
    decoder_depths=(2, 2),
    strides=(2, 2),
    level_strides=(1, 2),
    attention_scales=1,
)
cube_unet5d_small = FAMILY.variant(
    "small", "Monthly climates of tens of epochs, on one GPU.", widths=(24, 64, 128, 320), depths=(1, 1, 2, 2)
)
cube_unet5d_base = FAMILY.variant(
    "base",
    "Ensembles of simulations through geological time.",
    widths=(32, 96, 256, 640),
    depths=(1, 1, 2, 2),
    head_dim=64,
)
cube_unet5d_large = FAMILY.variant(
    "large",
    "Archives of many planets, on several GPUs.",
    widths=(48, 128, 384, 1024),
    depths=(1, 2, 3, 3),
    head_dim=64,
    drop_path=0.1,
)
