"""What only reads metadata starts without the heavy modules."""

import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "numpy", "pluggy", "rich", "argcomplete")


@pytest.mark.parametrize(
    "argv",
    [["--help"], ["list"], ["list", "--json"], ["info", "cube_unet_nano"], ["plugins"], ["train", "--help"]],
    ids=" ".join,
)
def test_starts_without_heavy_modules(argv):
    program = (
        "import json, sys\n"
        "from astrozoo.cli import main\n"
        f"main({argv!r})\n"
        f"print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]), file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(result.stderr.splitlines()[-1]) == []
