"""Determinism: with `deterministic=True` a training gives the same bits twice, or names the operation that cannot.

The tiny variant of each family (the smallest, where there is no tiny) trains twice from the same seed, on data that
need no files, and a third time from another. Weights, the optimiser's state, random numbers and the losses of all steps
are compared bit for bit. The third training has to differ: else the comparison would prove nothing. A family that uses
an operation without a reproducible implementation on this device must be ended by an error that names it.

Trainings run in any process that is free, so the two may share one or not.

Examples:
  astrozoo bench determinism --jobs 2
  astrozoo bench determinism --families cube_mae --precisions fp32 bf16
  astrozoo bench determinism --device cuda --jobs 16 --minutes 4
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from astrozoo.bench.environment import describe_environment
from astrozoo.bench.harness import Comparison
from astrozoo.bench.pool import Done
from astrozoo.bench.rows import Rows
from astrozoo.bench.short_trainings import Job, Outcome, add_common_arguments, chosen_families, run_all

__all__ = ["add_arguments", "compare", "run"]

_PRECISIONS = ("fp32", "bf16", "fp16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Who takes part, for how long, and where."""
    add_common_arguments(parser, steps=10)
    parser.add_argument("--precisions", nargs="+", choices=_PRECISIONS, help="(fp32; on a GPU fp32 bf16)")


def run(args: argparse.Namespace) -> list[Comparison]:
    """Train three times each, and compare.

    Raises:
        ConfigError: There is no such family.
    """
    families = chosen_families(args)
    on_gpu = args.device.startswith("cuda")
    precisions = args.precisions or (["fp32", "bf16"] if on_gpu else ["fp32"])
    jobs = [
        Job(family, variant, precision, seed, args.steps, args.batch, deterministic=True, copy=copy)
        for precision in precisions
        for family, variant in families.items()
        for seed, copy in ((0, 0), (0, 1), (1, 0))
    ]
    return [compare(families, jobs, list(run_all(jobs, args)), args.device)]


def compare(families: Mapping[str, str], jobs: Sequence[Job], ended: Sequence[Done], device: str) -> Rows:
    """What of the trainings was the same, held to the targets.

    Args:
        families: Family to variant, in the order of the rows.
        jobs: All that were asked for.
        ended: Those that have ended, well or not.
        device: Where they ran.
    """
    by_job = {done.job: done for done in ended}
    precisions = list(dict.fromkeys(job.precision for job in jobs))
    rows = [{"family": family, "variant": variant} for family, variant in families.items()]
    comparison = Rows(
        f"the same training twice with deterministic=True, {jobs[0].steps} steps, {device}",
        {},
        describe_environment(),
        rows=rows,
        cells=_cells,
    )
    for row in rows:
        for precision in precisions:
            group = [job for job in jobs if job.family == row["family"] and job.precision == precision]
            row[precision] = _verdict([by_job.get(job) for job in group])  # type: ignore[assignment]
    verdicts = {f"{row['family']} in {precision}": row[precision] for row in rows for precision in precisions}
    for label, kind in (
        ("families that gave other bits the second time", "differs"),
        ("families in which another seed gave the same bits", "proves nothing"),
        ("families that failed", "failed"),
    ):
        found = {name: verdict for name, verdict in verdicts.items() if verdict["result"] == kind}  # type: ignore[index]
        comparison.target(label, len(found), at_most=0, unit="")
        comparison.notes += [f"{name}: {verdict['why']}" for name, verdict in found.items()]  # type: ignore[index]
    missing = [name for name, verdict in verdicts.items() if verdict["result"] == "not done"]  # type: ignore[index]
    if missing:
        comparison.notes.append(f"not done in the time given: {', '.join(missing)}")
    return comparison


def _verdict(ended: Sequence[Done | None]) -> dict[str, Any]:
    """`result` in a word or two and `why`, of the training, its copy, and that from another seed."""
    known = [done for done in ended if done is not None]
    if errors := [f"{done.job}: {done.error}" for done in known if done.error is not None]:
        return {"result": "failed", "why": errors[0]}
    if operations := sorted({done.result.operation for done in known if done.result.operation is not None}):
        return {"result": "names the operation", "why": ", ".join(operations)}
    if len(known) < len(ended):
        return {"result": "not done", "why": ""}
    first, again, other = (done.result for done in known)
    if difference := _difference(first, again):
        return {"result": "differs", "why": difference}
    if first.losses == other.losses or not _difference(first, other):
        return {"result": "proves nothing", "why": "another seed gives the same losses"}
    return {"result": "same bits", "why": f"{len(first.digests)} tensors and {len(first.losses)} losses"}


def _difference(one: Outcome, other: Outcome) -> str:
    """What differs between two trainings, in words; empty if nothing does."""
    names = [*one.digests, *(name for name in other.digests if name not in one.digests)]
    different = [name for name in names if one.digests.get(name) != other.digests.get(name)]
    said = [f"{len(different)} of {len(names)} tensors differ, first {different[0]}"] if different else []
    if one.losses != other.losses:
        pairs = enumerate(zip(one.losses, other.losses, strict=False), 1)
        step = next((step for step, (a, b) in pairs if a != b), min(len(one.losses), len(other.losses)) + 1)
        said.append(f"losses differ from step {step}")
    return "; ".join(said)


def _cells(row: Any) -> dict[str, str]:
    cells = {"": row["family"]}
    for precision in _PRECISIONS:
        if precision in row:
            verdict = row[precision]
            cells[precision] = verdict["why"] if verdict["result"] == "names the operation" else verdict["result"]
    return cells
