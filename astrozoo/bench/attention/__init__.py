"""Attentions against kernels called directly, against naive attention, and against other libraries.

speed      time, rate, peak memory and error, at one length after another, all in the same rounds
exponents  how the work grows with the length, counted in floating-point operations
compile    ten lengths under torch.compile(fullgraph=True): graphs, recompilations, unfused softmax

On a GPU, all of it: astrozoo bench attention --device cuda --json attention.json --plot attention.png
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time

from astrozoo.bench.harness import Comparison

__all__ = ["SECTIONS", "add_arguments", "run"]

SECTIONS = ("speed", "exponents", "compile")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to measure, at which sizes, how often."""
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="where to measure (cpu)")
    parser.add_argument("--sections", nargs="+", default=list(SECTIONS), choices=SECTIONS, help="parts (all)")
    parser.add_argument("--names", nargs="+", help="attentions (all that are installed), and flash as the yardstick")
    parser.add_argument("--lengths", type=int, nargs="+", help="tokens (512 2048 4096 8192; cuda 512 2048 8192 32768)")
    parser.add_argument("--head-dims", type=int, nargs="+", help="widths of a head (64; cuda 64 128)")
    parser.add_argument("--dtypes", nargs="+", help="dtypes (float32; cuda bfloat16)")
    parser.add_argument("--batch", type=int, help="rows (1; cuda 4, from 32768 tokens 1)")
    parser.add_argument("--heads", type=int, help="query heads (4; cuda 16)")
    parser.add_argument("--rounds", type=int, help="timed rounds at least (3; cuda 10); short calls get more")
    parser.add_argument(
        "--causal", action=argparse.BooleanOptionalAction, help="only with, or without, later keys hidden (flash both)"
    )
    parser.add_argument("--compile-backend", default="eager", help="backend for the section compile (eager)")
    parser.add_argument("--minutes", type=float, help="start no other table after so long (no limit)")
    parser.add_argument("--plot", metavar="FILE", help="draw time and memory against length as PNG")


def run(args: argparse.Namespace) -> list[Comparison]:
    """The tables asked for, each held to its targets; writes the picture."""
    from astrozoo.bench.attention.plan import Plan
    from astrozoo.bench.attention.plot import plot
    from astrozoo.bench.drawing import need_matplotlib

    if args.plot:
        need_matplotlib()
    plan = Plan.of(args)
    start = time.monotonic()
    comparisons: list[Comparison] = []
    for comparison in itertools.chain.from_iterable(getattr(plan, section)() for section in args.sections):
        comparisons.append(comparison)
        minutes = (time.monotonic() - start) / 60
        sys.stderr.write(f"{minutes:.1f} min: {comparison.title}\n")
        if args.minutes is not None and minutes >= args.minutes:
            comparison.notes.append(f"--minutes {args.minutes:g} were over after this table; what follows was left out")
            break
    if args.plot:
        plot(comparisons, args.plot)
    return comparisons
