"""Array kernels of `astrozoo.accel` against the libraries one would otherwise use, at the sizes users have.

Each kernel is measured beside its peers in interleaved rounds, after their results were compared; the floor says what
moving the data once, or the arithmetic alone, would take on this machine.

Examples:
  astrozoo bench accel
  astrozoo bench accel nan_stats quantiles --rounds 30
  astrozoo bench accel --json accel.json --table accel.md --plot accel.png
"""

from __future__ import annotations

import argparse
import gc
import importlib
from collections.abc import Iterable, Iterator

from astrozoo.bench.accel.case import OURS, Case
from astrozoo.bench.accel.floors import Machine, measure_machine
from astrozoo.bench.accel.picture import plot
from astrozoo.bench.accel.table import write_table
from astrozoo.bench.drawing import need_matplotlib
from astrozoo.bench.harness import Comparison, measure
from astrozoo.errors import ConfigError
from astrozoo.readable import format_seconds
from astrozoo.registry.names import suggest

__all__ = ["AREAS", "add_arguments", "cases", "measure_case", "run"]

_PRIME = 0.25  # seconds before each sample, after which the threads of other contestants are at rest

AREAS = (
    "statistics",
    "gaps",
    "regridding",
    "patches",
    "fits",
    "detrending",
    "transits",
    "folding",
    "spectra",
    "lines",
    "graph_encodings",
    "neighbors",
    "collation",
)  # fmt: skip


def cases() -> list[Case]:
    """All cases, in the order of the areas."""
    return [case for area in AREAS for case in importlib.import_module(f"astrozoo.bench.accel.{area}").CASES]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which kernels, how long, and where the results go."""
    parser.add_argument("kernels", nargs="*", metavar="KERNEL", help="kernels to measure (all)")
    parser.add_argument("--rounds", type=int, help="timed rounds (15, fewer where a peer takes seconds)")
    parser.add_argument("--threads", type=int, help="threads of ours (all cores); peers use what they use")
    parser.add_argument("--no-peers", action="store_true", help="ours alone, with its floor")
    parser.add_argument("--table", metavar="FILE", help="write the medians and ratios as a Markdown table")
    parser.add_argument("--plot", metavar="FILE", help="draw the ratios as bars")


def run(args: argparse.Namespace) -> list[Comparison]:
    """Measure what was asked for; each kernel is held to its targets."""
    from astrozoo.accel import info
    from astrozoo.accel.threads import workers

    if args.plot:
        need_matplotlib()
    chosen = list(_chosen(args.kernels))
    threads = workers(args.threads)
    machine = measure_machine(threads)
    comparisons = [measure_case(case, machine, rounds=args.rounds, peers=not args.no_peers) for case in chosen]
    if comparisons:
        comparisons[0].notes.insert(0, f"{machine}; kernels are served by: {_one_line(str(info()))}")
    if args.table:
        write_table(comparisons, args.table)
    if args.plot:
        plot(comparisons, args.plot)
    return comparisons


def measure_case(case: Case, machine: Machine, *, rounds: int | None = None, peers: bool = True) -> Comparison:
    """Compare the results, then the times.

    Raises:
        ValueError: A peer's result differs from ours by more than the case allows.
    """
    setup = case.prepare(machine.threads)
    missing = case.missing()
    present = {name: peer for name, peer in setup.peers.items() if peers and name not in missing}
    notes = [*setup.notes]
    ours = setup.ours()
    for name, peer in present.items():
        if peer.difference is not None:
            difference = peer.difference(ours, peer.call())
            if not difference <= peer.error:
                raise ValueError(
                    f"{case.kernel}: {name} differs by {difference:.3g} from ours; allowed is {peer.error:g}."
                )
            notes.append(f"{name} differs by {difference:.2g} from ours{f': {peer.why}' if peer.why else ''}")
        elif peer.why:
            notes.append(f"{name}: {peer.why}")
    comparison = measure(
        {OURS: setup.ours, **{name: peer.call for name, peer in present.items()}},
        rounds=rounds or case.rounds,
        warmup=1,
        calls=setup.calls,
        prime=_PRIME,
        title=f"{case.kernel}: {case.size}",
        packages=[peer.package for peer in present.values()],
    )
    for name, peer in present.items():
        if peer.target is not None:
            comparison.target_ratio(name, OURS, at_least=peer.target)
    floor = machine.seconds(setup.floor)
    if floor:
        share = comparison.samples[OURS].median() / floor
        notes.append(f"floor {format_seconds(floor)}: ours takes {share:.3g} times as long")
    notes += [f"{name} is not installed; pip install 'astrozoo[bench]' allows the comparison" for name in missing]
    comparison.notes += notes
    del setup, present, ours
    gc.collect()
    return comparison


def _chosen(names: Iterable[str]) -> Iterator[Case]:
    every = cases()
    known = list(dict.fromkeys(case.kernel for case in every))
    for name in names:
        if name not in known:
            raise ConfigError(f"no kernel {name!r} is measured.{suggest(name, known)} There are: {', '.join(known)}.")
    return (case for case in every if not names or case.kernel in names)


def _one_line(text: str) -> str:
    return "; ".join(text.splitlines())
