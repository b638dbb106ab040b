"""What all models that forecast sequences of fields share: configuration, inputs, outputs, feedback.

A family's configuration derives from `FieldSequenceConfig`, its model from `FieldSequenceModel`.
Layout: `x[batch, time, var, level, lat, lon]` in equal steps of time, optional `static[batch, static, lat, lon]` and
`condition[batch, param]` -> `y[batch, out_time, out_var, level, lat, lon]`, the steps that follow the last of `x`.
Input and forecast may have any length: `steps` of `forward` and of `rollout` asks for another one than `out_steps`.

Where `in_vars` equals `out_vars` and `feedback` is on, the two are the same variables, in the same order: what is
predicted is what the next step starts from. In training, the true field may take its place now and then (scheduled
sampling: Bengio, Vinyals, Jaitly, Shazeer 2015, arXiv:1506.03099): at first a forecaster learns single steps, then more
and more to live with its own errors. In evaluation no target is ever looked at.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from astrozoo import objectives
from astrozoo.batch import Batch
from astrozoo.errors import ConfigError, InputError
from astrozoo.models.fields import FieldConfig, FieldModel, field_tensor, side_inputs
from astrozoo.nn import checks
from astrozoo.registry.spec import Dim, TensorSpec

__all__ = [
    "TRUTH_SCHEDULES",
    "Feedback",
    "FieldSequenceConfig",
    "FieldSequenceModel",
    "feeds_back",
    "flags",
    "fold_time",
    "unfold_time",
]

TRUTH_SCHEDULES = ("never", "constant", "linear", "exponential", "sigmoid")


@dataclass(frozen=True, kw_only=True, slots=True)
class FieldSequenceConfig(FieldConfig):
    """Configuration that every model of sequences of fields has.

    Attributes:
        in_vars, out_vars, static_vars, condition_dim, longitude, poles: As of every model of fields.
        out_steps: Steps of the forecast, where `forward` is not asked for another number.
        feedback: Whether a step starts from the field predicted before; only where `in_vars` equals `out_vars`.
        persistence: Initial factor, learnt per variable, by which the field before enters the forecast: 0 starts from
            the climatology, 1 from persistence. Not 0 only with feedback.
        truth_schedule: How the probability of feeding the true field develops in training: `never`, `constant`, or
            falling as `linear`, `exponential` or inverse `sigmoid`.
        truth_start: Probability of feeding the true field at the first training step.
        truth_steps: Training steps (calls of `loss`) after which it is 0 (`linear`), 1 % of the start (`exponential`),
            or 0.25 % (`sigmoid`).
    """

    out_steps: int = 4
    feedback: bool = True
    persistence: float = 0.0
    truth_schedule: str = "never"
    truth_start: float = 1.0
    truth_steps: int = 1000

    def __post_init__(self) -> None:
        FieldConfig.__post_init__(self)
        checks.at_least(self, 1, "out_steps", "truth_steps")
        flags(self, "feedback")
        checks.one_of(self, TRUTH_SCHEDULES, "truth_schedule")
        for name, start in (("persistence", self.persistence), ("truth_start", self.truth_start)):
            if isinstance(start, bool) or not isinstance(start, (int, float)) or not 0 <= start <= 1:
                raise checks.fail(self, name, "a number from 0 to 1")
        if not feeds_back(self):
            reason = "(a forecast is fed back only with feedback=True and in_vars equal to out_vars)"
            if self.persistence:
                raise checks.fail(self, "persistence", f"0 {reason}")
            if self.truth_schedule != "never":
                raise checks.fail(self, "truth_schedule", f"'never' {reason}")


def flags(config: FieldSequenceConfig, *names: str) -> None:
    """Every named field is True or False."""
    for name in names:
        if not isinstance(getattr(config, name), bool):
            raise checks.fail(config, name, "True, False")


def feeds_back(config: FieldSequenceConfig) -> bool:
    """Whether a step of the forecast starts from the one before."""
    return config.feedback and config.in_vars == config.out_vars


def fold_time(x: Tensor) -> Tensor:
    """`[batch, time, channel, ...]` -> `[time * batch, channel, ...]`: every time is a contiguous piece of memory.

    Channels of a cell end up side by side: what the norms read, and what tensor cores and oneDNN want.
    """
    return x.transpose(0, 1).flatten(0, 1).contiguous(memory_format=torch.channels_last_3d)


def unfold_time(x: Tensor, batch: int) -> Tensor:
    """`[time * batch, channel, ...]` -> `[batch, time, channel, ...]`, a view."""
    return x.unflatten(0, (-1, batch)).transpose(0, 1)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Feedback:
    """What a step of a forecast gets of the steps before.

    Attributes:
        truth: True fields `[batch, out_time, out_var, level, lat, lon]`; None feeds what was predicted.
        probability: Of feeding the true field, drawn for every sample and step; what is missing (NaN) is never fed.
        detach: Whether the gradient of a step ends at what it was fed, so that no step trains the ones before.
    """

    truth: Tensor | None = None
    probability: Tensor | float = 0.0
    detach: bool = False

    def __call__(self, y: Tensor, first: int) -> Tensor:
        """Predicted fields `y[batch, step, var, level, lat, lon]`, number `first` and following, as they are fed."""
        y = y.detach() if self.detach else y
        if self.truth is None:
            return y
        truth = self.truth[:, first : first + y.shape[1]]
        chosen = torch.rand(*y.shape[:2], 1, 1, 1, 1, device=y.device) < self.probability
        return torch.where(chosen & truth.isfinite(), truth.to(y.dtype), y)


class FieldSequenceModel(FieldModel):
    """Base of models that forecast sequences of fields; they define `forecast`.

    Attributes:
        truth_probability: Probability that training feeds the true field instead of the predicted one; None, as at
            first, follows the schedule of the configuration, whose default feeds no truth.
    """

    task = "field_forecast"
    loss_calls: Tensor | None

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.truth_probability: float | None = None
        # In the state, so that a run that is stopped and resumed goes on in the schedule.
        counts = config.truth_schedule in ("linear", "exponential", "sigmoid")
        self.register_buffer("loss_calls", torch.zeros((), dtype=torch.int64, device="meta") if counts else None)

    def reset_parameters(self) -> None:
        """As the layers say; the schedule starts anew."""
        super().reset_parameters()
        if self.loss_calls is not None:
            self.loss_calls.zero_()

    @classmethod
    def input_specs(cls, config: Any) -> tuple[TensorSpec, ...]:
        """`x` with any number of times, and `static` and `condition` where the configuration has them."""
        minimum = cls.grid_minimum(config)
        x = field_tensor("x", "var", config.in_vars, minimum, (Dim("time", 4),))
        return x, *side_inputs(config, minimum)

    @classmethod
    def output_specs(cls, config: Any) -> tuple[TensorSpec, ...]:
        """`y`, `out_steps` fields on the grid of `x`."""
        lead = (Dim("out_time", config.out_steps, fixed=True),)
        return (field_tensor("y", "out_var", config.out_vars, cls.grid_minimum(config), lead),)

    def forward(
        self,
        x: Tensor,
        static: Tensor | None = None,
        condition: Tensor | None = None,
        *,
        steps: int | None = None,
        feedback: Feedback | None = None,
    ) -> Tensor:
        """Forecast the fields that follow.

        Args:
            x: `[batch, time, var, level, lat, lon]`, oldest first, latitudes in either order.
            static: `[batch, static, lat, lon]`, exactly where `static_vars` is not 0.
            condition: `[batch, param]`, exactly where `condition_dim` is not 0.
            steps: Length of the forecast; `out_steps` of the configuration by default.
            feedback: What a step gets of the steps before; what was predicted by default.

        Returns:
            `[batch, steps, out_var, level, lat, lon]`.
        """
        self.check_inputs(x=x, static=static, condition=condition)
        steps = self.config.out_steps if steps is None else steps
        if not isinstance(steps, int) or steps < 1:
            raise InputError(f"steps is {steps!r}; a forecast has at least one step.")
        return self.forecast(x, static, condition, steps, Feedback() if feedback is None else feedback)

    def forecast(
        self, x: Tensor, static: Tensor | None, condition: Tensor | None, steps: int, feedback: Feedback
    ) -> Tensor:
        """`forward`, after its checks."""
        raise NotImplementedError(f"{type(self).__name__} must define forecast(x, static, condition, steps, feedback)")

    def rollout(
        self,
        x: Tensor,
        steps: int,
        static: Tensor | None = None,
        condition: Tensor | None = None,
        *,
        detach: bool = False,
    ) -> Tensor:
        """Forecast any number of steps, each from what was predicted before; see `forward`.

        Args:
            x: `[batch, time, var, level, lat, lon]`, oldest first.
            steps: Length of the forecast.
            static: `[batch, static, lat, lon]`, exactly where `static_vars` is not 0.
            condition: `[batch, param]`, exactly where `condition_dim` is not 0.
            detach: Whether gradients end at what a step starts from, instead of going back through all of time.
        """
        return self(x, static, condition, steps=steps, feedback=Feedback(detach=detach))

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The objective of the task, for as many steps as the targets have; training may feed true fields."""
        truth = batch.targets["y"]
        feedback = None
        probability = self._next_truth_probability() if self.training else 0.0
        if isinstance(probability, Tensor) or probability > 0:
            feedback = Feedback(truth=truth, probability=probability)
        y = self(**batch.inputs, steps=truth.shape[1], feedback=feedback)
        return objectives.task_loss(self.task, y, batch)

    def loss_weights(self, batch: Batch) -> dict[str, Tensor]:
        """Of the objective of the task."""
        return objectives.task_weights(self.task, batch)

    def _next_truth_probability(self) -> Tensor | float:
        """Of the schedule or as set; counts the call. A tensor where it changes: nothing waits for a GPU."""
        config, done = self.config, self.loss_calls
        share = torch.zeros(()) if done is None else done / config.truth_steps
        if done is not None:
            done += 1
        if self.truth_probability is not None:
            if self.truth_probability > 0 and not feeds_back(config):
                raise ConfigError(
                    f"{self._label()} feeds nothing back (in_vars={config.in_vars}, out_vars={config.out_vars}, "
                    f"feedback={config.feedback}); truth_probability must be None or 0, not {self.truth_probability}."
                )
            return self.truth_probability
        match config.truth_schedule:
            case "never":
                return 0.0
            case "constant":
                return float(config.truth_start)
            case "linear":
                return config.truth_start * (1 - share).clamp_min(0)
            case "exponential":
                return config.truth_start * torch.exp(-4.60517 * share)  # 0.01 at a share of 1
            case _:
                return config.truth_start * torch.sigmoid(6 - 12 * share)
