"""The trainings of the long run: undisturbed, and killed and resumed."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import random
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from astrozoo import settings
from astrozoo.bench.environment import describe_environment
from astrozoo.bench.faults.commands import Command, Starter
from astrozoo.bench.faults.kinds import Moment
from astrozoo.bench.faults.reference import Reference
from astrozoo.bench.faults.watch import Watch
from astrozoo.bench.harness import Samples
from astrozoo.bench.longrun.figures import Figures, distance, figures
from astrozoo.bench.rows import Rows
from astrozoo.errors import ConfigError
from astrozoo.readable import format_bytes
from astrozoo.training.config import TrainConfig

__all__ = ["Plan", "measure"]

_ON_CPU = ("batch_size=16", "precision=fp32", "compile=false")
_BETWEEN = (0.3, 0.9)  # of the steps, where the run is killed
_LONG = 500  # steps from which the memory of the process is held to a limit
_SLACK = 1.5  # of the largest distance of two undisturbed runs
_ROUNDING = (
    0.1  # per cent: runs that are no further apart differ by their sums' order, a quarter of bfloat16's rounding
)
LIMITS = {"growth": 1.0, "host growth": 5.0, "utilization": 85.0, "samples": 100.0}


@dataclass(frozen=True)
class Plan:
    """How to train.

    Attributes:
        folder: Where.
        variant, config, data, device: What, with which settings, on which files (empty: those of the settings).
        flags: Settings that count before those of the file.
        steps: Length of the whole run.
        batch_size: Samples per step.
        minutes: Each training must end by then.
        fresh: Whether commands start in an interpreter of their own.
    """

    folder: Path
    variant: str
    config: Path
    data: tuple[str, ...]
    device: str
    flags: tuple[str, ...]
    steps: int
    batch_size: int
    minutes: float
    fresh: bool = True

    @classmethod
    def of(cls, args: argparse.Namespace, folder: Path) -> Plan:
        """The plan that a command line asks for.

        Raises:
            ConfigError: The settings cannot be read, or leave the number of steps or the batch open.
        """
        flags = (*(_ON_CPU if args.device == "cpu" else ()), *args.set)
        steps = args.steps or _settings(args.config, flags).max_steps
        batch_size, _ = _settings(args.config, flags).batches()
        if steps is None or steps < 10:
            raise ConfigError(f"a long run of {steps} steps cannot be measured; give at least 10 as max_steps.")
        return cls(folder, args.variant, args.config, tuple(args.data), args.device, flags, steps, batch_size,
                   args.minutes)  # fmt: skip

    def command(self, out: Path, steps: int) -> list[str]:
        """Arguments of `astrozoo` for a training of so many steps, with the intervals of the settings in proportion."""
        config = _settings(self.config, self.flags)
        scale = steps / (config.max_steps or steps)
        flags = [*self.flags, f"max_steps={steps}", f"device={self.device}"]
        for section, every in (("evaluation", config.evaluation.every), ("checkpoint", config.checkpoint.every),
                               ("log", config.log.every)):  # fmt: skip
            if every is not None:
                flags.append(f"{section}.every={max(1, round(every * scale))}")
        words = ["train", self.variant, "--config", str(self.config), "--out", str(out), "--json"]
        words += [word for flag in flags for word in ("--set", flag)]
        return [*words, "--data", *self.data] if self.data else words


def _settings(config: Path, flags: tuple[str, ...]) -> TrainConfig:
    values = {key: value for key, value in settings.read_yaml(config).items() if key not in ("data", "model")}
    own = [flag for flag in flags if not flag.startswith(("data.", "model."))]
    return TrainConfig.from_dict(values).with_overrides(own)


@dataclass
class _Run:
    """A training that has ended."""

    name: str
    out: Path
    result: dict[str, Any]
    seconds: float
    figures: Figures

    def row(self) -> dict[str, Any]:
        headline = self.result["headline"]
        return {
            "run": self.name,
            "seconds": self.seconds,
            "headline": headline,
            "metrics": self.result["metrics"],
            "history": self.result["history"],
            **dataclasses.asdict(self.figures),
        }


def measure(plan: Plan, *, seed: int, compare_steps: int, again: int) -> Rows:
    """All trainings and what they came to, held to what is promised.

    Raises:
        RuntimeError: A training failed; the message has its error output.
    """
    plan.folder.mkdir(parents=True, exist_ok=True)
    (logs := plan.folder / "output").mkdir(exist_ok=True)
    deadline = time.monotonic() + 60 * plan.minutes
    with Starter(logs) as starter:
        conductor = _Conductor(plan, starter, deadline)
        first = conductor.undisturbed("undisturbed", plan.steps)
        one = first if compare_steps == plan.steps else conductor.undisturbed("undisturbed, short", compare_steps)
        others = [
            conductor.undisturbed(f"undisturbed again{f' {number}' if number > 1 else ''}", compare_steps)
            for number in range(1, again + 1)
        ]
        killed, note = conductor.killed("killed and resumed", compare_steps, random.Random(seed))
    runs = {run.name: run for run in (first, one, *others, killed)}
    rows = [run.row() for run in runs.values()]
    comparison = Rows(
        f"{plan.steps} steps of {plan.variant}, batch {plan.batch_size}, {plan.device}",
        {row["run"]: Samples((row["seconds"],)) for row in rows},
        _environment(plan.device),
        rows=rows,
        cells=_cells,
    )
    comparison.notes.append(note)
    if compare_steps != plan.steps:
        comparison.notes.append(f"compared are runs of {compare_steps} steps")
    _hold_figures(comparison, first, plan)
    _hold_metrics(comparison, [one, *others], killed, exact=plan.device == "cpu")
    return comparison


def _environment(device: str) -> dict[str, str | int]:
    if device.startswith("cuda"):
        import torch  # noqa: F401  the trainings are other processes: without it nobody here knows of a GPU
    return describe_environment(["accelerate"])


class _Conductor:
    """Starts trainings and waits for them."""

    def __init__(self, plan: Plan, starter: Starter, deadline: float) -> None:
        self.plan, self.starter, self.deadline = plan, starter, deadline

    def undisturbed(self, name: str, steps: int) -> _Run:
        out, began = self._out(name), time.monotonic()
        command = self.starter.start(self.plan.command(out, steps), fresh=self.plan.fresh)
        return self._ended(name, out, command, began, steps)

    def killed(self, name: str, steps: int, draw: random.Random) -> tuple[_Run, str]:
        out, began = self._out(name), time.monotonic()
        argv = self.plan.command(out, steps)
        step = round(draw.uniform(*_BETWEEN) * steps)
        command = self.starter.start(argv, fresh=self.plan.fresh)
        watch = Watch(out, Moment(step=step))
        while command.poll() is None and time.monotonic() < self.deadline and not watch.due():
            time.sleep(0.002)
        if command.status is not None:
            raise RuntimeError(f"the run that was to be killed after step {step} has ended before: {command.errors}")
        command.send(signal.SIGKILL, group=False)
        command.wait(60)
        kept = sorted((out / "checkpoints").glob("step-*"))
        begun = int(kept[-1].name.removeprefix("step-")) if kept else 0
        sys.stderr.write(f"{name}: killed after step {step}, goes on from step {begun}\n")
        command = self.starter.start(argv, fresh=self.plan.fresh)
        run = self._ended(name, out, command, began, steps)
        return run, f"killed by SIGKILL after step {step} of {steps}, resumed by the same command from step {begun}"

    def _out(self, name: str) -> Path:
        return self.plan.folder / name.replace(",", "").replace(" ", "-")

    def _ended(self, name: str, out: Path, command: Command, began: float, steps: int) -> _Run:
        if command.wait(max(self.deadline - time.monotonic(), 0)) is None:
            command.send(signal.SIGKILL, group=True)
            raise RuntimeError(f"{name} has not ended within --minutes {self.plan.minutes:g}: {command.errors[-2000:]}")
        if command.status != 0:
            raise RuntimeError(f"{name} ended with status {command.status}: {command.output} {command.errors[-2000:]}")
        seconds = time.monotonic() - began
        found = figures(out, steps, self.plan.batch_size)
        sys.stderr.write(f"{name}: {seconds:.0f} s, {found}\n")
        return _Run(name, out, json.loads(command.output), seconds, found)


def _hold_figures(comparison: Rows, run: _Run, plan: Plan) -> None:
    found = run.figures
    if plan.steps >= _LONG:
        grown = 100 * found.host_growth
        comparison.target("growth of the process's memory", grown, at_most=LIMITS["host growth"], unit=" %")
    if plan.device == "cpu":
        return
    comparison.target("growth of GPU memory", 100 * (found.gpu_growth or 0.0), at_most=LIMITS["growth"], unit=" %")
    comparison.target("throughput", found.samples_per_second, at_least=LIMITS["samples"], unit=" samples/s")
    if found.gpu_utilization is None:
        comparison.notes.append("the driver does not say how busy the GPU was")
    else:
        busy = 100 * found.gpu_utilization
        comparison.target("utilisation of the GPU", busy, at_least=LIMITS["utilization"], unit=" %")


def _hold_metrics(comparison: Rows, undisturbed: list[_Run], killed: _Run, *, exact: bool) -> None:
    if exact:
        one = undisturbed[0]
        reference = Reference(one.out, one.out, one.result, exact=True)
        different = {run.name: reference.final(run.out, run.result) for run in (*undisturbed[1:], killed)}
        comparison.target("number of runs that differ in a bit", sum(map(bool, different.values())), at_most=0, unit="")
        comparison.notes += [f"{name}: {difference}" for name, difference in different.items() if difference]
        return

    def apart(run: _Run, other: _Run) -> float:
        return 100 * distance((run.out, run.result), (other.out, other.result))

    spread = [apart(run, other) for run, other in itertools.combinations(undisturbed, 2)]
    near = min(apart(run, killed) for run in undisturbed)
    label = "distance of the resumed run from the nearest undisturbed one"
    comparison.target(label, near, at_most=max(_SLACK * max(spread), _ROUNDING), unit=" %")
    comparison.notes.append(f"distances of the undisturbed runs: {', '.join(f'{value:.4g} %' for value in spread)}")


def _cells(row: Any) -> dict[str, str]:
    def percent(value: float | None) -> str:
        return "" if value is None else f"{100 * value:.2f} %"

    return {
        "": row["run"],
        row["headline"]: f"{row['metrics'][row['headline']]:.6g}",
        "loss": f"{row['metrics']['loss']:.6g}",
        "samples/s": f"{row['samples_per_second']:.4g}",
        "GPU busy": percent(row["gpu_utilization"]),
        "wait for data": percent(row["data_wait"]),
        "GPU memory": "" if row["gpu_bytes"] is None else format_bytes(row["gpu_bytes"]),
        "growth": percent(row["gpu_growth"]),
        "process": format_bytes(row["host_bytes"]),
        "its growth": percent(row["host_growth"]),
        "took": f"{row['seconds']:.0f} s",
    }
