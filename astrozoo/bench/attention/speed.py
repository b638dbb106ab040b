"""The tables of times: `flash` against kernels, all attentions against each other, layers against other libraries'."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from astrozoo.bench.attention.cases import case_of, full_pairs
from astrozoo.bench.attention.contestants import Contestant, seam
from astrozoo.bench.attention.interleave import WAYS, Effort, reason_of
from astrozoo.bench.attention.kernels import kernels, naive
from astrozoo.bench.attention.layers import LAYERS, layer, peer_layer
from astrozoo.bench.attention.peers import peer_of
from astrozoo.bench.attention.race import PACKAGES, Errors, Make, race
from astrozoo.bench.attention.setting import Setting
from astrozoo.bench.harness import Comparison, measure
from astrozoo.bench.rows import Rows
from astrozoo.training.memory import available_memory

__all__ = ["attention_field", "attention_race", "host_race", "kernel_field", "kernel_race", "layer_race"]

_RECURRENT = ("linear", "gated_delta", "mamba2")
_SPARSE = ("sliding_window", "block_sparse")
_LONG = 2048  # tokens from which fused attention must be twice as fast as naive
_CROSSING = 4096  # tokens from which a recurrence must be faster than full attention on the CPU
_SPARSE_FROM = 8192  # tokens from which sparse attentions must show what they save
_WRONG = 3.0  # times the error of `flash`, beyond which a kernel is fast for no good


def kernel_field(setting: Setting) -> tuple[list[Contestant], list[str]]:
    """`flash` and the kernels it could have run."""
    ours = seam("flash", setting)
    found, notes = kernels(ours, setting)
    for kernel in found:
        kernel.peer = ours.name
    return [ours, *found], notes


def kernel_race(setting: Setting, effort: Effort, errors: Errors) -> Rows:
    """What the interface costs: `flash` within 2 % of the fastest kernel that is right."""
    comparison = race("flash and kernels called directly", setting, kernel_field, effort, errors)
    ours, *kernels_called = comparison.rows or [{}]
    limit = _WRONG * ours.get("error", float("inf"))
    wrong = {row["name"] for row in kernels_called if row.get("error", 0.0) > limit}
    for name in sorted(wrong):
        comparison.notes.append(f"{name} is not compared: its error is above {_WRONG:g} times that of flash")
    for way in WAYS:
        others = [row["name"] for row in kernels_called if way in row and row["name"] not in wrong]
        if others and way in ours:
            fastest = min(others, key=lambda name: comparison.samples[f"{name}, {way}"].median())
            comparison.target_ratio(f"flash, {way}", f"{fastest}, {way}", at_most=1.02)
    return comparison


def attention_field(names: Sequence[str]) -> Make:
    """`flash`, naive attention, the named ones, and what other libraries have for them."""

    def make(setting: Setting) -> tuple[list[Contestant], list[str]]:
        flash = seam("flash", setting)
        contestants, notes = [flash], []
        needed = 4 * setting.batch * setting.heads * setting.tokens**2 * setting.dtype.itemsize
        if needed < (available_memory(torch.device(setting.device)) or 0):
            flash.peer = "naive"
            contestants.append(naive(flash, setting))
        else:
            notes.append(f"naive was left out: it needs about {needed / 2**30:.0f} GiB")
        for name in names:
            if name == "flash":
                continue
            ours = _seam_or_failure(name, setting)
            contestants.append(ours)
            peer = peer_of(ours, setting) if ours.module is not None else ""
            if isinstance(peer, str):
                ours.peer = "flash"
                notes += [peer] if peer else []
            else:
                ours.peer = peer.name
                contestants.append(peer)
        return contestants, notes

    return make


def _seam_or_failure(name: str, setting: Setting) -> Contestant:
    try:
        return seam(name, setting)
    except Exception as error:  # one that cannot be built is a finding; the others are still to be measured
        reason = reason_of(error)

        def run() -> Tensor:
            raise RuntimeError(f"it could not be built: {reason}")

        return Contestant(name, run, (), ours=True)


def attention_race(setting: Setting, make: Make, effort: Effort, errors: Errors, *, longest: bool) -> Rows:
    """All attentions, each held to what is promised of it.

    Args:
        setting: The size.
        make: From `attention_field`.
        effort: How long to measure.
        errors: Where errors come from.
        longest: Whether this is the longest length, at which sparse attentions are judged.
    """
    comparison = race("attentions", setting, make, effort, errors)
    for way in WAYS:
        measured = {row["name"]: row for row in comparison.rows if way in row}
        if "flash" not in measured:
            continue
        flash = f"flash, {way}"
        if setting.tokens >= _LONG and "naive" in measured:
            comparison.target_ratio(f"naive, {way}", flash, at_least=2.0)
            comparison.target_ratio(flash, f"naive, {way}", at_most=0.4, metric="peak_bytes")
        for name in (name for name in _RECURRENT if name in measured):
            peer = measured[name]["peer"]
            if peer != "flash" and peer in measured:
                comparison.target_ratio(f"{peer}, {way}", f"{name}, {way}", at_least=0.9)
            if setting.device == "cpu" and setting.tokens >= _CROSSING:
                comparison.target_ratio(f"{name}, {way}", flash, at_most=1.0)
        for name in (name for name in _SPARSE if longest and setting.tokens >= _SPARSE_FROM and name in measured):
            pairs = case_of(name).pairs
            ideal = 1.0 if pairs is None else full_pairs(setting) / pairs(setting)
            if ideal > 1:
                share = 1 / comparison.ratio(f"{name}, {way}", flash).value / ideal
                label = f"speed-up of {name} over flash, {way}, as a share of the ideal {ideal:.3g}x,"
                comparison.target(label, share, at_least=0.6, unit="")
    return comparison


def layer_race(names: Sequence[str], setting: Setting, effort: Effort) -> Rows:
    """Whole layers against those of other libraries."""

    def make(setting: Setting) -> tuple[list[Contestant], list[str]]:
        contestants, notes = [], []
        for name in names:
            peer = peer_layer(name, setting)
            if isinstance(peer, str):
                notes.append(peer)
            else:
                ours = layer(name, setting)
                ours.peer = peer.name
                contestants += [ours, peer]
        return contestants, notes

    comparison = race("layers", setting, make, effort)
    for row in comparison.rows:
        for way in WAYS:
            if row["name"] in _RECURRENT and "over_peer" in row.get(way, {}):
                comparison.target_ratio(f"{row['peer']}, {way}", f"{row['name']}, {way}", at_least=0.9)
    return comparison


def layers_with_peers(names: Sequence[str], setting: Setting) -> list[str]:
    """Those of `names` that can be compared as layers at a setting: recurrences are causal, and their peers on CUDA."""
    recurrent = setting.causal and setting.device != "cpu"
    return [name for name in names if name in LAYERS and (recurrent or name not in _RECURRENT)]


def host_race(setting: Setting, rounds: int) -> Comparison:
    """What a call costs the host, on so few tokens that there is nothing else: it hides behind a busy GPU."""
    small = setting.replace(batch=1, heads=1, tokens=16)
    ours = seam("flash", small)
    query, key, value = ours.inputs

    def direct() -> Tensor:
        with torch.no_grad():
            return F.scaled_dot_product_attention(query, key, value, is_causal=small.causal)

    wait: Callable[[str], object] | None = None
    if setting.device != "cpu":
        wait = lambda name: torch.cuda.synchronize()  # noqa: ARG005, E731
    comparison = measure(
        {"flash": ours.forward, "sdpa": direct}, rounds=max(rounds, 20), calls=100, setup=wait,
        title=f"time of the host for a call: {small}", packages=PACKAGES,
    )  # fmt: skip
    extra = comparison.difference("flash", "sdpa") * 1e6
    comparison.notes.append(f"flash takes {extra:.1f} us of the host more than F.scaled_dot_product_attention")
    return comparison
