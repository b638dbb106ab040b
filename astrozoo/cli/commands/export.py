"""Write a model as a torch.export program (.pt2), which runs without astrozoo and its Python code.

NAME is a registered model with fresh weights, or a folder that `astrozoo train` or `save_model` wrote. The batch
dimension may vary later; all other sizes are fixed by --sizes or the example sizes. The program is reloaded and its
output compared with the model's before the file takes its name.

Examples:
  astrozoo export runs/demo/best forecast.pt2 --sizes lat=48 lon=96
"""

from __future__ import annotations

import argparse
from pathlib import Path

from astrozoo.cli.arguments import add_model_argument, sizes
from astrozoo.cli.output import Output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What and where to."""
    add_model_argument(parser, help="a registered model or a model folder")
    parser.add_argument("out", type=Path, metavar="FILE.pt2", help="file to write")
    parser.add_argument("--sizes", nargs="+", default=[], metavar="DIM=SIZE", help="sizes of free dimensions")


def run(args: argparse.Namespace, out: Output) -> int:
    """Export, verify, move into place."""
    import astrozoo
    from astrozoo.cli.exporting import export_model

    model = astrozoo.load_model(args.name) if Path(args.name).is_dir() else astrozoo.create_model(args.name)
    result = export_model(model, args.out, sizes=sizes(args.sizes))
    if out.as_json:
        out.document({"path": args.out.resolve(), **result})
    else:
        shapes = ", ".join(f"{name} {' x '.join(map(str, shape))}" for name, shape in result["inputs"].items())
        out.line(f"{args.out}: {shapes}; output equal to the model's within {result['difference']:.1g}")
    return 0
