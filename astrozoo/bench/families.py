"""Which variant of a family takes part in a comparison."""

from __future__ import annotations

from astrozoo import registry
from astrozoo.registry.names import SIZES

__all__ = ["tiny_variants"]


def tiny_variants(pattern: str = "*", *, domain: str | None = None) -> dict[str, str]:
    """The variant of each family that takes part: `tiny`, or the smallest there is.

    Args:
        pattern: Of the variants' names.
        domain: Of the families; None for all.
    """
    variants: dict[str, list[str]] = {}
    for name in registry.list_models(pattern):
        spec = registry.model_info(name)
        if domain in (None, spec.domain):
            variants.setdefault(spec.family, []).append(name)

    def rank(name: str) -> tuple[bool, int]:
        size = name.rpartition("_")[2]
        return size != "tiny", SIZES.index(size) if size in SIZES else len(SIZES)

    return {family: min(names, key=rank) for family, names in variants.items()}
