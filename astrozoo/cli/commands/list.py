"""List models by name and property, or the attentions they can use.

Examples:
  astrozoo list 'cube_*' --task field_regression --max-params 10M
  astrozoo list --capability export --names | xargs -n 1 astrozoo check
  astrozoo list --attentions

Nobody's code is imported to list it. Of a plugin without a catalogue only names are known here; `astrozoo info NAME`
imports the one model and tells the rest.
"""

from __future__ import annotations

import argparse
from typing import Any

from astrozoo.cli.arguments import count
from astrozoo.cli.output import Output
from astrozoo.errors import ConfigError
from astrozoo.readable import format_count
from astrozoo.registry import current, list_attentions, list_models
from astrozoo.registry.discovery import ATTENTION, MODELS
from astrozoo.registry.spec import ModelSpec

_FILTERS = {
    "domain": "kind of data, such as cube or light_curve",
    "family": "architecture, such as cube_unet",
    "task": "what it is trained for, such as field_forecast",
    "size": "nano, tiny, small, base, large or huge",
    "license": "SPDX identifier, such as Apache-2.0",
    "capability": "compile, export, grad_checkpointing, features, bfloat16 or float16",
    "attention": "models that take this attention",
    "plugin": "distribution that offers it",
}
_UNDESCRIBED = "no catalogue describes it; `astrozoo info {}` imports it and tells"


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
    filters: dict[str, Any] = {name: getattr(args, name) for name in _FILTERS if getattr(args, name) is not None}
    if args.max_params is not None:
        filters["max_params"] = args.max_params
    if args.pretrained:
        filters["pretrained"] = True
    if args.attentions:
        return _list_attentions(args.pattern, filters, args.names, out)
    names = list_models(args.pattern, **filters)
    if args.names:
        return _print_names(names, out)
    rows = [_row(name, *_known(MODELS, name)) for name in names]
    if out.as_json:
        out.document(rows)
    elif rows:
        shown = [
            (
                row["name"],
                row["domain"],
                row["task"],
                "" if row["parameters"] is None else format_count(row["parameters"]),
                row["summary"] or _UNDESCRIBED.format(row["name"]),
            )
            for row in rows
        ]
        out.table(("name", "domain", "task", "parameters", "summary"), shown)
    else:
        out.line("no model matches; `astrozoo list` without filters shows all.")
    return 0


def _known(group: str, name: str) -> tuple[str, Any]:
    """The distribution of a listed name, and its spec, or None where that would have to be imported."""
    registry = current()
    entry = registry.indices[group].listed[name]
    return entry.distribution, registry.known_spec(group, entry)


def _row(name: str, distribution: str, spec: ModelSpec | None) -> dict[str, Any]:
    return {
        "name": name,
        "family": spec and spec.family,
        "domain": spec and spec.domain,
        "task": spec and spec.task,
        "size": spec and spec.size,
        "parameters": spec.costs.parameters if spec and spec.costs else None,
        "summary": spec and spec.summary,
        "distribution": distribution,
    }


def _list_attentions(pattern: str | None, filters: dict[str, Any], bare: bool, out: Output) -> int:
    plugin = filters.pop("plugin", None)
    if filters:
        flags = ", ".join("--" + name.replace("_", "-") for name in filters)
        raise ConfigError(f"{flags} filters models; with --attentions only a pattern and --plugin do.")
    names = list_attentions(pattern, plugin=plugin)
    if bare:
        return _print_names(names, out)
    specs = [(name, *_known(ATTENTION, name)) for name in names]
    if out.as_json:
        out.document(
            [{**(spec.to_dict() if spec else {}), "name": name, "distribution": home} for name, home, spec in specs]
        )
    elif specs:
        rows = [
            (name, spec.summary, spec.exactness, spec.cost, ", ".join(spec.masks))
            if spec
            else (name, _UNDESCRIBED.format(name), "", "", "")
            for name, _, spec in specs
        ]
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
