"""Peak memory of training as `astrozoo estimate` predicts it, against real training.

Each model trains for three steps with `astrozoo.train`, and what its tensors and kernels held at the worst moment is
compared with the estimate, which must be within 15 %. On CUDA the allocator keeps the peak; cuBLAS takes its workspace
before the count begins, as it does once in any process. On the CPU PyTorch's profiler records every allocation.

Examples:
  astrozoo bench memory
  astrozoo bench memory --device cuda --json memory.json
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from astrozoo.bench.harness import Comparison, Samples
from astrozoo.bench.rows import Rows
from astrozoo.readable import format_bytes

__all__ = ["FAMILIES", "Case", "add_arguments", "compare", "measured_peak", "run"]

FAMILIES = ("cube_unet", "cube_vit", "cube_swin", "cube_fno", "cube_convlstm")
STEPS = 3  # the optimiser's state is there from the second on
NEAR = 15  # % between estimate and measurement


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which models, where, and how large a batch."""
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="where to train (cpu)")
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), help=f"({' '.join(FAMILIES)})")
    parser.add_argument("--sizes", nargs="+", help="sizes of them (tiny; cuda tiny base)")
    parser.add_argument("--batch", type=int, nargs="+", help="samples in a step, one for each size (2; cuda 16 8)")
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"], help="(fp32 bf16)")
    parser.add_argument("--grad-checkpointing", action="store_true", help="recompute activations in the backward pass")
    parser.add_argument("--optimizer", default="adamw", help="as in the training configuration (adamw)")


def run(args: argparse.Namespace) -> list[Comparison]:
    """One row per model, size and precision."""
    sizes = args.sizes or (["tiny", "base"] if args.device == "cuda" else ["tiny"])
    batches = args.batch or ([16, 8] if args.device == "cuda" else [2])
    batches = batches * len(sizes) if len(batches) == 1 else batches[: len(sizes)]
    cases = [
        Case(f"{family}_{size}", batch, precision, args.optimizer, args.grad_checkpointing, args.device)
        for size, batch in zip(sizes, batches, strict=True)
        for family in args.families
        for precision in args.precisions
    ]
    rows = [compare(case) for case in cases]
    comparison = Rows(
        f"peak memory of training, {args.optimizer}, {args.device}",
        {
            case.label: Samples((row["seconds"],), (row["measured_bytes"],))
            for case, row in zip(cases, rows, strict=True)
        },
        rows=rows,
        cells=_cells,
    )
    for case, row in zip(cases, rows, strict=True):
        comparison.target(f"error of {case.label}", 100 * abs(row["ratio"] - 1), at_most=NEAR, unit=" %")
    comparison.notes.append(f"{STEPS} steps of astrozoo.train at the example sizes; measured is what PyTorch allocated")
    return [comparison]


@dataclass(frozen=True)
class Case:
    """One training."""

    name: str
    batch: int
    precision: str
    optimizer: str
    grad_checkpointing: bool
    device: str

    @property
    def label(self) -> str:
        """Name, precision and size of the batch."""
        return f"{self.name}, {self.precision}, batch {self.batch}"


def compare(case: Case) -> dict[str, Any]:
    """Estimated and measured bytes of one training, their ratio, and the seconds that both took."""
    from astrozoo.training.estimate import estimate

    start = time.perf_counter()
    found = estimate(
        case.name,
        batch_size=case.batch,
        precision=case.precision,
        optimizer=case.optimizer,
        grad_checkpointing=case.grad_checkpointing,
        device=case.device,
    )
    estimated = time.perf_counter()
    measured = measured_peak(lambda: _train(case), case.device)
    end = time.perf_counter()
    ratio = found.training_peak_bytes / measured
    sys.stderr.write(f"{case.label}: {ratio:.3f} in {end - start:.1f} s\n")
    return {
        "model": case.name,
        "precision": case.precision,
        "batch": case.batch,
        "estimated_bytes": found.training_peak_bytes,
        "measured_bytes": measured,
        "ratio": ratio,
        "seconds": end - estimated,
        "estimate_seconds": estimated - start,
    }


def _cells(row: Any) -> dict[str, str]:
    return {
        "": f"{row['model']}, {row['precision']}, batch {row['batch']}",
        "estimated": format_bytes(row["estimated_bytes"]),
        "measured": format_bytes(row["measured_bytes"]),
        "ratio": f"{row['ratio']:.3f}",
        "estimating took": f"{row['estimate_seconds']:.1f} s",
        "training took": f"{row['seconds']:.1f} s",
    }


def _train(case: Case) -> int:
    from astrozoo.data import SyntheticData
    from astrozoo.training import TrainConfig, train

    class Data:
        """A training split alone, so that nothing but training takes memory."""

        def __init__(self) -> None:
            made = SyntheticData(case.name, length=STEPS * case.batch)
            self.train, self.collate = made.train, made.collate

    with tempfile.TemporaryDirectory() as out, _quiet():
        settings: dict[str, Any] = {
            "max_steps": STEPS, "batch_size": case.batch, "precision": case.precision, "device": case.device,
            "out": out, "grad_checkpointing": case.grad_checkpointing, "optim": {"name": case.optimizer},
            "checkpoint": {"every": None}, "log": {"progress": False},
        }  # fmt: skip
        train(case.name, Data(), TrainConfig(**settings))
        lines = (Path(out) / "log.jsonl").read_text(encoding="utf-8").splitlines()
        return max(json.loads(line)["memory_bytes"] for line in lines)


def measured_peak(action: Callable[[], object], device: str) -> int:
    """Most bytes that PyTorch allocated on `device` at once while `action` ran, beyond what was there before.

    Args:
        action: What is measured. On the CPU all its threads count, on CUDA the current device. If it measures peaks
            of its own, and so begins the allocator's count anew, it returns the largest.
        device: `cpu` or `cuda`.
    """
    gc.collect()
    return _cuda_peak(action) if device == "cuda" else _cpu_peak(action)


def _cuda_peak(action: Callable[[], object]) -> int:
    import torch

    for dtype in (torch.float32, torch.bfloat16):  # in both threads, as forward and backward have handles of their own
        x = torch.ones(64, 64, device="cuda", dtype=dtype, requires_grad=True)
        (x @ x).sum().backward()
    del x
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    logged = action()
    torch.cuda.synchronize()
    return max(torch.cuda.max_memory_allocated(), logged if isinstance(logged, int) else 0) - before


def _cpu_peak(action: Callable[[], object]) -> int:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        action()
    total = peak = 0
    assert profiler.profiler is not None
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            total += event.nbytes()
            peak = max(peak, total)
    return peak


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the lines that a training logs."""
    logger = logging.getLogger("astrozoo.training")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
