"""How a mutant is made: a subclass of an attention, under the spec of what it was made from."""

import dataclasses

from astrozoo.attention import AttentionConfig, implement
from astrozoo.attention.flash import Flash, flash

MUTANTS = {}  # "check-Class": (check, implementation)


def like(original, module, config, **changes):
    """An implementation of class `module` that says of itself what `original` says, but for `changes`."""
    claims = {field.name: getattr(original.spec, field.name) for field in dataclasses.fields(original.spec)}
    for name in ("aliases", "distribution", "version"):
        claims.pop(name)
    options = {"aliases": {}, "example": original.example, "example_geometry": original.example_geometry}
    return implement(module, config, **{**claims, "name": "broken", **options, **changes})


def flash_like(module, *, config=AttentionConfig, **changes):
    """An implementation of class `module` with the spec of `flash`, but for `changes`."""
    return like(flash, module, config, **changes)


def mutant(check, *, original=flash, config=AttentionConfig, **changes):
    """Decorator: the class breaks the contract in a way that `check` must find."""

    def register(module):
        MUTANTS[f"{check}-{module.__name__}"] = (check, like(original, module, config, **changes))
        return module

    return register


class WithTerms(Flash):
    """Both paths get the terms that `change` makes of those given, so that only independent checks can tell."""

    def change(self, terms, query, key):
        raise NotImplementedError

    def place(self, parts, terms, cache, positions):
        parts, terms = super().place(parts, terms, cache, positions)
        return parts, self.change(terms, parts[0], parts[1])
