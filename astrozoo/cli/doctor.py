"""Eleven checks of an installation, each with a clear pass, warn or fail: a smoke test for a new machine.

A warning names something optional that is absent, and how to get it. A failure names what is broken. Every check runs,
whatever the others found, and none touches the network.
"""

from __future__ import annotations

import importlib
import math
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from astrozoo.batch import Batch
    from astrozoo.module import ZooModel

__all__ = ["CHECKS", "Finding", "diagnose"]

State = Literal["pass", "warn", "fail"]

_EXTRAS = {"train": ("accelerate", "torchmetrics", "timm", "rich", "yaml"), "data": ("xarray", "netCDF4", "pint")}


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found, in one sentence, and how long it took."""

    name: str
    state: State
    message: str
    seconds: float


class _WarnError(Exception):
    """Something optional is absent; the message says what and how to get it."""


class _FailError(Exception):
    """Something gives a wrong result."""


def diagnose(model: str = "cube_unet_nano", device: str | None = None) -> Iterator[Finding]:
    """Run every check in turn and yield what each found.

    Args:
        model: The variant the model checks use.
        device: Where they run; default: the first accelerator, else the CPU.
    """
    bench = _Workbench(model, device)
    for name, check in CHECKS.items():
        start = time.perf_counter()
        state: State = "pass"
        try:
            message = check(bench)
        except _WarnError as warning:
            state, message = "warn", str(warning)
        except _FailError as failure:
            state, message = "fail", str(failure)
        except Exception as error:  # whatever breaks is what the doctor is there to report
            state, message = "fail", f"{type(error).__name__}: {error}"
        yield Finding(name, state, " ".join(message.split()), time.perf_counter() - start)


class _Workbench:
    """What checks hand on to later ones."""

    def __init__(self, name: str, device: str | None) -> None:
        self.name = name
        self._device = device
        self._model: ZooModel | None = None
        self._loss: Tensor | None = None

    @property
    def device(self) -> str:
        """The device of the model checks."""
        if self._device is None:
            import torch

            accelerator = torch.accelerator.current_accelerator(check_available=True)
            self._device = "cpu" if accelerator is None else accelerator.type
        return self._device

    @property
    def model(self) -> ZooModel:
        """The model; checks after a failed build fail with that as the reason."""
        if self._model is None:
            raise _FailError("needs the model, which could not be built.")
        return self._model

    @property
    def batch(self) -> Batch:
        """A reproducible batch on the device."""
        import astrozoo

        return astrozoo.example_batch(self.name, batch_size=2).to(self.device)


def _imports(_: _Workbench) -> str:
    """Required distributions are importable and new enough; optional ones and plugins are counted."""
    from packaging.requirements import Requirement

    versions = []
    for line in metadata.requires("astrozoo") or []:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = metadata.version(requirement.name)
        if not requirement.specifier.contains(version, prereleases=True):
            raise _FailError(f"{requirement.name} {version} is installed, astrozoo needs {requirement.specifier}.")
        importlib.import_module(re.sub("[-.]", "_", requirement.name))
        versions.append(f"{requirement.name} {version}")
    from astrozoo.registry import list_plugins

    broken = [f"{plugin.name} ({plugin.reason})" for plugin in list_plugins() if plugin.state == "failed"]
    if broken:
        raise _WarnError(f"plugins that do not work: {'; '.join(broken)}. Update or uninstall them.")
    for extra, modules in _EXTRAS.items():
        absent = [module for module in modules if find_spec(module) is None]
        if absent:
            raise _WarnError(f"{', '.join(absent)} not installed; pip install 'astrozoo[{extra}]' provides it.")
    return ", ".join(versions)


def _devices(bench: _Workbench) -> str:
    """Every device multiplies matrices as float64 on the CPU does."""
    import torch

    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(2, 64, 64, generator=generator, dtype=torch.float64)
    devices = dict.fromkeys(["cpu", bench.device])
    for device in devices:
        product = (left.float().to(device) @ right.float().to(device)).cpu().double()
        error = (product - left @ right).abs().max().item()
        if not error < 0.1:  # TF32 keeps 10 bits of sums over 64 products; a broken device is far off
            raise _FailError(f"matrix product on {device} is off by {error:.2g}.")
    said = f"{torch.get_num_threads()} CPU threads"
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        said += "".join(f", {item.name} with {item.total_memory / 2**30:.0f} GiB" for item in names)
    elif bench.device != "cpu":
        said += f", {bench.device}"
    elif shutil.which("nvidia-smi") is not None:
        raise _WarnError(
            f"{said}; there is an NVIDIA driver, but torch {torch.__version__} cannot use it: install a build for CUDA."
        )
    return said


def _model_build(bench: _Workbench) -> str:
    """The model builds on the meta device without memory, then for real."""
    import torch

    import astrozoo

    empty = astrozoo.create_model(bench.name, device="meta")
    if any(parameter.device.type != "meta" for parameter in empty.parameters()):
        raise _FailError(f"{bench.name} allocates memory on the meta device.")
    torch.manual_seed(0)
    bench._model = astrozoo.create_model(bench.name, device=bench.device)
    return f"{bench.name} with {bench._model.num_parameters():,} parameters on {bench.device}"


def _forward(bench: _Workbench) -> str:
    """The output is finite, repeatable, and shaped as the spec says."""
    import torch

    model, batch = bench.model.eval(), bench.batch
    with torch.no_grad():
        first, second = _tensors(model(**batch.inputs)), _tensors(model(**batch.inputs))
    assert model.spec is not None
    for spec, one, other in zip(model.spec.outputs, first, second, strict=True):
        expected = spec.example_shape(batch_size=2)
        if tuple(one.shape) != expected:
            raise _FailError(f"output {spec.name} has shape {tuple(one.shape)}, its spec says {expected}.")
        if not torch.isfinite(one).all():
            raise _FailError(f"output {spec.name} is not finite.")
        if not torch.allclose(one, other, rtol=1e-4, atol=1e-5):
            raise _FailError(f"output {spec.name} differs between two equal calls.")
    return ", ".join(f"{spec.name} {tuple(one.shape)}" for spec, one in zip(model.spec.outputs, first, strict=True))


def _backward(bench: _Workbench) -> str:
    """The loss is finite and every parameter receives a finite gradient."""
    import torch

    model = bench.model.train()
    model.zero_grad(set_to_none=True)
    loss = model.loss(bench.batch)["loss"]
    loss.backward()
    if not math.isfinite(loss.item()):
        raise _FailError(f"the loss is {loss.item()}.")
    for name, parameter in model.named_parameters():
        if parameter.grad is None or not torch.isfinite(parameter.grad).all():
            raise _FailError(f"parameter {name} has {'no' if parameter.grad is None else 'a non-finite'} gradient.")
    bench._loss = loss.detach()
    return f"loss {loss.item():.4g}, finite gradients of {sum(1 for _ in model.parameters())} parameters"


def _optimiser_step(bench: _Workbench) -> str:
    """A few steps of AdamW on one batch lower its loss."""
    import torch

    model, batch = bench.model.train(), bench.batch
    if bench._loss is None:
        raise _FailError("needs gradients, which the backward check did not get.")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(5):
        optimizer.zero_grad()
        loss = model.loss(batch)["loss"]
        loss.backward()
        optimizer.step()
    before, after = bench._loss.item(), loss.item()
    if not after < before:
        raise _FailError(f"the loss went from {before:.4g} to {after:.4g} in five steps on one batch.")
    return f"loss from {before:.4g} to {after:.4g} in five steps"


def _checkpoint_round_trip(bench: _Workbench) -> str:
    """A saved and loaded model gives bit-identical outputs."""
    import torch

    import astrozoo

    model, batch = bench.model.eval(), bench.batch
    with tempfile.TemporaryDirectory(prefix="astrozoo-doctor-") as folder:
        path = Path(folder) / "model"
        astrozoo.save_model(model, path)
        size = sum(file.stat().st_size for file in path.iterdir())
        loaded = astrozoo.load_model(path, device=bench.device).eval()
        same = model.state_dict()
        for name, tensor in loaded.state_dict().items():
            if not torch.equal(tensor, same[name]):
                raise _FailError(f"{name} differs after saving and loading.")
        with torch.no_grad():
            saved, restored = _tensors(model(**batch.inputs)), _tensors(loaded(**batch.inputs))
    if bench.device == "cpu" and not all(map(torch.equal, saved, restored)):
        raise _FailError("outputs differ after saving and loading.")
    return f"{size / 2**20:.1f} MiB saved, loaded, equal"


def _attention(bench: _Workbench) -> str:
    """The attention kernel of torch equals softmax in float64, with gradients; every registered attention loads."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    from astrozoo.registry import list_attentions, load_attention

    generator = torch.Generator().manual_seed(0)
    exact = [torch.randn(2, 3, 40, 16, generator=generator, dtype=torch.float64) for _ in range(3)]
    weight = torch.randn(2, 3, 40, 16, generator=generator, dtype=torch.float64)
    for causal in (False, True):
        want = [tensor.clone().requires_grad_() for tensor in exact]
        got = [tensor.float().to(bench.device).requires_grad_() for tensor in exact]
        expected = _softmax_attention(*want, causal=causal)
        output = scaled_dot_product_attention(got[0], got[1], got[2], is_causal=causal)
        (expected * weight).sum().backward()
        (output * weight.float().to(bench.device)).sum().backward()
        pairs = [(output, expected), *((a.grad, b.grad) for a, b in zip(got, want, strict=True))]
        for name, (one, other) in zip(("output", "dq", "dk", "dv"), pairs, strict=True):
            assert one is not None
            assert other is not None
            error = (one.detach().cpu().double() - other.detach()).abs().max().item()
            if not error < 1e-2:  # TF32 on a GPU; float32 reaches 1e-6
                raise _FailError(f"{name} of {'causal ' if causal else ''}attention is off by {error:.2g}.")
    names = list_attentions()
    for name in names:
        load_attention(name)
    registered = f"{len(names)} registered attentions load" if names else "no attention is registered"
    return f"kernel equals softmax in float64, forward and backward; {registered}"


