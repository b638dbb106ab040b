"""Attention of every cell of a grid to the cells around it, or within the shifted window it lies in.

Neighborhood attention: Hassani et al. 2022 (arXiv:2204.07143). Shifted windows: Liu et al. 2021 (arXiv:2103.14030), on
three axes of the atmosphere Bi et al. 2022 (arXiv:2211.02556). A cell near an edge sees as many cells as any other: its
window moves inward; on a periodic axis, such as longitude, there is no edge and the window wraps. Where the kernel
covers the grid it is full attention.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from astrozoo.attention.backends.natten import natten_attention, natten_refusals, natten_version, probe_natten
from astrozoo.attention.backends.probe import for_real
from astrozoo.attention.choice import BackendChoice, note, overridden
from astrozoo.attention.core import is_planning, planning
from astrozoo.attention.grids import GridAttention, coordinates, for_each_axis, grid_of, square_grid
from astrozoo.attention.module import AttentionConfig, implement
from astrozoo.attention.reference import dense_attention
from astrozoo.attention.terms import Terms
from astrozoo.attention.tiling import Layout, tiled_attention, tiled_neighborhood
from astrozoo.errors import BackendRefused, InputError
from astrozoo.nn.checks import at_least, each_at_least, fail, one_of
from astrozoo.registry.spec import Paper

__all__ = ["Neighborhood", "NeighborhoodConfig", "neighborhood"]


@dataclass(frozen=True, kw_only=True)
class NeighborhoodConfig(AttentionConfig):
    """Options of `neighborhood`.

    Attributes:
        kernel: Cells that a query sees along each axis, or the size of a window; one number for all axes, or a tuple.
            An even number has one more cell before the query than after.
        mode: `sliding`: every cell is the middle of its own window; `shifted`: windows are fixed and do not overlap.
        shift: Mode `shifted` only: cells before the first boundary between windows, for all axes or a tuple; less than
            the kernel. Blocks usually alternate between 0 and half a window.
        causal_axes: Axes along which `causal` hides later cells; all by default. Negative ones count from the last.
        relative_bias: Whether each head learns a bias for every offset between two cells; needs a tuple as kernel.
        backend: As for all attentions; `natten` forces NATTEN's kernels (mode `sliding`, no periodic axis, CUDA).
    """

    kernel: int | tuple[int, ...] = 7
    mode: str = "sliding"
    shift: int | tuple[int, ...] = 0
    causal_axes: tuple[int, ...] | None = None
    relative_bias: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self, ("sliding", "shifted"), "mode")
        for name, minimum in (("kernel", 1), ("shift", 0)):
            (at_least if isinstance(getattr(self, name), int) else each_at_least)(self, minimum, name)
        if self.causal_axes is not None:
            each_at_least(self, -3, "causal_axes")
        if self.relative_bias and not isinstance(self.kernel, tuple):
            raise fail(self, "kernel", "with relative_bias a tuple with one size for each axis of the grid")
        if self.mode == "sliding" and self.shift not in (0, (0,) * 1, (0,) * 2, (0,) * 3):
            raise fail(self, "shift", "0: only windows of mode 'shifted' can be shifted")
        kernels = self.kernel if isinstance(self.kernel, tuple) else (self.kernel,)
        shifts = self.shift if isinstance(self.shift, tuple) else (self.shift,)
        if len(kernels) > 1 and len(shifts) > 1 and len(kernels) != len(shifts):
            raise fail(self, "shift", f"one number, or one for each of the {len(kernels)} axes of kernel")
        if max(shifts) and any(cells >= size for size, cells in zip(_cycle(kernels), _cycle(shifts), strict=False)):
            raise fail(self, "shift", f"less than kernel, {self.kernel}, on every axis")


def _cycle(values: tuple[int, ...]) -> tuple[int, ...]:
    return values * 3 if len(values) == 1 else values


class Neighborhood(GridAttention):
    """softmax(q k' / sqrt(dim) + bias(offset)) v over the neighbourhood of each cell.

    With `causal=True` a cell sees no cell that is later along any of `causal_axes`, which cannot be periodic. Positions
    of the caller, if there are any, hide what lies later by them too; the neighbourhood is always that of the grid.
    """

    def make_projections(self, config: Any, *, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        """As `Attention.make_projections`, and `relative_bias` (head, 2 kernel - 1, ...), indexed by offset."""
        super().make_projections(config, device=device, dtype=dtype)
        self.relative_bias: nn.Parameter | None = None
        if config.relative_bias:
            offsets = [2 * cells - 1 for cells in config.kernel]
            self.relative_bias = nn.Parameter(torch.empty(config.num_heads, *offsets, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """As `Attention.reset_parameters`; biases are normal with a standard deviation of 0.02."""
        super().reset_parameters()
        if self.relative_bias is not None:
            nn.init.trunc_normal_(self.relative_bias, std=0.02)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> Tensor:
        """As `Attention.attend`, in O(tokens * kernel)."""
        batch, heads, tokens, _ = query.shape
        if tokens == 0:
            return value.new_zeros(batch, heads, 0, value.shape[3])
        layout = self._layout(terms, tokens)
        backend = overridden(self.config.backend)
        names = (backend,) if isinstance(backend, str) else backend
        refused: tuple[str, ...] = ()
        # With `auto` the environment may name the backends instead.
        automatic = names == ("auto",) and not os.environ.get("ASTROZOO_ATTENTION_BACKEND")
        if "natten" in names or automatic:
            refused = self._natten_refusals(query, value, terms, layout)
            if not refused:
                return self._with_natten(query, key, value, terms, layout)
            names = tuple(name for name in names if name != "natten")
            if not names:
                raise BackendRefused(
                    f"The attention backend 'natten' cannot serve the call: {'; '.join(refused)}. "
                    "Leave backend at 'auto', or change what the reasons name."
                )
        result = tiled_attention(query, key, value, terms, layout, self.config.mode, self.relative_bias, names)
        self.last_choice = result[1]
        if refused and not torch.compiler.is_compiling():
            self.last_choice = dataclasses.replace(result[1], refused={"natten": refused, **result[1].refused})
        return result[0]

    def reference(self, query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> Tensor:
        """As `Attention.reference`: dense attention with the mask of all neighbourhoods."""
        return dense_attention(query, key, value, self._dense(query, terms)).out

    def weights(self, query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> tuple[Tensor, Tensor]:
        """As `Attention.weights`; 0 outside the neighbourhood."""
        return super().weights(query, key, value, self._dense(query, terms))

    def _layout(self, terms: Terms, tokens: int) -> Layout:
        config = self.config
        shape, periodic = grid_of(terms.geometry, tokens, self.spec.name)
        axes = len(shape)
        causal = [False] * axes
        if terms.causal:
            for axis in range(axes) if config.causal_axes is None else config.causal_axes:
                if not -axes <= axis < axes:
                    raise InputError(f"causal_axes is {config.causal_axes}; the grid has {axes} axes.")
                causal[axis] = True
        for axis, hides in enumerate(causal):
            if hides and periodic[axis]:
                raise InputError(
                    f"causal along axis {axis}, which is periodic: on a circle nothing is later. "
                    "Name the axes that have an order in causal_axes."
                )
        kernel = for_each_axis(config.kernel, axes, "kernel")
        return Layout(shape, periodic, kernel, for_each_axis(config.shift, axes, "shift"), tuple(causal))

    def _natten_refusals(self, query: Tensor, value: Tensor, terms: Terms, layout: Layout) -> tuple[str, ...]:
        if self.config.mode == "shifted":
            return ("it has no shifted windows",)
        kernel = tuple(min(reach, cells) for reach, cells in zip(layout.kernel, layout.shape, strict=True))
        reasons = natten_refusals(
            query, value, terms, shape=layout.shape, periodic=layout.periodic, kernel=kernel,
            biased=self.relative_bias is not None,
        )  # fmt: skip
        if reasons:
            return reasons
        small = tuple(min(reach, 7 + (reach + 1) % 2) for reach in kernel)
        with for_real(), planning(False):
            problem = probe_natten(
                tiled_neighborhood, str(query.device), query.dtype, query.shape[3], small, layout.causal
            )
        return (problem,) if problem else ()

    def _with_natten(self, query: Tensor, key: Tensor, value: Tensor, terms: Terms, layout: Layout) -> Tensor:
        kernel = tuple(min(reach, cells) for reach, cells in zip(layout.kernel, layout.shape, strict=True))
        self.last_choice = BackendChoice("natten", f"na{len(kernel)}d", natten_version())
        note(self.last_choice)
        if is_planning():
            return query.new_empty(*query.shape[:3], value.shape[3])
        return natten_attention(
            query, key, value, shape=layout.shape, kernel=kernel, causal=layout.causal, scale=terms.scale
        )

    def _dense(self, query: Tensor, terms: Terms) -> Terms:
        """The terms with all neighbourhoods as one mask (1, 1, token, token), cell by cell from their definition."""
        layout = self._layout(terms, query.shape[2])
        device, mode = query.device, self.config.mode
        places = coordinates(layout.shape, device)
        mask = torch.ones(len(places), len(places), dtype=torch.bool, device=device)
        index: list[slice | Tensor] = [slice(None)]
        for axis, cells in enumerate(layout.shape):
            kernel, wraps = layout.kernel[axis], layout.periodic[axis]
            seen = torch.zeros(cells, cells, dtype=torch.bool)
            for cell in range(cells):
                if mode == "shifted":
                    found = _same_window(cell, cells, kernel, layout.shift[axis], periodic=wraps)
                    found = [other for other in found if other <= cell or not layout.causal[axis]]
                else:
                    found = _nearest(cell, cells, kernel, periodic=wraps, causal=layout.causal[axis])
                seen[cell, found] = True
            at = places[:, axis]
            mask &= seen.to(device)[at[:, None], at]
            if self.relative_bias is not None:
                steps = torch.tensor(
                    [[_offset(to - cell, cells, periodic=wraps) for to in range(cells)] for cell in range(cells)]
                )
                # Offsets that no query sees may lie outside the table.
                index.append(steps.clamp(1 - kernel, kernel - 1).to(device)[at[:, None], at] + kernel - 1)
        bias = None if self.relative_bias is None else self.relative_bias[tuple(index)][None]
        ordered = terms.causal and terms.positions is not None
        return terms.replace(mask=mask[None, None], bias=bias, causal=ordered, geometry=None)


def _nearest(cell: int, cells: int, kernel: int, *, periodic: bool, causal: bool) -> list[int]:
    """The cells that one sees, by distance; of two as far away the earlier comes first."""
    if kernel >= cells:
        return list(range(cell + 1 if causal else cells))
    steps = sorted(range(-kernel, kernel + 1), key=lambda step: (abs(step), step))
    if causal:
        steps = [step for step in steps if -kernel < step <= 0]
    if periodic:
        return [(cell + step) % cells for step in steps][:kernel]
    return [cell + step for step in steps if 0 <= cell + step < cells][:kernel]


def _same_window(cell: int, cells: int, window: int, shift: int, *, periodic: bool) -> list[int]:
    """The cells between the same two boundaries."""
    if window >= cells:
        return list(range(cells))

    def number(at: int) -> int:
        return ((at - shift) % cells if periodic else at - shift) // window

    return [other for other in range(cells) if number(other) == number(cell)]


def _offset(step: int, cells: int, *, periodic: bool) -> int:
    """Cells from one to another, around a circle the shorter way."""
    return min((step, step - cells, step + cells), key=lambda way: (abs(way), way)) if periodic else step


neighborhood = implement(
    Neighborhood,
    NeighborhoodConfig,
    name="neighborhood",
    summary="k nearest cells on a 1- to 3-D grid, periodic axes; shifted windows as a mode",
    exactness="exact: equals dense attention with the mask of the neighbourhoods; a kernel of the grid equals flash",
    cost="N k d, k the cells of a neighbourhood",
    causal=True,
    cross=False,
    masks=("key_mask",),
    grouped_query=True,
    cache=None,
    geometry="grid",
    cost_exponent=1.0,
    paper=Paper(
        authors="Hassani, Walton, Li, Li, Shi",
        year=2022,
        title="Neighborhood Attention Transformer",
        arxiv="2204.07143",
    ),
    aliases={"shifted_window": {"mode": "shifted"}},
    example={"kernel": 3},
    example_geometry=square_grid,
)
