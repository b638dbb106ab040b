"""What a conformance kit found: one result per check, and the report of a model or an attention."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from astrozoo.errors import AstrozooError

__all__ = ["CheckResult", "ConformanceError", "NotApplicable", "Report", "observe", "require"]


class ConformanceError(AstrozooError, AssertionError):
    """A model or an attention does not keep its contract; the message lists the checks that failed and why."""


class NotApplicable(Exception):  # noqa: N818  # an outcome, not an error
    """Raised by a check that has nothing to test here; the message is the reason."""


@dataclass(frozen=True, slots=True)
class CheckResult:
    """Outcome of one check.

    Attributes:
        name: Name of the check.
        state: `passed`, `failed` or `not applicable`.
        message: Why it failed, or why it does not apply.
        seconds: How long it took.
    """

    name: str
    state: str
    message: str = ""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Report:
    """All results of one model, or of one attention.

    Attributes:
        model: Its name.
        results: One for each check, in the order they ran.
        contract: What was checked: `model` or `attention`.
    """

    model: str
    results: tuple[CheckResult, ...]
    contract: str = "model"

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return not self.failures

    @property
    def failures(self) -> tuple[CheckResult, ...]:
        """The results of the checks that failed."""
        return tuple(result for result in self.results if result.state == "failed")

    def table(self) -> str:
        """One line per check, as plain text."""
        width = max(len(result.name) for result in self.results)
        lines = [
            f"{result.state:<14}  {result.name:<{width}}  {result.seconds:6.2f} s  {result.message}".rstrip()
            for result in self.results
        ]
        return "\n".join([f"{self.model}: {len(self.failures)} of {len(self.results)} checks failed", *lines])

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-able values."""
        return {"model": self.model, "ok": self.ok, "results": [asdict(result) for result in self.results]}

    def raise_for_failures(self) -> None:
        """Raise `ConformanceError` when a check failed."""
        if self.failures:
            lines = [f"- {result.name}: {result.message}" for result in self.failures]
            raise ConformanceError("\n".join([f"{self.model} does not keep the {self.contract} contract:", *lines]))


def require(condition: bool, message: str) -> None:
    """Fail the running check with `message` unless `condition` holds (unlike `assert`, also under `python -O`)."""
    if not condition:
        raise ConformanceError(message)


def observe(name: str, check: Callable[[], None]) -> CheckResult:
    """Run one check; the state of PyTorch's generator is as before afterwards."""
    start = time.perf_counter()
    state, message = "passed", ""
    rng = torch.random.get_rng_state()
    try:
        check()
    except NotApplicable as reason:
        state, message = "not applicable", str(reason)
    except Exception as error:  # what is broken must not hide the outcome of the other checks
        kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
        state, message = "failed", f"{kind}{error}"
    finally:
        torch.random.set_rng_state(rng)
    return CheckResult(name, state, message, time.perf_counter() - start)