def _softmax_attention(query: Tensor, key: Tensor, value: Tensor, *, causal: bool) -> Tensor:
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    if causal:
        scores = scores.masked_fill(scores.new_ones(scores.shape[-2:]).triu(1).bool(), -math.inf)
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    return weights / weights.sum(-1, keepdim=True) @ value


def _data_loading(_: _Workbench) -> str:
    """Fields written to NetCDF come back through `astrozoo.data`, with the right values and grid."""
    for module in ("xarray", "netCDF4"):
        if find_spec(module) is None:
            raise _WarnError(f"{module} is not installed; pip install 'astrozoo[data]' provides it.")
    import numpy as np
    import xarray as xr

    from astrozoo import data

    generator = np.random.default_rng(0)
    values = (280 + generator.standard_normal((12, 6, 8))).astype("float32")
    fields = xr.Dataset(
        {"tas": (("time", "lat", "lon"), values, {"units": "K", "long_name": "air temperature"})},
        coords={
            "time": np.datetime64("2000-01-01", "ns") + np.arange(12) * np.timedelta64(1, "D"),
            "lat": ("lat", np.linspace(-75, 75, 6), {"units": "degrees_north"}),
            "lon": ("lon", np.arange(8) * 45.0, {"units": "degrees_east"}),
        },
    )
    with tempfile.TemporaryDirectory(prefix="astrozoo-doctor-") as folder:
        path = Path(folder) / "fields.nc"
        fields.to_netcdf(path)
        opened = data.open_fields(path)
        try:
            read = opened["tas"].values
        finally:
            opened.close()
    if read.size != values.size or not np.array_equal(read.reshape(values.shape), values):
        raise _FailError("fields read from NetCDF differ from those written.")
    return f"{len(values)} fields of {values.shape[1]} x {values.shape[2]} written to NetCDF and read, equal"


