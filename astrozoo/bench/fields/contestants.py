"""Who takes part: the smallest variant of every family of cubes, and networks of other libraries.

All are given the same samples and asked for the same fields. A contestant that knows no time, level, static field or
condition gets them as further channels; one that wants divisible grids gets them padded, wrapping in longitude.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from astrozoo import registry
from astrozoo.batch import Batch
from astrozoo.bench.cube import basic_unet
from astrozoo.bench.families import tiny_variants
from astrozoo.bench.fields.sets import FieldSet
from astrozoo.bench.sizes import at_parameters
from astrozoo.factory import create_model

__all__ = ["PEERS", "Contestant", "standardised", "contestants", "counted_on", "sequences", "tolerance"]


@dataclass(frozen=True)
class Contestant:
    """Somebody who takes part.

    Attributes:
        name: Of a variant of ours, or of a peer.
        kind: What peers it is compared with: `unet`, `operator`, `sphere` or `windows`.
        build: Makes its model for a set of fields.
    """

    name: str
    kind: str
    build: Callable[[FieldSet], nn.Module]

    def takes(self, fields: FieldSet) -> bool:
        """Whether it can: harmonics need a whole sphere."""
        return self.kind != "sphere" or fields.task.field_schema.longitude == "periodic"


KINDS = {
    "cube_fno": "operator",
    "cube_afno": "operator",
    "cube_sfno": "sphere",
    "cube_swin": "windows",
    "cube_vit": "windows",
    "cube_mae": "windows",
}


def contestants(names: list[str] | None = None) -> list[Contestant]:
    """Ours and the peers, or those named."""
    ours = tiny_variants(domain="cube")
    everyone = [
        Contestant(variant, KINDS.get(family, "unet"), partial(build_ours, variant)) for family, variant in ours.items()
    ]
    everyone += [
        Contestant(name, kind, partial(_build_peer, name, ours[like]))
        for name, (kind, like, _) in PEERS.items()
        if like in ours
    ]
    if names is None:
        return everyone
    chosen = {*names, *(ours[name] for name in names if name in ours)}
    return [contestant for contestant in everyone if contestant.name in chosen]


# -- ours --------------------------------------------------------------------------------------------------------------


def overrides_for(variant: str, fields: FieldSet) -> dict[str, Any]:
    """What the variant's configuration must be for these fields."""
    task, schema = fields.task, fields.task.field_schema
    overrides = task.model_overrides()
    steps = overrides.pop("out_steps", None)
    spec = registry.model_info(variant)
    known = spec.config
    if "out_steps" in known:
        overrides["out_steps"] = steps or 1
        if "in_steps" in known:
            overrides |= {"in_steps": schema.history if steps else 1, "block_steps": steps or 1}
    elif steps is not None and spec.family != "cube_unet5d":
        overrides["in_vars"] *= schema.history
        overrides["out_vars"] *= steps
    if "rows" in known and fields.rows and overrides["longitude"] == "periodic":
        overrides["rows"] = fields.rows
    if "level_kernel" in known and fields.task.train[0].inputs["x"].shape[-3] == 1:
        overrides["level_kernel"] = 1  # a single level needs planar kernels only
    return overrides


def build_ours(variant: str, fields: FieldSet) -> nn.Module:
    """A variant that takes and gives sequences, whatever its own layout; a masked autoencoder as what it pretrains."""
    variant = variant.replace("cube_mae", "cube_vit")
    return Layout(create_model(variant, **overrides_for(variant, fields)), fields)


