"""The extension module as an accelerator, loaded when a kernel is first asked for, and checked for being current."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import BuiltinFunctionType, ModuleType
from typing import Any

from astrozoo.errors import BackendUnavailableError

__all__ = ["RustAccelerator", "digest_of_sources"]

_CRATES = Path(__file__).resolve().parents[2] / "crates"
_REBUILD = (
    "Rebuild it with `make install` in the repository, or reinstall the wheel with "
    "`pip install --force-reinstall astrozoo-rust`; ASTROZOO_ACCEL=numpy does without it."
)


class RustAccelerator:
    """Kernels of the extension module by name.

    Attributes:
        name: `rust`.
        interface: Version of the calling convention that the module was built for.
        version: Version of the distribution.
        kernels: Function by the name of the kernel.

    Raises:
        BackendUnavailableError: The module does not load, or was built from other sources than those beside it.
    """

    name = "rust"

    def __init__(self) -> None:
        native = _load()
        built, present = native.SOURCES, digest_of_sources(_CRATES)
        if present is not None and built != present:
            raise BackendUnavailableError(
                f"astrozoo-rust is stale: its Rust sources changed since it was built. {_REBUILD}"
            )
        self.interface: int = native.INTERFACE
        self.version: str = native.VERSION
        self.kernels: Mapping[str, Callable[..., Any]] = {
            name: value for name, value in vars(native).items() if isinstance(value, BuiltinFunctionType)
        }


def digest_of_sources(crates: Path) -> str | None:
    """What `build.rs` stamps into the module, from the sources; None where there are none (an installed wheel)."""
    if not (crates / "astrozoo-py" / "build.rs").is_file():
        return None
    digest = hashlib.sha256()
    folders = [crates / "astrozoo-core", crates / "astrozoo-py"]
    files = [file for folder in folders for file in (folder / "Cargo.toml", *(folder / "src").rglob("*.rs"))]
    for name, file in sorted((file.relative_to(crates).as_posix(), file) for file in files):
        digest.update(name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def _load() -> ModuleType:
    try:
        from astrozoo_rust import _native
    except ImportError as error:
        raise BackendUnavailableError(f"astrozoo-rust is installed but does not load ({error}). {_REBUILD}") from error
    return _native
