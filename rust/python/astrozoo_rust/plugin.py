"""The plugin `astrozoo-rust`: offers its kernels through the hook `astrozoo_accelerators`."""

from __future__ import annotations

from collections.abc import Sequence

import astrozoo
from astrozoo_rust.provider import RustAccelerator

__all__ = ["astrozoo_accelerators"]


@astrozoo.hookimpl
def astrozoo_accelerators() -> Sequence[RustAccelerator]:
    """The Rust accelerator.

    Raises:
        BackendUnavailableError: The extension module is stale, broken, or missing from the installation.
    """
    return [RustAccelerator()]
