"""Weights: save, load, shards, the Hub, sources, verification, conversion."""
