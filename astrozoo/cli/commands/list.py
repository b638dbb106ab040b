"""List models by name and property, or the attentions they can use.

Examples:
  astrozoo list 'cube_*' --task field_regression --max-params 10M
  astrozoo list --capability export --names | xargs -n 1 astrozoo check
  astrozoo list --attentions
"""

from __future__ import annotations

import argparse
from typing import Any

from astrozoo.bench.units import format_count
from astrozoo.cli.arguments import count
from astrozoo.cli.output import Output

_FILTERS = {
    "domain": "kind of data, such as cube or light_curve",
    "family": "architecture, such as cube_unet",
    "task": "what it is trained for, such as field_forecast",
    "size": "nano, tiny, small, base, large or huge",
    "license": "SPDX identifier, such as Apache-2.0",
    "capability": "compile, export, grad_checkpointing, features, bfloat16 or float16",
    "attention": "models that take this attention",
    "plugin": "distribution that offers the model",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Filters of `astrozoo.list_models`."""
    parser.add_argument("pattern", nargs="?", help="shell pattern of names, such as 'cube_*'")
    for name, meaning in _FILTERS.items():
        parser.add_argument(f"--{name}", help=meaning)
    parser.add_argument("--max-params", type=count, metavar="N", help="at most so many parameters, such as 5M")
    parser.add_argument("--pretrained", action="store_true", help="only models with published weights")
    parser.add_argument("--names", action="store_true", help="print bare names, one a line")
    parser.add_argument("--attentions", action="store_true", help="list attentions instead of models")


def run(args: argparse.Namespace, out: Output) -> int:
    """Print the rows that pass every filter."""
    if args.attentions:
        return _list_attentions(args, out)
    from astrozoo.registry import list_models, model_info

    filters: dict[str, Any] = {name: getattr(args, name) for name in _FILTERS if getattr(args, name) is not None}
    if args.max_params is not None:
        filters["max_params"] = args.max_params
    if args.pretrained:
        filters["pretrained"] = True
    names = list_models(args.pattern, **filters)
    if args.names:
        return _print_names(names, out)
    specs = [model_info(name) for name in names]
    rows: list[dict[str, Any]] = [
        {
            "name": name,
            "family": spec.family,
            "domain": spec.domain,
            "task": spec.task,
            "size": spec.size,
            "parameters": spec.costs.parameters if spec.costs else None,
            "summary": spec.summary,
            "distribution": spec.distribution,
        }
        for name, spec in zip(names, specs, strict=True)
    ]
    if out.as_json:
        out.document(rows)
    elif rows:
        shown = [
            (
                row["name"],
                row["domain"],
                row["task"],
                "" if row["parameters"] is None else format_count(row["parameters"]),
                row["summary"],
            )
            for row in rows
        ]
        out.table(("name", "domain", "task", "parameters", "summary"), shown)
    else:
        out.line("no model matches; `astrozoo list` without filters shows all.")
    return 0


def _list_attentions(args: argparse.Namespace, out: Output) -> int:
    from astrozoo.registry import attention_info, list_attentions

    names = list_attentions(args.pattern)
    if args.names:
        return _print_names(names, out)
    specs = [attention_info(name) for name in names]
    if out.as_json:
        out.document([spec.to_dict() for spec in specs])
    elif specs:
        rows = [(spec.name, spec.summary, spec.exactness, spec.cost, ", ".join(spec.masks)) for spec in specs]
        out.table(("name", "computes", "exactness", "cost", "masks"), rows)
    else:
        out.line("no attention matches.")
    return 0


def _print_names(names: list[str], out: Output) -> int:
    if out.as_json:
        out.document(names)
    else:
        for name in names:
            out.line(name)
    return 0
