"""Who ships a model: what the registry knows of an instance beyond its family and configuration."""

from __future__ import annotations

import dataclasses

from astrozoo import registry
from astrozoo.registry.spec import ModelSpec

__all__ = ["with_origin"]


def with_origin(spec: ModelSpec, name: str) -> ModelSpec:
    """A model's spec with who ships it; costs stay only where the configuration is the one that was measured.

    Args:
        spec: Of the instance.
        name: As `list_models` gives it, or `distribution/name`.
    """
    listed = registry.model_info(name)
    measured = listed.costs if dict(spec.config) == dict(listed.config) else None
    return dataclasses.replace(spec, distribution=listed.distribution, version=listed.version, costs=measured)
