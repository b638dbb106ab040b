"""Which backend serves a request, and why the others do not.

`auto` tries all backends by priority. A forced backend that cannot serve is an error, never a silent slow path. The
environment variable ASTROZOO_ATTENTION_BACKEND forces as an argument does (a comma separates several);
ASTROZOO_ATTENTION_STRICT=1 makes the unfused backends an error on an accelerator.
"""

from __future__ import annotations

import contextlib
import functools
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from astrozoo import registry
from astrozoo.attention.backends.chunked import ChunkedBackend
from astrozoo.attention.backends.flex import FlexBackend
from astrozoo.attention.backends.math import MathBackend
from astrozoo.attention.backends.sdpa import KERNELS, SdpaBackend
from astrozoo.attention.request import AttentionRequest
from astrozoo.errors import AttentionFallbackWarning, BackendRefused, ConfigError
from astrozoo.registry.hookspecs import AttentionBackend as Backend
from astrozoo.registry.names import suggest
from astrozoo.registry.official import ATTENTION_BACKENDS, install_command

__all__ = ["BackendChoice", "BackendName", "able", "backends", "record_attention", "resolve", "use_backend"]

BackendName = str | tuple[str, ...]
LONG = 1024  # tokens from which unfused attention on an accelerator is worth a warning
_UNFUSED = ("math", "chunked")


@dataclass(frozen=True)
class BackendChoice:
    """What served a request.

    Attributes:
        backend: Name of the backend.
        kernel: The kernel it was made to run.
        version: Of the package the kernel comes from.
        refused: Reasons of the backends that were tried before, by name.
        request: What was asked.
    """

    backend: str
    kernel: str
    version: str
    refused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    request: AttentionRequest | None = None

    def table(self) -> str:
        """One line per backend: what ran, and why those before it did not."""
        rows = [(name, "; ".join(reasons)) for name, reasons in self.refused.items()]
        rows.append((self.backend, f"runs {self.kernel} ({self.version})"))
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)


def backends() -> Mapping[str, Backend]:
    """All backends by name, from high to low priority: built-in ones and those of installed plugins."""
    return _backends(registry.plugin_manager())


@functools.lru_cache(maxsize=1)
def _backends(plugins: Any) -> Mapping[str, Backend]:
    found: list[Backend] = [SdpaBackend(), FlexBackend(), ChunkedBackend(), MathBackend()]
    names = {backend.name for backend in found}
    for offered in plugins.hook.astrozoo_attention_backends():
        for backend in offered:
            if backend.name not in names:  # built-in names stay ours
                names.add(backend.name)
                found.append(backend)
    return {backend.name: backend for backend in sorted(found, key=lambda backend: -backend.priority)}


_override: BackendName | None = None


@contextlib.contextmanager
def use_backend(backend: BackendName) -> Iterator[None]:
    """Within the block every attention whose `backend` is `auto` uses `backend`: a name, or a chain of names.

    Raises:
        ConfigError: There is no backend of that name.
    """
    global _override
    names_of(backend)
    before, _override = _override, backend
    try:
        yield
    finally:
        _override = before


def overridden(backend: BackendName) -> BackendName:
    """`backend`, or what `use_backend` put in the place of `auto`."""
    return _override if backend == "auto" and _override is not None else backend


def names_of(backend: BackendName) -> tuple[str, ...]:
    """The names in a `backend` argument, checked.

    Raises:
        ConfigError: There is no backend of that name; a backend of an official plugin says what to install.
    """
    names = (backend,) if isinstance(backend, str) else tuple(backend)
    known = ["auto", *backends()]
    for name in names:
        if name in known or (name.startswith("sdpa:") and f"{name[5:].upper()}_ATTENTION" in KERNELS):
            continue
        for distribution, offered in ATTENTION_BACKENDS.items():
            if name in offered:
                raise BackendRefused(
                    f"The attention backend {name!r} is not installed; get it with: {install_command(distribution)}"
                )
        raise ConfigError(
            f"There is no attention backend {name!r}.{suggest(str(name), known)} Known: {', '.join(known)}."
        )
    return names


def resolve(request: AttentionRequest, backend: BackendName) -> tuple[Backend, BackendChoice]:
    """The backend that serves `request`. Also within torch.compile, where the answer becomes a constant.

    Raises:
        BackendRefused: No backend that was asked for can serve it; the message holds all reasons.
        ConfigError: There is no backend of that name.
    """
    if request.compiling:
        name, kernel, version = _resolve_constant(backend, *request).split(_SEPARATOR)
        return _in_use[name], BackendChoice(name, kernel, version)
    return _resolve(request, backend, _environment(), registry.plugin_manager())


def able(request: AttentionRequest, backend: BackendName, names: tuple[str, ...]) -> tuple[str, ...]:
    """Those of `names` that `backend` asks for and that can serve `request`, in its order; none is no error.

    For an attention that has a way of its own where none of them can.

    Raises:
        ConfigError: There is no backend of a name in `backend`.
    """
    if request.compiling:
        return tuple(filter(None, _able_constant(backend, names, *request).split(_SEPARATOR)))
    return _able(request, backend, names, _environment(), registry.plugin_manager())


