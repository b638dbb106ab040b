"""A training step of every base variant next to a peer of its size: time, memory, and how much of the device it uses.

All compile, in bfloat16, and take turns. Families compile side by side, each in a process of its own, and are measured
one after the other on each GPU. FLOPs are those that PyTorch counts in an eager forward pass (Fourier transforms and
elementwise work count nothing), three times over for a training step; the device's peak is that of a large matrix
product, measured in the same run.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from astrozoo import registry
from astrozoo.bench.families import network
from astrozoo.bench.fields.contestants import KINDS, PEERS, counted_on, tolerance
from astrozoo.bench.harness import Comparison, measure
from astrozoo.bench.side_by_side import devices, first_line, side_by_side
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
        outcomes = side_by_side(tasks, _prepare, _compare, jobs=args.jobs, minutes=args.minutes)
        return [outcomes[task.name].value or _missing(task.name, outcomes[task.name].failure) for task in tasks]
    return [_alone(task) for task in tasks]


def _tasks(args: argparse.Namespace) -> list[Task]:
    """The base variants of all families, or of those named; or the variants named."""
    base = [name for name in registry.list_models("cube_*_base") if registry.model_info(name).domain == "cube"]
    if args.only is not None:
        named = [name for name in args.only if name in registry.list_models("cube_*")]
        base = named + [name for name in base if _family(name) in args.only and name not in named]
    places = devices(args.device, len(base)) if args.jobs > 1 else [args.device] * len(base)
    tasks = []
    for name, device in zip(base, places, strict=True):
        level, lat, lon = args.grid
        batch, kind = args.batch, KINDS.get(_family(name))
        if kind == "sphere":  # neuraloperator's harmonics know no levels
            level, batch = 1, batch * level
        elif kind == "windows":  # MONAI's SwinUNETR wants multiples of 32
            level, lat = 2 * level, lat // 2
        tasks.append(Task(name, (level, lat, lon), batch, device))
    return tasks


def _family(name: str) -> str:
    return registry.model_info(name).family


def _alone(task: Task) -> Comparison:
    """Measured here, or a comparison that says why there is none: the others are not lost with it."""
    try:
        return _compare(task, _steps(task))
    except Exception as error:
        return _missing(task.name, first_line(error))


def _missing(name: str, reason: str) -> Comparison:
    comparison = Comparison(f"{name}: not measured", {})
    comparison.notes.append(reason)
    comparison.target(f"measurements of {name} that failed", 1, at_most=0, unit="")
    return comparison


# -- one variant, perhaps in a process of its own ----------------------------------------------------------------------


def _prepare(task: Task) -> dict[str, Callable[[], None]]:
    """Steps that are compiled."""
    steps = _steps(task)
    for step in steps.values():
        step()
    return steps


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


def _inputs(model: Any, task: Task, device: str) -> dict[str, Any]:
    from astrozoo.batch import random_batch

    sizes = dict(zip(("level", "lat", "lon"), task.grid, strict=True)) | {"climate_time": 1, "geo_time": 1, "time": 4}
    return random_batch(model.spec, task.batch, sizes=sizes, device=device).inputs


def _steps(task: Task) -> dict[str, Callable[[], None]]:
    """A compiled training step of the variant and of each peer of its kind."""
    import torch

    torch.manual_seed(0)
    ours = network(task.name, task.device)
    steps = {task.name: _step(ours, _inputs(ours, task, task.device), task.device)}
    for peer, make in _peers(task, ours.num_parameters()).items():
        cells = task.grid if task.grid[0] > 1 else task.grid[1:]
        x = torch.randn(task.batch, VARS, *cells, device=task.device)
        steps |= _peer_step(peer, _with_float32_transforms(make().to(task.device)), x, task.device)
    return steps


def _peer_step(name: str, network: Any, x: Any, device: str) -> dict[str, Callable[[], None]]:
    """Compiled, where PyTorch's compiler takes the peer: neuraloperator's tensorised weights it does not."""
    import torch

    step = _step(network, {"x": x}, device)
    try:
        step()
    except (torch._dynamo.exc.TorchDynamoException, NotImplementedError):
        return {f"{name} (not compiled)": _step(network, {"x": x}, device, compiled=False)}
    return {name: step}


def _with_float32_transforms(network: Any) -> Any:
    """Neuraloperator hands features to the Fourier transform as autocast left them, and there is none for bfloat16."""
    from neuralop.layers.spectral_convolution import SpectralConv
    from neuralop.layers.spherical_convolution import SphericalConv

    for module in network.modules():
        if isinstance(module, (SpectralConv, SphericalConv)):
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(), *inputs[1:]))
    return network


def _step(model: Any, inputs: dict[str, Any], device: str, *, compiled: bool = True) -> Callable[[], None]:
    import torch

    kind = torch.device(device).type
    call = torch.compile(model) if compiled else model

    def train() -> None:
        with torch.autocast(kind, dtype=torch.bfloat16):
            outputs = call(**inputs) if hasattr(model, "spec") else call(inputs["x"])
        first = outputs if isinstance(outputs, torch.Tensor) else outputs[0]
        first.float().square().mean().backward()
        model.zero_grad(set_to_none=True)  # nobody else's turn begins with these gradients in memory

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

    patch = (config["level_patch"], config["patch"], config["patch"])

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

    model = network(task.name, "meta")
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
