"""The kit of attentions itself: a sound attention passes, and each way of breaking the contract is found."""

import re

import pytest
from attention_mutants import MUTANTS, flash_like

from astrozoo.attention.flash import Flash, flash
from astrozoo.errors import ConfigError
from astrozoo.testing import (
    ATTENTION_CHECKS,
    ConformanceError,
    assert_attention_check,
    attention_checks,
    check_attention,
)
from astrozoo.testing.attention.subject import AttentionSubject

BUGS = r"- \w+: (AttributeError|ImportError|KeyError|NameError)"  # of a mutant broken in another way than it says


def test_flash_passes_every_check():
    report = check_attention(flash)
    assert report.ok
    assert report.contract == "attention"
    assert [result.name for result in report.results] == list(ATTENTION_CHECKS)
    assert {result.state for result in report.results} == {"passed"}


@pytest.mark.parametrize(("check", "broken"), MUTANTS.values(), ids=MUTANTS)
def test_a_broken_attention_is_rejected_by_the_right_check(check, broken):
    with pytest.raises(ConformanceError, match=check) as caught:
        assert_attention_check(broken, check)
    assert not re.search(BUGS, str(caught.value))


def test_every_check_has_a_mutant():
    assert {check for check, _ in MUTANTS.values()} == set(ATTENTION_CHECKS)


def test_a_subclass_that_breaks_nothing_passes():
    class Renamed(Flash):
        pass

    assert check_attention(flash_like(Renamed), checks=["names", "value", "spec_is_true"]).ok


def test_what_is_denied_truly_is_not_applicable():
    class Modest(Flash):
        pass

    modest = flash_like(Modest, masks=("key_mask",), cross=False, causal=False, cache=None, grouped_query=False)
    denied = [
        "cross",
        "grouped_query",
        "segments",
        "bias_value",
        "bias_gradient",
        "causal",
        "causal_alignment",
        "cache",
    ]
    report = check_attention(modest, checks=denied)
    assert {result.state for result in report.results} == {"not applicable"}


def test_a_report_names_every_failure():
    class Wrong(Flash):
        def attend(self, query, key, value, terms):
            return super().attend(query, key, value, terms) * 2

    report = check_attention(flash_like(Wrong), checks=["value", "names", "gradients"], raise_on_failure=False)
    assert [result.state for result in report.results] == ["failed", "passed", "failed"]
    with pytest.raises(ConformanceError, match="broken does not keep the attention contract") as caught:
        report.raise_for_failures()
    assert [line.split(":")[0] for line in str(caught.value).splitlines()[1:]] == ["- value", "- gradients"]


def test_options_choose_the_instance_that_is_checked():
    class WrongWithTwoKeyHeads(Flash):
        def attend(self, query, key, value, terms):
            return super().attend(query, key, value, terms) * (2 if self.config.num_kv_heads == 2 else 1)

    broken = flash_like(WrongWithTwoKeyHeads)
    assert check_attention(broken, checks=["value"]).ok
    assert not check_attention(broken, checks=["value"], options={"num_kv_heads": 2}, raise_on_failure=False).ok


def test_an_alias_is_checked_with_what_it_presets():
    subject = AttentionSubject("multi_query")
    assert subject.build().config.num_kv_heads == 1
    assert check_attention("multi_query", checks=["names", "value", "spec_is_true"]).ok


def test_an_alias_that_takes_no_points_is_checked_without():
    assert AttentionSubject("metric_bias").case().geometry is not None
    assert AttentionSubject("alibi").case().geometry is None
    assert check_attention("alibi", checks=["value", "spec_is_true", "causal", "cache"]).ok


def test_an_unknown_check_offers_the_near_ones():
    with pytest.raises(ConfigError, match="'causal'"):
        check_attention(flash, checks=["casual"])


def test_pytest_parameters_have_readable_ids():
    parameters = attention_checks(["flash"])
    assert [parameter.id for parameter in parameters][:2] == ["flash-names", "flash-spec_is_true"]
    assert parameters[0].values == ("flash", "names")
