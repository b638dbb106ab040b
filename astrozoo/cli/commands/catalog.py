"""Write the catalogue of an installed plugin: specs and measured costs of its models, listed without importing them.

Run it after changing a plugin's variants, and ship the file. Costs are measured on the meta device; nothing is
allocated. Without --plugin, astrozoo's own entry points and catalogue are derived from its code.

Examples:
  astrozoo catalog --plugin my-models
"""

from __future__ import annotations

import argparse
from pathlib import Path

from astrozoo.cli.output import Output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Whose catalogue, and where to."""
    parser.add_argument("--plugin", default="astrozoo", metavar="DISTRIBUTION", help="default: astrozoo itself")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: where its entry point says")


def run(args: argparse.Namespace, out: Output) -> int:
    """Write and print the path."""
    from astrozoo.catalogue import write_catalogue

    path = write_catalogue(args.plugin, args.out)
    if out.as_json:
        out.document({"plugin": args.plugin, "path": path})
    else:
        out.line(str(path))
    return 0
