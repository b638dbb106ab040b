"""What every test shares: two threads, fixed seeds, no network, and the folder of real data where there is one."""

from __future__ import annotations

import os
import random
import socket
from pathlib import Path

# Before torch and numpy start their thread pools (hence E402 below); a worker of a parallel run gets one thread.
THREADS = 1 if "PYTEST_XDIST_WORKER" in os.environ else 2
os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))
os.environ.setdefault("MPLBACKEND", "agg")

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent

# Times vary on shared machines, so no example fails for being slow; CI draws the same examples every time.
settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")

torch.set_num_threads(THREADS)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test starts from the same random state, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 (libraries under test may still draw from the legacy generator)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections leave this machine in no test; servers on the loopback interface are fine."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        local = (
            not isinstance(address, tuple)
            or str(address[0]) in ("localhost", "::1")
            or str(address[0]).startswith("127.")
        )
        if not local:
            raise OSError(f"a test tried to connect to {address!r}; tests use local servers only")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the source tree."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real data sets: `$ASTROZOO_SHARED_DATA`, or `../shared/data` beside the repository."""
    folder = Path(os.environ.get("ASTROZOO_SHARED_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set ASTROZOO_SHARED_DATA to the folder that holds them")
    return folder
