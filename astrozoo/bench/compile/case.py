"""One family: its training step, the graphs made of it, and the time it takes each way."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from astrozoo import registry
from astrozoo.bench.compile.graphs import Graphs, count_graphs
from astrozoo.bench.families import chosen_variants, network
from astrozoo.bench.harness import Samples, measure
from astrozoo.bench.side_by_side import devices, first_line
from astrozoo.errors import ConfigError

__all__ = ["Case", "Finding", "cases", "measured", "prepare"]

EAGER, COMPILED, GRAPHED = "eager", "compiled", "CUDA graphs"
_GRAPHED_AFTER = 3  # calls: one compiles, one warms up, one records


@dataclass(frozen=True)
class Case:
    """What is compiled.

    Attributes:
        family: Of the variant.
        name: The variant.
        device: Where.
        precision: As of the trainer.
        batches: Sizes over which graphs are counted.
        backend: Of torch.compile meanwhile.
        batch: Samples of a timed step.
        rounds: Timed steps; 0 for none.
        grid: Cells (level, lat, lon); None for the example's.
    """

    family: str
    name: str
    device: str
    precision: str
    batches: tuple[int, ...]
    backend: str
    batch: int
    rounds: int
    grid: tuple[int, int, int] | None = None

    @property
    def cuda(self) -> bool:
        """Whether it runs on a GPU."""
        return self.device.startswith("cuda")


@dataclass
class Finding:
    """What a case found.

    Attributes:
        graphs: Compiled while the batch changed size; None where the step failed.
        samples: Of the timed steps, by way.
        failures: What was raised, by way.
        held_bytes: What CUDA graphs keep between steps.
        skipped: Graphs that ran without a CUDA graph though one was asked for.
        device_name: As the environment of the process says.
    """

    graphs: Graphs | None = None
    samples: dict[str, Samples] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    held_bytes: int = 0
    skipped: int = 0
    device_name: str = ""


@dataclass
class _Ready:
    finding: Finding
    steps: dict[str, Callable[[], None]]
    forget: Callable[[], None]


def cases(args: argparse.Namespace) -> list[Case]:
    """The families asked for.

    Raises:
        ConfigError: A family, a size of it or the device does not exist, or a number is too small.
    """
    cuda = args.device.startswith("cuda")
    rounds = args.rounds if args.rounds is not None else (20 if cuda else 5)
    batch = args.batch if args.batch is not None else (8 if cuda else 2)
    if min(batch, args.jobs, *args.batches) < 1 or rounds < 0:
        raise ConfigError("--batch, --batches and --jobs are at least 1, --rounds at least 0.")
    if cuda:
        from astrozoo.training.device import usable_device

        usable_device(args.device)
    variants = _variants(args.families, args.size)
    places = devices(args.device, len(variants))
    precision = args.precision or ("bf16" if cuda else "fp32")
    grid = tuple(args.grid) if args.grid else None
    return [
        Case(family, name, device, precision, tuple(args.batches), args.backend, batch, rounds, grid)
        for (family, name), device in zip(variants.items(), places, strict=True)
    ]


def _variants(families: list[str] | None, size: str) -> dict[str, str]:
    """The variant of each family: where all are asked for, those that have the size."""
    tiny = chosen_variants(families)
    if size == "tiny":
        return tiny
    names = set(registry.list_models())
    found = {family: f"{family}_{size}" for family in tiny if f"{family}_{size}" in names}
    if families and (missing := [family for family in tiny if family not in found]):
        raise ConfigError(f"{', '.join(missing)} has no size {size!r}.")
    if not found:
        raise ConfigError(f"no family has a size {size!r}.")
    return found


def prepare(case: Case) -> _Ready:
    """Count graphs, then compile what will be timed; what fails is noted, and the rest goes on."""
    import torch

    torch.manual_seed(0)
    step = _Step(case)
    finding = Finding()
    try:
        function = torch.compile(step.loss, backend=case.backend)
        # Once more over all sizes: what depends on how often a step was taken would compile again.
        finding.graphs = count_graphs(lambda batch: step.take(function, batch), map(step.batch, case.batches * 2))
    except Exception as error:  # whatever tracing raises is a finding about this family
        finding.failures["counting"] = first_line(error)
    torch._dynamo.reset()
    steps: dict[str, Callable[[], None]] = {}
    if case.rounds:
        for way, function in step.ways().items():
            try:
                steps[way] = _made_ready(case, way, step, function, finding)
            except Exception as error:
                finding.failures[way] = first_line(error)
    step.forget()
    return _Ready(finding, steps, step.forget)


def measured(case: Case, ready: _Ready) -> Finding:
    """Time the steps in interleaved rounds."""
    finding = ready.finding
    if ready.steps:
        comparison = measure(
            ready.steps,
            rounds=case.rounds,
            warmup=2 if case.cuda else 1,
            # Gradients of the one before are neither memory of this one nor in its way.
            setup=lambda _: ready.forget(),
            device=case.device,
            memory=case.cuda,
        )
        finding.samples = comparison.samples
    if case.cuda:
        import torch

        finding.device_name = torch.cuda.get_device_name(case.device)
    return finding


def _made_ready(case: Case, way: str, step: _Step, function: Any, finding: Finding) -> Callable[[], None]:
    """A step that is compiled, and where it is to be a CUDA graph, recorded."""
    import torch
    from torch._dynamo.utils import counters

    batch, graphed = step.batch(case.batch), way == GRAPHED

    def take() -> None:
        if graphed:
            torch.compiler.cudagraph_mark_step_begin()
        step.take(function, batch)

    if not graphed:
        take()
        return take
    step.forget()
    torch.cuda.empty_cache()
    before, skips = torch.cuda.memory_reserved(), counters["inductor"]["cudagraph_skips"]
    for _ in range(_GRAPHED_AFTER):
        take()
    step.forget()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    finding.held_bytes = torch.cuda.memory_reserved() - before
    finding.skipped = counters["inductor"]["cudagraph_skips"] - skips
    return take


class _Step:
    """A training step as the trainer takes it, without the optimiser."""

    def __init__(self, case: Case) -> None:
        from astrozoo.training.runtime import AUTOCAST, LossModule

        self.case = case
        self.model = network(case.name, case.device).train()
        self.loss = LossModule(self.model, AUTOCAST[case.precision])

    def batch(self, size: int) -> Any:
        """Random samples."""
        from astrozoo.batch import random_batch

        grid = self.case.grid
        sizes = dict(zip(("level", "lat", "lon"), grid, strict=True)) if grid else None
        return random_batch(self.model.spec, size, sizes=sizes, device=self.case.device)

    def take(self, function: Any, batch: Any) -> None:
        """Loss and gradients."""
        self.forget()
        function(batch)["loss"].backward()

    def forget(self) -> None:
        """Let the gradients go."""
        self.model.zero_grad(set_to_none=True)

    def ways(self) -> dict[str, Any]:
        """The loss, eager, compiled as the trainer does, and on CUDA as a CUDA graph."""
        import torch

        functions: dict[str, Any] = {EAGER: self.loss, COMPILED: torch.compile(self.loss)}
        if self.case.cuda:
            functions[GRAPHED] = torch.compile(self.loss, mode="reduce-overhead")
        return functions