class Layout(nn.Module):
    """A model of ours behind `x[batch, time, var, level, lat, lon]` -> `y[batch, step, var, level, lat, lon]`."""

    def __init__(self, model: Any, fields: FieldSet) -> None:
        super().__init__()
        self.model = model
        schema = fields.task.field_schema
        self.steps, self.history = schema.steps or 1, schema.history if schema.steps else 1
        dims = [dim.name for dim in model.spec.inputs[0].dims]
        self.kind = "times" if "geo_time" in dims else "sequence" if "time" in dims else "channels"

    def forward(self, x: Tensor, **others: Tensor) -> Tensor:
        """`x[batch, time, var, level, lat, lon]`."""
        if self.kind == "sequence":
            return self.model(x=x, **others)
        if self.kind == "channels":
            y = self.model(x=x.flatten(1, 2), **others)
            return y.unflatten(1, (self.steps, -1))
        if self.steps > self.history:
            x = torch.cat([x[:, :1].expand(-1, self.steps - self.history, *x.shape[2:]), x], 1)
        y = self.model(x=x[:, -self.steps :].transpose(1, 2).unsqueeze(2), **others)  # [batch, var, 1, time, ...]
        return y.squeeze(2).transpose(1, 2)


# -- others ------------------------------------------------------------------------------------------------------------


class Plane(nn.Module):
    """A network of another library behind the same call: everything it knows no place for becomes channels.

    Args:
        network: `[batch, channel, (level,) lat, lon]` -> `[batch, step * var (* level), (level,) lat, lon]`.
        steps: Of the output.
        levels: Levels as an axis of the network; 0 for planar ones, whose levels are channels.
        multiple: What the sizes of its grid must be multiples of.
        periodic: Whether the padding to such a grid wraps in longitude.
    """

    def __init__(self, network: nn.Module, steps: int, levels: int, multiple: int, periodic: bool) -> None:
        super().__init__()
        self.network = network
        self.steps, self.levels, self.multiple, self.periodic = steps, levels, multiple, periodic

    def forward(self, x: Tensor, static: Tensor | None = None, condition: Tensor | None = None) -> Tensor:
        """`x[batch, time, var, level, lat, lon]` -> `y[batch, step, var, level, lat, lon]`."""
        level, lat, lon = x.shape[-3:]
        x = x.flatten(1, 2)  # [batch, channel, level, lat, lon]
        others = []
        if static is not None:
            others.append(static[:, :, None])
        if condition is not None:
            others.append(condition[:, :, None, None, None].expand(-1, -1, 1, lat, lon))
        if self.levels:
            x = torch.cat([x, *(other.expand(-1, -1, level, -1, -1) for other in others)], 1)
        else:
            x = torch.cat([x.flatten(1, 2), *(other[:, :, 0] for other in others)], 1)
        y = self.network(self._padded(x))[..., :lat, :lon]
        if self.levels:
            return y[:, :, :level].unflatten(1, (self.steps, -1))
        return y.unflatten(1, (self.steps, -1, level))

    def _padded(self, x: Tensor) -> Tensor:
        missing = [-size % self.multiple for size in x.shape[2:]]
        for axis, extra in enumerate(missing, 2):
            if extra:
                wraps = self.periodic and axis == x.ndim - 1
                index = torch.arange(x.shape[axis] + extra, device=x.device)
                index = index % x.shape[axis] if wraps else index.clamp(max=x.shape[axis] - 1)
                x = x.index_select(axis, index)
        return x


def _unet(dims: int, inputs: int, outputs: int, _grid: tuple[int, ...], scale: float) -> nn.Module:
    from monai.networks.nets import UNet

    channels = [max(1, round(width * scale)) for width in (16, 32, 64, 128, 256)]
    return UNet(dims, inputs, outputs, channels=channels, strides=[2] * 4, num_res_units=2)


def _basic_unet(dims: int, inputs: int, outputs: int, _grid: tuple[int, ...], scale: float) -> nn.Module:
    return basic_unet(dims, inputs, outputs, 0.0, scale)


def _swin_unetr(dims: int, inputs: int, outputs: int, _grid: tuple[int, ...], scale: float) -> nn.Module:
    from monai.networks.nets import SwinUNETR

    # Widths are multiples of 12, so that in small ones depth makes up the number of parameters. Normalisation over
    # instances cannot be had on the single cell that small grids come down to.
    width, depth = (12, max(1, round(2 * scale))) if scale < 3 else (12 * round(scale), 2)
    return SwinUNETR(inputs, outputs, feature_size=width, depths=(depth,) * 4, spatial_dims=dims, norm_name="batch")


