"""The trainer under random faults: every run ends right, or stops with a clear error and goes on to the right weights.

A tiny `cube_unet` trains on small files it makes itself. Each training is started as a user would, struck by a fault at
a random moment, mended as the message says, and started again by the same command, until it has finished. Weights,
scores and log must then be those of a run that nothing struck: bit for bit on the CPU, to 1e-3 on a GPU. So must every
checkpoint on the way. A clear error is one line of an error of astrozoo that names what was wrong.

The faults are real: SIGKILL, SIGTERM and SIGINT to the process or its group, at any time and amid saves; a full disk
(a tmpfs with ballast where one may be mounted, else a limit on the size of files); a truncated, altered or removed file
of the newest checkpoint; the same done to a data file, between runs or while training; NaN, infinity or absurd values
in the data; a killed worker of the data loader.

Most starts are forks of a process that has imported PyTorch, which saves seconds each; `--fresh` says how many are not.
Linux only. Exit status 1 if anything ended wrong.

Examples:
  astrozoo bench faults
  astrozoo bench faults --faults 16 --seed 3 --verbose
  astrozoo bench faults --kinds "full disk" "NaN batch" --faults 50 --json faults.json
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

from astrozoo.bench.harness import Comparison
from astrozoo.errors import BackendUnavailableError

__all__ = ["add_arguments", "run"]

_KINDS = (
    "kill -9", "SIGTERM", "SIGINT", "full disk", "damaged checkpoint", "damaged data file", "NaN batch", "dead worker",
)  # fmt: skip
_NEEDED = ("accelerate", "torchmetrics", "psutil", "xarray", "netCDF4", "h5py", "zarr")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How many faults, of which kinds."""
    parser.add_argument("--faults", type=int, default=200, help="how many (200)")
    parser.add_argument("--seed", type=int, default=0, help="of what strikes when (0)")
    parser.add_argument("--device", default="cpu", help="where to train (cpu)")
    parser.add_argument("--steps", type=int, default=40, help="steps of each training (40)")
    parser.add_argument("--kinds", nargs="+", choices=_KINDS, default=list(_KINDS), metavar="KIND", help="default: all")
    parser.add_argument(
        "--fresh", type=int, default=10, help="every so many starts in a fresh interpreter; 1: all, 0: none (10)"
    )
    parser.add_argument(
        "--disk", choices=("auto", "tmpfs", "limit"), default="auto", help="what is full (auto: a tmpfs if allowed)"
    )
    parser.add_argument("--folder", type=Path, help="where to work and keep what went wrong (a temporary folder)")
    parser.add_argument("--verbose", action="store_true", help="a line per fault while it runs")


def run(args: argparse.Namespace) -> list[Comparison]:
    """Inject the faults and count how the runs ended."""
    if not sys.platform.startswith("linux"):
        raise BackendUnavailableError(f"bench faults needs Linux, this is {sys.platform}.")
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise BackendUnavailableError(
            f"bench faults needs {', '.join(missing)}; run: pip install 'astrozoo[train,data]'."
        )
    with tempfile.TemporaryDirectory(prefix="astrozoo-faults-") as temporary:
        return [_campaign(args, args.folder or Path(temporary))]


def _campaign(args: argparse.Namespace, folder: Path) -> Comparison:
    from astrozoo.bench.faults.campaign import Campaign
    from astrozoo.bench.faults.commands import Starter
    from astrozoo.bench.faults.disk import disk
    from astrozoo.bench.faults.report import reliability

    (logs := folder / "output").mkdir(parents=True)
    began = time.monotonic()
    with disk(folder / "disk", args.disk) as full, Starter(logs) as starter:
        campaign = Campaign(
            starter=starter,
            disk=full,
            folder=folder,
            steps=args.steps,
            device=args.device,
            fresh=args.fresh,
            draw=random.Random(args.seed),
            verbose=args.verbose,
        )
        campaign.run(args.faults, list(args.kinds))
        kind = {"tmpfs": "a tmpfs without space (ENOSPC)", "limit": "a limit on the size of files (EFBIG)"}[full.kind]
    minutes = (time.monotonic() - began) / 60
    notes = [
        f"{campaign.trainings} trainings of {args.steps} steps, {campaign.starts} starts, "
        f"one in {args.fresh or 'none'} in a fresh interpreter; {minutes:.1f} minutes",
        f"full disk: {kind}",
    ]
    return reliability(f"training under {args.faults} faults on {args.device}, seed {args.seed}",
                       campaign.outcomes, notes)  # fmt: skip
