"""torch.compile on the training step of every family: graph breaks, recompilations, and what it brings.

The step is the trainer's: the loss as a forward pass, compiled whole, and the backward pass; no optimiser. Graphs are
counted while the size of the batch changes, twice over the same sizes. Speed is that of one size, eager and compiled in
interleaved rounds; on CUDA also as a CUDA graph (`mode="reduce-overhead"`). Each family has a process of its own.

What makes CUDA graphs legal: every step begins with `torch.compiler.cudagraph_mark_step_begin()`, inputs and weights
stay where they are, and gradients are set to None before the step, because they lie in the graph's memory, which the
next replay overwrites. Gradients that accumulate over several steps would have to be copied out of it first.

Examples:
  astrozoo bench compile --families cube_unet cube_vit
  astrozoo bench compile --device cuda --jobs 16 --minutes 5 --json compile.json
"""

from __future__ import annotations

import argparse

from astrozoo.bench.harness import Comparison

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which families, where, and how thoroughly."""
    parser.add_argument("--families", nargs="+", metavar="NAME", help="(all)")
    parser.add_argument("--size", default="tiny", help="of each; tiny, where there is none, is the smallest (tiny)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda (shared out among all GPUs) or cuda:1 (cpu)")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), help="(fp32; cuda bf16)")
    parser.add_argument(
        "--batches",
        type=int,
        nargs="+",
        default=[8, 4, 6, 2, 3],
        metavar="N",
        help="sizes over which graphs are counted, in this order; a 1, which PyTorch always makes a constant, costs "
        "one graph more (8 4 6 2 3)",
    )
    parser.add_argument(
        "--backend",
        default="aot_eager",
        help="of torch.compile while graphs are counted: aot_eager traces forward and backward; inductor, with which "
        "the trainer compiles, takes longer and may ask more of the batch, so that it counts more (aot_eager)",
    )
    parser.add_argument("--batch", type=int, help="samples of a timed step (2; cuda 8)")
    parser.add_argument(
        "--grid", type=int, nargs=3, metavar=("LEVEL", "LAT", "LON"), help="cells of fields (each variant's example)"
    )
    parser.add_argument("--rounds", type=int, help="timed steps of each; 0 counts graphs alone (5; cuda 20)")
    parser.add_argument("--jobs", type=int, default=1, help="families that compile at a time (1)")
    parser.add_argument("--minutes", type=float, help="leave out what is not compiled after two thirds of this")


def run(args: argparse.Namespace) -> list[Comparison]:
    """One row per family.

    Raises:
        ConfigError: A family, a size of it or the device does not exist, or a number is too small.
    """
    from astrozoo.bench.compile import case, report
    from astrozoo.bench.side_by_side import side_by_side

    cases = case.cases(args)
    outcomes = side_by_side(cases, case.prepare, case.measured, jobs=args.jobs, minutes=args.minutes)
    return [report.comparison(cases, outcomes)]
