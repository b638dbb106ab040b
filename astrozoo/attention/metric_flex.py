"""Distance biases without an N^2 tensor: FlexAttention's kernel computes the distance of each pair when it needs it.

On CUDA only; and not where the distances or slopes are learned at the time: their gradients would be gathered from all
pairs into a few numbers, one atomic addition after the other.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from astrozoo.attention.backends.flex import run_flex
from astrozoo.attention.choice import BackendChoice, BackendName, able, note, overridden
from astrozoo.attention.core import hide_unseen, is_planning
from astrozoo.attention.distance import log_weights, point_features, separation
from astrozoo.attention.placement import Placement
from astrozoo.attention.request import describe
from astrozoo.attention.terms import Terms
from astrozoo.errors import BackendRefused

__all__ = ["attend_flex", "distance_rule", "flex_serves"]

PAIRS = 1024**2  # of queries and keys from which `auto` finds the kernel worth its compilation


def flex_serves(
    query: Tensor, key: Tensor, value: Tensor, terms: Terms, here: Placement, slopes: Tensor, backend: BackendName
) -> bool:
    """Whether the kernel can and should serve the call.

    Raises:
        BackendRefused: It alone was asked for, and would have to learn slopes or places.
    """
    backend = overridden(backend)
    names = (backend,) if isinstance(backend, str) else backend
    if not ("auto" in names or "flex" in names):
        return False
    if query.device.type != "cuda":
        return False  # told by the backend itself, where it is asked
    if "flex" not in names and query.shape[2] * key.shape[2] < PAIRS:
        return False
    learned = [slopes, here.query, here.key] + ([] if here.weights is None else [here.weights])
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in learned):
        if names == ("flex",):
            raise BackendRefused(
                "flex gives no gradient of slopes, coordinates or weights of metric_bias. Leave backend at 'auto', or "
                "fix the slopes (slopes='geometric', or numbers)."
            )
        return False
    request = describe(query, key, value, terms, lse=False)
    if request.mask in ("none", "segments"):
        request = request._replace(mask="key")  # the distances are the pattern that makes it worth while
    return bool(able(request, backend, ("flex",)))


def attend_flex(
    query: Tensor, key: Tensor, value: Tensor, terms: Terms, here: Placement, slopes: Tensor, reach: float | None
) -> tuple[Tensor, BackendChoice]:
    """Output (batch, head, query, value dim) and what computed it.

    Args:
        query: As for `Attention.attend`.
        key: As for `Attention.attend`.
        value: As for `Attention.attend`.
        terms: Causality, segments and padding, of which keys without weight are part.
        here: Points of queries and keys.
        slopes: (head,), by which a unit of distance lowers a logit.
        reach: Distance beyond which keys are hidden, or None.
    """
    request = describe(query, key, value, terms, lse=False)
    choice = BackendChoice("flex", "flex_attention on distances", torch.__version__, {}, request)
    if not torch.compiler.is_compiling():
        note(choice)
    if is_planning():
        return query.new_empty(*query.shape[:3], value.shape[3]), choice
    key, value = hide_unseen(key, value, terms)
    rule = distance_rule(here, slopes, reach, past=terms.causal)
    return run_flex(query, key, value, terms, score_mod=rule)[0], choice


def distance_rule(
    here: Placement, slopes: Tensor, reach: float | None, *, past: bool
) -> Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]:
    """The logit of a pair from its scaled product and (batch, head, query, key), numbers all, as FlexAttention asks.

    Args:
        here: Points of queries and keys.
        slopes: (head,), by which a unit of distance lowers a logit.
        reach: Distance beyond which keys are hidden, or None.
        past: Whether keys at later times are hidden, under the metric `time`.
    """
    asking, answering = point_features(here.query, here.metric), point_features(here.key, here.metric)
    weights = None if here.weights is None else log_weights(here.weights)
    slopes = slopes.detach()
    timely = past and here.metric == "time"

    def at(table: Tensor, batch: Tensor, token: Tensor) -> Tensor:
        return table[batch if table.shape[0] > 1 else 0, token]

    def rule(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        own = tuple(at(feature, batch, query) for feature in asking)
        other = tuple(at(feature, batch, key) for feature in answering)
        between = separation(own, other, here.metric, here.period)
        score = score - slopes[head] * between
        if weights is not None:
            score = score + at(weights, batch, key)
        if reach is not None:
            score = torch.where(between > reach, -torch.inf, score)
        return torch.where(other[0] > own[0], -torch.inf, score) if timely else score

    return rule
