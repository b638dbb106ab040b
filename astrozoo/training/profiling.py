"""A profile of some steps of a run: where a step's time goes, for people (Markdown) and for a trace viewer (JSON).

A step is marked in four parts: `data` (waiting for a batch and sending it to the device), `forward`, `backward` and
`update` (clipping, optimiser, average of the weights). On a GPU these are the times of the host, which only queues the
work; what the GPU did in the meantime is told by the share of time in which it was busy, and by its kernels.
"""

from __future__ import annotations

import contextlib
import logging
import time
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from astrozoo.training.config import ProfileConfig
from astrozoo.weights.files import atomic_write

__all__ = ["PARTS", "StepProfiler"]

log = logging.getLogger("astrozoo.training")
PARTS = ("data", "forward", "backward", "update")
_PREFIX = "astrozoo: "
_IDLE: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()


class StepProfiler:
    """Profiles the steps that the settings name, and writes what it found to `<out>/profile`.

    Args:
        config: Which steps.
        out: Folder of the run.
        device: Where it trains.
    """

    def __init__(self, config: ProfileConfig, out: Path, device: torch.device) -> None:
        self.config, self.folder, self.device = config, out / "profile", device
        self._left = config.after
        self._profiler: profile | None = None

    def before(self) -> None:
        """Call at the start of each step."""
        if not self.config.steps:
            return
        if self._left == 0 and self._profiler is None:
            activities = [ProfilerActivity.CPU]
            if self.device.type == "cuda":
                activities.append(ProfilerActivity.CUDA)
            # The profiler's own start-up lasts seconds on a GPU; it belongs to no step.
            self._profiler = profile(activities=activities, acc_events=True)
            self._profiler.start()
            self._wait()
            self._began, self._left = time.perf_counter(), self.config.steps

    def after(self) -> None:
        """Call at the end of each step."""
        if not self.config.steps or self._left < 0:
            return
        self._left -= 1
        if self._profiler is None or self._left:
            self._left = max(self._left, 0)
            return
        self._wait()
        seconds = time.perf_counter() - self._began
        self._profiler.stop()
        self._write(self._profiler, seconds / self.config.steps)
        self._profiler, self._left = None, -1

    def close(self) -> None:
        """Call at the end of the run, which may have come too early."""
        if not self.config.steps or self._left < 0:
            return
        if self._profiler is not None:
            self._profiler.stop()
            self._profiler = None
        last = self.config.after + self.config.steps
        log.warning("There is no profile: the run ended before it had taken the %d steps that this needs.", last)

    def span(self, part: str) -> contextlib.AbstractContextManager[Any]:
        """Marks a part of a step; free while nothing is profiled."""
        return record_function(_PREFIX + part) if self._profiler is not None else _IDLE

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _write(self, profiler: profile, seconds: float) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.folder / "trace.json") as temporary:
            profiler.export_chrome_trace(str(temporary))
        text = _summary(profiler, seconds, self.config, self.device)
        with atomic_write(self.folder / "steps.md") as temporary:
            temporary.write_text(text, encoding="utf-8")
        log.info("profile of %d steps: %s", self.config.steps, self.folder / "steps.md")


def _summary(profiler: profile, seconds: float, config: ProfileConfig, device: torch.device) -> str:
    cuda = device.type == "cuda"
    averages = profiler.key_averages()
    name = torch.cuda.get_device_name(device) if cuda else f"the CPU, {torch.get_num_threads()} threads"
    lines = [
        f"# {config.steps} steps on {name}, torch {torch.__version__}",
        "",
        f"{1e3 * seconds:.1f} ms per step.",
        "",
        "| part | time of the host, ms | share |",
        "| --- | --- | --- |",
    ]
    parts = {
        row.key.removeprefix(_PREFIX): row for row in averages if row.key.startswith(_PREFIX) and row.cpu_time_total
    }
    for part in PARTS:
        if part in parts:
            spent = parts[part].cpu_time_total / 1e6 / config.steps
            lines.append(f"| {part} | {1e3 * spent:.2f} | {100 * spent / seconds:.1f} % |")
    if cuda:
        busy, kernels = _busy(profiler)
        lines += ["", f"The GPU was busy for {100 * busy / seconds / config.steps:.1f} % of the time, with "
                      f"{kernels / config.steps:.0f} kernels and copies per step."]  # fmt: skip
    known = [row for row in averages if not row.key.startswith(_PREFIX)]
    host = [row for row in known if row.device_type == DeviceType.CPU]
    lines += _table("operations by the time of the host", host, "self_cpu_time_total", seconds, config)
    if cuda:
        launched = [row for row in known if row.device_type == DeviceType.CUDA]
        lines += _table("kernels by the time of the GPU", launched, "self_device_time_total", seconds, config)
    return "\n".join(lines) + "\n"


def _table(title: str, rows: list[Any], key: str, seconds: float, config: ProfileConfig) -> list[str]:
    """Rows of a Markdown table: the costliest operations, without what they call."""
    rows = sorted(rows, key=lambda row: -getattr(row, key))[: config.rows]
    lines = ["", f"| {title} | calls | ms | share |", "| --- | --- | --- | --- |"]
    for row in rows:
        spent = getattr(row, key) / 1e6 / config.steps
        if not spent:
            break
        label = row.key if len(row.key) <= 70 else row.key[:67] + "..."
        label = label.replace("|", r"\|")
        lines.append(
            f"| `{label}` | {row.count / config.steps:g} | {1e3 * spent:.2f} | {100 * spent / seconds:.1f} % |"
        )
    return lines


def _busy(profiler: profile) -> tuple[float, int]:
    """Seconds in which the GPU did anything, and how many things it did."""
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in profiler.events() or ()
        if event.device_type == DeviceType.CUDA
        and not event.name.startswith(_PREFIX)
        and not getattr(event, "is_user_annotation", False)
    )
    busy, end = 0.0, float("-inf")
    for start, stop in spans:
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return busy / 1e6, len(spans)
