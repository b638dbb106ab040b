"""Test whether everything works on this machine: eleven checks, under a minute, no network.

Each check passes, warns (something optional is absent; how to get it is said) or fails. The exit status is 1 when one
fails.
"""

from __future__ import annotations

import argparse
import time

from astrozoo.cli.arguments import complete_model
from astrozoo.cli.output import Output

_STYLES = {"pass": "green", "warn": "yellow", "fail": "bold red"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which model, and where."""
    model = parser.add_argument("--model", default="cube_unet_nano", metavar="NAME", help="model to test with")
    model.completer = complete_model  # type: ignore[attr-defined]
    parser.add_argument("--device", help="where to test; default: the first accelerator, else cpu")


def run(args: argparse.Namespace, out: Output) -> int:
    """Print each finding as soon as it is there."""
    from astrozoo.cli.doctor import diagnose

    start = time.perf_counter()
    findings = []
    for finding in diagnose(args.model, args.device):
        findings.append(finding)
        if not out.as_json:
            text = f"{finding.state}  {finding.name:<21}  {finding.message} ({finding.seconds:.1f} s)"
            out.line(text, style=_STYLES[finding.state])
    seconds = time.perf_counter() - start
    counts = {state: sum(finding.state == state for finding in findings) for state in _STYLES}
    if out.as_json:
        out.document({"findings": findings, "counts": counts, "seconds": seconds})
    else:
        out.line(f"{counts['pass']} passed, {counts['warn']} warned, {counts['fail']} failed in {seconds:.1f} s")
    return 1 if counts["fail"] else 0
