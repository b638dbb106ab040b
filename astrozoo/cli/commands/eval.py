"""Score a trained model on files, against the baselines of its task, in physical units.

PATH is a folder that `astrozoo train` or `save_model` wrote, or a Hub id. Variables, units, normalisation and task are
those saved with the model. By default the files are split by the rule of training, and the part it was tested on is
scored; `--split all` scores every time step, against the climatology of these files.

Examples:
  astrozoo eval runs/mars/best --data t2m_1990-2020.nc
  astrozoo eval runs/mars/best --data t2m_2021.nc --split all --json
"""

from __future__ import annotations

import argparse

from astrozoo.cli.arguments import positive
from astrozoo.cli.output import Output
from astrozoo.errors import DataError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Model, files, split."""
    parser.add_argument("path", metavar="PATH", help="a model folder or Hub id")
    parser.add_argument("--data", nargs="+", required=True, metavar="FILE", help="NetCDF or Zarr files")
    parser.add_argument("--split", choices=("train", "val", "test", "all"), default="test", help="which part (test)")
    parser.add_argument("--batch-size", type=positive, default=32, metavar="N", help="samples per forward pass (32)")
    parser.add_argument("--device", help="where to compute; default: cpu")


def run(args: argparse.Namespace, out: Output) -> int:
    """Evaluate and print one row per score."""
    import astrozoo
    from astrozoo.data.rescoring import rescoring_task
    from astrozoo.training.evaluation import evaluate_baselines
    from astrozoo.training.protocol import split_of

    model = astrozoo.load_model(args.path, device=args.device)
    if model.preprocessing is None:
        raise DataError(f"{args.path} was saved without a description of its data; evaluate it from Python.")
    data = rescoring_task(args.data, model.preprocessing, args.split)
    part = "train" if args.split == "all" else args.split
    scores = {"model": astrozoo.evaluate(model, data, part, batch_size=args.batch_size)}
    samples = split_of(data, part)
    assert samples is not None  # or evaluate would have raised
    scores |= evaluate_baselines(data, samples, model, batch_size=args.batch_size)
    headline = data.new_metrics().headline
    if out.as_json:
        out.document({"model": args.path, "split": args.split, "headline": headline, "scores": scores})
        return 0
    keys = sorted(scores["model"], key=lambda key: (key != headline, key))
    rows = [(key, *(f"{row[key]:.4g}" if key in row else "" for row in scores.values())) for key in keys]
    out.table((args.split, *scores), rows, title=f"{args.path} on {len(samples)} samples")
    return 0
