"""Interleaved measurement of named callables or commands, and an honest report of it.

Comparing two programs by running one for a minute and then the other measures the machine's mood. Here all contestants
take turns within one run: every round times each of them once, in an order drawn anew, so that drift, turbo and noisy
neighbours hit all alike. What is reported is the median with its spread, and ratios of medians with the quartiles of
the per-round ratios.

    comparison = measure({"astrozoo": ours, "peer": theirs}, rounds=20, title="forward, 64 x 128")
    comparison.target_ratio("astrozoo", "peer", at_most=1.2)
    report([comparison])
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

from astrozoo.bench.environment import describe_environment
from astrozoo.bench.processes import Launcher
from astrozoo.readable import format_bytes, format_seconds

if TYPE_CHECKING:
    from rich.table import Table

__all__ = [
    "Comparison",
    "Ratio",
    "Samples",
    "Target",
    "measure",
    "measure_processes",
    "report",
]

Metric = Literal["seconds", "peak_bytes"]


@dataclass(frozen=True, slots=True)
class Samples:
    """What one contestant measured, one value per round.

    Attributes:
        seconds: Wall-clock time of one call.
        peak_bytes: Peak memory of one call, where it was measured. For processes: resident set of the process. On a
            GPU: rise of allocated memory above what was allocated before the call.
    """

    seconds: tuple[float, ...]
    peak_bytes: tuple[int, ...] = ()

    def values(self, metric: Metric = "seconds") -> tuple[float, ...]:
        """The samples of `metric` in order of rounds.

        Raises:
            ValueError: The metric was not measured.
        """
        values = self.seconds if metric == "seconds" else self.peak_bytes
        if not values:
            raise ValueError(f"{metric} was not measured; pass memory=True or use measure_processes.")
        return values

    def median(self, metric: Metric = "seconds") -> float:
        """Median of `metric` over the rounds."""
        return statistics.median(self.values(metric))

    def quartiles(self, metric: Metric = "seconds") -> tuple[float, float]:
        """First and third quartile of `metric`."""
        return _quartiles(self.values(metric))


@dataclass(frozen=True, slots=True)
class Ratio:
    """Ratio of two contestants' medians; `low` and `high` are the quartiles of the ratios within each round."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3g}x ({self.low:.3g} to {self.high:.3g})"


@dataclass(frozen=True, slots=True)
class Target:
    """A promise and what was measured for it: `value` must be at most, or at least, `limit`."""

    label: str
    value: float
    limit: float
    bound: Literal["at most", "at least"]
    unit: str = "x"

    @property
    def met(self) -> bool:
        """Whether the measured value keeps the promise."""
        return self.value <= self.limit if self.bound == "at most" else self.value >= self.limit

    def __str__(self) -> str:
        state = "met" if self.met else "MISSED"
        return f"{state}: {self.label} is {self.value:.4g}{self.unit}, target {self.bound} {self.limit:g}{self.unit}"


