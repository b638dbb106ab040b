"""`python -m astrozoo` is the `astrozoo` command, for launchers that start modules."""

from __future__ import annotations

import sys

from astrozoo.cli import main

if __name__ == "__main__":
    sys.exit(main())
