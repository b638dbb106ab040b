"""N-BEATS: forecasts of regularly sampled series, such as light curves or solar activity, from their own past.

Oreshkin, Carpov, Chapados & Bengio (2019), "N-BEATS: Neural basis expansion analysis for interpretable time series
forecasting", arXiv:1905.10437; the generic form. Each block explains part of the past (backcast), which is taken away
before the next block looks, and adds its part of the future. We differ in one thing: a series is centred on its last
value and scaled by its own spread before it enters, so that one model serves series of any level and unit.

Layout: `flux[batch, channel, time]` -> `forecast[batch, channel, horizon]`. Channels are independent series.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from astrozoo.module import ZooModel
from astrozoo.nn.checks import at_least
from astrozoo.registry.family import Family
from astrozoo.registry.spec import Capabilities, Dim, Paper, TensorSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class NBeatsConfig:
    """Configuration of N-BEATS.

    Attributes:
        channels: Number of series forecast side by side, at least 1.
        lookback: Samples of the past that the model sees, at least 2.
        horizon: Samples of the future that it forecasts, at least 1.
        blocks: Number of residual blocks, at least 1.
        layers: Fully connected layers in each block, at least 1.
        width: Units per layer, at least 1.
        basis: Number of learned basis functions per block, at least 1.
    """

    channels: int = 1
    lookback: int = 96
    horizon: int = 24
    blocks: int = 4
    layers: int = 3
    width: int = 128
    basis: int = 16

    def __post_init__(self) -> None:
        at_least(self, 1, "channels", "horizon", "blocks", "layers", "width", "basis")
        at_least(self, 2, "lookback")


class NBeatsBlock(nn.Module):
    """Fully connected layers, then a learned basis for the past and one for the future (section 3.1 of the paper).

    The last block of a stack has no use for a backcast and leaves it out, so that every parameter is trained.
    """

    def __init__(self, config: NBeatsConfig, *, last: bool) -> None:
        super().__init__()
        widths = [config.lookback] + [config.width] * config.layers
        self.trunk = nn.Sequential(*(layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())))
        self.forecast = _basis_expansion(config.width, config.basis, config.horizon)
        self.backcast = None if last else _basis_expansion(config.width, config.basis, config.lookback)

    def forward(self, past: Tensor) -> tuple[Tensor, Tensor]:
        """`past[..., time]` -> what is left of it `[..., time]`, and the part of the forecast `[..., horizon]`."""
        hidden = self.trunk(past)  # [..., width]
        left = past if self.backcast is None else past - self.backcast(hidden)
        return left, self.forecast(hidden)


def _basis_expansion(width: int, basis: int, samples: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, basis, bias=False), nn.Linear(basis, samples, bias=False))


class NBeats(ZooModel):
    """Doubly residual stack of blocks."""

    task = "forecast"
    config: NBeatsConfig

    def __init__(
        self,
        config: NBeatsConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(config)
        with torch.device("meta"):
            self.blocks = nn.ModuleList(
                NBeatsBlock(config, last=index == config.blocks - 1) for index in range(config.blocks)
            )
        self.materialize(device, dtype)

    @classmethod
    def input_specs(cls, config: NBeatsConfig) -> tuple[TensorSpec, ...]:
        """The past, `flux[batch, channel, time]`."""
        return (
            TensorSpec(
                name="flux",
                dims=(
                    Dim("batch", 2),
                    Dim("channel", config.channels, fixed=True),
                    Dim("time", config.lookback, fixed=True),
                ),
                quantity="regularly sampled series, newest sample last",
            ),
        )

    @classmethod
    def output_specs(cls, config: NBeatsConfig) -> tuple[TensorSpec, ...]:
        """The future, `forecast[batch, channel, horizon]`."""
        return (
            TensorSpec(
                name="forecast",
                dims=(
                    Dim("batch", 2),
                    Dim("channel", config.channels, fixed=True),
                    Dim("horizon", config.horizon, fixed=True),
                ),
                quantity="the samples that follow",
            ),
        )

    def forward(self, flux: Tensor) -> Tensor:
        """`flux[batch, channel, time]` -> `forecast[batch, channel, horizon]`, in the unit of `flux`."""
        self.check_inputs(flux=flux)
        last = flux[..., -1:]
        spread = (flux - last).square().mean(-1, keepdim=True).add(1e-6).sqrt()  # [batch, channel, 1]
        past = (flux - last) / spread
        parts = []
        for block in self.blocks:
            past, part = self.run(block, past)
            parts.append(part)
        return last + spread * torch.stack(parts).sum(0)


FAMILY = Family(
    name="nbeats",
    domain="lightcurve",
    summary="Forecasts of regular series by neural basis expansion",
    model=NBeats,
    config=NBeatsConfig,
    paper=Paper(
        authors="Oreshkin et al.",
        year=2019,
        title="N-BEATS: Neural basis expansion analysis for interpretable time series forecasting",
        arxiv="1905.10437",
    ),
    capabilities=Capabilities(features="each block reads the whole past at once; there are no stages"),
    blocks=("blocks.*",),
    miniature={"lookback": 24, "horizon": 6, "blocks": 2, "width": 32},
)

nbeats_tiny = FAMILY.variant("tiny", "Four blocks: series of some hundred samples.")
nbeats_small = FAMILY.variant(
    "small", "Thirty wide blocks as in the paper: long or many series.", blocks=30, layers=4, width=512
)
