"""Fetch a model's files, for use without a network later, and print the folder.

SOURCE is a model with published weights (`astrozoo list --pretrained`), or what `load_model` takes: a Hub id such as
org/name, or hf://org/name@revision. A transfer that breaks off is tried again from where it stopped; files that are
already in the cache are not fetched again.

Examples:
  astrozoo download org/mars-climate
  astrozoo download org/mars-climate --revision 3f2a91c --out models/mars
"""

from __future__ import annotations

import argparse
from pathlib import Path

from astrozoo.cli.arguments import add_model_argument
from astrozoo.cli.output import Output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What, which version of it, and where to."""
    add_model_argument(parser, "source", metavar="SOURCE", help="a model name, a Hub id, or a source with scheme")
    parser.add_argument("--tag", help="which published weights of a model, where there are several")
    parser.add_argument("--revision", help="branch, tag or commit of a Hub repository")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="copy the files there; default: the cache")
    parser.add_argument("--cache", type=Path, metavar="FOLDER", help="where downloads are kept; default: the Hub's own")


def run(args: argparse.Namespace, out: Output) -> int:
    """Download and print the folder."""
    import astrozoo

    folder = astrozoo.download(args.source, args.out, tag=args.tag, revision=args.revision, cache=args.cache)
    if out.as_json:
        out.document({"source": args.source, "path": folder})
    else:
        out.line(str(folder))
    return 0
