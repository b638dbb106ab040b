"""Every test of a kernel runs with its NumPy reference and with the Rust accelerator, where that is installed."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

import pytest

from astrozoo import accel


@pytest.fixture(params=["numpy", "rust"])
def provider(request: pytest.FixtureRequest) -> Iterator[str]:
    """The provider that serves all kernels during the test."""
    if request.param == "rust":
        need_rust()
    with accel.using(request.param):
        yield request.param


@pytest.fixture
def rust() -> None:
    """Skip where there is no Rust accelerator."""
    need_rust()


def need_rust() -> None:
    if find_spec("astrozoo_rust") is None:
        pytest.skip("astrozoo-rust is not installed; `make install` builds it where cargo is")
