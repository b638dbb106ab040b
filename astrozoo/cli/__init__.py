"""The `astrozoo` command.

Every command is a module of `astrozoo.cli.commands` with `add_arguments(parser)` and `run(args, out)`; it is imported
only when it was chosen, so that `list`, `info`, `plugins` and `--help` start without torch.
"""

from __future__ import annotations

from astrozoo.cli.app import main

__all__ = ["main"]
