"""Steps of training and inference on fake tensors, which know shape, dtype and device but hold no memory.

Every storage that a step would have allocated is followed from birth to death, so the peak is that of the real sequence
of operations: gradient checkpointing, autocast with its copies of weights, gradients and the optimiser included. The
fake tensors are on the device that would train: what an operation keeps, which kernel serves attention and what
autocast casts differ between a CPU and a GPU.

Beside tensors, kernels allocate room to work in. That of PyTorch's own convolutions on the CPU is counted, since it can
be many times the input; how much cuDNN, cuBLAS, cuFFT and oneDNN take, only they know.
"""

from __future__ import annotations

import contextlib
import gc
import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from astrozoo.batch import Batch
from astrozoo.module import ZooModel
from astrozoo.training.config import OptimConfig
from astrozoo.training.optim import build_optimizer

__all__ = ["simulate"]


def simulate(
    model: ZooModel,
    shapes: Batch,
    precision: torch.dtype,
    optimizer: OptimConfig,
    *,
    accumulate: int = 1,
    device: torch.device | None = None,
    count: bool = True,
) -> dict[str, int]:
    """Two training steps and one inference step on fake tensors; the model, on the meta device, is used up by it.

    With `accumulate` a step has as many forward and backward passes, of which more than two need no more than two.

    Args:
        model: On the meta device.
        shapes: A batch on the meta device.
        precision: Of autocast; float32 is none.
        optimizer: Settings of the optimiser.
        accumulate: Micro-batches of a step.
        device: Whose kernels are followed: a GPU of this machine, or the CPU, which stands for any other.
        count: Whether floating-point operations are counted too, which takes longer.

    Returns:
        The fields of `Estimate` that are measured, by name.
    """
    device = device if device is not None and device.type == "cuda" else torch.device("cpu")
    with FakeTensorMode(), _LiveMemory() as memory:
        _replace_tensors(model, device)
        held = memory.now
        batch = shapes.map(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device=device))
        measured = {"parameter_bytes": held, "batch_bytes": memory.now - held}

        model.eval()
        memory.peak = memory.now
        counter = FlopCounterMode(display=False) if count else contextlib.nullcontext()
        with torch.no_grad(), _autocast(device, precision), counter:
            model(**batch.inputs)
        measured |= {"inference_peak_bytes": memory.peak, "flops_forward": _total(counter)}

        model.train()
        update = build_optimizer(model, optimizer)
        # Operations are counted in the first step, by hooks that keep recomputed tensors alive. Memory is that of the
        # second, which has none of them and finds the optimiser's state already there.
        for counting, passes in ((counter, 1), (contextlib.nullcontext(), min(accumulate, 2))):
            memory.peak = memory.now
            for _ in range(passes):
                before = memory.now
                with counting:
                    with _autocast(device, precision):
                        loss = model.loss(batch)["loss"]
                    activations = memory.now - before
                    loss.backward()
                del loss
            memory.values_matter = False
            update.step()
            memory.values_matter = True
            gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
            update.zero_grad(set_to_none=True)
            if counting is counter and count:
                gc.collect()  # the hooks
        measured |= {
            "activation_bytes": activations,
            "gradient_bytes": gradients,
            "optimizer_bytes": memory.now - measured["parameter_bytes"] - measured["batch_bytes"],
            "training_peak_bytes": memory.peak,
            "flops_step": _total(counter),
        }
    return measured


def _total(counter: Any) -> int:
    return counter.get_total_flops() if isinstance(counter, FlopCounterMode) else 0


@contextlib.contextmanager
def _autocast(device: torch.device, precision: torch.dtype) -> Iterator[None]:
    enabled = precision != torch.float32
    with torch.autocast(device.type, dtype=precision if enabled else torch.bfloat16, enabled=enabled):
        yield


def _replace_tensors(model: nn.Module, device: torch.device) -> None:
    """Give every parameter and buffer of a model on the meta device a fake storage, shared ones once."""
    replaced: dict[Tensor, Tensor] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                if parameter not in replaced:
                    fake = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
                    replaced[parameter] = nn.Parameter(fake, requires_grad=parameter.requires_grad)
                module._parameters[name] = replaced[parameter]  # type: ignore[assignment]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                if buffer not in replaced:
                    replaced[buffer] = torch.empty(buffer.shape, dtype=buffer.dtype, device=device)
                module._buffers[name] = replaced[buffer]


class _LiveMemory(TorchDispatchMode):
    """Bytes of all storages alive, now and at the peak."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self.values_matter = True
        self._known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is torch.ops.aten._local_scalar_dense.default and not self.values_matter:
            return 1.0  # some optimisers read a norm or a step count, which changes what they compute, not how much
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, FakeTensor):  # constants that hold values are shared, and of the CPU
                self._follow(leaf.untyped_storage())
        if function in _CONVOLUTIONS:
            self.peak = max(self.peak, self.now + _CONVOLUTIONS[function](args))
        return result

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return

        def forget(_: object) -> None:
            del self._known[key]
            self.now -= size

        self._known[key] = weakref.ref(storage, forget)
        self.now += size
        self.peak = max(self.peak, self.now)


# -- workspaces --------------------------------------------------------------------------------------------------------


def _unfolded(x: Tensor, weight: Tensor, bias: Tensor | None, sizes: Any, geometry: Sequence[Any]) -> int:
    """Bytes that PyTorch's own convolution takes to unfold its input into columns; 0 where another kernel runs."""
    if x.device.type != "cpu" or x.ndim < 4:
        return 0
    stride, padding, dilation, transposed, output_padding, groups = geometry
    backend = torch._C._select_conv_backend(
        x, weight, bias=bias, stride=stride, padding=padding, dilation=dilation, transposed=transposed,
        output_padding=output_padding, groups=groups, bias_sizes=sizes,
    )  # fmt: skip
    if backend not in _UNFOLDING:
        return 0
    cells = [
        (size + 2 * pad - reach * (kernel - 1) - 1) // step + 1
        for size, pad, reach, kernel, step in zip(
            x.shape[2:], padding, dilation, weight.shape[2:], stride, strict=False
        )
    ]
    return x.shape[0] * math.prod(weight.shape[1:]) * math.prod(cells) * x.element_size()


def _forward(args: Sequence[Any]) -> int:
    x, weight, bias, *geometry = args
    return _unfolded(x, weight, bias, None, geometry)


def _backward(args: Sequence[Any]) -> int:
    _, x, weight, sizes, *geometry = args
    return _unfolded(x, weight, None, sizes, geometry[:-1])


_KERNELS: Any = torch._C._ConvBackend  # type: ignore[attr-defined]  # not in PyTorch's stubs
_UNFOLDING = {_KERNELS.Slow2d, _KERNELS.Slow3d}
_CONVOLUTIONS: dict[Any, Callable[[Sequence[Any]], int]] = {
    torch.ops.aten.convolution.default: _forward,
    torch.ops.aten.convolution_backward.default: _backward,
}
