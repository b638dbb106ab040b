"""What the conformance kit found: one result per check, and the report of a model."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from astrozoo.errors import AstrozooError

__all__ = ["CheckResult", "ConformanceError", "NotApplicable", "Report", "require"]


class ConformanceError(AstrozooError, AssertionError):
    """A model does not keep the model contract; the message lists the checks that failed and why."""


class NotApplicable(Exception):  # noqa: N818  # an outcome, not an error
    """Raised by a check that has nothing to test in this model; the message is the reason."""


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
    """All results of one model."""

    model: str
    results: tuple[CheckResult, ...]

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
            raise ConformanceError("\n".join([f"{self.model} does not keep the model contract:", *lines]))


def require(condition: bool, message: str) -> None:
    """Fail the running check with `message` unless `condition` holds (unlike `assert`, also under `python -O`)."""
    if not condition:
        raise ConformanceError(message)
