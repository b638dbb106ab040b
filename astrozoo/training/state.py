"""The state of a trainer as a checkpoint, and back."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

from astrozoo.errors import TrainingError
from astrozoo.training import checkpoint as saved

if TYPE_CHECKING:
    from astrozoo.training.trainer import Trainer

__all__ = ["capture", "fingerprint", "restore"]

log = logging.getLogger("astrozoo.training")


def capture(trainer: Trainer) -> saved.Checkpoint:
    """Everything that the rest of the run depends on. All processes must call it together.

    Raises:
        TrainingError: The weights are not finite.
    """
    runtime = trainer.runtime
    groups, plain, optimizer = saved.optimizer_state(trainer.optimizer, trainer.model)
    tensors = {"model": saved.full_tensors(trainer.model.state_dict()), "optimizer": optimizer}
    bad = [name for name, item in tensors["model"].items() if item.is_floating_point() and not item.isfinite().all()]
    if bad:
        raise TrainingError(f"the weights {bad[:3]} are not finite after step {trainer.step}; nothing was overwritten.")
    if trainer.ema is not None:
        tensors["ema"] = saved.full_tensors(trainer.ema.averages)
    generators = runtime.gather(saved.rng_state(runtime.device))
    tensors["rng"] = {f"{rank}|{key}": item for rank, (_, own) in enumerate(generators) for key, item in own.items()}
    values = {
        "epoch": trainer.epoch,
        "epoch_step": trainer.epoch_step,
        "best_score": None if math.isinf(trainer.best_score) else trainer.best_score,
        "best_step": trainer.best_step,
        "worse": trainer.worse,
        "history": trainer.history,
        "optimizer": {"groups": groups, "plain": plain},
        "scaler": trainer.scaler.state_dict() if trainer.scaler is not None else None,
        "overflows": trainer.overflows,
        "rng": [own for own, _ in generators],
        "fingerprint": fingerprint(trainer),
        "config": trainer.config.to_dict(),
    }
    return saved.Checkpoint(values, tensors)


def restore(trainer: Trainer, checkpoint: saved.Checkpoint) -> None:
    """The inverse of `capture`.

    Raises:
        TrainingError: The checkpoint belongs to another model, other data, or an order of data that these settings
            change.
    """
    values, tensors = checkpoint.state, checkpoint.tensors
    ours, theirs = fingerprint(trainer), values["fingerprint"]
    changed = [f"{key} {theirs.get(key)!r} -> {value!r}" for key, value in ours.items() if theirs.get(key) != value]
    if changed:
        raise TrainingError(
            f"{checkpoint.path} cannot be continued, the run has changed: {'; '.join(changed)}. Restore these "
            f"settings, choose another `out`, or start again with resume=False."
        )
    saved.load_tensors(trainer.model.state_dict(), tensors["model"], "weights")
    saved.load_optimizer(trainer.optimizer, trainer.model, values["optimizer"]["plain"], tensors["optimizer"])
    if trainer.ema is not None:
        averages = tensors.get("ema")
        if averages is None:
            log.warning("%s has no moving average; it starts from the weights.", checkpoint.path)
            averages = {name: tensors["model"][name] for name in trainer.ema.averages if name in tensors["model"]}
        saved.load_tensors(trainer.ema.averages, averages, "moving average")
    if trainer.scaler is not None and values["scaler"]:
        trainer.scaler.load_state_dict(values["scaler"])
    trainer.step, trainer.epoch, trainer.epoch_step = values["step"], values["epoch"], values["epoch_step"]
    trainer.best_score = math.inf if values["best_score"] is None else values["best_score"]
    trainer.best_step, trainer.worse, trainer.history = values["best_step"], values["worse"], list(values["history"])
    trainer.overflows = values["overflows"]
    rank = trainer.runtime.rank
    if rank < len(values["rng"]):  # a process that did not exist then keeps the generators of its own seed
        own = {key.partition("|")[2]: item for key, item in tensors["rng"].items() if key.startswith(f"{rank}|")}
        saved.set_rng_state(values["rng"][rank], own, trainer.runtime.device)


def fingerprint(trainer: Trainer) -> dict[str, Any]:
    """What must not change between a checkpoint and the run that continues it: it fixes the order of the data."""
    spec = trainer.model.spec
    return {
        "model": spec.name if spec is not None else type(trainer.model).__name__,
        "samples": trainer.order.length,
        "batch_size": trainer.order.batch_size,
        "seed": trainer.order.seed,
        "drop_last": trainer.config.drop_last,
    }
