"""Measure astrozoo against its peers, interleaved with them in one run.

Prints medians with their spread, ratios, and whether each target is met. The exit status is 1 when one is missed.

Examples:
  astrozoo bench core
  astrozoo bench trainer --json trainer.json
  astrozoo bench load --json
"""

from __future__ import annotations

import argparse
import importlib
from typing import Any

from astrozoo.cli.output import Output

# Name to what it measures; the module of the same name in astrozoo.bench does it.
BENCHMARKS = {
    "core": "Start-up: import and list, against a bare Python and timm.",
    "load": "Loading a large model, against mapping its file, timm and transformers.",
    "memory": "Estimated peak memory of training against measured.",
    "trainer": "Overhead of the trainer per step, against a bare loop and other trainers.",
    "attention": "Attentions against kernels, naive attention and other libraries: speed, memory, error, cost.",
    "accel": "Array kernels against the libraries one would otherwise use.",
    "fields": "Every family of cubes on real fields, against baselines and other libraries.",
    "compile": "torch.compile on every family: graph breaks, recompilations, speed-up, CUDA graphs.",
    "faults": "The trainer under random faults: kills, full disks, damaged files, NaN, dead workers.",
    "longrun": "A long run: speed, utilisation, memory, and kill -9 with resume against undisturbed runs.",
    "precision": "Every family in fp32, bf16 and fp16: losses within the spread of seeds, scaling, no NaN.",
    "determinism": "deterministic=True: the same bits twice, or the name of the operation that cannot.",
    "cube": "cube_unet against MONAI's U-Nets: throughput, memory, skill.",
}


class _BenchmarkParser(argparse.ArgumentParser):
    """Imports its benchmark only when that was chosen: the others may need peers that are not installed."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Add the options of the benchmark, then parse."""
        module = importlib.import_module(f"astrozoo.bench.{self.prog.split()[-1]}")
        self.description = module.__doc__
        module.add_arguments(self)
        self.add_argument("--json", nargs="?", const="-", metavar="FILE", help="write JSON to FILE, or print only that")
        self.set_defaults(benchmark=module.run)
        return super().parse_known_args(args, namespace)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One subcommand per benchmark, with its own options."""
    choices = parser.add_subparsers(metavar="BENCHMARK", required=True, parser_class=_BenchmarkParser)
    for name, summary in BENCHMARKS.items():
        choices.add_parser(name, help=summary, formatter_class=argparse.RawDescriptionHelpFormatter)


def run(args: argparse.Namespace, out: Output) -> int:
    """Run the benchmark, print tables or JSON."""
    from astrozoo.bench.harness import report

    comparisons = args.benchmark(args)
    return 0 if report(comparisons, json_file=args.json, stream=out.stream) else 1
