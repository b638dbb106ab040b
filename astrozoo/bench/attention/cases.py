"""With which options each attention is measured, on what geometry, and how much work that is.

An attention without an entry, such as a third party's, runs with its defaults.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from astrozoo.attention import Graph, Grid, Points
from astrozoo.bench.attention.setting import Setting
from astrozoo.registry.spec import AttentionSpec

__all__ = ["KERNEL", "WINDOW", "Case", "case_of", "full_pairs", "grid_shape"]

WINDOW = 512
KERNEL = 13
BLOCK, LOCAL_BLOCKS = 128, 3
SEGMENTS, DILATIONS = (128, 512, 2048), (1, 4, 16)
DEGREE = 16
RANK = 128


def full_pairs(setting: Setting) -> float:
    """Pairs of a query and a key it sees, for each head of each row: all, or half of them where causal."""
    return setting.tokens * (setting.tokens + 1) / 2 if setting.causal else setting.tokens**2


def _no_options(setting: Setting) -> Mapping[str, Any]:  # noqa: ARG001
    return {}


def _no_geometry(setting: Setting) -> Any:  # noqa: ARG001
    return None


@dataclass(frozen=True)
class Case:
    """How one attention is measured.

    Attributes:
        options: Options at a size.
        geometry: Geometry at a size, or None.
        pairs: Pairs of a query and a key it sees for each head of each row; None where none are compared.
        causal: Whether it is measured with later keys hidden; by default wherever it can hide them.
    """

    options: Callable[[Setting], Mapping[str, Any]] = _no_options
    geometry: Callable[[Setting], Any] = _no_geometry
    pairs: Callable[[Setting], float] | None = None
    causal: bool | None = None

    def is_causal(self, spec: AttentionSpec) -> bool:
        """Whether the attention with this spec is measured with later keys hidden."""
        return spec.causal if self.causal is None else self.causal


def case_of(name: str) -> Case:
    """The case of an attention."""
    return _CASES.get(name, Case())


def grid_shape(tokens: int) -> tuple[int, int]:
    """The sides of the grid of this many cells that is nearest to a square."""
    short = math.isqrt(tokens)
    while tokens % short:
        short -= 1
    return short, tokens // short


def _grid(setting: Setting) -> Grid:
    return Grid(grid_shape(setting.tokens))


def _sphere(setting: Setting) -> Points:
    """Cells of a latitude-longitude grid, weighted by their areas."""
    rows, columns = grid_shape(setting.tokens)
    lat = (torch.arange(rows, device=setting.device) + 0.5) * (180 / rows) - 90
    lon = torch.arange(columns, device=setting.device) * (360 / columns)
    coords = torch.stack(torch.meshgrid(lat, lon, indexing="ij"), dim=-1).reshape(1, -1, 2)
    return Points(coords, metric="great_circle", weights=torch.cos(torch.deg2rad(coords[..., 0])))


def _mesh(setting: Setting) -> Graph:
    """Nodes on a ring, each with an edge from itself and from those before it."""
    node = torch.arange(setting.tokens, device=setting.device)
    sources = [(node - step) % setting.tokens for step in range(DEGREE)]
    return Graph(torch.stack((torch.cat(sources), node.repeat(DEGREE))), shared=True)


def _group(setting: Setting) -> Mapping[str, Any]:  # noqa: ARG001
    """All processes, where there are some that can talk to each other: the ring then really goes round."""
    return {"group": "world"} if torch.distributed.is_initialized() else {}


def _pooled_pairs(setting: Setting) -> float:
    """By default keys are pooled at strides of 2 and 4 along both sides."""
    return setting.tokens * sum(
        math.prod(-(-side // stride) for side in grid_shape(setting.tokens)) for stride in (2, 4)
    )


def _block_pairs(setting: Setting) -> float:
    """Each row of blocks sees those around its own and the first one, which sees all."""
    blocks, total = math.ceil(setting.tokens / BLOCK), 0.0
    sizes = [min(BLOCK, setting.tokens - block * BLOCK) for block in range(blocks)]
    for row, queries in enumerate(sizes):
        near = range(max(row - LOCAL_BLOCKS, 0), min(row + LOCAL_BLOCKS + 1, blocks))
        seen = range(blocks) if row == 0 else {0, *near}
        if setting.causal:
            total += queries * sum(sizes[block] for block in seen if block < row) + queries * (queries + 1) / 2
        else:
            total += queries * sum(sizes[block] for block in seen)
    return total


def _dilated_pairs(setting: Setting) -> float:
    """Of whole segments; a pair that two branches hold is computed, and counted, twice."""
    total = 0.0
    for segment, dilation in zip(SEGMENTS, DILATIONS, strict=True):
        length = min(segment, setting.tokens)
        kept = math.ceil(length / dilation)
        total += setting.tokens / length * (kept * (kept + 1) / 2 if setting.causal else kept**2)
    return total


def _window_pairs(setting: Setting) -> float:
    reach = min(WINDOW, setting.tokens)
    before = setting.tokens * reach - reach * (reach - 1) / 2  # with itself
    return before if setting.causal else 2 * before - setting.tokens


_CASES: dict[str, Case] = {
    "flash": Case(pairs=full_pairs),
    "grouped_query": Case(pairs=full_pairs),
    "latent": Case(pairs=full_pairs),
    "perceiver": Case(pairs=full_pairs),
    "differential": Case(pairs=lambda setting: 2 * full_pairs(setting)),
    "metric_bias": Case(geometry=_sphere, pairs=full_pairs, causal=False),
    "axial": Case(
        geometry=_grid,
        pairs=lambda setting: setting.tokens * sum(grid_shape(setting.tokens)),
        causal=False,
    ),
    "multiscale": Case(geometry=_grid, pairs=_pooled_pairs),
    "linformer": Case(
        options=lambda setting: {"rank": RANK, "max_len": setting.tokens}, pairs=lambda setting: setting.tokens * RANK
    ),
    "ring": Case(options=_group, pairs=full_pairs),
    "graph": Case(geometry=_mesh, pairs=lambda setting: DEGREE * setting.tokens),
    "neighborhood": Case(
        options=lambda setting: {"kernel": KERNEL},  # noqa: ARG005
        geometry=_grid,
        causal=False,
        pairs=lambda setting: setting.tokens * math.prod(min(KERNEL, side) for side in grid_shape(setting.tokens)),
    ),
    "dilated": Case(
        options=lambda setting: {"segments": SEGMENTS, "dilations": DILATIONS},  # noqa: ARG005
        pairs=_dilated_pairs,
    ),
    "block_sparse": Case(
        options=lambda setting: {"block": BLOCK, "local_blocks": LOCAL_BLOCKS},  # noqa: ARG005
        pairs=_block_pairs,
    ),
    "sliding_window": Case(options=lambda setting: {"window": WINDOW}, pairs=_window_pairs),  # noqa: ARG005
}
