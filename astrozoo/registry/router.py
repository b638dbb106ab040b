"""What `create_attention("auto", ...)` makes: a printed rule, the first line that applies, and no surprise.

The rule looks only at what the caller says of the tokens, never at the data, so the same call always makes the same
attention. Softmax over all tokens is kept as long as it is affordable; a smaller field of view is chosen only beyond a
length that is part of the rule, and the decision says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from astrozoo.errors import ConfigError

__all__ = ["HINTS", "LONG", "RULES", "Decision", "Tokens", "route", "table"]

LONG: Mapping[str, int] = {"cpu": 8192, "other": 65536}  # tokens from which all-to-all attention is given up, by device


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """What the caller says of the tokens. Each field is an argument of `create_attention("auto", ...)`.

    Attributes:
        length: Number of tokens; None if not known, which keeps attention over all of them.
        masks: Arguments that will be passed in calls: any of `mask`, `key_mask`, `bias`, `segments`.
        grid: Cells per axis, for tokens on a regular grid.
        geometry: `graph` or `points`, if calls will pass one.
        context: Whether keys come from another sequence.
        world_size: Number of processes that share the sequence.
    """

    length: int | None = None
    masks: tuple[str, ...] = ()
    grid: tuple[int, ...] | None = None
    geometry: str | None = None
    context: bool = False
    world_size: int = 1


HINTS = ("length", "masks", "grid", "geometry", "context", "world_size")


@dataclass(frozen=True)
class Decision:
    """The attention that the rule names.

    Attributes:
        name: What `create_attention` takes.
        options: Options it is made with, where the caller gives none.
        reason: The line of the rule that applied.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""


@dataclass(frozen=True)
class _Rule:
    when: str
    applies: Callable[[Tokens, str], bool]
    name: str
    options: Callable[[Tokens], Mapping[str, Any]] = lambda _: {}


def _long(tokens: Tokens, device: str) -> bool:
    return tokens.length is not None and tokens.length > LONG.get(device, LONG["other"])


def _local(tokens: Tokens, device: str) -> bool:
    return _long(tokens, device) and not tokens.context


def _kernel(tokens: Tokens) -> Mapping[str, Any]:
    assert tokens.grid is not None
    return {"kernel": tuple(min(7, size) for size in tokens.grid)}


_LENGTHS = f"longer than {LONG['cpu']} tokens on CPU or {LONG['other']} elsewhere"
RULES: tuple[_Rule, ...] = (
    _Rule("the sequence is split over several processes", lambda tokens, _: tokens.world_size > 1, "ring"),
    _Rule("the tokens are nodes of a graph", lambda tokens, _: tokens.geometry == "graph", "graph"),
    _Rule("the tokens are points in space", lambda tokens, _: tokens.geometry == "points", "metric_bias"),
    _Rule(
        f"{_LENGTHS}, on a grid, masked at most by key_mask: the 7 nearest cells along each axis",
        lambda tokens, device: _local(tokens, device) and tokens.grid is not None and {*tokens.masks} <= {"key_mask"},
        "neighborhood",
        _kernel,
    ),
    _Rule(
        f"{_LENGTHS}, masked at most by key_mask and segments: the 512 nearest tokens",
        lambda tokens, device: _local(tokens, device) and {*tokens.masks} <= {"key_mask", "segments"},
        "sliding_window",
        lambda _: {"window": 512},
    ),
    _Rule("otherwise: all tokens, exactly", lambda *_: True, "flash"),
)


def route(tokens: Tokens, device: str) -> Decision:
    """The first rule that applies.

    Args:
        tokens: What the caller says of the tokens.
        device: Type of the device, such as `cpu` or `cuda`.

    Raises:
        ConfigError: A hint has no meaning.
    """
    known = ("mask", "key_mask", "bias", "segments")
    for name in tokens.masks:
        if name not in known:
            raise ConfigError(f"masks holds {name!r}; allowed: {', '.join(known)}.")
    if tokens.geometry not in (None, "graph", "points"):
        raise ConfigError(f"geometry is {tokens.geometry!r}; allowed: 'graph', 'points', or grid=(...) for a grid.")
    rule = next(rule for rule in RULES if rule.applies(tokens, device))
    return Decision(rule.name, dict(rule.options(tokens)), rule.when)


def table() -> str:
    """The rule, one line for each case, in the order in which they are tried."""
    width = max(len(rule.name) for rule in RULES)
    return "\n".join(f"{rule.name:<{width}}  {rule.when}" for rule in RULES)
