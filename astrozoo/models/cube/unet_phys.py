"""cube_unet_phys: a U-Net whose fields keep the budgets you name, for emulators that must not leak mass or energy.

Paper: Beucler, Pritchard, Rasp, Ott, Baldi, Gentine (2021), "Enforcing Analytic Constraints in Neural Networks
Emulating Physical Systems", arXiv:1909.00912: constraints as a last layer without parameters.
Where we differ, and why:
- The network is the 3-D U-Net of `astrozoo.models.ushape` (the paper has a perceptron per column), so what is
  constrained is the area- and mass-weighted mean over the grid: the budget that a global simulation must close.
- Quantities that cannot be negative (water, precipitation, pressure) may be named, too; both hold at once.

The layer, its formulas and its limits: `astrozoo.nn.budget`. Constraints hold in physical units; `mean` and `std` are
the statistics that the fields were normalised with, per variable or per variable and level. Without constraints named,
the model is the U-Net alone: no variable is conserved unless physics says so, and that depends on the variable.

Layout: `x[batch, var, level, lat, lon]`, optional `static[batch, static, lat, lon]`, `condition[batch, param]` and
`budget[batch, told]` (physical means that outputs must have) -> `y[batch, out_var, level, lat, lon]`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from astrozoo.errors import ConfigError
from astrozoo.models.ushape import UShapeConfig, UShapeModel, residual_block
from astrozoo.nn import checks
from astrozoo.nn.budget import Budget
from astrozoo.nn.latitudes import GLOBE, ROWS
from astrozoo.registry.family import Family
from astrozoo.registry.names import suggest
from astrozoo.registry.spec import Dim, Paper, TensorSpec

__all__ = ["CubeUNetPhys", "CubeUNetPhysConfig"]


@dataclass(frozen=True, kw_only=True, slots=True)
class CubeUNetPhysConfig(UShapeConfig):
    """Configuration of `CubeUNetPhys`: that of the U-shape (see `UShapeConfig`) and the constraints.

    Attributes:
        variables: Names of the output variables; by default `var0`, `var1`, ...
        in_variables: Names of the input variables; by default those of the outputs, as far as there are inputs.
        conserved: Names of variables whose area- and mass-weighted global mean stays that of the input.
        told: Names of variables whose global mean is given to the model as input `budget`, in physical units.
        positive: Names of variables that are never negative in physical units.
        mean: Mean that each output variable was normalised with, a number or one per level; empty for 0.
        std: Standard deviation, likewise; empty for 1. Conserved inputs were normalised with the same.
        level_mass: Relative mass of each level (thickness `dp / g`, any unit); empty for equal ones, or a single level.
        rows: Where latitudes lie: `centres` of equal cells, `poles` (equal steps from edge to edge), `gauss`.
        edges: Southern and northern edge of the grid in degrees north.
    """

    widths: tuple[int, ...] = (24, 48, 96, 224, 448)
    variables: tuple[str, ...] = ()
    in_variables: tuple[str, ...] = ()
    conserved: tuple[str, ...] = ()
    told: tuple[str, ...] = ()
    positive: tuple[str, ...] = ()
    mean: tuple[float | tuple[float, ...], ...] = ()
    std: tuple[float | tuple[float, ...], ...] = ()
    level_mass: tuple[float, ...] = ()
    rows: str = "centres"
    edges: tuple[float, float] = GLOBE

    def __post_init__(self) -> None:
        UShapeConfig.__post_init__(self)
        for name in (
            "variables",
            "in_variables",
            "conserved",
            "told",
            "positive",
            "mean",
            "std",
            "level_mass",
            "edges",
        ):
            object.__setattr__(self, name, _tuples(getattr(self, name)))  # the dataclass is frozen
        for name, count in (("variables", self.out_vars), ("in_variables", self.in_vars)):
            names = getattr(self, name)
            if names and (len(names) != count or len(set(names)) != count or not _are(str, names)):
                raise checks.fail(self, name, f"{count} different names, one per variable")
        for name, known in (("conserved", self.outputs()), ("told", self.outputs()), ("positive", self.outputs())):
            self._check_names(name, known)
        self._check_names("conserved", self.inputs(), " that are among the inputs, or name them in `told`")
        if both := set(self.conserved) & set(self.told):
            raise checks.fail(self, "told", f"names that are not among `conserved`, as {sorted(both)} are")
        checks.one_of(self, ROWS, "rows")
        self._check_numbers()

    def _check_names(self, name: str, known: tuple[str, ...], further: str = "") -> None:
        names = getattr(self, name)
        for item in names:
            if item not in known:
                hint = suggest(item, known) if isinstance(item, str) else ""
                allowed = f"names out of {', '.join(map(repr, known))}{further}"
                raise ConfigError(f"{checks.fail(self, name, allowed)}{hint}")
        if len(set(names)) != len(names):
            raise checks.fail(self, name, "every name once")

    def _check_numbers(self) -> None:
        levels = len(self.level_mass)
        if not _are(float, self.level_mass) or any(mass <= 0 for mass in self.level_mass):
            raise checks.fail(self, "level_mass", "a tuple of numbers above 0, one per level")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if values and len(values) != self.out_vars:
                raise checks.fail(self, name, f"{self.out_vars} entries, one per variable")
            for value in values:
                numbers = value if isinstance(value, tuple) else (value,)
                if not numbers or not _are(float, numbers) or (name == "std" and min(numbers) <= 0):
                    raise checks.fail(
                        self, name, f"finite numbers{' above 0' if name == 'std' else ''}, or tuples of them"
                    )
                if len(numbers) not in (1, levels):
                    raise checks.fail(self, name, f"one number per variable, or as many as level_mass has ({levels})")
        south, north = self.edges if len(self.edges) == 2 and _are(float, self.edges) else (1, 0)
        if not -90 <= south < north <= 90:
            raise checks.fail(self, "edges", "(south, north) with -90 <= south < north <= 90")
        if self.rows == "gauss" and self.edges != GLOBE:
            raise checks.fail(self, "rows", "'centres', 'poles' where edges are not those of the globe")

    def outputs(self) -> tuple[str, ...]:
        """Names of the output variables."""
        return self.variables or tuple(f"var{index}" for index in range(self.out_vars))

    def inputs(self) -> tuple[str, ...]:
        """Names of the input variables, as far as they are known."""
        return self.in_variables or self.outputs()[: self.in_vars]

    def statistics(self) -> tuple[tuple[tuple[float, ...], ...], tuple[tuple[float, ...], ...]]:
        """`mean` and `std`, a tuple per variable."""
        mean, std = self.mean or (0.0,) * self.out_vars, self.std or (1.0,) * self.out_vars
        one, other = (
            tuple(value if isinstance(value, tuple) else (value,) for value in values) for values in (mean, std)
        )
        return one, other


def _tuples(value: Any) -> Any:
    """Lists (YAML, JSON) as tuples, also within."""
    return tuple(_tuples(item) for item in value) if isinstance(value, (list, tuple)) else value


def _are(kind: type, values: Any) -> bool:
    if not isinstance(values, tuple):
        return False
    if kind is str:
        return all(isinstance(value, str) and value for value in values)
    return all(
        isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) for value in values
    )


class CubeUNetPhys(UShapeModel):
    """The U-Net, and a last layer in which budgets close."""

    def make_layers(self, config: CubeUNetPhysConfig) -> None:
        """Those of the U-shape, and the budget."""
        super().make_layers(config)
        outputs, inputs = config.outputs(), config.inputs()
        mean, std = config.statistics()
        self.kept = tuple(outputs.index(name) for name in config.conserved)
        self.sources = tuple(inputs.index(name) for name in config.conserved)
        self.budget = Budget(
            mean,
            std,
            conserved=[*self.kept, *(outputs.index(name) for name in config.told)],
            positive=[outputs.index(name) for name in config.positive],
            level_mass=config.level_mass,
            rows=config.rows,
            edges=config.edges,
        )

    def make_block(self, config: CubeUNetPhysConfig, scale: int, drop_path: float) -> nn.Module:
        """A residual block."""
        return residual_block(config, config.widths[scale], drop_path)

    @classmethod
    def input_specs(cls, config: Any) -> tuple[TensorSpec, ...]:
        """Those of every model of fields, and `budget` where means are told."""
        specs = _with_levels(super().input_specs(config), len(config.level_mass))
        if not config.told:
            return specs
        dims = (Dim("batch", 2), Dim("told", len(config.told), fixed=True))
        return *specs, TensorSpec(
            name="budget", dims=dims, quantity=f"global means of {', '.join(config.told)}, physical"
        )

    @classmethod
    def output_specs(cls, config: Any) -> tuple[TensorSpec, ...]:
        """`y`, on the grid of `x`."""
        return _with_levels(super().output_specs(config), len(config.level_mass))

    def forward(
        self,
        x: Tensor,
        static: Tensor | None = None,
        condition: Tensor | None = None,
        budget: Tensor | None = None,
    ) -> Tensor:
        """Map fields to fields on the same grid whose budgets are closed.

        Args:
            x: `[batch, var, level, lat, lon]`, latitudes in either order.
            static: `[batch, static, lat, lon]`, exactly where `static_vars` is not 0.
            condition: `[batch, param]`, exactly where `condition_dim` is not 0.
            budget: `[batch, told]`, exactly where variables are `told`: their means in physical units. A variable that
                is positive, too, needs one that is not negative.

        Returns:
            `[batch, out_var, level, lat, lon]`, in the dtype of the parameters also under autocast.
        """
        stages = self.features(x=x, static=static, condition=condition, budget=budget)
        fields = self.to_fields(stages)
        told = budget
        if self.kept:
            sources = torch.stack([x[:, source] for source in self.sources], 1)
            told = self.budget.means(sources, self.kept)
            if budget is not None:
                told = torch.cat([told, budget.to(told.dtype)], 1)
        y: Tensor = self.budget(fields, told)
        return y.to(self.head.weight.dtype)

    def features(  # type: ignore[override]
        self,
        x: Tensor,
        static: Tensor | None = None,
        condition: Tensor | None = None,
        budget: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """As of every U-shape: what each scale saw; `budget` does not enter them."""
        self.check_inputs(x=x, static=static, condition=condition, budget=budget)
        embedding = None if self.embed is None or condition is None else self.embed(condition)
        return self.scales(self.stem(x.contiguous(memory_format=torch.channels_last_3d), static), embedding)


def _with_levels(specs: tuple[TensorSpec, ...], levels: int) -> tuple[TensorSpec, ...]:
    """The specs with the number of levels fixed, where each has a mass of its own."""
    if not levels:
        return specs
    level = Dim("level", levels, fixed=True)
    return tuple(
        replace(spec, dims=tuple(level if dim.name == "level" else dim for dim in spec.dims)) for spec in specs
    )


FAMILY = Family(
    name="cube_unet_phys",
    domain="cube",
    summary="3-D U-Net whose output layer closes the area- and mass-weighted budgets that you name, exactly",
    model=CubeUNetPhys,
    config=CubeUNetPhysConfig,
    miniature={
        "in_vars": 2,
        "out_vars": 3,
        "static_vars": 1,
        "condition_dim": 3,
        "widths": (8, 16),
        "depths": (1, 1),
        "decoder_depths": (1,),
        "strides": (2,),
        "level_strides": (2,),
        "condition_width": 8,
        "dropout": 0.1,
        "drop_path": 0.1,
        "variables": ("temperature", "water", "pressure"),
        "in_variables": ("water", "temperature"),
        "conserved": ("water",),
        "told": ("temperature",),
        "positive": ("water", "pressure"),
        "mean": (0.0, 3.0, 3.0),
        "std": (100.0, 1.0, 1.0),  # what a test tells and what it wants to see differ by a hundredth
    },
    paper=Paper(
        authors="Beucler et al.",
        year=2021,
        title="Enforcing Analytic Constraints in Neural Networks Emulating Physical Systems",
        arxiv="1909.00912",
    ),
    stems=("stem.",),
    heads=("head.",),
    blocks=("encoder.*.*", "decoder.*.*"),
)

cube_unet_phys_small = FAMILY.variant(
    "small",
    "Daily fields, or an ensemble of simulations, on one GPU, with budgets to close.",
    widths=(64, 144, 256),
    depths=(2, 2, 2),
    decoder_depths=(2, 2),
    strides=(2, 2),
    level_strides=(1, 2),
)
cube_unet_phys_base = FAMILY.variant(
    "base",
    "Decades of 6-hourly output of a climate model at 1 to 2 degrees, with budgets to close.",
    widths=(32, 64, 128, 320, 640),
    depths=(1, 1, 2, 2, 2),
)
cube_unet_phys_large = FAMILY.variant(
    "large",
    "Emulators with many variables and levels that run for centuries, trained on several GPUs.",
    widths=(48, 96, 192, 448, 896),
    depths=(1, 2, 2, 2, 4),
    drop_path=0.1,
)
