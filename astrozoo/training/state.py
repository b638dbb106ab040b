"""The state of a trainer as a checkpoint, and back."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from astrozoo.errors import TrainingError
from astrozoo.training import checkpoint as saved
from astrozoo.training.optim import local
from astrozoo.training.protocol import contents_of, schema_of

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
    # Of parameters only: a buffer may mask with infinity.
    own = {name: local(item) for name, item in trainer.model.named_parameters()}
    found = runtime.gather([name for name, item in own.items() if not bool(item.isfinite().all())])
    bad = sorted({name for part in found for name in part})
    if bad:
        raise TrainingError(f"the weights {bad[:3]} are not finite after step {trainer.step}; nothing was overwritten.")
    plain, optimizer = saved.optimizer_state(trainer.optimizer, trainer.model)
    tensors = {"model": saved.full_tensors(trainer.model.state_dict()), "optimizer": optimizer}
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
        "optimizer": plain,
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
    changed = _differences(values["fingerprint"], json.loads(json.dumps(fingerprint(trainer))))
    if changed:
        more = f"; and {len(changed) - 5} more" if len(changed) > 5 else ""
        raise TrainingError(
            f"{checkpoint.path} cannot be continued, the run has changed: {'; '.join(changed[:5])}{more}. Restore "
            f"these, choose another `out`, or start again with resume=False."
        )
    saved.load_tensors(trainer.model.state_dict(), tensors["model"], "weights")
    saved.load_optimizer(trainer.optimizer, trainer.model, values["optimizer"], tensors["optimizer"])
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
    """What must not change between a checkpoint and the run that continues it: model, data, their order, optimiser.

    Learning rate, schedule, averaging, length and everything that only changes speed may be changed on the way.
    """
    spec = trainer.model.spec
    return {
        "model": spec.name if spec is not None else type(trainer.model).__name__,
        "model config": asdict(trainer.model.config),
        "data": _condensed(schema_of(trainer.data) or {}),
        "optim.name": trainer.config.optim.name.lower(),
        "data values": dict(contents_of(trainer.data)),
        "samples": trainer.order.length,
        "batch_size": trainer.order.batch_size,
        "seed": trainer.order.seed,
        "drop_last": trainer.config.drop_last,
    }


def _condensed(value: Any) -> Any:
    """`value` with long lists of numbers (coordinates, statistics) as their count and mean magnitudes."""
    if isinstance(value, Mapping):
        return {str(key): _condensed(item) for key, item in value.items()}
    if not isinstance(value, (list, tuple)):
        return value
    if len(value) > 8 and all(isinstance(item, (int, float)) for item in value):
        finite = [float(item) for item in value if math.isfinite(item)]
        return {"count": len(value), "sum of magnitudes": math.fsum(map(abs, finite)), "length": math.hypot(*finite)}
    return [_condensed(item) for item in value]


def _differences(theirs: Any, ours: Any, key: str = "") -> list[str]:
    """What differs, as `key theirs -> ours`. Statistics may round otherwise on another machine."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        names = {**theirs, **ours}
        return [t for name in names for t in _differences(theirs.get(name), ours.get(name), f"{key} {name}".strip())]
    if isinstance(theirs, list) and isinstance(ours, list) and len(theirs) == len(ours):
        return [t for i, own in enumerate(ours) for t in _differences(theirs[i], own, f"{key}[{i}]")]
    if isinstance(theirs, float) and isinstance(ours, float):
        return [] if math.isclose(theirs, ours, rel_tol=1e-5, abs_tol=1e-12) else [f"{key} {theirs:.6g} -> {ours:.6g}"]
    return [] if theirs == ours else [f"{key} {theirs!r} -> {ours!r}"]