def _mixed_precision(bench: _Workbench) -> str:
    """Under autocast, outputs stay near those in float32 and gradients finite."""
    import torch

    model, batch = bench.model.eval(), bench.batch
    assert model.spec is not None
    done = []
    for name in model.spec.capabilities.amp:
        if name == "float16" and bench.device == "cpu":
            continue  # nobody trains so; float16 on a CPU is emulated
        if (
            bench.device == "cuda"
            and name == "bfloat16"
            and not torch.cuda.is_bf16_supported(including_emulation=False)
        ):
            raise _WarnError("this GPU has no bfloat16; train with precision fp16.")
        with torch.no_grad():
            exact = _tensors(model(**batch.inputs))
        model.zero_grad(set_to_none=True)
        with torch.autocast(bench.device, dtype=getattr(torch, name)):
            output = _tensors(model(**batch.inputs))
            loss = model.loss(batch)["loss"]
        loss.backward()
        for one, other in zip(output, exact, strict=True):
            error = ((one.float() - other).norm() / other.norm().clamp_min(1e-6)).item()
            if not error < 0.1:
                raise _FailError(f"outputs in {name} differ from float32 by {error:.1%}.")
        for parameter_name, parameter in model.named_parameters():
            if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
                raise _FailError(f"parameter {parameter_name} has a non-finite gradient in {name}.")
        done.append(f"{name} within {error:.2%} of float32")
    if not done:
        raise _WarnError(f"{model.spec.name} supports no mixed precision on {bench.device}.")
    return ", ".join(done)


def _array_kernels(_: _Workbench) -> str:
    """Who serves the array kernels: an accelerator that loads, is current, and counts right, or NumPy."""
    import numpy as np

    from astrozoo import accel

    info = accel.info()
    served = accel.nan_stats([[1.0, np.nan, 5.0]])
    if (served.count[0], served.mean[0], served.std[0]) != (2, 3.0, 2.0):
        raise _FailError(f"{info.providers['nan_stats']} gives wrong statistics: {served}.")
    if not info.versions and info.forced is None:
        raise _WarnError(
            "astrozoo-rust is not installed; everything works without it, array kernels run in NumPy. "
            "`make install` builds it where cargo is."
        )
    return str(info).replace("\n", "; ")


def _tensors(outputs: Any) -> tuple[Tensor, ...]:
    return tuple(outputs) if isinstance(outputs, tuple) else (outputs,)


CHECKS: dict[str, Callable[[_Workbench], str]] = {
    "imports": _imports,
    "devices": _devices,
    "model build": _model_build,
    "forward": _forward,
    "backward": _backward,
    "optimiser step": _optimiser_step,
    "checkpoint round trip": _checkpoint_round_trip,
    "attention": _attention,
    "data loading": _data_loading,
    "mixed precision": _mixed_precision,
    "array kernels": _array_kernels,
}
