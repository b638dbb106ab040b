"""The list of checks, and how to run them on one model or under pytest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch

from astrozoo.errors import ConfigError
from astrozoo.registry.family import Variant
from astrozoo.registry.names import suggest
from astrozoo.testing import behaviour, contract, fields
from astrozoo.testing.report import CheckResult, Report, observe
from astrozoo.testing.subject import Subject

__all__ = ["CHECKS", "assert_check", "check_model", "model_checks"]

Check = Callable[[Subject], None]

CHECKS: Mapping[str, Check] = {
    "create": contract.create,
    "unknown_override": contract.unknown_override,
    "forward": contract.forward,
    "bad_inputs": contract.bad_inputs,
    "loss": contract.loss,
    "other_grids": contract.other_grids,
    "attention_swap": contract.attention_swap,
    "save_load": contract.save_load,
    "initialisation": contract.initialisation,
    "full_size": contract.full_size,
    "parameter_count": contract.parameter_count,
    "finite": behaviour.finite,
    "deterministic": behaviour.deterministic,
    "batch_invariant": behaviour.batch_invariant,
    "gradients": behaviour.gradients,
    "overfits": behaviour.overfits,
    "autocast_bfloat16": partial(behaviour.autocast, dtype=torch.bfloat16),
    "autocast_float16": partial(behaviour.autocast, dtype=torch.float16),
    "compile": behaviour.compile_fullgraph,
    "export": behaviour.export,
    "grad_checkpointing": behaviour.grad_checkpointing,
    "features": behaviour.features,
    **fields.CHECKS,
}

# Checks that see nothing of a variant but its miniature: variants that share it share the outcome.
_OF_THE_MINIATURE = frozenset(CHECKS) - {"create", "unknown_override", "full_size", "parameter_count", "save_load"}

Outcomes = dict[Any, CheckResult]
_of_this_test_run: Outcomes = {}


def check_model(
    model: str | Variant,
    *,
    checks: Iterable[str] | None = None,
    raise_on_failure: bool = True,
    outcomes: Outcomes | None = None,
) -> Report:
    """Test that a model keeps the model contract.

    Args:
        model: A registered name, or a `Variant` that is not registered yet.
        checks: Names from `CHECKS`; default all.
        raise_on_failure: Raise instead of returning a report with failures.
        outcomes: Give the same dictionary to several calls, empty at first, and variants of one family that share their
            miniature are checked once. By default every call looks for itself.

    Raises:
        ConformanceError: A check failed; the message lists all that did.
        ConfigError: `checks` names one that does not exist.
    """
    subject = Subject(model)
    names = list(CHECKS) if checks is None else list(checks)
    outcomes = {} if outcomes is None else outcomes
    report = Report(subject.name, tuple(_run(subject, name, outcomes) for name in names))
    if raise_on_failure:
        report.raise_for_failures()
    return report


def model_checks(models: Iterable[str] | None = None) -> list[Any]:
    """Parameters `(name, check)` for `pytest.mark.parametrize`, one per check and model (default: every one listed)."""
    import pytest

    if models is None:
        from astrozoo import registry

        models = registry.list_models()
    return [pytest.param(name, check, id=f"{name}-{check}") for name in models for check in CHECKS]


def assert_check(model: str | Variant, check: str) -> CheckResult:
    """Run one check and raise `ConformanceError` when it fails; variants that share a miniature share the outcome."""
    return check_model(model, checks=[check], outcomes=_of_this_test_run).results[0]


def _run(subject: Subject, name: str, outcomes: Outcomes) -> CheckResult:
    if name not in CHECKS:
        raise ConfigError(f"there is no check {name!r}.{suggest(name, CHECKS)} The checks are: {', '.join(CHECKS)}.")
    key = (name, subject.registered, subject.variant.family, subject.miniature_config)
    if name in _OF_THE_MINIATURE and key in outcomes:
        return outcomes[key]
    result = observe(name, lambda: CHECKS[name](subject))
    if name in _OF_THE_MINIATURE:
        outcomes[key] = result
    return result
