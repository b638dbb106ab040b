"""Train a model on files.

NAME is a registered model, or a folder that an earlier run wrote, whose weights are then trained further.

Settings come from --config (YAML) and --set KEY=VALUE, which wins; values are read as YAML. One schema:
  max_steps, batch_size, precision, ...   fields of astrozoo.TrainConfig
  optim.lr, schedule.name, log.every, ... its sections
  data.inputs, data.lead, ...             fields of astrozoo.data.DataConfig (section `data` of the file)
  model.widths, model.dropout, ...        fields of the model's configuration (section `model` of the file)

Ctrl-C and SIGTERM save before they stop (exit status 130 and 143). The same command with the same --out goes on from
there and ends with the weights it would have had without the stop; --resume no starts anew. For several processes,
start it with `torchrun --nproc-per-node 2 -m astrozoo train ...` or `accelerate launch -m astrozoo train ...`.

--auto-batch (the setting batch_size=auto) makes each forward pass as large a power of two of samples as memory allows;
accumulate=auto keeps the batch_size and splits it until it fits. Both try real steps before training begins.

Examples:
  astrozoo train cube_unet_nano --data t2m_*.nc --set epochs=20 --set data.lead=1
  astrozoo train cube_unet_small --config mars.yaml --set optim.lr=3e-4 --set precision=bf16
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Literal

from astrozoo.cli.arguments import add_model_argument
from astrozoo.cli.output import Output
from astrozoo.errors import ConfigError

_STATUS = {"SIGINT": 130, "SIGTERM": 143}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Model, data, settings."""
    add_model_argument(parser, help="a registered model or a model folder")
    parser.add_argument("--data", nargs="+", default=[], metavar="FILE", help="NetCDF or Zarr; replaces data.files")
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings as YAML")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="one setting; repeatable")
    parser.add_argument("--auto-batch", action="store_true", help="the largest batch that fits; batch_size=auto")
    parser.add_argument("--out", metavar="FOLDER", help="folder of the run; the setting `out`")
    parser.add_argument(
        "--resume",
        default="auto",
        metavar="auto|no|FOLDER",
        help="go on from a checkpoint (auto: the last one in --out)",
    )


def run(args: argparse.Namespace, out: Output) -> int:
    """Train and print the summary."""
    from astrozoo.cli.jobs import read_job

    flags = [*args.set, *([f"out={args.out}"] if args.out else [])]
    if args.auto_batch:
        if given := [flag for flag in args.set if flag.partition("=")[0].strip() == "batch_size"]:
            raise ConfigError(f"--set {given[-1]} and --auto-batch exclude each other; give one.")
        flags.append("batch_size=auto")
    job = read_job(args.config, flags, args.data)
    import astrozoo

    model = astrozoo.load_model(args.name) if Path(args.name).is_dir() else args.name
    resume: Literal[False] | str = False if args.resume == "no" else args.resume
    result = astrozoo.train(model, job.data.build(), job.train, overrides=job.model or None, resume=resume)
    status = _STATUS.get(result.stopped, 0)
    if int(os.environ.get("RANK", "0")) != 0:
        return status  # with several processes, the first speaks for all
    if out.as_json:
        out.document(result.to_dict())
    else:
        out.line(result.summary())
    return status