def _fno(dims: int, inputs: int, outputs: int, grid: tuple[int, ...], scale: float) -> nn.Module:
    from neuralop.models import FNO

    return FNO(_modes(grid[-dims:]), inputs, outputs, hidden_channels=max(2, round(32 * scale)), n_layers=4)


def _tfno(dims: int, inputs: int, outputs: int, grid: tuple[int, ...], scale: float) -> nn.Module:
    from neuralop.models import TFNO

    width = max(2, round(32 * scale))
    return TFNO(_modes(grid[-dims:]), inputs, outputs, hidden_channels=width, n_layers=4, rank=0.2)


def _sfno(_dims: int, inputs: int, outputs: int, grid: tuple[int, ...], scale: float) -> nn.Module:
    from neuralop.models import SFNO

    width = max(2, round(32 * scale))
    return SFNO(_modes(grid[-2:]), inputs, outputs, hidden_channels=width, n_layers=4)


def _modes(grid: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(min(size // 2, 16) if size > 1 else 1 for size in grid)


# Name to kind, the family whose number of parameters it gets, and: how it is made, whether it has levels, its grids.
PEERS: dict[str, tuple[str, str, tuple[Callable[..., nn.Module], bool, int]]] = {
    "MONAI UNet": ("unet", "cube_unet", (_unet, True, 16)),
    "MONAI BasicUNet": ("unet", "cube_unet", (_basic_unet, True, 16)),
    "MONAI SwinUNETR": ("windows", "cube_swin", (_swin_unetr, True, 32)),
    "neuraloperator FNO": ("operator", "cube_fno", (_fno, True, 1)),
    "neuraloperator TFNO": ("operator", "cube_fno", (_tfno, True, 1)),
    "neuraloperator SFNO": ("sphere", "cube_sfno", (_sfno, False, 1)),
}


def _build_peer(name: str, variant: str, fields: FieldSet) -> nn.Module:
    """The peer at the number of parameters that the variant has for the same fields."""
    _, _, (make, with_levels, multiple) = PEERS[name]
    batch = fields.task.collate([fields.task.train[0]])
    x, y = sequences(batch)
    level = x.shape[-3]
    levels = level if with_levels and level > 1 else 0
    channels = [x.shape[1] * x.shape[2], y.shape[1] * y.shape[2]]
    if not levels:
        channels = [count * level for count in channels]
    channels[0] += sum(batch.inputs[key].shape[1] for key in ("static", "condition") if key in batch.inputs)
    ours = create_model(variant, device="meta", **overrides_for(variant, fields)).num_parameters()
    grid = tuple(x.shape[-3:])
    build = partial(make, 3 if levels else 2, *channels, grid)
    network = at_parameters(build, ours, within=tolerance(name), device=counted_on(name))()
    periodic = fields.task.field_schema.longitude == "periodic"
    return Plane(network, y.shape[1], levels, multiple, periodic)


def counted_on(name: str) -> str:
    """Where a peer is built to be counted: one reads values while it is built."""
    return "cpu" if name == "MONAI SwinUNETR" else "meta"


def tolerance(name: str) -> float:
    """How far from the number of parameters a peer may be; one has no small form for fields with levels."""
    return 0.6 if name == "MONAI SwinUNETR" else 0.25


def sequences(batch: Batch) -> tuple[Tensor, Tensor]:
    """Input and target with a time axis: `[batch, time, var, level, lat, lon]`."""
    x, y = batch.inputs["x"], batch.targets["y"]
    return (x, y) if x.ndim == 6 else (x[:, None], y[:, None])


def standardised(x: Tensor) -> Tensor:
    """`x[batch, time, var, level, lat, lon]` without each sample's mean over times and cells, and of unit spread.

    The input's half of reversible instance normalisation (Kim et al. 2022, "Reversible Instance Normalization for
    Accurate Time-Series Forecasting against Distribution Shift").
    """
    dims = (1, 4, 5)
    return (x - x.mean(dims, keepdim=True)) / (x.std(dims, keepdim=True) + 1e-3)
