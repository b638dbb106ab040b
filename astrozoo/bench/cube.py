"""cube_unet against MONAI's BasicUNet and DynUNet at equal parameters: speed, memory and skill.

Speed is one training step (forward, backward) in interleaved rounds; memory is the peak on a GPU, and on the CPU, where
a process cannot reset its peak, the bytes kept for the backward pass. With `--skill` all three are trained with one
budget on the same forecast task and seeds, each with the learning rate that serves it best in validation, all with the
dropout of cube_unet, and scored on years none has seen.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import statistics
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from astrozoo.bench.harness import Comparison, Samples, measure
from astrozoo.bench.sizes import at_parameters
from astrozoo.errors import BackendUnavailableError, DataError

__all__ = ["add_arguments", "basic_unet", "run"]

_EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "data"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Device, sizes and grids of the speed test; data and budget of the skill test."""
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="cuda: bfloat16, eager and compiled")
    parser.add_argument("--sizes", nargs="+", default=["nano", "tiny"], help="sizes of cube_unet (nano tiny)")
    parser.add_argument("--grid", type=int, nargs=3, default=[16, 32, 64], metavar="N", help="level lat lon (16 32 64)")
    parser.add_argument("--batch", type=int, default=2, help="samples in a step (2)")
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds (7)")
    parser.add_argument("--peers-channels-last", action="store_true", help="give the peers our memory layout too")
    parser.add_argument("--skill", action="store_true", help="train all three and compare their forecasts")
    parser.add_argument("--data", nargs="+", help="NetCDF files for --skill (the annual temperatures of examples/data)")
    parser.add_argument("--epochs", type=int, default=12, help="passes over the training years for --skill (12)")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each model for --skill (3)")
    parser.add_argument(
        "--plain-peers", action="store_true", help="train the peers without dropout, as their library builds them"
    )
    parser.add_argument(
        "--rates", type=float, nargs="+", default=[1e-3], help="learning rates tried with the first seed (0.001)"
    )


def run(args: argparse.Namespace) -> list[Comparison]:
    """The comparisons asked for, each held to its targets."""
    if find_spec("monai") is None:
        raise BackendUnavailableError("the peers come from monai; pip install 'astrozoo[bench]'.")
    if args.skill:
        return [_skill(args, size) for size in args.sizes]
    modes = ["float32"] if args.device == "cpu" else ["bfloat16", "bfloat16 compiled"]
    return [_speed(args, size, mode) for size, mode in itertools.product(args.sizes, modes)]


# -- the contestants ---------------------------------------------------------------------------------------------------


def _contestants(
    size: str,
    dims: int,
    channels: tuple[int, int],
    static: int = 0,
    *,
    plain_peers: bool = False,
    **overrides: Any,
) -> dict[str, Any]:
    """cube_unet, and both peers at its number of parameters and its dropout: name to a function that builds it."""
    from astrozoo.factory import create_model

    name = f"cube_unet_{size}"
    fields = {"in_vars": channels[0], "out_vars": channels[1], "static_vars": static, **overrides}
    ours = create_model(name, device="meta", **fields)
    shape = (dims, channels[0] + static, channels[1], 0.0 if plain_peers else ours.config.dropout)
    return {
        name: lambda: create_model(name, **fields),
        "BasicUNet": at_parameters(partial(basic_unet, *shape), ours.num_parameters()),
        "DynUNet": at_parameters(partial(_dyn_unet, *shape), ours.num_parameters()),
    }


def basic_unet(dims: int, in_channels: int, out_channels: int, dropout: float, scale: float) -> Any:
    """MONAI's BasicUNet at a scale of its default widths."""
    from monai.networks.nets import BasicUNet

    first, *middle = (max(1, round(part * scale)) for part in (32, 32))
    halved = [2 * max(1, round(part * scale / 2)) for part in (64, 128, 256)]  # even: it halves them on the way up
    return BasicUNet(dims, in_channels, out_channels, features=[first, *middle, *halved, first], dropout=dropout)


def _dyn_unet(dims: int, in_channels: int, out_channels: int, dropout: float, scale: float) -> Any:
    from monai.networks.nets import DynUNet

    filters = [max(1, round(part * scale)) for part in (32, 64, 128, 256, 320)]
    return DynUNet(
        dims, in_channels, out_channels, kernel_size=[3] * 5, strides=[1, 2, 2, 2, 2], upsample_kernel_size=[2] * 4,
        filters=filters, dropout=dropout or None,
    )  # fmt: skip


# -- speed and memory --------------------------------------------------------------------------------------------------


def _speed(args: argparse.Namespace, size: str, mode: str) -> Comparison:
    import torch

    from astrozoo.testing.behaviour import saved_bytes

    torch.manual_seed(0)
    builders = _contestants(size, 3, (5, 5))
    models = {name: build().to(args.device).train() for name, build in builders.items()}
    if args.peers_channels_last:
        for name in list(models)[1:]:
            models[name] = models[name].to(memory_format=torch.channels_last_3d)
    layout = torch.channels_last_3d if args.peers_channels_last else torch.contiguous_format
    x = torch.randn(args.batch, 5, *args.grid, device=args.device)
    y = torch.randn_like(x)
    half = torch.bfloat16 if mode.startswith("bfloat16") else None

    def step(name: str) -> Callable[[], None]:
        model = models[name]
        forward = torch.compile(model) if mode.endswith("compiled") else model
        ours = x if name == next(iter(models)) else x.contiguous(memory_format=layout)

        def train() -> None:
            model.zero_grad(set_to_none=True)
            with torch.autocast(args.device, dtype=half, enabled=half is not None):
                output = forward(ours)
            torch.nn.functional.mse_loss(output.float(), y).backward()

        return train

    comparison = measure(
        {name: step(name) for name in models},
        rounds=args.rounds,
        warmup=3,
        device=args.device,
        memory=args.device == "cuda",
        title=f"training step, {size}, {mode}, batch {args.batch}, {' x '.join(map(str, args.grid))} cells",
        packages=("monai",),
    )
    ours, *peers = models
    for peer in peers:
        comparison.target_ratio(ours, peer, at_most=1.0)
    if args.device == "cuda":
        for peer in peers:
            comparison.target_ratio(ours, peer, at_most=1.0, metric="peak_bytes")
    else:
        kept = {}
        for name, model in models.items():
            with saved_bytes(model) as count:
                model(x)
            kept[name] = count()
        for peer in peers:
            comparison.target(f"bytes kept for backward, {ours} / {peer}", kept[ours] / kept[peer], at_most=1.0)
    comparison.notes.append(_parameter_note(models))
    return comparison


