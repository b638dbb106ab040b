from dataclasses import dataclass

import pytest

from astrozoo.errors import ConfigError
from astrozoo.nn import checks


@dataclass(frozen=True)
class Config:
    causal: object = False
    poles: object = "cross"


def test_a_misspelt_word_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match=r"Config.poles is 'crosss'; allowed: 'cross', 'edge'.*'cross'"):
        checks.one_of(Config(poles="crosss"), ("cross", "edge"), "poles")


def test_a_word_where_a_truth_value_belongs_is_refused():
    with pytest.raises(ConfigError, match=r"Config.causal is 'yes'; allowed: False, True"):
        checks.one_of(Config(causal="yes"), (False, True), "causal")
