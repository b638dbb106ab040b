"""A long run: its speed, how busy the GPU is, its memory, and whether `kill -9` and a resume change what it reaches.

Trainings by `astrozoo train` with the same settings and the same seed. Some run undisturbed (three on a GPU, two on the
CPU): what their scores differ by is the spread that a GPU has from run to run. The last is killed by SIGKILL at a
random step and started again by the same command. On the CPU all must agree bit for bit; on a GPU it may be no further
from the nearest of the others than 1.5 times the largest distance of two of them, or 0.1 %. Distance is the mean
relative difference (rms) of the losses of the second half of the steps, of the losses and the headline metric of all
evaluations, and of the final scores.

From the log of the first, after a tenth of the steps (compilation is over): samples per second, evaluations and
checkpoints included; the share of time in which the GPU ran a kernel, as its driver counts; the share of time in which
steps waited for data; and the growth of memory from the second and third tenth to the last fifth, medians of the peaks
between lines of the log for the GPU, least of the process's resident memory, as checkpoints need some for a moment. The
process's own is held to a limit from 500 steps on: until then caches fill.

On the CPU steps have 16 samples, in float32 and not compiled, unless --set says otherwise. Linux only.

Examples:
  astrozoo bench longrun --config examples/long_run.yaml --device cuda --json longrun.json
  astrozoo bench longrun --config examples/long_run.yaml --variant cube_unet_nano --steps 60
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from astrozoo.bench.harness import Comparison
from astrozoo.errors import BackendUnavailableError, ConfigError

__all__ = ["add_arguments", "run"]

_NEEDED = ("accelerate", "torchmetrics", "psutil", "xarray", "yaml")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to train, for how long, and where."""
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="settings, as of astrozoo train")
    parser.add_argument("--variant", default="cube_unet_base", help="what to train (cube_unet_base)")
    parser.add_argument("--data", nargs="+", default=[], metavar="FILE", help="replaces data.files of the settings")
    parser.add_argument("--device", default="cpu", help="where to train (cpu)")
    parser.add_argument("--steps", type=int, help="length; intervals of the settings shrink with it (theirs)")
    parser.add_argument(
        "--compare-steps", type=int, metavar="N", help="length of the runs that are compared, where three whole runs "
        "take too long; then there is one more (as --steps)",
    )  # fmt: skip
    parser.add_argument("--again", type=int, metavar="N", help="undisturbed runs beside the first (1; cuda 2)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="one setting; repeatable")
    parser.add_argument("--seed", type=int, default=0, help="of the step after which the run is killed (0)")
    parser.add_argument("--minutes", type=float, default=30, help="give up after so long (30)")
    parser.add_argument("--folder", type=Path, help="where to work, and what to keep (a temporary folder)")


def run(args: argparse.Namespace) -> list[Comparison]:
    """Train undisturbed, and once more in pieces.

    Raises:
        BackendUnavailableError: This is no Linux, or packages are missing.
        ConfigError: `--again` is below 1: there would be nothing to compare with.
    """
    again = args.again if args.again is not None else (1 if args.device == "cpu" else 2)
    if again < 1:
        raise ConfigError(f"--again is {again}, expected at least 1.")
    if not sys.platform.startswith("linux"):
        raise BackendUnavailableError(f"bench longrun needs Linux, this is {sys.platform}.")
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise BackendUnavailableError(f"bench longrun needs {', '.join(missing)}; run: pip install 'astrozoo[all]'.")
    from astrozoo.bench.longrun.runs import Plan, measure

    with tempfile.TemporaryDirectory(prefix="astrozoo-longrun-") as temporary:
        plan = Plan.of(args, args.folder or Path(temporary))
        return [measure(plan, seed=args.seed, compare_steps=args.compare_steps or plan.steps, again=again)]
