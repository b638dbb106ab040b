"""Say whether two folders hold the same wheels, byte for byte: `python same_wheels.py FOLDER OTHER`."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path


def digests(folder: str) -> dict[str, str]:
    """SHA-256 of each wheel by its name."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(Path(folder).glob("*.whl"))}


def main() -> int:
    """Print the digests; 1 if there are no wheels, or they differ."""
    one, other = (digests(folder) for folder in sys.argv[1:3])
    print(one, other, sep="\n")
    return int(not one or one != other)


if __name__ == "__main__":
    sys.exit(main())
