"""Mixed precision: every family trains in bf16 and fp16 to the loss it has in fp32, within the spread of its seeds.

The tiny variant of each family (the smallest, where there is no tiny) learns travelling waves, which need no files,
from the same seeds of initialisation and order of data in each precision. What a training came to is the mean loss of
its last ten steps. The targets of each family and precision:

- averaged over the seeds, the loss is no further from that in fp32 than the largest of the fp32 seeds is from the
  smallest (the spread). Compared are seeds that ended in both precisions, so this is also the mean of the paired
  differences, which says more than the target asks: most of the spread is common to all precisions. Listed with it is
  the largest difference of one seed;
- no training fails. The trainer stops at the first loss that is not finite, and in fp16 at the thirty-first step in a
  row that had to be skipped.

In fp16 the loss must be scaled; listed are the lowest scale at the end of a training and the most steps that one had to
skip to find it.

Examples:
  astrozoo bench precision --jobs 2
  astrozoo bench precision --families cube_unet cube_fno --seeds 2
  astrozoo bench precision --device cuda --jobs 16 --minutes 5
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from astrozoo.bench.environment import describe_environment
from astrozoo.bench.harness import Comparison
from astrozoo.bench.pool import Done
from astrozoo.bench.rows import Rows
from astrozoo.bench.short_trainings import Job, Outcome, add_common_arguments, chosen_families, run_all
from astrozoo.errors import ConfigError

__all__ = ["add_arguments", "compare", "run"]

_MIXED = ("bf16", "fp16")
_LAST = 10  # steps whose mean loss is compared
_SHOWN = 3  # of what failed or is missing, in a note


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Who takes part, for how long, and where."""
    add_common_arguments(parser, steps=50)
    parser.add_argument("--seeds", type=int, default=4, help="trainings of each family in each precision (4)")


def run(args: argparse.Namespace) -> list[Comparison]:
    """Train everything that the time allows, and compare.

    Raises:
        ConfigError: There is no such family, or there are fewer than two seeds, which have no spread.
    """
    if args.seeds < 2:
        raise ConfigError(f"--seeds is {args.seeds}, expected 2 or more: the spread of the seeds is the measure.")
    families = chosen_families(args)
    jobs = [
        Job(family, variant, precision, seed, args.steps, args.batch)
        for seed in range(args.seeds)  # so that all families have been compared if time is up early
        for family, variant in families.items()
        for precision in ("fp32", *_MIXED)
    ]
    return [compare(families, jobs, list(run_all(jobs, args)), args.device)]


def compare(families: Mapping[str, str], jobs: Sequence[Job], ended: Sequence[Done], device: str) -> Rows:
    """What the trainings came to, held to the targets.

    Args:
        families: Family to variant, in the order of the rows.
        jobs: All that were asked for.
        ended: Those that have ended, well or not.
        device: Where they ran.
    """
    losses: dict[tuple[str, str], dict[int, float]] = {}
    outcomes: dict[tuple[str, str], list[Outcome]] = {}
    failed: dict[tuple[str, str], list[str]] = {}
    for done in ended:
        key = (done.job.family, done.job.precision)
        if done.error is not None:
            failed.setdefault(key, []).append(f"{done.job}: {done.error}")
        else:
            losses.setdefault(key, {})[done.job.seed] = statistics.fmean(done.result.losses[-_LAST:])
            outcomes.setdefault(key, []).append(done.result)
    comparison = Rows(
        f"mean loss of the last {_LAST} of {jobs[0].steps} steps in each precision, {device}",
        {},
        describe_environment(),
        cells=_cells,
    )
    rows = []
    for family, variant in families.items():
        row: dict[str, Any] = {"family": family, "variant": variant}
        for precision in ("fp32", *_MIXED):
            key = (family, precision)
            row[precision] = losses.get(key, {})
            if key in failed:
                comparison.target(f"failed trainings of {family} in {precision}", len(failed[key]), at_most=0, unit="")
                comparison.notes += failed[key][:_SHOWN]
        rows.append(row | _compared(row) | _scaling(outcomes.get((family, "fp16"), [])))
        _hold(comparison, rows[-1])
    comparison.rows = rows
    scaled = [outcome.scale for (_, precision), group in outcomes.items() if precision == "fp16" for outcome in group]
    if scaled:
        comparison.target("fp16 trainings without scaling", scaled.count(None), at_most=0, unit="")
    begun = {done.job for done in ended}
    missing = [str(job) for job in jobs if job not in begun]
    if missing:
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        comparison.notes.append(f"not done in the time given: {'; '.join(missing[:_SHOWN])}{more}")
    return comparison


def _compared(row: Mapping[str, Any]) -> dict[str, Any]:
    """Spread of the fp32 seeds, and differences of the same seeds from fp32; None where too little was measured."""
    plain: dict[int, float] = row["fp32"]
    spread = max(plain.values()) - min(plain.values()) if len(plain) > 1 else None
    result: dict[str, Any] = {"spread": spread}
    for precision in _MIXED:
        pairs = [value - plain[seed] for seed, value in row[precision].items() if seed in plain]
        measured = spread is not None and pairs
        result[f"{precision}_difference"] = statistics.fmean(pairs) if measured else None
        result[f"{precision}_largest"] = max(map(abs, pairs)) if measured else None
    return result


def _scaling(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The smallest scale at the end, and the most steps skipped, among the fp16 trainings."""
    scales = [outcome.scale for outcome in outcomes if outcome.scale is not None]
    return {
        "scale": min(scales, default=None),
        "skipped": max((outcome.skipped for outcome in outcomes), default=None),
    }


def _hold(comparison: Rows, row: Mapping[str, Any]) -> None:
    for precision in _MIXED:
        difference, spread = row[f"{precision}_difference"], row["spread"]
        if difference is None:
            comparison.notes.append(f"{row['family']} in {precision}: too few trainings ended well to be compared")
        else:
            label = f"{row['family']}, {precision}: distance of the mean loss from that in fp32, over the spread"
            comparison.target(label, abs(difference) / max(spread, 1e-30), at_most=1.0)


def _cells(row: Any) -> dict[str, str]:
    def number(value: float | None, form: str = ".2g") -> str:
        return "" if value is None else format(value, form)

    plain = row["fp32"]
    cells = {
        "": row["family"],
        "seeds": str(len(plain)),
        "fp32": number(statistics.fmean(plain.values()) if plain else None, ".4g"),
        "spread": number(row["spread"]),
    }
    for precision in _MIXED:
        cells |= {
            f"{precision} - fp32": number(row[f"{precision}_difference"], "+.2g"),
            f"{precision}, largest": number(row[f"{precision}_largest"]),
        }
    return cells | {"scale": number(row["scale"], ".0f"), "skipped": number(row["skipped"], "d")}
