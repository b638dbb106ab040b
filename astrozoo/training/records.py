"""What a run reports: `log.jsonl`, trackers, a progress bar; and signals that ask it to stop."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from astrozoo.errors import ConfigError, TrainingError
from astrozoo.training.config import TrainConfig
from astrozoo.training.gauges import Gauges
from astrozoo.training.runtime import Runtime
from astrozoo.weights.files import atomic_write

__all__ = ["Interrupt", "Line", "Recorder"]

log = logging.getLogger("astrozoo.training")
_REFRESH = 0.25  # seconds between updates of the bar


class Recorder:
    """Writes what happens; on every process but the main one it does nothing."""

    def __init__(self, runtime: Runtime, config: TrainConfig, out: Path, *, steps: int, step: int) -> None:
        self.main = runtime.main
        self.gauges = Gauges(runtime.device, watch=runtime.main)
        self._steps, self._shown = steps, 0.0
        self._bar: Any = None
        self._accelerator = runtime.accelerator if config.log.trackers else None
        if self._accelerator is not None:
            self._start_trackers(config, out)
        if not self.main:
            return
        self.path = out / "log.jsonl"
        with self._explained():
            _drop_after(self.path, step)
            self._file = self.path.open("ab", buffering=0)  # a line is there once it is written, whatever comes
        if config.log.progress and sys.stderr.isatty():
            self._start_bar(step)

    def _start_trackers(self, config: TrainConfig, out: Path) -> None:
        from accelerate.tracking import filter_trackers

        accelerator = self._accelerator
        assert accelerator is not None
        try:
            accelerator.log_with = filter_trackers(list(config.log.trackers), str(out))
            accelerator.project_configuration.set_directories(str(out))
            flat = {
                key: value if isinstance(value, (int, float, str, bool)) else str(value)
                for key, value in _flatten(config.to_dict()).items()
            }
            accelerator.init_trackers(config.log.project, config=flat)
        except (ValueError, ImportError) as error:
            raise ConfigError(f"log.trackers is {list(config.log.trackers)}: {error}") from error

    def _start_bar(self, step: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=Console(stderr=True), auto_refresh=False)
        self._task = self._bar.add_task("training", total=self._steps, completed=step)
        self._bar.start()

    def tick(self, step: int, text: str | None = None) -> None:
        """Move the bar, at most a few times a second."""
        if self._bar is not None and (text or time.monotonic() - self._shown > _REFRESH):
            self._shown = time.monotonic()
            self._bar.update(self._task, completed=step, **({"description": text} if text else {}), refresh=True)

    def write(self, event: str, step: int, **values: Any) -> None:
        """One line of the log, and the numbers in it to the trackers."""
        if not self.main:
            return
        line = {"event": event, "step": step, **values, "memory_bytes": self.gauges.peak, "time": round(time.time(), 3)}
        text = (json.dumps(_finite(line), allow_nan=False) + "\n").encode()
        with self._explained():
            if self._file.write(text) != len(text):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self._accelerator is not None:
            numbers = {f"{event}/{key}": value for key, value in _flatten(values).items() if _is_number(value)}
            self._accelerator.log(numbers, step=step)

    def close(self) -> None:
        """End the bar, the trackers and the file."""
        self.gauges.close()
        if self._bar is not None:
            self._bar.stop()
        if self._accelerator is not None:
            self._accelerator.end_training()
        if self.main:
            self._file.close()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise TrainingError(
                f"{self.path} could not be written: {error.strerror or error}. Checkpoints are intact: free space or "
                f"set permissions, then the same call goes on from the last one."
            ) from error


class Line:
    """What a step says in the log: values of the device, whose transfer runs behind the computation, and the rest.

    Args:
        step: Number of the step.
        values: By name; numbers, or tensors of one number.
        rest: What is known already.
    """

    def __init__(self, step: int, values: Mapping[str, float | Tensor], rest: Mapping[str, Any]) -> None:
        self.step, self.rest = step, rest
        self._names = list(values)
        self._event: Any = None
        self._values: Any = [value.detach() if isinstance(value, Tensor) else value for value in values.values()]
        tensors = [value for value in self._values if isinstance(value, Tensor)]
        if tensors and tensors[0].device.type == "cuda":
            device = tensors[0].device
            whole = torch.stack([torch.as_tensor(value, device=device).float() for value in self._values])
            self._values = whole.to("cpu", non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def values(self) -> dict[str, float]:
        """The numbers; waits for the step, if it is still being computed."""
        if self._event is not None:
            self._event.synchronize()
        return {name: float(value) for name, value in zip(self._names, self._values, strict=True)}


def _drop_after(path: Path, step: int) -> None:
    """Remove lines of steps that a resumed run will do again, and a line cut short by a crash."""
    if not path.exists():
        return
    content = path.read_text(encoding="utf-8", errors="replace")
    kept = []
    for line in content.splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    if "".join(kept) != content:
        with atomic_write(path) as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(_flatten(value, f"{prefix}{key}/") if isinstance(value, dict) else {prefix + key: value})
    return flat


def _finite(value: Any) -> Any:
    """JSON knows neither NaN nor infinity: they become null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


class Interrupt:
    """SIGTERM and Ctrl-C as a request to stop after the step; a second Ctrl-C stops at once.

    `requested` is the name of the signal, or None. Outside the main thread signals cannot be caught; a signal that is
    ignored when training starts (Ctrl-C under `nohup` or in the background) stays so.
    """

    def __init__(self) -> None:
        self.requested: str | None = None
        self._before: dict[int, Any] = {}
        self._process = os.getpid()

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                if signal.getsignal(number) in (signal.SIG_IGN, None):
                    continue
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: object) -> None:
        if os.getpid() != self._process:
            return  # a data-loading process that has inherited the handler
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = signal.Signals(number).name
        log.warning("%s: finishing this step, then saving. Ctrl-C again stops at once, unsaved.", self.requested)
