"""The loop: one optimiser step after another, with what is due after each.

What happens in every step is kept short (see `_step`); everything else runs when it is due.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from astrozoo.batch import Batch
from astrozoo.errors import TrainingError
from astrozoo.module import ZooModel
from astrozoo.training import checkpoint as saved
from astrozoo.training import state
from astrozoo.training.config import ProfileConfig, TrainConfig
from astrozoo.training.evaluation import score_model
from astrozoo.training.graphs import Gradients, copied_out, graphed
from astrozoo.training.loading import Batches
from astrozoo.training.optim import Ema, build_optimizer, clip_gradients, learning_rate, local
from astrozoo.training.order import DataOrder, SeededSamples
from astrozoo.training.profiling import StepProfiler
from astrozoo.training.protocol import collate_of, metrics_of, split_of
from astrozoo.training.records import Interrupt, Line, Recorder
from astrozoo.training.runtime import Runtime, mover, seed_everything, wrap
from astrozoo.training.saving import Saver, copied
from astrozoo.training.sentinel import LAG, LaggedCheck, diagnose, first_non_finite

__all__ = ["FIRST_SCALE", "Trainer"]

log = logging.getLogger("astrozoo.training")
Callback = Callable[["Trainer"], str | None]
_AGREE = 10  # steps between the processes' agreements on whether to stop
# fp16's loss scale: it grows by itself, while a first one of 2**16 loses steps early on, to gradients above 1.
FIRST_SCALE = 2.0**12
_OVERFLOWS = 30  # fp16 steps skipped in a row before the loss scale cannot be the reason


class Trainer:
    """One run. `train` makes it; callbacks get it after each step and may return a reason to stop.

    Attributes:
        step, epoch, epoch_step: Optimiser steps done, the epoch (from 0), and steps done in it.
        checkpoint_path, saved_step: The last checkpoint written or continued, and its step (-1 without any).
        updating: Whether a step is changing the weights, so that what is there is the state of no step.
        steps: Steps of the whole run.
        history: One row per evaluation.
    """

    def __init__(self, model: ZooModel, data: Any, config: TrainConfig, runtime: Runtime, out: Path) -> None:
        self.model, self.data, self.config, self.runtime, self.out = model, data, config, runtime, out
        samples = split_of(data, "train")
        assert samples is not None
        batch_size, accumulate = config.batches()
        self.order = DataOrder(
            len(samples),
            batch_size,
            accumulate=accumulate,
            processes=runtime.processes,
            rank=runtime.rank,
            seed=config.seed,
            drop_last=config.drop_last,
        )
        limits = [config.max_steps, config.epochs and config.epochs * self.order.steps]
        self.steps = min((limit for limit in limits if limit), default=10 * self.order.steps)
        recorded = graphed(config, runtime.device, runtime.processes)
        self.loss, self.forward = wrap(model, runtime, config, recorded=recorded)
        self.optimizer = build_optimizer(model, config.optim)
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.graph_gradients = Gradients(self.parameters) if recorded else None
        self.ema = Ema(model, config.ema.decay) if config.ema.decay else None
        fp16 = config.precision == "fp16"
        self.scaler = torch.amp.GradScaler(runtime.device.type, init_scale=FIRST_SCALE) if fp16 else None
        self.lagged = LaggedCheck() if runtime.device.type == "cuda" else None
        self.batches = Batches(
            samples, collate_of(data), self.order, workers=config.num_workers, pin=runtime.device.type == "cuda"
        )
        self.saver = Saver(runtime.processes == 1 and _background(config, runtime))
        self.profiler = StepProfiler(ProfileConfig(), out, runtime.device)
        self.move: Callable[[Batch], Batch] | None = mover(model, runtime.device)
        self._checked_batch = False
        metrics = metrics_of(data)
        self.headline = metrics.headline if metrics is not None else "loss"
        self.step = self.epoch = self.epoch_step = 0
        self.best_score, self.best_step, self.worse = math.inf, 0, 0
        self.history: list[dict[str, Any]] = []
        self.overflows = 0
        self._asked: str | None = None
        self._loss_sum: Any = 0.0
        self._parts: dict[str, Tensor] = {}
        self._norm: Tensor | None = None
        self._waited = 0.0
        self._lines: deque[Line] = deque()
        self.saved_step = -1
        self.checkpoint_path: Path | None = None
        self.updating = False
        seed_everything(config.seed + runtime.rank)

    # -- one step ------------------------------------------------------------------------------------------------------

    def _step(self, batches: Iterator[Batch]) -> None:
        self.profiler.before()
        span = self.profiler.span
        rate = self.config.optim.lr * learning_rate(self.config.schedule, self.step, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        seen = [self._fetch(batches) for _ in range(self.order.accumulate)]
        step_loss: Any = 0.0
        for micro, (batch, factors) in enumerate(zip(seen, self._factors(seen), strict=True)):
            if self.runtime.strategy == "ddp":
                # What DDP.no_sync() sets: gradients are averaged with the last micro-batch only.
                setattr(self.forward, "require_backward_grad_sync", micro == len(seen) - 1)  # noqa: B010
            if self.graph_gradients is not None:
                torch.compiler.cudagraph_mark_step_begin()
            with span("forward"):
                parts = self.forward(batch)
            loss = parts["loss"] if factors is None else _weighted(parts, factors)
            if self.runtime.processes > 1:
                # An infinite loss may have finite gradients; as NaN they reach all processes, which stop together.
                loss = loss * (1 + 0 * loss.detach())
            if self.lagged is None:
                # On the CPU a look at the value costs nothing, and the step can still be called off.
                value = loss.item()
                if not math.isfinite(value) and self.runtime.processes == 1:
                    self._fail("loss", value, seen, self.step + 1)
                step_loss += value
            else:
                step_loss = step_loss + loss.detach()
            with span("backward"):
                (loss if self.scaler is None else self.scaler.scale(loss)).backward()
            if self.graph_gradients is not None:
                self.graph_gradients.take()
        self._parts = parts if self.graph_gradients is None else copied_out(parts)
        with span("update"):
            self._update(seen, step_loss)
        self.profiler.after()

    def _update(self, seen: list[Batch], loss: Any) -> None:
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = self._norm = clip_gradients(gradients, self.config.optim.clip)
        if self.lagged is None:
            value = norm.item()
            if not math.isfinite(value):
                self._non_finite(value, loss, seen, self.step + 1)
            else:
                self.overflows = 0
        elif self.scaler is None:
            # Fused optimisers skip the step on the device, so the weights stay good until the host has noticed.
            self.optimizer.found_inf = (~torch.isfinite(norm + loss)).float()  # type: ignore[attr-defined]
            self.optimizer.grad_scale = None  # type: ignore[attr-defined]
        self.updating = True
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        if self.graph_gradients is None:
            self.optimizer.zero_grad()
        else:
            self.graph_gradients.clear()
        if self.ema is not None:
            self.ema.update(self.step)
        self._loss_sum = self._loss_sum + loss
        self.step += 1
        self.epoch_step += 1
        if self.epoch_step == self.order.steps:
            self.epoch, self.epoch_step = self.epoch + 1, 0
        self.updating = False
        if self.lagged is not None:
            self.lagged.submit(self.step, seen, loss, norm)
            self._check_lagged(wait=False)

    def _factors(self, seen: list[Batch]) -> list[dict[str, Any] | None]:
        """Factors of the parts of each micro-batch's loss that make their sum, averaged over processes, the batch's."""
        if self.order.parts == 1:
            return [None]
        shares = self.order.weights(self.epoch_step)
        weights = [self.model.loss_weights(batch) for batch in seen]
        if not weights[0]:
            return [{"loss": share} for share in shares]
        # A process without samples has been given one of another's.
        own = torch.stack(
            [torch.stack(list(item.values())) * (share > 0) for item, share in zip(weights, shares, strict=True)]
        )
        total = own.sum(0)
        if self.runtime.processes > 1:
            torch.distributed.all_reduce(total)
        factors = own * self.runtime.processes / total.clamp_min(torch.finfo(total.dtype).tiny)  # [micro-batch, part]
        return [dict(zip(item, row, strict=True)) for item, row in zip(weights, factors, strict=True)]

    def _fetch(self, batches: Iterator[Batch]) -> Batch:
        """The next batch, on the device; what the step waits for it is counted."""
        began = time.perf_counter()
        with self.profiler.span("data"):
            batch = next(batches)
            self._waited += time.perf_counter() - began
            return self._fit(batch)

    def _fit(self, batch: Batch) -> Batch:
        if self.move is None:
            return batch
        on_cpu = self.runtime.device.type == "cpu"
        moved = self.move(batch) if on_cpu else self.move(batch.condensed()).expanded(batch)
        if not self._checked_batch:
            self._checked_batch = True
            pairs = ((batch.inputs, moved.inputs), (batch.targets, moved.targets), (batch.context, moved.context))
            if all(after[name] is before[name] for before, after in pairs for name in before):
                self.move = None  # batches fit as they come; later ones are like the first
        return moved

    # -- the loop ------------------------------------------------------------------------------------------------------

    def run(self, recorder: Recorder, interrupt: Interrupt, callbacks: Sequence[Callback]) -> str:
        """Train until something ends it; returns the reason. The state is saved at the end, whatever the reason."""
        self.model.train()
        self._recorder = recorder
        self._began = self._logged_at = time.monotonic()
        self._logged_step = self.step
        patience = self.config.evaluation.patience
        reason = "early stopping" if patience and self.worse >= patience else None  # of the run that is continued
        self.profiler = StepProfiler(self.config.profile, self.out, self.runtime.device)
        with self.saver:
            with self.batches:
                self.order.epoch, self.order.start = self.epoch, self.epoch_step
                self.order.epochs = -(-(self.epoch_step + self.steps - self.step) // self.order.steps)
                batches = iter(self.batches)
                while reason is None and self.step < self.steps:
                    self._step(batches)
                    reason = self._after_step(interrupt, callbacks)
            self.profiler.close()
            self.saver.finish()
            if self.saved_step != self.step:
                self.save()
        return reason or "finished"

    def rehearse(self, steps: int) -> None:
        """Take steps on the first samples and keep no record of them, to find out what they need."""
        self.model.train()
        with self.batches:
            for _ in range(steps):
                self.order.epoch = self.order.start = self.epoch_step = 0
                self._step(iter(self.batches))
        self._check_lagged(wait=True)

    def _after_step(self, interrupt: Interrupt, callbacks: Sequence[Callback]) -> str | None:
        config, step = self.config, self.step
        self._recorder.tick(step)
        self.saver.poll()
        self._write_lines(step if self.lagged is None else step - LAG)
        if step % config.log.every == 0 or step == self.steps:
            self._log()
        for callback in callbacks:
            self._asked = callback(self) or self._asked
        ended = None
        every = config.evaluation.every
        due = step % every == 0 if every else self.epoch_step == 0
        if (due or step == self.steps) and split_of(self.data, "val") is not None:
            ended = self._evaluate()  # the same on all processes
        if config.checkpoint.every and step % config.checkpoint.every == 0:
            self.save()
        if config.max_minutes is not None and time.monotonic() - self._began > 60 * config.max_minutes:
            self._asked = self._asked or "time limit"
        asked = interrupt.requested or self._asked
        if self.runtime.processes > 1 and ended is None:
            asked = next(filter(None, self.runtime.gather(asked)), None) if step % _AGREE == 0 else None
        return ended or asked

    def _evaluate(self) -> str | None:
        samples = split_of(self.data, "val")
        assert samples is not None
        self._check_lagged(wait=True)
        size = self.config.evaluation.batch_size or -(-self.order.batch_size // self.order.parts)
        with self.weights_to_keep():
            scores = score_model(
                self.loss,
                samples,
                self.data,
                batch_size=size,
                num_workers=self.config.num_workers,
                runtime=self.runtime,
            )
            if self.headline not in scores:
                raise TrainingError(f"the metrics' headline {self.headline!r} is not among {sorted(scores)}.")
            score = scores[self.headline]
            if math.isnan(score):
                raise TrainingError(
                    f"{self.headline} on the split 'val' is NaN after step {self.step}, so no model can be chosen by "
                    f"it: {self._why_nan(samples, size)}. The weights are finite and the last checkpoint is intact."
                )
            better = score < self.best_score - self.config.evaluation.min_delta
            if better:
                self.best_score, self.best_step, self.worse = score, self.step, 0
                self.save_model("best", scores)
        self.history.append({"step": self.step, "epoch": self.epoch, **scores})
        self._recorder.write("eval", self.step, epoch=self.epoch, best=better, **scores)
        self._recorder.tick(self.step, f"{self.headline} {score:.4g} (best {self.best_score:.4g})")
        log.info("step %d: %s %.6g%s", self.step, self.headline, score, " (best)" if better else "")
        self.worse = 0 if better else self.worse + 1
        patience = self.config.evaluation.patience
        return "early stopping" if patience and self.worse >= patience else None

    def _log(self) -> None:
        now = time.monotonic()
        done = max(self.step - self._logged_step, 1)
        seconds = max(now - self._logged_at, 1e-9)
        assert self._norm is not None
        parts = {name: value for name, value in self._parts.items() if name != "loss"}
        rest = {
            "epoch": self.epoch,
            "lr": self.optimizer.param_groups[0]["lr"],
            "steps_per_second": done / seconds,
            "samples_per_second": done * self.order.batch_size / seconds,
            "data_wait": self._waited / seconds,
            **self._recorder.gauges.read(),
        }
        values = {"loss": self._loss_sum / done / self.runtime.processes, "grad_norm": self._norm, **parts}
        self._lines.append(Line(self.step, values, rest))
        self._logged_at, self._logged_step, self._loss_sum, self._waited = now, self.step, 0.0, 0.0
        if self.lagged is None:
            self._write_lines(self.step)

    def _write_lines(self, until: int) -> None:
        """Those of steps up to `until`, of which it is known that they were good."""
        while self._lines and self._lines[0].step <= until:
            line = self._lines.popleft()
            parts = line.values()
            loss, norm = self.runtime.sum([parts.pop("loss")])[0], parts.pop("grad_norm")
            self._recorder.write("train", line.step, loss=loss, grad_norm=norm, parts=parts, **line.rest)

    # -- what goes wrong -----------------------------------------------------------------------------------------------

    def _why_nan(self, samples: Any, size: int) -> str:
        collate = collate_of(self.data)
        for start in range(0, len(samples), size):
            indices = range(start, min(start + size, len(samples)))
            batch = collate(SeededSamples(samples).__getitems__(indices))
            if found := first_non_finite(batch.inputs):
                return f"the input {found}; clean the data or mark gaps as the model expects"
        return "its inputs are finite; look at the targets and the metrics"

    def _non_finite(self, norm: float, loss: float, seen: list[Batch], step: int) -> None:
        self.overflows += 1
        # Scaling the loss may overflow its gradients, never the loss itself.
        spoilt = not all(map(math.isfinite, self.runtime.gather(loss)))
        if self.scaler is None or spoilt or self.overflows > _OVERFLOWS:
            self._fail("gradient" if math.isfinite(loss) else "loss", norm if math.isfinite(loss) else loss, seen, step)

    def _check_lagged(self, *, wait: bool) -> None:
        if self.lagged is None:
            return
        while (bad := self.lagged.failed(wait=wait)) is not None:
            step, batches, loss, norm = bad
            self._non_finite(norm, loss, batches, step)
            if not wait:
                return
        if wait:
            self._write_lines(self.step)

    def _fail(self, what: str, value: float, batches: list[Batch], step: int) -> None:
        self.saver.close()
        good = (
            f"The last good checkpoint is {self.checkpoint_path}"
            if self.checkpoint_path
            else "No checkpoint exists yet"
        )
        self.optimizer.zero_grad()
        if self.checkpoint_path and not all(bool(torch.isfinite(local(p)).all()) for p in self.parameters):
            self.restore(saved.read_checkpoint(self.checkpoint_path))
        found = diagnose(self.model, self.loss, batches)
        if self.runtime.processes > 1:
            findings = self.runtime.gather(found)
            found = "; ".join(f"process {rank}: {text}" for rank, text in enumerate(findings))
        raise TrainingError(
            f"Non-finite {what} ({value}) in step {step}, epoch {(step - 1) // self.order.steps + 1}: {found}. "
            f"{good}, and nothing was overwritten. If the data are sound, lower optim.lr (now {self.config.optim.lr}), "
            f"lengthen schedule.warmup, or use a precision with more range."
        )

    # -- state ---------------------------------------------------------------------------------------------------------

    def weights_to_keep(self) -> Any:
        """Context in which the model has the weights that are evaluated and saved: with EMA, the averaged ones."""
        return self.ema.applied() if self.ema is not None else contextlib.nullcontext()

    def save_model(self, name: str, scores: dict[str, float] | None = None) -> Path:
        """Write `<out>/<name>` as `save_model` does, with where the weights come from."""
        from astrozoo.weights import save_model

        tensors = saved.full_tensors(self.model.state_dict()) if self.runtime.strategy == "fsdp2" else None
        beside = self.saver.fits(self.model.state_dict())
        if beside:
            tensors = copied(self.model.state_dict())
        self.model.provenance = {
            **self.model.provenance,
            "training": {
                "step": self.step,
                "epoch": self.epoch,
                "config": self.config.to_dict(),
                "scores": scores or {},
            },
        }
        path = self.out / name
        model = self.model
        self.saver.save(
            lambda: self.runtime.together(lambda: save_model(model, path, state_dict=tensors) and None), beside=beside
        )
        return path

    def save(self) -> None:
        """Write a checkpoint of the complete state; where training goes on meanwhile, the saver knows when it is done.

        Raises:
            WeightsError: It, or what was being written, could not be written; the earlier ones are intact.
            TrainingError: The weights are not finite.
        """
        self._check_lagged(wait=True)
        checkpoint, step = state.capture(self), self.step
        beside = self.saver.fits(*checkpoint.tensors.values())
        if beside:
            tensors = {group: copied(tensors) for group, tensors in checkpoint.tensors.items()}
            checkpoint = saved.Checkpoint(copy.deepcopy(checkpoint.state), tensors)
        folder, keep = self.out / "checkpoints", self.config.checkpoint.keep

        def write() -> Path:
            path: Path = self.runtime.together(lambda: saved.write_checkpoint(folder, step, checkpoint, keep=keep))
            return path

        def done(path: Path) -> None:
            self.checkpoint_path, self.saved_step = path, step

        self.saver.save(write, done, beside=beside)

    def restore(self, checkpoint: saved.Checkpoint) -> None:
        """Continue from a checkpoint; raises TrainingError when it belongs to another run."""
        state.restore(self, checkpoint)
        self.checkpoint_path, self.saved_step = checkpoint.path, self.step
        log.info("Resuming from %s (step %d of %d)", checkpoint.path, self.step, self.steps)


def _weighted(parts: dict[str, Tensor], factors: dict[str, Any]) -> Tensor:
    """The mean of the parts that have factors, each times its factor."""
    return torch.stack([parts[name] * factor for name, factor in factors.items()]).mean()


def _background(config: TrainConfig, runtime: Runtime) -> bool:
    wanted = config.checkpoint.background
    return runtime.device.type == "cuda" if wanted is None else wanted
