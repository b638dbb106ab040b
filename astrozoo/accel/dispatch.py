"""Who computes a kernel: its NumPy reference, or an accelerator that a plugin offers for it.

    @reference
    def _nan_stats(values, threads): ...      # NumPy; what an accelerator's `nan_stats` takes and gives

    serve("nan_stats")(values, threads)       # the accelerator's where there is one, else the reference

`ASTROZOO_ACCEL` forces a provider: `numpy`, `rust`, or the name of another installed accelerator. Accelerators come
from the hook `astrozoo_accelerators`. None installed is no error; one that is stale or broken is, and says what to do.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from astrozoo.accel.threads import workers
from astrozoo.errors import BackendUnavailableError
from astrozoo.registry.names import suggest

if TYPE_CHECKING:
    from astrozoo.registry.hookspecs import Accelerator
    from astrozoo.registry.state import Registry

__all__ = ["INTERFACE", "AccelInfo", "info", "kernels", "reference", "serve", "using"]

INTERFACE = 1
"""Version of the calling convention of all kernels; raised with any change of what a reference takes or gives."""

NUMPY = "numpy"
_VARIABLE = "ASTROZOO_ACCEL"
_INSTALL = {"rust": "`make install` in the repository, where cargo is installed, or `pip install ./rust`"}

F = TypeVar("F", bound=Callable[..., Any])
_references: dict[str, Callable[..., Any]] = {}
_forced: ContextVar[str | None] = ContextVar("astrozoo_accel", default=None)
_found: tuple[Registry, Mapping[str, Accelerator]] | None = None


@dataclass(frozen=True, slots=True)
class AccelInfo:
    """Who serves what.

    Attributes:
        providers: By kernel: `numpy`, or the name of the accelerator that serves it.
        versions: By accelerator that is installed: its version, or an empty string where it tells none.
        forced: The provider that `ASTROZOO_ACCEL` or `using` forces; None where the choice is free.
        threads: Threads that a call uses when it names none.
    """

    providers: Mapping[str, str]
    versions: Mapping[str, str]
    forced: str | None
    threads: int

    def __str__(self) -> str:
        by_provider: dict[str, list[str]] = {}
        for kernel, provider in self.providers.items():
            by_provider.setdefault(provider, []).append(kernel)
        lines = [
            f"{' '.join(filter(None, (provider, self.versions.get(provider))))}: {', '.join(served)}"
            for provider, served in by_provider.items()
        ]
        how = f"forced to {self.forced}" if self.forced else "the fastest that is installed"
        return "\n".join([*lines, f"provider: {how}; threads: {self.threads}"])


def reference(function: F) -> F:
    """Register a NumPy reference; its kernel is named like it, without the leading underscore."""
    _references[function.__name__.removeprefix("_")] = function
    return function


def kernels() -> Mapping[str, Callable[..., Any]]:
    """NumPy references by the name of their kernel."""
    return dict(_references)


def serve(kernel: str) -> Callable[..., Any]:
    """The function that computes `kernel` here, with the arguments of its reference.

    Raises:
        BackendUnavailableError: An accelerator is stale or broken, or the forced provider is not installed or lacks the
            kernel.
    """
    forced = _choice()
    provider, function = _serving(kernel, _allowed(forced))
    if forced not in (None, provider):
        raise BackendUnavailableError(
            f"accelerator {forced!r} has no kernel {kernel!r}; unset {_VARIABLE}, or set it to numpy."
        )
    return function


def info() -> AccelInfo:
    """Which provider serves which kernel now.

    Raises:
        BackendUnavailableError: As `serve`.
    """
    forced = _choice()
    accelerators = _allowed(forced)
    providers = {kernel: _serving(kernel, accelerators)[0] for kernel in _references}
    versions = {name: str(getattr(item, "version", "")) for name, item in accelerators.items()}
    return AccelInfo(providers, versions, forced, workers(None))


@contextmanager
def using(provider: str) -> Iterator[None]:
    """Force a provider within a `with` block, in this thread or task; it wins over `ASTROZOO_ACCEL`.

    Args:
        provider: `numpy`, or the name of an accelerator.

    Raises:
        BackendUnavailableError: It is not installed.
    """
    _allowed(provider)
    token = _forced.set(provider)
    try:
        yield
    finally:
        _forced.reset(token)


def _choice() -> str | None:
    return _forced.get() or os.environ.get(_VARIABLE, "").strip().lower() or None


def _serving(kernel: str, accelerators: Mapping[str, Accelerator]) -> tuple[str, Callable[..., Any]]:
    for name, accelerator in accelerators.items():
        if kernel in accelerator.kernels:
            return name, accelerator.kernels[kernel]
    return NUMPY, _references[kernel]


def _allowed(forced: str | None) -> Mapping[str, Accelerator]:
    """The accelerators that may serve: all that are installed, the one that is forced, or none for `numpy`."""
    if forced == NUMPY:
        return {}  # they are not even looked for: one of them may be broken
    accelerators = _accelerators()
    if forced is None:
        return accelerators
    if forced not in accelerators:
        hint = suggest(forced, [NUMPY, *accelerators, *_INSTALL])
        install = f" To install it: {_INSTALL[forced]}." if forced in _INSTALL else ""
        raise BackendUnavailableError(f"accelerator {forced!r} was asked for and is not installed.{install}{hint}")
    return {forced: accelerators[forced]}


def _accelerators() -> Mapping[str, Accelerator]:
    """By name, in the order of the plugins; found once for each registry."""
    global _found
    from astrozoo import registry

    current = registry.current()
    if _found is None or _found[0] is not current:
        answers = registry.plugin_manager().hook.astrozoo_accelerators()
        accelerators: dict[str, Accelerator] = {}
        for accelerator in (item for answer in answers for item in answer):
            if accelerator.interface != INTERFACE:
                raise BackendUnavailableError(
                    f"accelerator {accelerator.name!r} is stale: it was built for interface {accelerator.interface} "
                    f"of astrozoo.accel, this astrozoo has {INTERFACE}. Rebuild it with `make install`, or "
                    f"install a version that belongs to this one; {_VARIABLE}=numpy does without it."
                )
            accelerators.setdefault(accelerator.name, accelerator)
        _found = current, accelerators
    return _found[1]
