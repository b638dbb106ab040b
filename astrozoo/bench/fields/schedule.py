"""All trainings of a comparison: in several processes, each result kept as it comes, none done twice."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import queue
import sys
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

from astrozoo.bench.fields.contestants import contestants
from astrozoo.bench.fields.sets import SETS
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
    deadline = time.monotonic() + 60 * args.minutes if args.minutes else float("inf")
    if args.jobs <= 1:
        for index, cell in enumerate(todo, 1):
            if time.monotonic() > deadline:
                break
            _tell(_train(cell, args, budget), index, len(todo))
        return
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    cells, told = context.Queue(), context.Queue()
    for cell in todo:
        cells.put(cell)
    workers = [
        context.Process(target=_worker, args=(cells, told, _on_device(args, rank), budget, deadline), daemon=True)
        for rank in range(min(args.jobs, len(todo)))
    ]
    for worker in workers:
        worker.start()
    done = 0
    while any(worker.is_alive() for worker in workers) or not told.empty():
        try:
            line = told.get(timeout=1)
        except queue.Empty:
            continue
        done += 1
        _tell(line, done, len(todo))


def _on_device(args: argparse.Namespace, rank: int) -> argparse.Namespace:
    """The arguments of a worker: with `cuda`, the GPUs are shared out."""
    import torch

    count = torch.cuda.device_count() if args.device == "cuda" else 0
    return argparse.Namespace(
        **{**vars(args), "device": f"cuda:{rank % count}" if count else args.device, "benchmark": None}
    )


def _worker(cells: Any, told: Any, args: argparse.Namespace, budget: Row, deadline: float) -> None:
    import torch

    torch.set_num_threads(1)
    while time.monotonic() < deadline:
        try:
            cell = cells.get_nowait()
        except queue.Empty:
            return
        told.put(_train(cell, args, budget))


@lru_cache
def _set(name: str, folder: Path) -> Any:
    """A field set, opened once in a process."""
    from astrozoo.bench.fields.sets import open_set

    return open_set(name, folder)


def _train(cell: Cell, args: argparse.Namespace, budget: Row) -> str:
    """One line on what came of it."""
    from astrozoo.bench.fields.training import Budget, run_cell

    name, who, seed = cell
    try:
        fields = _set(name, args.data)
        (contestant,) = (one for one in contestants([who]) if one.name == who)
        rates = budget["rates"]
        first = _read(_place(args.store, (name, who, 0), budget))
        if seed and first is not None:
            rates = (first["rate"],)  # chosen once, with the first seed
        if not contestant.takes(fields):
            return f"{name}, {who}: left out, it needs a whole sphere"
        outcome = run_cell(contestant, fields, seed, Budget(steps=budget["steps"], rates=rates), args.device)
    except Exception as error:  # one contestant's failure is a result, and no reason to lose the others'
        return f"{name}, {who}, seed {seed}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    _write(_place(args.store, cell, budget), outcome.to_dict())
    return f"{name}, {who}, seed {seed}: {outcome.headline:.4f} in {outcome.seconds:.0f} s"


def _tell(line: str, done: int, total: int) -> None:
    sys.stderr.write(f"[{done}/{total}] {line}\n")
    sys.stderr.flush()


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
