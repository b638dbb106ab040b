"""Run the conformance checks of `astrozoo.testing.check_model` on models: every promise of the model contract.

Give names, or --plugin for all models of a distribution. The exit status is 1 when a check fails.

Examples:
  astrozoo check cube_unet_nano
  astrozoo check --plugin my-models --json
  astrozoo check cube_unet_nano --only forward --only export
"""

from __future__ import annotations

import argparse

from astrozoo.cli.arguments import add_model_argument
from astrozoo.cli.output import Output
from astrozoo.errors import ConfigError

_STYLES = {"passed": "green", "failed": "bold red"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which models, which checks."""
    add_model_argument(parser, "names", nargs="*")
    parser.add_argument("--plugin", metavar="DISTRIBUTION", help="every model of this distribution")
    parser.add_argument("--only", action="append", metavar="CHECK", help="only this check; repeatable")


def run(args: argparse.Namespace, out: Output) -> int:
    """Check one model after the other and print each report."""
    from astrozoo.registry import list_models

    names = [*args.names, *(list_models(plugin=args.plugin) if args.plugin else [])]
    if not names:
        what = f"{args.plugin} offers no models" if args.plugin else "nothing to check"
        raise ConfigError(f"{what}; give names, or --plugin with one that `astrozoo plugins` shows.")
    from astrozoo.testing import CheckResult, check_model

    reports = []
    outcomes: dict[object, CheckResult] = {}
    for name in names:
        report = check_model(name, checks=args.only, raise_on_failure=False, outcomes=outcomes)
        reports.append(report)
        if not out.as_json:
            out.line(f"{report.model}: {len(report.failures)} of {len(report.results)} checks failed", style="bold")
            width = max(len(result.name) for result in report.results)
            for result in report.results:
                text = f"{result.state:<14}  {result.name:<{width}}  {result.seconds:6.2f} s  {result.message}"
                out.line(text.rstrip(), style=_STYLES.get(result.state, ""))
    if out.as_json:
        out.document(reports)
    return 0 if all(report.ok for report in reports) else 1
