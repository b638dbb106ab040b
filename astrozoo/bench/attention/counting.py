"""How the work of an attention grows with the length: its products of matrices, counted without computing them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.utils.flop_counter import FlopCounterMode

from astrozoo import registry
from astrozoo.attention import use_backend
from astrozoo.bench.attention.cases import case_of
from astrozoo.bench.attention.contestants import seam
from astrozoo.bench.attention.interleave import reason_of
from astrozoo.bench.attention.setting import Setting
from astrozoo.bench.rows import Rows
from astrozoo.readable import format_flops

__all__ = ["EXPONENTS", "count_flops", "exponents"]

# What is promised, within 0.1. Squares of powers of two: the sides of the grids of `axial` double with the length.
EXPONENTS = {
    "sliding_window": 1.0, "dilated": 1.0, "block_sparse": 1.0, "neighborhood": 1.0, "linear": 1.0, "performer": 1.0,
    "linformer": 1.0, "gated_delta": 1.0, "mamba2": 1.0, "axial": 1.5,
}  # fmt: skip
_LENGTHS = (4096, 16384, 65536)


def exponents(names: Sequence[str], heads: int, head_dim: int) -> Rows:
    """A table of counts and fitted exponents of the named attentions, held to what is promised."""
    rows: list[dict[str, object]] = []
    comparison = Rows("cost: floating-point operations in products of matrices between projections, forward", {})
    for name in names:
        spec = registry.attention_info(name)
        row: dict[str, object] = {"": name}
        try:
            causal = case_of(name).is_causal(spec)
            size = Setting("meta", torch.float32, 1, heads, head_dim, 0, causal)
            counts = [count_flops(name, size.replace(tokens=tokens)) for tokens in _LENGTHS]
        except Exception as error:  # whatever an attention raises is a finding about it alone
            comparison.notes.append(f"{name} could not be counted: {reason_of(error)}")
            if name in EXPONENTS:
                comparison.target(f"failures to count {name}", 1, at_most=0, unit="")
            continue
        if not all(counts):
            comparison.notes.append(f"{name} has no products of matrices to count")
            continue
        exponent = fitted_exponent(_LENGTHS, counts)
        row |= {f"{tokens} tokens": format_flops(count) for tokens, count in zip(_LENGTHS, counts, strict=True)}
        rows.append({**row, "exponent": f"{exponent:.3f}", "declared": f"{spec.cost_exponent:g}"})
        if name in EXPONENTS:
            off = abs(exponent - EXPONENTS[name])
            comparison.target(f"exponent of {name}, {exponent:.3f}, off {EXPONENTS[name]:g}", off, at_most=0.1, unit="")
    comparison.rows = rows
    comparison.notes.append("softmax over what a query sees is counted in its unfused form, without causality")
    return comparison


def count_flops(name: str, setting: Setting) -> int:
    """Floating-point operations of one call between its projections, on the meta device: nothing is computed."""
    with use_backend("math"), torch.no_grad():
        contestant = seam(name, setting)
        with FlopCounterMode(display=False) as counter:
            contestant.run(*(tensor.detach() for tensor in contestant.inputs))
    return int(counter.get_total_flops())


def fitted_exponent(lengths: Sequence[int], counts: Sequence[float]) -> float:
    """Slope of the logarithm of counts over that of lengths, by least squares."""
    x, y = [math.log(length) for length in lengths], [math.log(count) for count in counts]
    mean_x, mean_y = math.fsum(x) / len(x), math.fsum(y) / len(y)
    return math.fsum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / math.fsum(
        (a - mean_x) ** 2 for a in x
    )
