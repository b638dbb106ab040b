"""A training step of every base variant next to a peer of its size: time, memory, and how much of the device it uses.

All compile, in bfloat16, and take turns. FLOPs are those that PyTorch counts in an eager forward pass (Fourier
transforms and elementwise work count nothing), three times over for a training step; the device's peak is that of a
large matrix product, measured in the same run.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Callable
from functools import partial
from typing import Any

from astrozoo import registry
from astrozoo.bench.fields.contestants import KINDS, PEERS, counted_on, tolerance
from astrozoo.bench.harness import Comparison, measure
from astrozoo.bench.sizes import at_parameters

__all__ = ["compare"]

GRID, BATCH, VARS = (8, 64, 128), 8, 5


def compare(args: argparse.Namespace) -> list[Comparison]:
    """One comparison per family: its base variant and the peers of its kind."""
    import torch

    chosen = [name for name in _base_variants() if args.only is None or {name, _family(name)} & set(args.only)]
    if args.jobs > 1:  # compile beforehand, side by side; the cache on disk keeps what came of it
        context = multiprocessing.get_context("spawn")
        with context.Pool(args.jobs, maxtasksperchild=1) as pool:
            pool.map(partial(_warm, device=args.device), chosen, chunksize=1)
    peak = _peak_flops(args.device) if args.device.startswith("cuda") else None
    found = []
    for name in chosen:
        torch.compiler.reset()
        try:
            found.append(_compare(name, args.device, peak))
        except Exception as error:  # told, and no reason to lose the others
            comparison = Comparison(f"{name}: not measured", {})
            comparison.notes.append(f"{type(error).__name__}: {str(error)[:300]}")
            found.append(comparison)
    return found


def _base_variants() -> list[str]:
    return [name for name in registry.list_models("cube_*_base") if registry.model_info(name).domain == "cube"]


def _family(name: str) -> str:
    return registry.model_info(name).family


def _warm(name: str, device: str) -> None:
    import torch

    torch.set_num_threads(1)
    try:
        for step in _steps(name, device).values():
            step()
    except Exception:  # the comparison itself will tell
        pass


def _compare(name: str, device: str, peak: float | None) -> Comparison:
    import torch

    cuda = device.startswith("cuda")
    steps = _steps(name, device)
    comparison = measure(
        steps,
        rounds=10 if cuda else 3,
        warmup=3 if cuda else 1,
        device=device,
        memory=cuda,
        title=f"training step of {name}, batch {BATCH}, {' x '.join(map(str, GRID))} cells",
        packages=("monai", "neuraloperator", "timm"),
    )
    for peer in list(steps)[1:]:
        comparison.target_ratio(name, peer, at_most=1.0)
        if cuda:
            comparison.target_ratio(name, peer, at_most=1.0, metric="peak_bytes")
    flops = 3 * _flops(name)
    seconds = comparison.samples[name].median()
    share = f", {flops / seconds / peak:.1%} of the {peak / 1e12:.0f} TFLOP/s of a matrix product" if peak else ""
    comparison.notes.append(f"{name}: {BATCH / seconds:.1f} samples/s, {flops / seconds / 1e12:.1f} TFLOP/s{share}")
    del steps
    if cuda:
        torch.cuda.empty_cache()
    return comparison


def _steps(name: str, device: str) -> dict[str, Callable[[], None]]:
    """A compiled training step of the variant and of each peer of its kind."""
    import torch

    from astrozoo.batch import random_batch
    from astrozoo.factory import create_model

    torch.manual_seed(0)
    ours = create_model(name, device=device)
    assert ours.spec is not None
    sizes = dict(zip(("level", "lat", "lon"), GRID, strict=True))
    inputs = random_batch(ours.spec, BATCH, sizes={**sizes, "climate_time": 1, "geo_time": 1, "time": 4}).inputs
    steps = {name: _step(ours, {key: x.to(device) for key, x in inputs.items()}, device)}
    for peer, network in _peers(name, ours.num_parameters()).items():
        x = torch.randn(BATCH, VARS, *GRID, device=device)
        steps[peer] = _step(network().to(device), {"x": x}, device)
    return steps


def _step(model: Any, inputs: dict[str, Any], device: str) -> Callable[[], None]:
    import torch

    kind = torch.device(device).type
    compiled = torch.compile(model)

    def train() -> None:
        model.zero_grad(set_to_none=True)
        with torch.autocast(kind, dtype=torch.bfloat16):
            outputs = compiled(**inputs) if len(inputs) > 1 or hasattr(model, "spec") else compiled(inputs["x"])
        first = outputs if isinstance(outputs, torch.Tensor) else outputs[0]
        first.float().square().mean().backward()

    return train


def _peers(name: str, parameters: int) -> dict[str, Callable[[], Any]]:
    kind = KINDS.get(_family(name), "unet")
    peers = {
        peer: at_parameters(
            partial(make, 3, VARS, VARS, GRID), parameters, within=tolerance(peer), device=counted_on(peer)
        )
        for peer, (own, _, (make, levels, _)) in PEERS.items()
        if own == kind and levels
    }
    if _family(name) == "cube_vit":
        peers["timm ViT blocks"] = partial(_timm_vit, registry.model_info(name).config)
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


def _flops(name: str) -> int:
    """Of one forward pass of the whole batch, counted on the meta device."""
    from torch.utils.flop_counter import FlopCounterMode

    from astrozoo.batch import random_batch
    from astrozoo.factory import create_model

    model = create_model(name, device="meta")
    assert model.spec is not None
    sizes = dict(zip(("level", "lat", "lon"), GRID, strict=True))
    batch = random_batch(model.spec, BATCH, sizes={**sizes, "climate_time": 1, "geo_time": 1, "time": 4}, device="meta")
    with FlopCounterMode(display=False) as counter:
        model(**batch.inputs)
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
