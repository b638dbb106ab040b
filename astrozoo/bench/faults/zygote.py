"""A process that has imported all that training needs and forks into `astrozoo` commands, so that each starts at once.

A fresh command takes seconds to import PyTorch, and a run under hundreds of faults starts hundreds of them. This one
imports, starts no thread, and then for each order forks a child, which leads a process group of its own and does what
`python -m astrozoo` does. What differs from a fresh command is only when the imports happened.

Reads one JSON order per line: `argv`, and the files `output` and `errors`. Answers with the child's process number,
and with its exit status when it has ended (negative: the signal that ended it).
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import sys
from pathlib import Path
from typing import Any

__all__ = ["main"]


def main() -> int:
    """Serve orders until the input ends."""
    import accelerate  # noqa: F401  imported for the children
    import netCDF4  # noqa: F401
    import torchmetrics  # noqa: F401
    import zarr  # noqa: F401

    import astrozoo.data
    import astrozoo.models.cube.unet
    import astrozoo.training  # noqa: F401
    from astrozoo.data import evaluation  # noqa: F401
    from astrozoo.training import api, trainer  # noqa: F401

    tasks = Path("/proc/self/task")
    if tasks.is_dir() and len(list(tasks.iterdir())) > 1:
        raise RuntimeError("an import has started a thread, which a forked child would lack.")
    gc.collect()
    gc.freeze()  # or each child would write to, and so copy, every page of what was imported, above all at its end
    _answer("ready")
    while line := sys.stdin.readline():
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            _command(order)
            return 0
        _answer(child)
        _, status = os.waitpid(child, 0)
        try:
            _answer(os.waitstatus_to_exitcode(status))
        except BrokenPipeError:  # whoever asked has gone
            break
    os._exit(0)  # nothing here is worth an orderly end, and libraries would report what is frozen as leaked


def _command(order: dict[str, Any]) -> None:
    os.setsid()
    for descriptor, path, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, order["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
        (2, order["errors"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
    ):
        opened = os.open(path, flags, 0o644)
        os.dup2(opened, descriptor)
        os.close(opened)
    sys.argv = ["astrozoo", *order["argv"]]
    runpy.run_module("astrozoo", run_name="__main__", alter_sys=True)  # which exits with the status of the command


def _answer(value: object) -> None:
    sys.stdout.write(f"{json.dumps(value)}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