@dataclass
class Comparison:
    """Contestants measured in the same rounds, the targets they were held to, and where it was measured.

    Attributes:
        title: What one call does, in words.
        samples: By contestant, in the order given.
        targets: Added by `target`, `target_ratio`, `target_difference`.
        notes: What a reader must know: peers left out and why, settings.
        environment: See `describe_environment`.
    """

    title: str
    samples: dict[str, Samples]
    environment: dict[str, str | int] = field(default_factory=describe_environment)
    targets: list[Target] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def ratio(self, subject: str, peer: str, metric: Metric = "seconds") -> Ratio:
        """How many times as much `subject` takes as `peer`: below 1 means the subject is faster (or smaller)."""
        ours, theirs = self.samples[subject].values(metric), self.samples[peer].values(metric)
        low, high = _quartiles([a / b for a, b in zip(ours, theirs, strict=True)])
        return Ratio(statistics.median(ours) / statistics.median(theirs), low, high)

    def difference(self, subject: str, peer: str, metric: Metric = "seconds") -> float:
        """Median over the rounds of what `subject` takes more than `peer`, in seconds or bytes."""
        ours, theirs = self.samples[subject].values(metric), self.samples[peer].values(metric)
        return statistics.median(a - b for a, b in zip(ours, theirs, strict=True))

    def target(
        self, label: str, value: float, *, at_most: float | None = None, at_least: float | None = None, unit: str = "x"
    ) -> Target:
        """Hold `value` to a limit and keep the verdict.

        Raises:
            ValueError: Not exactly one of `at_most` and `at_least` is given.
        """
        if at_most is not None and at_least is None:
            target = Target(label, value, at_most, "at most", unit)
        elif at_least is not None and at_most is None:
            target = Target(label, value, at_least, "at least", unit)
        else:
            raise ValueError(f"target {label!r} needs either at_most or at_least.")
        self.targets.append(target)
        return target

    def target_ratio(
        self,
        subject: str,
        peer: str,
        *,
        at_most: float | None = None,
        at_least: float | None = None,
        metric: Metric = "seconds",
    ) -> Target:
        """Hold `ratio(subject, peer)` to a limit; "20x faster than timm" is `target_ratio("timm", us, at_least=20)`."""
        value = self.ratio(subject, peer, metric).value
        return self.target(_ratio_label(subject, peer, metric), value, at_most=at_most, at_least=at_least)

    def ratio_target(self, subject: str, peer: str, metric: Metric = "seconds") -> Target | None:
        """What `target_ratio` held this ratio to; None where it was not."""
        label = _ratio_label(subject, peer, metric)
        return next((target for target in self.targets if target.label == label), None)

    def target_difference(
        self, subject: str, peer: str, *, at_most: float | None = None, at_least: float | None = None
    ) -> Target:
        """Hold the extra time of `subject` over `peer`, in microseconds, to a limit."""
        value = self.difference(subject, peer) * 1e6
        label = f"extra time of {subject} over {peer}"
        return self.target(label, value, at_most=at_most, at_least=at_least, unit=" us")

    @property
    def met(self) -> bool:
        """Whether every target is met."""
        return all(target.met for target in self.targets)

    def table(self) -> Table:
        """A rich table: one row per contestant, with its ratio to the first."""
        from rich.table import Table

        memory = any(samples.peak_bytes for samples in self.samples.values())
        table = Table(title=self.title, title_justify="left")
        table.add_column("", no_wrap=True)
        for header in ("median", "quartiles", "min to max", "rounds", *(["peak memory"] if memory else [])):
            table.add_column(header, justify="right")
        first = next(iter(self.samples), "nothing, as none was measured")
        table.add_column(f"time over {first}", justify="right")
        for name, samples in self.samples.items():
            low, high = samples.quartiles()
            cells = [
                format_seconds(samples.median()),
                f"{format_seconds(low)} to {format_seconds(high)}",
                f"{format_seconds(min(samples.seconds))} to {format_seconds(max(samples.seconds))}",
                str(len(samples.seconds)),
            ]
            if memory:
                cells.append(format_bytes(samples.median("peak_bytes")) if samples.peak_bytes else "")
            table.add_row(name, *cells, str(self.ratio(name, first)))
        return table

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-able values, raw samples included."""
        first = next(iter(self.samples), "")
        return {
            "title": self.title,
            "environment": self.environment,
            "contestants": {
                name: {
                    "median_seconds": samples.median(),
                    "quartiles_seconds": samples.quartiles(),
                    "median_peak_bytes": samples.median("peak_bytes") if samples.peak_bytes else None,
                    f"ratio_to_{first}": asdict(self.ratio(name, first)),
                    **asdict(samples),
                }
                for name, samples in self.samples.items()
            },
            "targets": [{**asdict(target), "met": target.met} for target in self.targets],
            "notes": self.notes,
        }


def measure(
    contestants: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 20,
    warmup: int = 2,
    setup: Callable[[str], object] | None = None,
    calls: int = 1,
    device: str = "cpu",
    memory: bool = False,
    lead: float = 0.0,
    prime: float = 0.0,
    title: str = "",
    packages: Iterable[str] = (),
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> Comparison:
    """Time callables in interleaved rounds, each round in an order drawn anew.

    Args:
        contestants: Name to callable, the one of interest first.
        rounds: Timed rounds; each calls every contestant once (`calls` times back to back).
        warmup: Rounds that are run and thrown away: compilation, caches, lazy imports.
        setup: Called with the contestant's name before each of its samples, outside the timing.
        calls: Calls per sample, for callables too short for the clock; samples are divided by it.
        device: `cuda` times with CUDA events around the calls; anything else with `clock`.
        memory: On CUDA, also record the peak of allocated memory above what was allocated before. Memory of a process
            on the CPU cannot be reset within it: use `measure_processes`.
        lead: On CUDA, seconds for which the GPU is kept busy before the clock starts, so that it finds all calls queued
            and is timed alone; without it, calls that the host launches slower than they run are timed with the host.
        prime: Seconds for which a contestant runs untimed before each of its samples, unless one call takes longer.
            Threads of OpenMP look for work for up to 0.2 s after a call, and take a core from the next until then.
        title: What one call does.
        packages: Peers whose versions the environment line should name.
        seed: Of the order within rounds.
        clock: Seconds; replaceable for tests.

    Raises:
        ValueError: No contestants, no rounds, or memory asked for on the CPU.
    """
    if not contestants or rounds < 1 or calls < 1 or warmup < 0:
        raise ValueError(f"nothing to measure: {len(contestants)} contestants, {rounds} rounds of {calls} calls.")
    on_cuda = device.startswith("cuda")
    if memory and not on_cuda:
        raise ValueError(f"memory=True needs device='cuda', got {device!r}; measure_processes measures it on the CPU.")
    sample = _cuda_sample(device, memory, lead) if on_cuda else _clock_sample(clock)
    taken: dict[str, list[tuple[float, int]]] = {name: [] for name in contestants}
    lasted: dict[str, float] = {}
    for index, name in _schedule(list(contestants), rounds, warmup, seed):
        if setup is not None:
            setup(name)
        if prime > lasted.get(name, 0.0):
            _run_for(prime, contestants[name])
        seconds, peak = sample(contestants[name], calls)
        lasted[name] = seconds / calls
        if index >= 0:
            taken[name].append((seconds / calls, peak))
    samples = {
        name: Samples(tuple(t for t, _ in values), tuple(peak for _, peak in values) if memory else ())
        for name, values in taken.items()
    }
    return Comparison(title, samples, describe_environment(packages))


def measure_processes(
    commands: Mapping[str, Sequence[str]],
    *,
    rounds: int = 20,
    warmup: int = 1,
    env: Mapping[str, str] | None = None,
    self_timed: bool = False,
    title: str = "",
    packages: Iterable[str] = (),
    seed: int = 0,
) -> Comparison:
    """Time fresh processes from start to exit in interleaved rounds, with the peak resident memory of each.

    Args:
        commands: Name to argument vector, such as `[sys.executable, "-c", "import json"]`.
        rounds: Timed rounds; each runs every command once.
        warmup: Rounds thrown away; one fills the page cache.
        env: Environment of the commands; default: this process's own.
        self_timed: The seconds are what each process prints as the last line of its output, for work whose imports are
            not the point; the peak of memory stays that of the whole process.
        title: What one process does.
        packages: Peers whose versions the environment line should name.
        seed: Of the order within rounds.

    Raises:
        RuntimeError: A command exits with a status other than 0; the message holds the end of its error output.
    """
    if not commands or rounds < 1 or warmup < 0:
        raise ValueError(f"nothing to measure: {len(commands)} commands, {rounds} rounds.")
    taken: dict[str, list[tuple[float, int]]] = {name: [] for name in commands}
    with Launcher(env) as launcher:
        for index, name in _schedule(list(commands), rounds, warmup, seed):
            result = launcher.run(commands[name], self_timed=self_timed)
            if index >= 0:
                taken[name].append(result)
    samples = {
        name: Samples(tuple(t for t, _ in values), tuple(peak for _, peak in values)) for name, values in taken.items()
    }
    return Comparison(title, samples, describe_environment(packages))


def report(comparisons: Sequence[Comparison], *, json_file: str | None = None, stream: TextIO | None = None) -> bool:
    """Print the comparisons, and write them as JSON where asked; whether every target is met.

    Args:
        comparisons: What was measured.
        json_file: A path, written besides the tables; or `-`, which prints one JSON document and nothing else.
        stream: Where to print; default: standard output.
    """
    met = all(comparison.met for comparison in comparisons)
    document = json.dumps({"met": met, "comparisons": [item.to_dict() for item in comparisons]}, indent=2) + "\n"
    if json_file == "-":
        (stream or sys.stdout).write(document)
        return met
    if json_file is not None:
        Path(json_file).write_text(document, encoding="utf-8")
    from rich.console import Console

    console = Console(file=stream, highlight=False)
    if not console.is_terminal:
        console.width = 160  # a log has no width to respect, and a wrapped table cannot be read
    if comparisons:
        environment = comparisons[0].environment
        console.print(", ".join(f"{key} {value}" for key, value in environment.items()), markup=False, soft_wrap=True)
    for comparison in comparisons:
        console.print(comparison.table())
        for note in comparison.notes:
            console.print(f"note: {note}", markup=False)
        for target in comparison.targets:
            console.print(str(target), style="green" if target.met else "bold red", markup=False)
    return met


def _ratio_label(subject: str, peer: str, metric: Metric) -> str:
    return f"{'time' if metric == 'seconds' else 'peak memory'} of {subject} over {peer}"


def _schedule(names: list[str], rounds: int, warmup: int, seed: int) -> Iterable[tuple[int, str]]:
    """Pairs of round (negative for warm-up) and contestant; the order is shuffled in every round."""
    generator = random.Random(seed)
    for index in range(-warmup, rounds):
        order = names.copy()
        generator.shuffle(order)
        for name in order:
            yield index, name


def _clock_sample(clock: Callable[[], float]) -> Callable[[Callable[[], object], int], tuple[float, int]]:
    def sample(function: Callable[[], object], calls: int) -> tuple[float, int]:
        start = clock()
        for _ in range(calls):
            function()
        return clock() - start, 0

    return sample


def _run_for(seconds: float, function: Callable[[], object]) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        function()


_CYCLES = 2_000_000_000  # a second on the fastest clock there is; on a slower one the lead is longer, which is no harm


def _cuda_sample(
    device: str, memory: bool, lead: float = 0.0
) -> Callable[[Callable[[], object], int], tuple[float, int]]:
    import torch

    def sample(function: Callable[[], object], calls: int) -> tuple[float, int]:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        with torch.cuda.device(device):
            torch.cuda.synchronize()
            before = torch.cuda.memory_allocated()
            if memory:
                torch.cuda.reset_peak_memory_stats()
            if lead:
                torch.cuda._sleep(round(lead * _CYCLES))
            start.record()
            for _ in range(calls):
                function()
            end.record()
            torch.cuda.synchronize()
            return start.elapsed_time(end) / 1e3, torch.cuda.max_memory_allocated() - before

    return sample


def _quartiles(values: Sequence[float]) -> tuple[float, float]:
    if len(values) == 1:
        return values[0], values[0]
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, third
