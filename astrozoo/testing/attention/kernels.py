"""Checks of backends: what is forced runs or says why not, what is reported ran, and all agree."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from astrozoo.attention import explain_attention, record_attention, use_backend
from astrozoo.attention.choice import backends
from astrozoo.errors import AstrozooError, BackendRefused
from astrozoo.testing.attention.cases import agree
from astrozoo.testing.attention.subject import AttentionSubject
from astrozoo.testing.report import ConformanceError, NotApplicable, require

__all__: list[str] = []


def forced_backend_missing(subject: AttentionSubject) -> None:
    """A backend that was forced and cannot serve, or does not exist, is an error that names it, never a fallback."""
    case = subject.own_case()
    absent = [name for name in ("flash_attn", "xformers", "sdpa:efficient", "flex") if not _serves(name)]
    for name in ("no_such_backend", *absent):
        try:
            case(subject.build(backend=name))
        except AstrozooError as error:
            spelt = name.partition(":")[0]
            require(spelt in str(error), f"the refusal of backend={name!r} does not name it: {error}")
        except Exception as error:
            raise ConformanceError(f"backend={name!r} raised {type(error).__name__}: {error}") from error
        else:
            raise ConformanceError(f"backend={name!r} cannot serve here, but the call went through")


def _serves(name: str) -> bool:
    """Whether some softmax attention can run on `name` here: then forcing it is no error."""
    from astrozoo.attention import attend

    query = torch.zeros(2, 4, 12, 8, dtype=torch.float64)
    try:
        attend(query, query, query, backend=name)
    except AstrozooError:
        return False
    return True


def reported_backend(subject: AttentionSubject) -> None:
    """`last_choice` and `record_attention` name what ran, seen from the backends and from PyTorch's dispatcher."""
    case = subject.own_case()
    order = subject.orders()[0]
    attention = subject.build()
    require(attention.last_choice is None, "a new instance reports a backend although none ran")
    names = ("auto", "math", "sdpa", "chunked") if _uses_backends(subject) else ("auto",)
    for name in names:
        attention = subject.build(backend=name)
        with record_attention() as log, _spying() as ran, _Operators() as seen, torch.no_grad():
            case(attention, **order)
        reported = [choice.backend for choice in log]
        require(reported == ran, f"backend={name!r}: record_attention says {reported}, but {ran} ran")
        last = attention.last_choice
        if last is None:
            require(not ran, f"backend={name!r}: {ran} ran, but last_choice is None")
            continue
        require(bool(ran), f"backend={name!r}: last_choice is {last.backend}, but no backend ran")
        require(last.backend == ran[-1], f"backend={name!r}: last_choice is {last.backend}, but {ran[-1]} ran")
        require(name in ("auto", last.backend), f"backend={name!r} was forced, but {last.backend} ran")
        fused = any("scaled_dot_product" in operator for operator in seen.names)
        if last.backend in ("sdpa", "math", "chunked"):
            wanted = last.backend == "sdpa"
            require(
                fused == wanted,
                f"last_choice is {last.backend}, but PyTorch {'ran' if fused else 'did not run'} its fused kernel",
            )


def explained(subject: AttentionSubject) -> None:
    """`explain_attention` tells without running what then runs, for every call of a kernel."""
    attention = subject.build()
    for case in subject.cases():
        for names in ((), subject.declared()):
            terms = {**subject.orders()[-1], **subject.terms(case, *names)}
            given = terms if case.geometry is None else {**terms, "geometry": case.geometry}
            with record_attention() as planned:
                text = explain_attention(attention, case.x, case.context, **given)
            require(attention.last_choice is None, "explain_attention changes last_choice, although nothing ran")
            with record_attention() as ran:
                case(attention, **terms)
            attention.last_choice = None
            what = f"{case.label} with {names}"
            kernels = [[(choice.backend, choice.kernel) for choice in log] for log in (planned, ran)]
            require(kernels[0] == kernels[1], f"{what}: explained as {kernels[0]}, but {kernels[1]} ran")
            require(all(choice.table() in text for choice in planned), f"{what}: the text lacks a choice")


def _uses_backends(subject: AttentionSubject) -> bool:
    with record_attention() as log, torch.no_grad():
        subject.own_case()(subject.build())
    return bool(log)


@contextlib.contextmanager
def _spying() -> Iterator[list[str]]:
    """Names of the backends whose `run` is called inside the block."""
    ran: list[str] = []
    originals = {backend: backend.run for backend in backends().values()}

    def watched(backend: Any, run: Any) -> Any:
        def spy(*arguments: Any, **named: Any) -> Any:
            ran.append(backend.name)
            return run(*arguments, **named)

        return spy

    for backend, run in originals.items():
        backend.run = watched(backend, run)  # type: ignore[method-assign]
    try:
        yield ran
    finally:
        for backend in originals:
            del backend.run


class _Operators(TorchDispatchMode):
    """Collects the names of all operators that PyTorch runs."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(str(func))
        return func(*args, **(kwargs or {}))


def backends_agree(subject: AttentionSubject) -> None:
    """Every backend that can serve a request gives what plain attention gives, and the same gradients."""
    if not _uses_backends(subject):
        raise NotApplicable("it runs on no backend of softmax attention")
    compared = 0
    for case in subject.cases():
        declared = subject.declared()
        for names in [(), *((name,) for name in declared), declared]:
            terms = subject.terms(case, *names)
            for order in subject.orders():
                expected = _forced(subject, "math", case, {**order, **terms})
                require(expected is not None, "math refuses a request")
                for name in (*backends(), "auto"):
                    got = None if name == "math" else _forced(subject, name, case, {**order, **terms})
                    if got is None or expected is None:
                        continue
                    compared += name != "auto"
                    what = f"{case.label} {order} with {names}: {name} and math"
                    for one, other in zip(got, expected, strict=True):
                        agree(one, other, what, 1e-9)
    require(compared > 0, "no other backend than math took any request")


def _forced(subject: AttentionSubject, name: str, case: Any, terms: dict[str, Any]) -> list[torch.Tensor] | None:
    attention = subject.build()
    own = case.leaves()
    try:
        with use_backend(name):
            y = own(attention, **terms)
    except BackendRefused:
        return None
    gradients = torch.autograd.grad(
        y.square().sum(), [own.source, *attention.parameters()], allow_unused=True, materialize_grads=True
    )
    return [y.detach(), torch.cat([gradient.flatten() for gradient in gradients])]  # some alone may be rounding
