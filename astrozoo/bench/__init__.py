"""Measurements against peers: one harness, one module per promise.

`astrozoo bench NAME` runs one. Each module has `add_arguments(parser)` and `run(args)`, which
returns the comparisons it measured; `astrozoo.bench.harness` measures and reports.
"""
