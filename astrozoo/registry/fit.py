"""Whether an attention fits where a model wants to use it, from its spec alone, with the reason if it does not."""

from __future__ import annotations

from dataclasses import dataclass

from astrozoo.registry.spec import AttentionSpec

__all__ = ["TokenUse", "misuse"]


@dataclass(frozen=True, kw_only=True)
class TokenUse:
    """What a model asks of the attention over its tokens.

    Attributes:
        causal: Whether a token may see earlier ones only.
        cross: Whether keys come from another sequence.
        masks: Terms the model passes: any of `mask`, `key_mask`, `bias`, `segments`.
        geometries: Kinds of geometry it can pass: any of `grid`, `graph`, `points`.
    """

    causal: bool = False
    cross: bool = False
    masks: tuple[str, ...] = ()
    geometries: tuple[str, ...] = ()


def misuse(spec: AttentionSpec, use: TokenUse) -> str:
    """Why an attention cannot serve a use, or an empty string if it can."""
    if use.causal and not spec.causal:
        return "it cannot keep tokens from seeing later ones"
    if not use.causal and spec.causal_only:
        return "it sees earlier tokens only"
    if use.cross and not spec.cross:
        return "its keys cannot come from another sequence"
    for name in use.masks:
        if name not in spec.masks:
            return f"it honours no {name}"
    if spec.needs_geometry and spec.geometry not in use.geometries:
        return f"it needs a geometry of kind {spec.geometry}"
    return ""
