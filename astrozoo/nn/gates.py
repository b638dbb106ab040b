"""Gates of features on a grid: what matters where, by channel, by level and by place (CBAM, in three dimensions).

Woo, Park, Lee, Kweon (2018), "CBAM: Convolutional Block Attention Module", arXiv:1807.06521. Each gate multiplies
features by a factor that it derives from their mean and their maximum, and `CBAM3d` applies them one after the other.
Where we differ, and why:
- Means are over area, not over cells: on a globe that reaches from pole to pole (`poles="cross"`) a row counts by the
  area of its band, so that crowded polar cells do not dominate. Where a grid has edges its latitudes are not known, and
  rows count alike. A maximum is a maximum on any grid.
- Levels are a third kind of place, and unlike channels they are few, of any number, and ordered: `LevelGate` sees each
  level's neighbours and its height.
- A gate is twice a sigmoid and starts at exactly 1, so that a fresh gate changes nothing; three sigmoids in a row would
  begin with an eighth of the features.

Layout: `[batch, channel, level, lat, lon]`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from astrozoo.nn.precision import full_precision
from astrozoo.nn.sphere import GridConv3d

__all__ = ["GATES", "CBAM3d", "ChannelGate", "LevelGate", "SpatialGate", "area_mean"]

GATES = ("channel", "level", "spatial")
_WAVES = 4
_LEAST = 8  # hidden units; with fewer, the chance that none is active is not small


def area_mean(x: Tensor, *, poles: str) -> Tensor:
    """Mean over the surface, `[..., lat, lon]` -> `[...]`, in float32 or finer.

    Args:
        x: Features; rows reach from pole to pole in equal steps where `poles` is `cross`.
        poles: `cross` weights rows by the area of their band; `edge`, for unknown latitudes, weights them alike.
    """
    rows = x.mean(-1, dtype=torch.promote_types(x.dtype, torch.float32))
    if poles == "edge":
        return rows.mean(-1)
    lat = x.shape[-2]
    edges = torch.arange(lat + 1, device=x.device, dtype=rows.dtype) * (math.pi / lat)
    return (rows * edges.cos().diff().div(-2)).sum(-1)


class ChannelGate(nn.Module):
    """A gate per channel, from one perceptron for the mean and the maximum over the grid."""

    def __init__(self, channels: int, *, poles: str, reduction: int = 16) -> None:
        super().__init__()
        hidden = max(channels // reduction, _LEAST)
        self.poles = poles
        self.squeeze = nn.Linear(channels, hidden)
        self.excite = nn.Linear(hidden, channels)

    def reset_parameters(self) -> None:
        """He initialisation of the first layer; zero for the second: the gate starts at 1."""
        _reset_squeeze(self.squeeze)
        _reset_last(self.excite)

    def gate(self, mean: Tensor, peak: Tensor) -> Tensor:
        """Statistics `[batch, channel]` -> gate `[batch, channel]`."""
        with full_precision(mean):
            mean, peak = mean.to(self.squeeze.weight.dtype), peak.to(self.squeeze.weight.dtype)
            return _open(self.excite(F.relu(self.squeeze(mean)) + F.relu(self.squeeze(peak))))

    def forward(self, x: Tensor) -> Tensor:
        """`x[batch, channel, level, lat, lon]` -> like `x`."""
        mean, peak = _statistics(x, self.poles)
        return x * self.gate(mean.mean(-1), peak.amax(-1)).to(x.dtype)[..., None, None, None]


class LevelGate(nn.Module):
    """A gate per level, from each level's means and maxima, those of its neighbours, and its height.

    Works for one level and for any number, trained on one number or on several: heights are counted from 0 at the first
    level to 1 at the last, and enter as waves over that range.
    """

    def __init__(self, channels: int, *, poles: str, reduction: int = 16) -> None:
        super().__init__()
        hidden = max(channels // reduction, _LEAST)
        self.poles = poles
        self.squeeze = nn.Linear(channels, hidden)
        self.height = nn.Linear(_WAVES, hidden, bias=False)
        self.excite = nn.Conv1d(hidden, 1, 3, padding=1)

    def reset_parameters(self) -> None:
        """He initialisation of the first layer; zero for the last: the gate starts at 1."""
        _reset_squeeze(self.squeeze)
        nn.init.normal_(self.height.weight, std=_WAVES**-0.5)
        _reset_last(self.excite)

    def gate(self, mean: Tensor, peak: Tensor) -> Tensor:
        """Statistics `[batch, channel, level]` -> gate `[batch, level]`."""
        with full_precision(mean):
            dtype, levels = self.squeeze.weight.dtype, mean.shape[-1]
            middles = (torch.arange(levels, device=mean.device, dtype=dtype) + 0.5) * (math.pi / levels)
            waves = torch.arange(1, _WAVES + 1, device=mean.device, dtype=dtype)
            height = self.height((middles[:, None] * waves).cos())  # [level, hidden]
            mean, peak = (F.relu(self.squeeze(part.to(dtype).mT) + height) for part in (mean, peak))
            return _open(self.excite((mean + peak).mT).squeeze(1))

    def forward(self, x: Tensor) -> Tensor:
        """`x[batch, channel, level, lat, lon]` -> like `x`."""
        return x * self.gate(*_statistics(x, self.poles)).to(x.dtype)[:, None, :, None, None]


class SpatialGate(nn.Module):
    """A gate per cell, from a wide convolution of the mean and the maximum over channels; level by level."""

    def __init__(self, *, longitude: str, poles: str, kernel: int = 7) -> None:
        super().__init__()
        self.conv = GridConv3d(2, 1, longitude=longitude, poles=poles, kernel=kernel, level_kernel=1)

    def reset_parameters(self) -> None:
        """Zero: the gate starts at 1."""
        _reset_last(self.conv)

    def gate(self, x: Tensor) -> Tensor:
        """`x[batch, channel, level, lat, lon]` -> gate `[batch, 1, level, lat, lon]`."""
        seen = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        planes = seen.transpose(1, 2).flatten(0, 1)[:, :, None]  # [batch * level, 2, 1, lat, lon]
        return _open(self.conv(planes).unflatten(0, (-1, x.shape[2])).squeeze(2).transpose(1, 2))

    def forward(self, x: Tensor) -> Tensor:
        """`x[batch, channel, level, lat, lon]` -> like `x`."""
        return x * self.gate(x).to(x.dtype)


class CBAM3d(nn.Module):
    """Gates by channel, by level and by place, one after the other.

    The statistics of gated features follow from those of the features, since gates are positive: channels and levels
    need one pass over the grid instead of two, and one product.

    Args:
        channels: Of the features.
        longitude, poles: Edges of the grid, as of `GridConv3d`.
        reduction: Channels per hidden unit of the perceptrons.
        kernel: Width of the convolution of the spatial gate.
        gates: Those wanted of `channel`, `level`, `spatial`; they are applied in this order.
    """

    def __init__(
        self,
        channels: int,
        *,
        longitude: str,
        poles: str,
        reduction: int = 16,
        kernel: int = 7,
        gates: Sequence[str] = GATES,
    ) -> None:
        super().__init__()
        self.poles = poles
        self.channel = ChannelGate(channels, poles=poles, reduction=reduction) if "channel" in gates else None
        self.level = LevelGate(channels, poles=poles, reduction=reduction) if "level" in gates else None
        self.spatial = SpatialGate(longitude=longitude, poles=poles, kernel=kernel) if "spatial" in gates else None

    def forward(self, x: Tensor) -> Tensor:
        """`x[batch, channel, level, lat, lon]` -> like `x`."""
        if self.channel is not None or self.level is not None:
            mean, peak = _statistics(x, self.poles)
            factor = torch.ones_like(mean)
            if self.channel is not None:
                factor = factor * self.channel.gate(mean.mean(-1), peak.amax(-1))[..., None]
            if self.level is not None:
                factor = factor * self.level.gate(mean * factor, peak * factor)[:, None]
            x = x * factor.to(x.dtype)[..., None, None]
        return x if self.spatial is None else self.spatial(x)


def _statistics(x: Tensor, poles: str) -> tuple[Tensor, Tensor]:
    """Mean and maximum over the surface, each `[batch, channel, level]`."""
    return area_mean(x, poles=poles), x.amax((3, 4))


def _open(logits: Tensor) -> Tensor:
    """Twice a sigmoid, 1 at 0; half precision would round a gate near 1 to three digits."""
    return 2 * torch.sigmoid(logits.to(torch.promote_types(logits.dtype, torch.float32)))


def _reset_squeeze(layer: nn.Linear) -> None:
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    nn.init.zeros_(layer.bias)


def _reset_last(layer: nn.Linear | nn.Conv1d | nn.Conv3d) -> None:
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
