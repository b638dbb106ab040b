"""Mutants of attentions other than flash."""