@torch.compiler.assume_constant_result
def _able_constant(backend: BackendName, names: tuple[str, ...], *request: Any) -> str:
    asked = AttentionRequest(*request)
    return _SEPARATOR.join(_able(asked, backend, names, _environment(), registry.plugin_manager()))


@functools.lru_cache(maxsize=4096)
def _able(
    request: AttentionRequest,
    backend: BackendName,
    names: tuple[str, ...],
    environment: tuple[str, bool],
    plugins: Any,  # noqa: ARG001  # another set of plugins is another answer
) -> tuple[str, ...]:
    asked = _asked(backend, environment)
    known = backends()
    chain = tuple(known) if asked == ("auto",) else asked
    return tuple(
        name
        for name in chain
        if name in names and name in known and not _reasons(known[name], request, asked == ("auto",), environment[1])
    )


_SEPARATOR = "\n"
_in_use: dict[str, Backend] = {}  # what traced code looks up; objects cannot be constants of a trace, strings can


@torch.compiler.assume_constant_result
def _resolve_constant(backend: BackendName, *request: Any) -> str:
    asked = AttentionRequest(*request)
    server, choice = _resolve(asked, backend, _environment(), registry.plugin_manager())
    # A trace knows the table as it was at its first look, so the backends of later calls have to be in it by then.
    _in_use.update({**backends(), choice.backend: server})
    return _SEPARATOR.join((choice.backend, choice.kernel, choice.version))


def _environment() -> tuple[str, bool]:
    return os.environ.get("ASTROZOO_ATTENTION_BACKEND", ""), os.environ.get("ASTROZOO_ATTENTION_STRICT", "") == "1"


@functools.lru_cache(maxsize=4096)
def _resolve(
    request: AttentionRequest,
    backend: BackendName,
    environment: tuple[str, bool],
    plugins: Any,  # noqa: ARG001  # another set of plugins is another answer
) -> tuple[Backend, BackendChoice]:
    strict = environment[1]
    names = _asked(backend, environment)
    automatic = names == ("auto",)
    chain: Sequence[Backend] = tuple(backends().values()) if automatic else tuple(_by_name(name) for name in names)
    refused: dict[str, tuple[str, ...]] = {}
    for candidate in chain:
        reasons = _reasons(candidate, request, automatic, strict)
        if reasons:
            refused[candidate.name] = reasons
            continue
        choice = BackendChoice(candidate.name, candidate.kernel(request), candidate.version(), refused, request)
        _warn_if_slow(choice, request, automatic)
        return candidate, choice
    table = "\n".join(f"  {name}: {'; '.join(reasons)}" for name, reasons in refused.items())
    asked = "auto" if automatic else ", ".join(names)
    raise BackendRefused(
        f"No attention backend of those asked for ({asked}) can serve {_in_words(request)}:\n{table}\n"
        "Leave backend at 'auto', or change what the reasons name."
    )


def _asked(backend: BackendName, environment: tuple[str, bool]) -> tuple[str, ...]:
    if backend == "auto" and environment[0]:
        backend = tuple(name.strip() for name in environment[0].split(","))
    return names_of(backend)


def _by_name(name: str) -> Backend:
    if name.startswith("sdpa:"):
        return SdpaBackend(f"{name[5:].upper()}_ATTENTION")
    return backends()[name]


def _reasons(candidate: Backend, request: AttentionRequest, automatic: bool, strict: bool) -> tuple[str, ...]:
    reasons = tuple(candidate.refusals(request))
    if reasons:
        return reasons
    if automatic and (unwanted := candidate.unwanted(request)):
        return (unwanted,)
    if strict and candidate.name in _UNFUSED and request.device_type != "cpu":
        return ("ASTROZOO_ATTENTION_STRICT=1 allows no unfused attention on an accelerator",)
    problem = candidate.probe(request)
    return (problem,) if problem else ()


def _warn_if_slow(choice: BackendChoice, request: AttentionRequest, automatic: bool) -> None:
    long = max(request.queries or 0, request.keys or 0) >= LONG
    if automatic and long and choice.backend in _UNFUSED and request.device_type != "cpu":
        warnings.warn(
            f"No fused kernel takes {_in_words(request)}; computing in full:\n{choice.table()}",
            AttentionFallbackWarning,
            stacklevel=2,
        )


def _in_words(request: AttentionRequest) -> str:
    size = "" if request.queries is None else f", up to {request.queries} queries and {request.keys} keys"
    terms = [f"mask kind {request.mask}"] if request.mask != "none" else []
    terms += ["causal"] if request.causal else []
    terms += ["dropout"] if request.dropout else []
    terms += ["log-sum-exp"] if request.lse else []
    extra = f", {', '.join(terms)}" if terms else ""
    return f"{request.dtype} on {request.device}, head_dim {request.head_dim}{size}{extra}"


_logs: list[list[BackendChoice]] = []


@contextlib.contextmanager
def record_attention() -> Iterator[list[BackendChoice]]:
    """Within the block, the choice of every attention call is appended to the list that the block gets.

    Calls inside compiled code are seen while torch.compile traces it, not when it runs.
    """
    log: list[BackendChoice] = []
    _logs.append(log)
    try:
        yield log
    finally:
        _logs.remove(log)


def note(choice: BackendChoice) -> None:
    """Append to the lists of all blocks of `record_attention`."""
    for log in _logs:
        log.append(choice)
