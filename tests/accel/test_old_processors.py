"""The extension module on processors without AVX-512, without AVX2, and without AVX, under emulation."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).with_name("call_kernels.py")


@pytest.mark.usefixtures("rust")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="emulates older x86-64 processors")
@pytest.mark.skipif(shutil.which("qemu-x86_64") is None, reason="needs qemu-x86_64 (Debian: apt install qemu-user)")
@pytest.mark.parametrize("processor", ["Haswell", "SandyBridge", "Nehalem"])
def test_every_processor_runs_the_kernels_and_gives_the_same(processor):
    from astrozoo_rust import _native

    here = subprocess.run([sys.executable, SCRIPT, _native.__file__], check=True, capture_output=True, text=True)
    # OpenBLAS looks for its own kernels and finds some that the emulated processor cannot run; a virtual environment's
    # interpreter is a link, whose packages are named by a path.
    settings = {"OPENBLAS_CORETYPE": "Nehalem", "OPENBLAS_NUM_THREADS": "1"}
    environment = {**os.environ, **settings, "PYTHONPATH": str(Path(np.__file__).parents[1])}
    emulated = subprocess.run(
        ["qemu-x86_64", "-cpu", processor, str(Path(sys.executable).resolve()), SCRIPT, _native.__file__],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    assert emulated.returncode == 0, emulated.stderr[-2000:]
    assert emulated.stdout == here.stdout
    assert len(here.stdout.splitlines()) == 11
