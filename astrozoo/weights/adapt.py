"""Adaptation on request: other input channels, another number of outputs, everything else from the file.

Only tensors under the spec's `stems` and `heads` are touched. Heads are initialised anew. A stem keeps its filters:
with more input channels they are repeated in turn, with fewer those that fall together are averaged, and both are
scaled by old/new, so that equal channels give the response they gave before (exactly when one count divides the other).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from astrozoo.registry.spec import ModelSpec
from astrozoo.weights.mismatch import Mismatch

__all__ = ["Adaptation", "plan_adaptation", "refit_channels"]


@dataclass(slots=True)
class Adaptation:
    """What `adapt=True` does to a model.

    Attributes:
        fresh: Tensors initialised anew.
        refit: Stem tensors whose channels are repeated or averaged, with the shape they get.
        dropped: Tensors of the file that are not used.
    """

    fresh: set[str] = field(default_factory=set)
    refit: dict[str, tuple[int, ...]] = field(default_factory=dict)
    dropped: set[str] = field(default_factory=set)

    def to_dict(self) -> dict[str, list[str]]:
        """For the model's provenance."""
        return {"initialised": sorted(self.fresh), "refitted": sorted(self.refit), "dropped": sorted(self.dropped)}


def plan_adaptation(mismatch: Mismatch, spec: ModelSpec) -> tuple[Adaptation, set[str]]:
    """What to do about each difference, and the names of those that are taken care of."""
    plan = Adaptation()
    for name in mismatch.missing:
        if _under(name, spec.heads) or _under(name, spec.stems):
            plan.fresh.add(name)
    for name in mismatch.unexpected:
        if _under(name, spec.heads) or _under(name, spec.stems):
            plan.dropped.add(name)
    for name, (old, new) in mismatch.shapes.items():
        if _under(name, spec.heads):
            plan.fresh.add(name)
        elif _under(name, spec.stems) and _only_channels_differ(old, new):
            plan.refit[name] = new
    return plan, plan.fresh | plan.dropped | set(plan.refit)


def refit_channels(weight: Tensor, channels: int) -> Tensor:
    """`weight[out, in, ...]` with `channels` input channels: repeated in turn, or averaged, and scaled by old/new."""
    old = weight.shape[1]
    if channels >= old:
        fitted = weight[:, torch.arange(channels, device=weight.device) % old]
    else:
        fitted = torch.stack([weight[:, start::channels].mean(dim=1) for start in range(channels)], dim=1)
    return fitted * (old / channels)


def _only_channels_differ(old: tuple[int, ...], new: tuple[int, ...]) -> bool:
    return len(old) == len(new) >= 2 and 0 not in (old[1], new[1]) and (old[0], *old[2:]) == (new[0], *new[2:])


def _under(name: str, prefixes: Iterable[str]) -> bool:
    return any(name == prefix.rstrip(".") or name.startswith(prefix.rstrip(".") + ".") for prefix in prefixes)
