"""Every family of cubes, trained on real fields with one budget, against baselines and networks of other libraries.

The tiny variant of each family (the smallest, where there is no tiny) learns the same samples with the same seeds as
MONAI's and neuraloperator's U-Net, SwinUNETR, FNO, TFNO and SFNO, which get the parameters of our family of their kind.
Printed are RMSE and anomaly correlation by lead time, next to persistence, climatology and a ridge regression. Each
training is kept in a file as it ends, so that a run that was broken off goes on where it stopped. With --speed, the
base variants and peers of their size take training steps in bfloat16, compiled, in interleaved rounds.

  astrozoo bench fields --data FOLDER --device cuda --jobs 8          everything
  astrozoo bench fields --data FOLDER --only cube_unet cube_fno --fields weather --steps 60       minutes on a CPU
"""

from __future__ import annotations

import argparse
from pathlib import Path

from astrozoo.bench.harness import Comparison
from astrozoo.errors import BackendUnavailableError, ConfigError

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What takes part, the budget, and where results go."""
    parser.add_argument("--data", type=Path, help="folder of the field sets' files")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="families, variants or peers (all)")
    parser.add_argument("--fields", nargs="+", metavar="SET", help="field sets (all)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:1 (cpu)")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time, each in a process of its own (1)")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each contestant on each set (3)")
    parser.add_argument("--steps", type=int, default=400, help="optimiser steps of each training (400)")
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 3e-3], help="learning rates tried (1e-3 3e-3)")
    parser.add_argument("--store", type=Path, default=Path("runs/fields"), help="where results are kept (runs/fields)")
    parser.add_argument("--minutes", type=float, help="start no further training after this time")
    parser.add_argument("--table", type=Path, metavar="FILE", help="write the tables as Markdown")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the errors")
    parser.add_argument("--speed", action="store_true", help="measure the base variants instead: time, memory, FLOPs")
    parser.add_argument(
        "--grid", type=int, nargs=3, default=(16, 64, 128), metavar=("LEVEL", "LAT", "LON"), help="cells, with --speed"
    )
    parser.add_argument("--batch", type=int, default=4, help="samples of a step, with --speed (4)")


def run(args: argparse.Namespace) -> list[Comparison]:
    """Train what is not in the store yet, then report everything in it."""
    from importlib.util import find_spec

    from astrozoo.bench.fields import report, schedule, speed

    missing = [name for name in ("monai", "neuralop") if find_spec(name) is None]
    if missing:
        raise BackendUnavailableError(
            f"the peers come from {' and '.join(missing)}; run: pip install 'astrozoo[bench]'."
        )
    if args.speed:
        return speed.compare(args)
    if args.data is None:
        raise ConfigError("bench fields needs the folder of the field sets: --data FOLDER.")
    outcomes, baselines = schedule.collect(args)
    return report.comparisons(outcomes, baselines, args)
