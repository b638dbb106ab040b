"""`train`: a model, data and settings in; a trained model, scores and files out."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from astrozoo.errors import AstrozooError, ConfigError, TrainingError
from astrozoo.module import ZooModel
from astrozoo.training import checkpoint as saved
from astrozoo.training.autobatch import settle
from astrozoo.training.config import TrainConfig
from astrozoo.training.determinism import explain_no_determinism, only_deterministic
from astrozoo.training.evaluation import evaluate_baselines, score_model
from astrozoo.training.loading import explain_dead_worker
from astrozoo.training.memory import explain_out_of_memory, held_bytes
from astrozoo.training.protocol import overrides_of, schema_of, split_of
from astrozoo.training.records import Interrupt, Recorder
from astrozoo.training.result import TrainResult
from astrozoo.training.runtime import Runtime, seed_everything, start
from astrozoo.training.trainer import Callback, Trainer

__all__ = ["train"]

log = logging.getLogger("astrozoo.training")
Resume = Literal["auto", False] | str | os.PathLike[str]


def train(
    model_or_name: ZooModel | str,
    data: Any,
    config: TrainConfig | None = None,
    *,
    overrides: Mapping[str, Any] | None = None,
    resume: Resume = "auto",
    callbacks: Sequence[Callback] = (),
) -> TrainResult:
    """Train a model on `data.train`, keep the one that is best on `data.val`, and compare it with the baselines.

    SIGTERM and Ctrl-C end training after the current step, with everything saved. Started by `torchrun` or
    `accelerate launch`, all processes train together, and the result is that of one process.

    Args:
        model_or_name: A model, or the name of one to create for these data.
        data: Anything with a split `train` (see `TrainingData`).
        config: Settings; default `TrainConfig()`.
        overrides: With a name: fields of the model's configuration, beyond those that the data decide.
        resume: `auto` continues the last good checkpoint in `config.out`, if there is one; a path continues that
            checkpoint; False starts anew and sets earlier checkpoints aside.
        callbacks: Called with the `Trainer` after each step; a returned text stops training with that reason.

    Raises:
        ConfigError: A setting does not fit the model, the data or this machine.
        DataError: The data cannot be trained on.
        TrainingError: Training would produce wrong weights, ran out of memory, cannot be continued as asked, or
            with `deterministic=True` needs an operation that has no reproducible implementation; the message names it.
        WeightsError: A checkpoint could not be written; the one before is intact.
    """
    config = config or TrainConfig()
    runtime = start(config)
    try:
        # The current GPU is the one whose queue events are recorded in.
        on_gpu = torch.cuda.device(runtime.device) if runtime.device.type == "cuda" else contextlib.nullcontext()
        with on_gpu, only_deterministic(config.deterministic):
            return _train(model_or_name, data, config, overrides, resume, callbacks, runtime)
    except BaseException as error:
        if lost := runtime.failed(error):
            raise TrainingError(
                f"{lost} Checkpoints are intact: the same command goes on from the last one."
            ) from error
        raise


def _train(
    model_or_name: ZooModel | str,
    data: Any,
    config: TrainConfig,
    overrides: Mapping[str, Any] | None,
    resume: Resume,
    callbacks: Sequence[Callback],
    runtime: Runtime,
) -> TrainResult:
    seed_everything(config.seed)
    model = _model(model_or_name, data, overrides)
    model.preprocessing = schema_of(data) or model.preprocessing
    out = _folder(config, model, runtime)
    found = _found(resume, out)
    settled = trainer = None
    try:
        settled = settle(model, data, config, runtime, found)
        trainer = Trainer(model, data, settled.config, runtime, out)
        _resume(trainer, found)
        return _run(trainer, callbacks, settled.record)
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, AstrozooError):
            raise
        if (explained := explain_dead_worker(error)) is not None:
            raise TrainingError(
                f"{explained} Checkpoints in {out} are intact; the same call goes on from the last."
            ) from error
        if (explained := explain_no_determinism(error)) is not None:
            raise TrainingError(f"{explained} Checkpoints in {out} are intact.") from error
        if settled is None:  # what is too much for every candidate has been explained
            raise
        held = held_bytes(trainer) if trainer is not None else 0
        explained = explain_out_of_memory(error, model, data, settled.config, runtime, held=held)
        if explained is None:
            raise
        raise TrainingError(f"{explained} {_rescue(trainer)}") from error


def _run(trainer: Trainer, callbacks: Sequence[Callback], auto: Mapping[str, Any] | None) -> TrainResult:
    runtime, config, out = trainer.runtime, trainer.config, trainer.out
    recorder = Recorder(runtime, config, out, steps=trainer.steps, step=trainer.step)
    try:
        with Interrupt() as interrupt:
            recorder.write(
                "start",
                trainer.step,
                config=config.to_dict(),
                processes=runtime.processes,
                model=trainer.model.num_parameters(),
                device=str(runtime.device),
                **({"auto": auto} if auto else {}),
            )
            stopped = trainer.run(recorder, interrupt, callbacks)
            with trainer.weights_to_keep():
                last = trainer.save_model("last")
            trainer.saver.finish()
            # A signal may also have come amid the saves; then it ends the run here, before anything is scored.
            stopped = next(filter(None, runtime.gather(interrupt.requested)), stopped)
        result = _result(trainer, stopped, last)
        recorder.write("end", trainer.step, stopped=stopped, metrics=result.metrics, baselines=result.baselines)
    finally:
        recorder.close()
    if stopped.startswith("SIG"):
        log.warning("Stopped by %s after step %d, saved in %s; the same call continues it.", stopped, trainer.step, out)
    return result


def _rescue(trainer: Trainer | None) -> str:
    """After memory ran out: save the state before the step that failed if it is whole, and say where one goes on."""
    if trainer is None:
        return "No step was taken."
    problem = ""
    if trainer.step > max(trainer.saved_step, 0) and not trainer.updating and trainer.runtime.processes == 1:
        # With several processes the others are still amid the step, and what they hold cannot be gathered.
        try:
            trainer.optimizer.zero_grad()
            trainer.save()
            trainer.saver.finish()
        except Exception as error:  # the error that is being explained is the one to report
            problem = f" That of step {trainer.step} could not be saved ({str(error) or type(error).__name__})."
    if trainer.checkpoint_path is None:
        return f"No checkpoint exists yet.{problem}"
    return (
        f"The last checkpoint is {trainer.checkpoint_path} and intact: the same call with new settings goes on from "
        f"step {trainer.saved_step}.{problem}"
    )


def _result(trainer: Trainer, stopped: str, last: Path) -> TrainResult:
    model, runtime, data = trainer.model, trainer.runtime, trainer.data
    best = trainer.out / "best" if trainer.best_step and (trainer.out / "best").is_dir() else None
    _load_weights(trainer, best or last)
    model.eval()
    split = next((name for name in ("test", "val") if split_of(data, name) is not None), None)
    metrics: dict[str, float] = {}
    baselines: dict[str, dict[str, float]] = {}
    if split is not None and not stopped.startswith("SIG"):
        samples = split_of(data, split)
        assert samples is not None
        micro = -(-trainer.order.batch_size // trainer.order.parts)
        size = min(trainer.config.evaluation.batch_size or micro, micro)
        metrics = score_model(trainer.loss, samples, data, batch_size=size, runtime=runtime)
        # On every process over all samples: metrics reduce over processes, and equal shares leave means as they are.
        baselines = evaluate_baselines(data, samples, model, batch_size=size)
    return TrainResult(
        model=model,
        metrics=metrics,
        baselines=baselines,
        split=split if metrics else None,
        headline=trainer.headline,
        history=trainer.history,
        steps=trainer.step,
        stopped=stopped,
        out=trainer.out,
        best=best,
        last=last,
        checkpoint=trainer.checkpoint_path,
    )


def _load_weights(trainer: Trainer, folder: Path) -> None:
    from astrozoo.weights.files import read_tensors
    from astrozoo.weights.load import read_saved, weight_files
    from astrozoo.weights.sources import LocalPlace

    place = LocalPlace(folder)  # finds what a save that was killed amid its commit has left: the new files, all of them
    files = weight_files(place, read_saved(place)).paths
    tensors = {name: item for file in files.values() for name, item in read_tensors(file).items()}
    saved.load_tensors(trainer.model.state_dict(), tensors, "weights")


def _model(model_or_name: ZooModel | str, data: Any, overrides: Mapping[str, Any] | None) -> ZooModel:
    if isinstance(model_or_name, str):
        from astrozoo.factory import create_model

        return create_model(model_or_name, **{**overrides_of(data), **(overrides or {})})
    if overrides:
        raise ConfigError("overrides apply when a name is given; this model is already built. Pass its name instead.")
    if not isinstance(model_or_name, ZooModel) or model_or_name.spec is None:
        raise ConfigError(
            f"train takes the name of a model or a model from create_model, got {type(model_or_name).__name__} without "
            f"a registry name, which could not be loaded again."
        )
    return model_or_name


def _folder(config: TrainConfig, model: ZooModel, runtime: Runtime) -> Path:
    assert model.spec is not None
    default = Path("runs") / f"{model.spec.name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    out = Path(config.out) if config.out else runtime.gather(default)[0]
    try:
        runtime.together(lambda: out.mkdir(parents=True, exist_ok=True))
    except OSError as error:
        raise TrainingError(f"the folder {out} cannot be made: {error.strerror}; choose another with out=.") from error
    return out


def _found(resume: Resume, out: Path) -> saved.Checkpoint | None:
    """The checkpoint to continue, if any."""
    if resume == "auto":
        return saved.latest_checkpoint(out / "checkpoints")
    return None if resume is False else saved.read_checkpoint(Path(resume))


def _resume(trainer: Trainer, found: saved.Checkpoint | None) -> None:
    out, runtime = trainer.out, trainer.runtime
    folder = out / "checkpoints"
    if found is not None:
        trainer.restore(found)
    reached = runtime.gather(trainer.step)  # after this, every process has read what it needs
    if len(set(reached)) > 1:
        raise TrainingError(f"the processes found checkpoints of steps {reached} in {folder}; they must share a disk.")
    own = found is not None and found.path is not None and found.path.resolve().parent == folder.resolve()
    runtime.together(lambda: saved.tidy(out))
    aside = runtime.together(lambda: saved.set_aside(out, trainer.step, fresh=not own))
    if aside and runtime.main:
        begin = "starts anew" if found is None else f"goes on from step {trainer.step}"
        names = ", ".join(path.name for path in aside)
        log.warning("This run %s; what later steps or an earlier run left in %s is now %s.", begin, out, names)
