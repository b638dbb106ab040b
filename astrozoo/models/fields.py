"""What all models of fields on a latitude-longitude grid share: configuration, inputs, outputs, and how they enter.

A family's configuration derives from `FieldConfig`, its model from `FieldModel`.
Layout: `x[batch, var, level, lat, lon]`, optional `static[batch, static, lat, lon]` (orography, land mask) and
`condition[batch, param]` (forcing, planetary parameters) -> `y[batch, out_var, level, lat, lon]`. Levels may be one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from astrozoo.module import ZooModel
from astrozoo.nn import GridConv3d, checks
from astrozoo.nn.sphere import LONGITUDES, POLES
from astrozoo.registry.spec import Dim, TensorSpec

__all__ = [
    "ConditionEmbedding",
    "FieldConfig",
    "FieldHead",
    "FieldModel",
    "FieldStem",
    "field_tensor",
    "grid_conv",
    "side_inputs",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class FieldConfig:
    """Configuration that every model of fields has.

    Attributes:
        in_vars: Variables of the input.
        out_vars: Variables of the output.
        static_vars: Fields that do not change with level; 0 leaves the input `static` out.
        condition_dim: Length of the conditioning vector; 0 leaves the input `condition` out.
        longitude: `periodic` for a full circle, `regional` where the grid has a western and an eastern edge.
        poles: `cross` continues on the other side of the pole (needs a full circle), `edge` repeats the outermost row.
    """

    in_vars: int = 5
    out_vars: int = 5
    static_vars: int = 0
    condition_dim: int = 0
    longitude: str = "periodic"
    poles: str = "cross"

    # A class with slots is made anew by the decorator, so that zero-argument super() would not find it: families call
    # `FieldConfig.__post_init__(self)`.
    def __post_init__(self) -> None:
        checks.at_least(self, 1, "in_vars", "out_vars")
        checks.at_least(self, 0, "static_vars", "condition_dim")
        checks.one_of(self, LONGITUDES, "longitude")
        checks.one_of(self, POLES, "poles")
        if self.longitude == "regional" and self.poles == "cross":
            raise checks.fail(
                self, "poles", "'edge' with longitude='regional' (only a full circle reaches over a pole)"
            )


def grid_conv(config: FieldConfig, in_channels: int, out_channels: int, *, level_kernel: int = 3) -> GridConv3d:
    """A convolution with the edges of the configuration's grid."""
    return GridConv3d(
        in_channels, out_channels, longitude=config.longitude, poles=config.poles, level_kernel=level_kernel
    )


class FieldStem(nn.Module):
    """Fields into features: a convolution of `x`, and of `static` the same at every level."""

    def __init__(self, config: FieldConfig, width: int, *, level_kernel: int = 3) -> None:
        super().__init__()
        self.fields = grid_conv(config, config.in_vars, width, level_kernel=level_kernel)
        self.static = grid_conv(config, config.static_vars, width, level_kernel=1) if config.static_vars else None

    def forward(self, x: Tensor, static: Tensor | None = None) -> Tensor:
        """`x[batch, var, level, lat, lon]`, `static[batch, static, lat, lon]` -> `[batch, width, level, lat, lon]`."""
        x = self.fields(x)
        return x if self.static is None or static is None else x + self.static(static[:, :, None])


class FieldHead(nn.Conv3d):
    """Features into fields, cell by cell; it starts at zero: an untrained model predicts the mean of normalised data.

    Features come as they are. Behind a norm of the whole sample their root mean square grew to 720 in fifty steps of
    AdamW at 2e-3, without one to 17; with that norm, as with one of each cell, gaps were filled a sixth worse.

    Args:
        config: Of the model.
        width: Channels of the features.
    """

    def __init__(self, config: FieldConfig, width: int) -> None:
        super().__init__(width, config.out_vars, 1)

    def reset_parameters(self) -> None:
        """Zeros."""
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class ConditionEmbedding(nn.Linear):
    """`condition[batch, param]` -> `[batch, embedding]`, what blocks are scaled and shifted by."""

    def forward(self, condition: Tensor) -> Tensor:
        """`[batch, param]` -> `[batch, embedding]`."""
        return F.silu(super().forward(condition))


class FieldModel(ZooModel):
    """Base of models that map fields to fields on the same grid."""

    task = "field_regression"

    @classmethod
    def grid_minimum(cls, config: Any) -> tuple[int, int, int]:  # noqa: ARG003
        """Fewest levels, latitudes and longitudes that the model takes."""
        return 1, 1, 1

    @classmethod
    def longitude_step(cls, config: Any) -> int | str:  # noqa: ARG003
        """Columns by which a global field may be turned so that the output turns along; or why there are none."""
        return 1

    @classmethod
    def input_specs(cls, config: Any) -> tuple[TensorSpec, ...]:
        """`x`, and `static` and `condition` where the configuration has them."""
        x = field_tensor("x", "var", config.in_vars, cls.grid_minimum(config))
        return x, *side_inputs(config, cls.grid_minimum(config))

    @classmethod
    def output_specs(cls, config: Any) -> tuple[TensorSpec, ...]:
        """`y`, on the grid of `x`."""
        return (field_tensor("y", "out_var", config.out_vars, cls.grid_minimum(config)),)


def field_tensor(
    name: str, channel: str, channels: int, minimum: tuple[int, int, int] = (1, 1, 1), lead: tuple[Dim, ...] = ()
) -> TensorSpec:
    """Spec of `name[batch, *lead, channel, level, lat, lon]`."""
    dims = (Dim("batch", 2), *lead, Dim(channel, channels, fixed=True), *_space(minimum))
    return TensorSpec(name=name, dims=dims, quantity="fields, normalised")


def side_inputs(config: FieldConfig, minimum: tuple[int, int, int] = (1, 1, 1)) -> tuple[TensorSpec, ...]:
    """Specs of `static[batch, static, lat, lon]` and `condition[batch, param]` where the configuration has them."""
    specs = []
    if config.static_vars:
        fixed = Dim("static", config.static_vars, fixed=True)
        dims: tuple[Dim, ...] = (Dim("batch", 2), fixed, *_space(minimum)[1:])
        specs.append(TensorSpec(name="static", dims=dims, quantity="fields without levels, such as orography"))
    if config.condition_dim:
        dims = (Dim("batch", 2), Dim("param", config.condition_dim, fixed=True))
        quantity = "forcing or planetary parameters, normalised"
        specs.append(TensorSpec(name="condition", dims=dims, quantity=quantity))
    return tuple(specs)


def _space(minimum: tuple[int, int, int]) -> tuple[Dim, Dim, Dim]:
    level, lat, lon = minimum
    return Dim("level", 8, minimum=level), Dim("lat", 32, minimum=lat), Dim("lon", 64, minimum=lon)
