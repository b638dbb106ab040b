"""Attentions that are broken on purpose, each in one way that has been reported of a real library or is easy to make.

registry   how a mutant is made, and the list of all
terms      masks, biases, segments, causality
numbers    scale, heads, gradients, dropout, dtypes
conduct    state, backends, caches, compilation, saving, claims
kinds      mutants of attentions other than flash
"""

from attention_mutants import conduct, kinds, numbers, terms  # noqa: F401  # each adds to MUTANTS
from attention_mutants.registry import MUTANTS, flash_like

__all__ = ["MUTANTS", "flash_like"]
