"""Apply a trained model to files and write the result in physical units, with coordinates and attributes.

PATH is a folder that `astrozoo train` or `save_model` wrote, or a Hub id. The files must hold the variables the model
was trained on, in compatible units; normalisation is the saved one.

Examples:
  astrozoo predict runs/mars/best --data t2m_2021.nc --out forecast.nc
"""

from __future__ import annotations

import argparse
from pathlib import Path

from astrozoo.cli.arguments import positive
from astrozoo.cli.output import Output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Model, files, where to."""
    parser.add_argument("path", metavar="PATH", help="a model folder or Hub id")
    parser.add_argument("--data", nargs="+", required=True, metavar="FILE", help="NetCDF or Zarr files")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="what to write: .nc or .zarr")
    parser.add_argument("--batch-size", type=positive, default=32, metavar="N", help="samples per forward pass (32)")
    parser.add_argument("--device", help="where to compute; default: cpu")


def run(args: argparse.Namespace, out: Output) -> int:
    """Predict and print the path."""
    import astrozoo

    astrozoo.predict(args.path, args.data, out=args.out, batch_size=args.batch_size, device=args.device)
    if out.as_json:
        out.document({"model": args.path, "data": args.data, "path": args.out})
    else:
        out.line(str(args.out))
    return 0
