"""Turn another tool's checkpoint into a model folder that loads safely and can be shared.

FILE is .safetensors, or a .pt, .pth, .ckpt or .bin pickle; of a pickle only tensors and plain containers are read, so
no code in it runs. Tensors are renamed by a plugin that knows the checkpoint; otherwise they need the model's names.

Examples:
  astrozoo convert epoch=99.ckpt models/mars --name cube_unet_small --set in_vars=4 --set out_vars=4
"""

from __future__ import annotations

import argparse
from pathlib import Path

from astrozoo.cli.arguments import add_model_argument, overrides
from astrozoo.cli.output import Output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """From where, to where, and as which model."""
    parser.add_argument("file", type=Path, metavar="FILE", help="the checkpoint")
    parser.add_argument("out", type=Path, metavar="FOLDER", help="folder to write")
    add_model_argument(parser, "--name", required=True, help="model the weights belong to")
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="override a field of its configuration"
    )


def run(args: argparse.Namespace, out: Output) -> int:
    """Convert and print the folder."""
    from astrozoo.weights import convert

    folder = convert(args.file, args.out, name=args.name, **overrides(args.set))
    if out.as_json:
        out.document({"file": args.file, "name": args.name, "path": folder})
    else:
        out.line(str(folder))
    return 0
