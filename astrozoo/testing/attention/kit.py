"""The list of checks of attentions, and how to run them on one or under pytest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from astrozoo.errors import ConfigError
from astrozoo.registry.family import AttentionImplementation
from astrozoo.registry.names import suggest
from astrozoo.testing.attention import biases, caches, claims, kernels, masks, modes, numerics, order, tools, values
from astrozoo.testing.attention.subject import AttentionSubject
from astrozoo.testing.report import CheckResult, Report, observe

__all__ = ["ATTENTION_CHECKS", "assert_attention_check", "attention_checks", "check_attention"]

Check = Callable[[AttentionSubject], None]

ATTENTION_CHECKS: Mapping[str, Check] = {
    "names": claims.names,
    "spec_is_true": claims.spec_is_true,
    "value": values.value,
    "options": values.options,
    "head_dims": values.head_dims,
    "odd_lengths": values.odd_lengths,
    "lengths": values.lengths,
    "equal_tokens": values.equal_tokens,
    "cross": values.cross,
    "batch_independent": values.batch_independent,
    "key_permutation": values.key_permutation,
    "grouped_query": values.grouped_query,
    "key_mask_content": masks.key_mask_content,
    "mask_one_key": masks.mask_one_key,
    "dead_rows": masks.dead_rows,
    "nan_safe": masks.nan_safe,
    "mask_dtypes": masks.mask_dtypes,
    "segments": masks.segments,
    "bias_value": biases.bias_value,
    "bias_gradient": biases.bias_gradient,
    "weights": biases.weights,
    "causal": order.causal,
    "causal_alignment": order.causal_alignment,
    "cache": caches.cache,
    "cache_compiled": caches.cache_compiled,
    "cache_padding": caches.cache_padding,
    "cache_rows": caches.cache_rows,
    "gradients": modes.gradients,
    "dropout": modes.dropout,
    "inputs_unmodified": modes.inputs_unmodified,
    "stateless": modes.stateless,
    "deterministic": modes.deterministic,
    "checkpointing": modes.checkpointing,
    "dtypes": numerics.dtypes,
    "autocast": numerics.autocast,
    "large_logits": numerics.large_logits,
    "forced_backend_missing": kernels.forced_backend_missing,
    "reported_backend": kernels.reported_backend,
    "explained": kernels.explained,
    "backends_agree": kernels.backends_agree,
    "compile_fullgraph": tools.compile_fullgraph,
    "serialisation": tools.serialisation,
    "cost_exponent": tools.cost_exponent,
}


def check_attention(
    attention: str | AttentionImplementation,
    *,
    options: Mapping[str, Any] | None = None,
    checks: Iterable[str] | None = None,
    raise_on_failure: bool = True,
) -> Report:
    """Test that an attention keeps the attention contract.

    A check does not apply only where the spec declares that the attention cannot do what it is about, and the call
    really raises `UnsupportedArgument`: to claim too much fails, and so does to claim too little.

    Args:
        attention: A registered name or alias, or an `AttentionImplementation` that is not registered yet.
        options: Of the small instance that is checked, in the place of those of its example.
        checks: Names from `ATTENTION_CHECKS`; default all.
        raise_on_failure: Raise instead of returning a report with failures.

    Raises:
        ConformanceError: A check failed; the message lists all that did.
        ConfigError: `checks` names one that does not exist.
    """
    subject = AttentionSubject(attention, options)
    report = Report(subject.name, tuple(_run(subject, name) for name in checks or ATTENTION_CHECKS), "attention")
    if raise_on_failure:
        report.raise_for_failures()
    return report


def attention_checks(attentions: Iterable[str] | None = None) -> list[Any]:
    """Parameters `(name, check)` for `pytest.mark.parametrize`, one per check and attention (default: all listed)."""
    import pytest

    if attentions is None:
        from astrozoo import registry

        attentions = registry.list_attentions()
    return [pytest.param(name, check, id=f"{name}-{check}") for name in attentions for check in ATTENTION_CHECKS]


def assert_attention_check(attention: str | AttentionImplementation, check: str) -> CheckResult:
    """Run one check and raise `ConformanceError` when it fails."""
    return check_attention(attention, checks=[check]).results[0]


def _run(subject: AttentionSubject, name: str) -> CheckResult:
    if name not in ATTENTION_CHECKS:
        known = ", ".join(ATTENTION_CHECKS)
        raise ConfigError(f"there is no check {name!r}.{suggest(name, ATTENTION_CHECKS)} The checks are: {known}.")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a dozen tokens gain nothing from more, and on a busy machine threads wait for each other
    try:
        return observe(name, lambda: ATTENTION_CHECKS[name](subject))
    finally:
        torch.set_num_threads(threads)
