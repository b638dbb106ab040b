"""How long `import astrozoo; astrozoo.list_models()` takes in a fresh process, against a bare Python and against timm.

Targets: at most 3x of `python -c "import argparse, importlib.metadata"`, at least 20x faster than
`import timm; timm.list_models()`, and neither torch nor numpy nor pluggy imported.

Examples:
  astrozoo bench core
  astrozoo bench core --rounds 50 --json core.json
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from importlib.util import find_spec

from astrozoo.bench.harness import Comparison, measure_processes

__all__ = ["add_arguments", "run"]

OURS = "import astrozoo; astrozoo.list_models()"
BARE = "import argparse, importlib.metadata"
TIMM = "import timm; timm.list_models()"
UNWANTED = ("torch", "numpy", "pluggy")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How long to measure."""
    parser.add_argument("--rounds", type=int, default=30, help="rounds against a bare Python (30)")
    parser.add_argument(
        "--timm-rounds", type=int, default=7, help="rounds against timm, seconds each; 0 leaves it out (7)"
    )


def run(args: argparse.Namespace) -> list[Comparison]:
    """Measure both comparisons and hold them to their targets."""
    bare = measure_processes(
        {
            "astrozoo": _python(OURS),
            "bare Python": _python(BARE),
            "astrozoo list": [sys.executable, "-m", "astrozoo", "list", "--names"],
        },
        rounds=args.rounds,
        title="fresh process: import astrozoo, list its models",
    )
    bare.target_ratio("astrozoo", "bare Python", at_most=3.0)
    imported = imported_modules(UNWANTED)
    bare.target(f"number of {', '.join(UNWANTED)} imported", len(imported), at_most=0, unit="")
    if imported:
        bare.notes.append(f"imported although not needed: {', '.join(imported)}")
    bare.notes.append(f"bare Python runs {BARE!r}")
    comparisons = [bare]
    if args.timm_rounds < 1:
        bare.notes.append("timm was left out")
    elif find_spec("timm") is None:
        bare.notes.append("timm is not installed; pip install 'astrozoo[bench]' allows the comparison")
    else:
        peers = measure_processes(
            {"astrozoo": _python(OURS), "timm": _python(TIMM)},
            rounds=args.timm_rounds,
            title="fresh process: import the zoo, list its models",
            packages=["timm"],
        )
        peers.target_ratio("timm", "astrozoo", at_least=20.0)
        comparisons.append(peers)
    return comparisons


def imported_modules(names: tuple[str, ...], code: str = OURS) -> list[str]:
    """Which of the modules `names` a fresh process has imported after `code`."""
    program = f"{code}\nimport sys, json\nprint(json.dumps([name for name in {names!r} if name in sys.modules]))"
    result = subprocess.run(_python(program), check=True, capture_output=True, text=True)
    return list(json.loads(result.stdout))


def _python(code: str) -> list[str]:
    return [sys.executable, "-c", code]
