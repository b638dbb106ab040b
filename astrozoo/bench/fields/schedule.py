"""All trainings of a comparison: in several processes, each result kept as it comes, none done twice."""

from __future__ import annotations

import argparse
import json
import sys
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from astrozoo.bench.fields.contestants import contestants
from astrozoo.bench.fields.sets import SETS
from astrozoo.bench.pool import run_jobs
from astrozoo.errors import ConfigError
from astrozoo.registry.names import suggest
from astrozoo.weights.files import atomic_write

__all__ = ["collect"]

Cell = tuple[str, str, int]  # set, contestant, seed
Row = dict[str, Any]

_LONG = ("cube_nas", "cube_mae", "MONAI SwinUNETR")  # their trainings take several times as long as others


def collect(args: argparse.Namespace) -> tuple[list[Row], list[Row]]:
    """Outcomes of all trainings asked for, and of the baselines, as rows.

    Raises:
        ConfigError: A set or a contestant does not exist.
    """
    chosen = args.fields or list(SETS)
    for name in chosen:
        if name not in SETS:
            raise ConfigError(f"there is no field set {name!r}.{suggest(name, SETS)} There are: {', '.join(SETS)}.")
    everyone = contestants(args.only)
    if not everyone:
        raise ConfigError(f"nobody is called {', '.join(args.only or ())}; a family is called cube_unet, for example.")
    args.store.mkdir(parents=True, exist_ok=True)
    cells = [
        (fields, contestant.name, seed)
        for seed in range(args.seeds)
        for fields in chosen
        for contestant in everyone
    ]  # fmt: skip
    budget = {"steps": args.steps, "rates": tuple(args.rates)}
    todo = [cell for cell in cells if _read(_place(args.store, cell, budget)) is None]
    todo.sort(key=lambda cell: not cell[1].startswith(_LONG))  # else the others wait for them at the end
    _work(todo, args, budget)
    rows = [_read(_place(args.store, cell, budget)) for cell in cells]
    return [row for row in rows if row is not None], [_baselines(name, args) for name in chosen]


def _work(todo: list[Cell], args: argparse.Namespace, budget: Row) -> None:
    """Train all cells; an error of one is told and does not stop the others."""
    train = partial(_train, args=argparse.Namespace(**{**vars(args), "benchmark": None}), budget=budget)
    ended = run_jobs(train, todo, processes=args.jobs, device=args.device, minutes=args.minutes or None)
    for count, done in enumerate(ended, 1):
        name, who, seed = done.job
        line = done.result if done.error is None else f"{name}, {who}, seed {seed}: {done.error}"
        sys.stderr.write(f"[{count}/{len(todo)}] {line}\n")
        sys.stderr.flush()


@lru_cache
def _set(name: str, folder: Path) -> Any:
    """A field set, opened once in a process."""
    from astrozoo.bench.fields.sets import open_set

    return open_set(name, folder)


def _train(cell: Cell, device: str, args: argparse.Namespace, budget: Row) -> str:
    """One line on what came of it."""
    from astrozoo.bench.fields.training import Budget, run_cell

    name, who, seed = cell
    fields = _set(name, args.data)
    (contestant,) = (one for one in contestants([who]) if one.name == who)
    rates = budget["rates"]
    first = _read(_place(args.store, (name, who, 0), budget))
    if seed and first is not None:
        rates = (first["rate"],)  # chosen once, with the first seed
    if not contestant.takes(fields):
        return f"{name}, {who}: left out, it needs a whole sphere"
    outcome = run_cell(contestant, fields, seed, Budget(steps=budget["steps"], rates=rates), device)
    _write(_place(args.store, cell, budget), outcome.to_dict())
    return f"{name}, {who}, seed {seed}: {outcome.headline:.4f} in {outcome.seconds:.0f} s"


def _baselines(name: str, args: argparse.Namespace) -> Row:
    """Scores of what needs no training."""
    from astrozoo.bench.fields.baselines import baselines
    from astrozoo.bench.fields.training import by_lead

    place = args.store / f"{name}.baselines.json"
    row = _read(place)
    if row is None:
        fields = _set(name, args.data)
        row = {"fields": name, "title": fields.title, "unit": fields.unit, "leads": fields.leads, "scores": {}}
        for who, forecaster in baselines(fields).items():
            scores = fields.score(forecaster, fields.scored_on)
            row["scores"][who] = {
                "rmse": by_lead(scores, fields, "rmse"),
                "acc": by_lead(scores, fields, "acc"),
                "headline": scores[fields.headline],
            }
        _write(place, row)
    return row


def _place(store: Path, cell: Cell, budget: Row) -> Path:
    name, who, seed = cell
    rates = "-".join(f"{rate:g}" for rate in budget["rates"])
    return store / f"{name}.{who.replace(' ', '_')}.{seed}.{budget['steps']}x{rates}.json"


def _read(path: Path) -> Row | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _write(path: Path, row: Row) -> None:
    with atomic_write(path) as temporary:
        Path(temporary).write_text(json.dumps(row, indent=1), encoding="utf-8")
