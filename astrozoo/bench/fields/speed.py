"""A training step of every base variant next to a peer of its size: time, memory, and how much of the device it uses.

All compile, in bfloat16, and take turns. Families compile side by side, each in a process of its own, and are measured
one after the other on each GPU. FLOPs are those that PyTorch counts in an eager forward pass (Fourier transforms and
elementwise work count nothing), three times over for a training step; the device's peak is that of a large matrix
product, measured in the same run.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Any

from astrozoo import registry
from astrozoo.bench.fields.contestants import KINDS, PEERS, counted_on, tolerance
from astrozoo.bench.harness import Comparison, measure
from astrozoo.bench.sizes import at_parameters

__all__ = ["compare"]

VARS = 5


@dataclass(frozen=True)
class Task:
    """What a step is taken with.

    Attributes:
        name: A variant.
        grid: Cells (level, lat, lon).
        batch: Samples.
        device: Where.
    """

    name: str
    grid: tuple[int, int, int]
    batch: int
    device: str

    @property
    def cuda(self) -> bool:
        """Whether it runs on a GPU."""
        return self.device.startswith("cuda")


def compare(args: argparse.Namespace) -> list[Comparison]:
    """One comparison per variant: it and the peers of its kind."""
    tasks = _tasks(args)
    if args.jobs > 1:
        return _side_by_side(tasks, args.minutes)
    return [_told(task.name, partial(lambda task: _compare(task, _steps(task)), task)) for task in tasks]


def _tasks(args: argparse.Namespace) -> list[Task]:
    """The base variants of all families, or of those named; or the variants named."""
    base = [name for name in registry.list_models("cube_*_base") if registry.model_info(name).domain == "cube"]
    if args.only is not None:
        named = [name for name in args.only if name in registry.list_models("cube_*")]
        base = named + [name for name in base if _family(name) in args.only and name not in named]
    count = 0
    if args.device == "cuda":
        import torch

        count = torch.cuda.device_count()
    tasks = []
    for index, name in enumerate(base):
        level, lat, lon = args.grid
        batch, kind = args.batch, KINDS.get(_family(name))
        if kind == "sphere":  # neuraloperator's harmonics know no levels
            level, batch = 1, batch * level
        elif kind == "windows":  # MONAI's SwinUNETR wants multiples of 32
            level, lat = 2 * level, lat // 2
        device = f"cuda:{index % count}" if count and args.jobs > 1 else args.device
        tasks.append(Task(name, (level, lat, lon), batch, device))
    return tasks


def _family(name: str) -> str:
    return registry.model_info(name).family


def _told(name: str, work: Callable[[], Any]) -> Any:
    """What the work gives, or a comparison that says why there is none: the others are not lost with it."""
    try:
        return work()
    except Exception as error:
        lines = str(error).splitlines()
        return _missing(name, f"{type(error).__name__}: {lines[0][:300] if lines else ''}")


def _missing(name: str, reason: str) -> Comparison:
    comparison = Comparison(f"{name}: not measured", {})
    comparison.notes.append(reason)
    return comparison


# -- several processes -------------------------------------------------------------------------------------------------


def _side_by_side(tasks: list[Task], minutes: float | None) -> list[Comparison]:
    """All compile at a time; then those of a GPU are measured one after the other, while the others rest."""
    deadline = time.monotonic() + 60 * minutes if minutes else float("inf")
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    workers = []
    for task in tasks:
        pipes[task.name], theirs = context.Pipe()
        workers.append(context.Process(target=_worker, args=(task, theirs), daemon=True))
        workers[-1].start()
        theirs.close()
    # Two thirds of the time at most for getting ready: who is late is left out, and the others are measured.
    ready_by = deadline if minutes is None else deadline - 20 * minutes
    found = _answers(pipes, ready_by)
    ready = {name for name, failure in found.items() if failure is None}
    queues: dict[str, list[str]] = {}
    for task in tasks:
        if task.name in ready:
            queues.setdefault(task.device, []).append(task.name)
        elif task.name not in found:
            found[task.name] = _missing(task.name, "was not ready in time")
    while any(queues.values()):
        turn = {names.pop(0) for names in queues.values() if names}
        for name in turn:
            pipes[name].send("go")
        found |= _answers({name: pipes[name] for name in turn}, deadline)
    for worker in workers:
        worker.kill()
    return [found[task.name] or _missing(task.name, "was not measured in time") for task in tasks]


def _answers(pipes: dict[str, Connection], deadline: float) -> dict[str, Any]:
    """What the workers send next, of those that send before the deadline."""
    waiting = {pipe: name for name, pipe in pipes.items()}
    answers: dict[str, Any] = {}
    while waiting and (left := deadline - time.monotonic()) > 0:
        for pipe in wait(list(waiting), timeout=min(left, 3600)):
            assert isinstance(pipe, Connection)
            name = waiting.pop(pipe)
            try:
                answers[name] = pipe.recv()
            except EOFError:
                answers[name] = _missing(name, "its process ended")
    return answers


def _worker(task: Task, pipe: Connection) -> None:
    """Compile, say so, wait for the turn, measure."""
    import torch

    torch.set_num_threads(1)
    if task.cuda:
        torch.cuda.set_device(task.device)
    steps: dict[str, Callable[[], None]] = {}

    def prepare() -> None:
        steps.update(_steps(task))
        for step in steps.values():
            step()

    failure = _told(task.name, prepare)
    if task.cuda:
        torch.cuda.empty_cache()
    pipe.send(failure)
    if failure is None:
        pipe.recv()
        pipe.send(_told(task.name, partial(_compare, task, steps)))


# -- one variant -------------------------------------------------------------------------------------------------------


def _compare(task: Task, steps: dict[str, Callable[[], None]]) -> Comparison:
    import torch

    name, cuda = task.name, task.cuda
    comparison = measure(
        steps,
        rounds=10 if cuda else 3,
        warmup=3 if cuda else 1,
        device=task.device,
        memory=cuda,
        title=f"training step of {name}, batch {task.batch}, {' x '.join(map(str, task.grid))} cells",
        packages=("monai", "neuraloperator", "timm"),
    )
    for peer in list(steps)[1:]:
        comparison.target_ratio(name, peer, at_most=1.0)
        if cuda:
            comparison.target_ratio(name, peer, at_most=1.0, metric="peak_bytes")
    flops = 3 * _flops(task)
    seconds = comparison.samples[name].median()
    peak = _peak_flops(task.device) if cuda else None
    share = f", {flops / seconds / peak:.1%} of the {peak / 1e12:.0f} TFLOP/s of a matrix product" if peak else ""
    comparison.notes.append(
        f"{name}: {task.batch / seconds:.1f} samples/s, {flops / seconds / 1e12:.1f} TFLOP/s{share}"
    )
    if cuda:
        torch.cuda.empty_cache()
    return comparison


def _model(name: str, device: str) -> Any:
    """The variant; the network that a search derives in its place, before it has learnt anything."""
    import torch

    from astrozoo.factory import create_model

    if not hasattr(registry.load_variant(name).family.model, "derive"):
        return create_model(name, device=device)
    torch.manual_seed(0)
    model: Any = create_model(name)
    return model.derive().to(device)


def _inputs(model: Any, task: Task, device: str) -> dict[str, Any]:
    from astrozoo.batch import random_batch

    sizes = dict(zip(("level", "lat", "lon"), task.grid, strict=True)) | {"climate_time": 1, "geo_time": 1, "time": 4}
    return random_batch(model.spec, task.batch, sizes=sizes, device=device).inputs


def _steps(task: Task) -> dict[str, Callable[[], None]]:
    """A compiled training step of the variant and of each peer of its kind."""
    import torch

    torch.manual_seed(0)
    ours = _model(task.name, task.device)
    steps = {task.name: _step(ours, _inputs(ours, task, task.device), task.device)}
    for peer, network in _peers(task, ours.num_parameters()).items():
        cells = task.grid if task.grid[0] > 1 else task.grid[1:]
        x = torch.randn(task.batch, VARS, *cells, device=task.device)
        steps[peer] = _step(network().to(task.device), {"x": x}, task.device)
    return steps


def _step(model: Any, inputs: dict[str, Any], device: str) -> Callable[[], None]:
    import torch

    kind = torch.device(device).type
    compiled = torch.compile(model)

    def train() -> None:
        model.zero_grad(set_to_none=True)
        with torch.autocast(kind, dtype=torch.bfloat16):
            outputs = compiled(**inputs) if hasattr(model, "spec") else compiled(inputs["x"])
        first = outputs if isinstance(outputs, torch.Tensor) else outputs[0]
        first.float().square().mean().backward()

    return train


def _peers(task: Task, parameters: int) -> dict[str, Callable[[], Any]]:
    """Those of its kind that take the same fields: none for sequences and for pretraining."""
    spec = registry.model_info(task.name)
    if spec.task != "field_regression":
        return {}
    family, levels = spec.family, task.grid[0] > 1
    kind = KINDS.get(family, "unet")
    peers = {
        peer: at_parameters(
            partial(make, 3 if levels else 2, VARS, VARS, task.grid), parameters,
            within=tolerance(peer), device=counted_on(peer),
        )
        for peer, (own, _, (make, with_levels, _)) in PEERS.items()
        if own == kind and with_levels == levels
    }  # fmt: skip
    if family == "cube_vit":
        peers["timm ViT blocks"] = partial(_timm_vit, spec.config)
    return peers


def _timm_vit(config: Any) -> Any:
    """Timm's blocks at our width and depth, between a patch embedding and a linear decoder."""
    from timm.models.vision_transformer import Block
    from torch import nn

    patch = tuple(config["patch"])

    class TimmViT(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Conv3d(VARS, config["dim"], patch, patch)
            blocks = [Block(config["dim"], config["num_heads"], qkv_bias=True) for _ in range(config["depth"])]
            self.blocks = nn.Sequential(*blocks)
            self.decode = nn.ConvTranspose3d(config["dim"], VARS, patch, patch)

        def forward(self, x: Any) -> Any:
            x = self.embed(x)
            return self.decode(self.blocks(x.flatten(2).mT).mT.unflatten(2, x.shape[2:]))

    return TimmViT()


def _flops(task: Task) -> int:
    """Of one forward pass of the whole batch, counted on the meta device."""
    from torch.utils.flop_counter import FlopCounterMode

    model = _model(task.name, "meta")
    inputs = _inputs(model, task, "meta")
    with FlopCounterMode(display=False) as counter:
        model(**inputs)
    return counter.get_total_flops()


def _peak_flops(device: str) -> float:
    """FLOP/s of a large bfloat16 matrix product."""
    import torch

    a, b = (torch.randn(8192, 8192, device=device, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(10):
        a @ b
    end.record()
    torch.cuda.synchronize()
    return 10 * 2 * 8192**3 / (start.elapsed_time(end) * 1e-3)
