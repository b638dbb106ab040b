"""Attentions that are broken on purpose, each in one way that has been reported of a real library or is easy to make.

registry   how a mutant is made, and the list of all
terms      masks, biases, segments, causality
numbers    scale, heads, gradients, dropout, dtypes
caches     what earlier tokens left behind
kernels    backends
conduct    state, compilation, saving, claims
kinds      mutants of attentions other than flash
"""

from attention_mutants import caches, conduct, kernels, kinds, numbers, terms  # noqa: F401  # each adds to MUTANTS
from attention_mutants.registry import MUTANTS, flash_like

__all__ = ["MUTANTS", "flash_like"]
