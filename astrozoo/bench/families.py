"""Which variant of a family takes part in a comparison, and the network that does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from astrozoo import registry
from astrozoo.errors import ConfigError
from astrozoo.registry.names import SIZES, suggest

__all__ = ["chosen_variants", "network", "tiny_variants"]


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


def chosen_variants(families: Sequence[str] | None) -> dict[str, str]:
    """`tiny_variants` of the families asked for, in their order; of all where none is named.

    Raises:
        ConfigError: There is no such family.
    """
    known = tiny_variants()
    for name in families or ():
        if name not in known:
            raise ConfigError(f"there is no family {name!r}.{suggest(name, known)} There are: {', '.join(known)}.")
    return {name: known[name] for name in families or known}


def network(name: str, device: str) -> Any:
    """The variant; the network that a search derives in its place, before it has learnt anything.

    Args:
        name: Of the variant.
        device: Where its weights are; `meta` allocates none.
    """
    import torch

    from astrozoo.factory import create_model

    if not hasattr(registry.load_variant(name).family.model, "derive"):
        return create_model(name, device=device)
    torch.manual_seed(0)
    model: Any = create_model(name)
    return model.derive().to(device)
