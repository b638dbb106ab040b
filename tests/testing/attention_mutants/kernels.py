"""Mutants of backends: what was forced, reported or explained is not what runs."""

import dataclasses

import torch

from astrozoo.attention.core import attend_terms, is_planning
from astrozoo.attention.flash import Flash
from astrozoo.errors import BackendRefused
from attention_mutants.registry import mutant


@mutant("forced_backend_missing")
class FallsBackSilently(Flash):
    def attend(self, query, key, value, terms):
        try:
            return super().attend(query, key, value, terms)
        except BackendRefused:
            return attend_terms(query, key, value, terms).out


@mutant("forced_backend_missing")
class IgnoresTheBackend(Flash):
    def attend(self, query, key, value, terms):
        result = attend_terms(query, key, value, terms)
        self.last_choice = result.choice
        return result.out


@mutant("reported_backend")
class ReportsWhatWasAsked(Flash):
    """As a flag that tells what is switched on, not what ran."""

    def attend(self, query, key, value, terms):
        result = attend_terms(query, key, value, terms, backend="math")
        self.last_choice = dataclasses.replace(result.choice, backend="sdpa", kernel="FLASH_ATTENTION")
        return result.out


@mutant("reported_backend")
class ReportsNothing(Flash):
    def attend(self, query, key, value, terms):
        return attend_terms(query, key, value, terms, backend=self.config.backend).out


@mutant("reported_backend")
class ReportsItsFirstCall(Flash):
    def make_projections(self, config, **made):
        super().make_projections(config, **made)
        tokens = torch.zeros(1, 1, 1, 8)
        self.last_choice = attend_terms(tokens, tokens, tokens, self.terms_of_nothing()).choice

    def terms_of_nothing(self):
        from astrozoo.attention import Terms

        return Terms()


@mutant("explained")
class ChoosesOtherwiseWhenItRuns(Flash):
    """What is explained was planned on tensors that are not real; this one looks whether they are."""

    def attend(self, query, key, value, terms):
        backend = "auto" if is_planning() else "math"
        result = attend_terms(query, key, value, terms, backend=backend)
        self.last_choice = result.choice
        return result.out


@mutant("backends_agree")
class IsWrongOnOneBackend(Flash):
    def attend(self, query, key, value, terms):
        out = super().attend(query, key, value, terms)
        return out * 1.001 if self.last_choice.backend == "chunked" else out