def _parameter_note(models: dict[str, Any]) -> str:
    counts = (f"{name} {sum(p.numel() for p in model.parameters()):,}" for name, model in models.items())
    return f"parameters: {', '.join(counts)}"


# -- skill -------------------------------------------------------------------------------------------------------------


def _skill(args: argparse.Namespace, size: str) -> Comparison:
    from astrozoo.data import forecast, open_fields

    files = args.data or sorted(map(str, _EXAMPLES.glob("TREFHT.*.nc")))
    if not files:
        raise DataError("--skill needs fields to forecast; give NetCDF files with --data.")
    task = forecast(
        open_fields(files), lead=1, normalize="gridpoint", static=("sin_lat", "cos_lat", "sin_lon", "cos_lon")
    )
    overrides = task.model_overrides()
    channels, static = (overrides.pop("in_vars"), overrides.pop("out_vars")), overrides.pop("static_vars")
    # A single level needs planar kernels only, and the peers get theirs: equal parameters are then equally useful.
    builders = _contestants(size, 2, channels, static, plain_peers=args.plain_peers, level_kernel=1, **overrides)
    scores: dict[str, list[float]] = {}
    seconds: dict[str, list[float]] = {}
    rates: dict[str, float] = {}
    models = {}
    for seed, name in itertools.product(range(args.seeds), builders):
        if seed == 0:
            tried = {rate: _train(builders[name], task, args, rate, 0) for rate in args.rates}
            rates[name] = min(args.rates, key=lambda rate: tried[rate][0])
            result = tried[rates[name]]
        else:
            result = _train(builders[name], task, args, rates[name], seed)
        scores.setdefault(name, []).append(result[1])
        seconds.setdefault(name, []).append(result[2])
        models[name] = result[3]
    comparison = Comparison(
        f"training on {len(task.train)} samples, {args.epochs} epochs, {size}",
        {name: Samples(tuple(values)) for name, values in seconds.items()},
    )
    ours, *peers = builders
    for peer in peers:
        mean = statistics.mean(scores[ours]), statistics.mean(scores[peer])
        comparison.target(f"test RMSE, {ours} / {peer}", mean[0] / mean[1], at_most=1.0)
    for name, values in scores.items():
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        comparison.notes.append(
            f"{name}: test RMSE {statistics.mean(values):.4f} +- {spread:.4f} over {len(values)} seeds, "
            f"learning rate {rates[name]:g}"
        )
    for name, baseline in task.baselines().items():
        comparison.notes.append(f"{name}: test RMSE {_score(baseline, task, task.test, args.device):.4f}")
    comparison.notes.append(_parameter_note(models))
    return comparison


def _train(
    build: Callable[[], Any], task: Any, args: argparse.Namespace, rate: float, seed: int
) -> tuple[float, float, float, Any]:
    """Validation and test RMSE of the epoch that was best in validation, the seconds it all took, and the model."""
    import torch

    from astrozoo.objectives import task_loss

    torch.manual_seed(seed)
    model = build().to(args.device)
    loader = torch.utils.data.DataLoader(
        task.train, batch_size=16, shuffle=True, drop_last=True, collate_fn=task.collate,
        generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=args.epochs * len(loader))
    best, weights = float("inf"), {}
    start = time.perf_counter()
    for _ in range(args.epochs):
        model.train()
        for samples in loader:
            batch = samples.to(args.device)
            optimizer.zero_grad()
            task_loss("field_forecast", _outputs(model, batch), batch)["loss"].backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        score = _score(_forecaster(model), task, task.val, args.device)
        if score < best:
            best, weights = score, copy.deepcopy(model.state_dict())
    seconds = time.perf_counter() - start
    model.load_state_dict(weights)
    return best, _score(_forecaster(model), task, task.test, args.device), seconds, model


def _outputs(model: Any, batch: Any) -> Any:
    """Output fields; the peers see a plane, with the static fields as further channels."""
    import torch

    from astrozoo.module import ZooModel

    if isinstance(model, ZooModel):
        return model(**batch.inputs)
    x = torch.cat([batch.inputs["x"].squeeze(2), batch.inputs["static"]], 1)  # [batch, var + static, lat, lon]
    return model(x).unsqueeze(2)


def _forecaster(model: Any) -> Callable[[Any], Any]:
    model.eval()
    return lambda batch: _outputs(model, batch)


def _score(forecaster: Callable[[Any], Any], task: Any, samples: Any, device: str) -> float:
    """Area-weighted RMSE in physical units."""
    import torch

    metrics = task.new_metrics()
    with torch.no_grad():
        for batch in torch.utils.data.DataLoader(samples, batch_size=32, collate_fn=task.collate):
            moved = batch.to(device)
            metrics.update(forecaster(moved), moved)
    return float(metrics.compute()[metrics.headline])
