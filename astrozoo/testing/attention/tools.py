"""Checks with PyTorch's tools: torch.compile over many lengths, saving and copying, and counted operations."""

from __future__ import annotations

import copy
import io
import math
import pickle
import warnings
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from astrozoo.attention import Attention, use_backend
from astrozoo.testing.attention.cases import agree, one_line
from astrozoo.testing.attention.subject import AttentionSubject
from astrozoo.testing.report import ConformanceError, require

__all__: list[str] = []

COMPILED_LENGTHS = (16, 17, 24, 33, 48, 64, 65, 96, 100, 128)
MOST_GRAPHS = 4  # one for the first length, one for any, and two for lengths on the other side of a block's size


def compile_fullgraph(subject: AttentionSubject) -> None:
    """`torch.compile(fullgraph=True)` takes ten lengths in a few graphs, with the same outputs and gradients."""
    from torch._dynamo.testing import CompileCounterWithBackend

    attention = subject.build(dtype=torch.float32)
    # Graphs of ten lengths are traced and run as they are, which is quick; one length also goes through the tracer of
    # the backward pass. PyTorch's own code generators are not under test.
    ten = CompileCounterWithBackend("eager")
    one = CompileCounterWithBackend("aot_eager_decomp_partition")
    try:
        with (
            torch._dynamo.config.patch(fail_on_recompile_limit_hit=True),
            warnings.catch_warnings(record=True) as heard,
        ):
            warnings.simplefilter("always")
            for backend, lengths in ((ten, COMPILED_LENGTHS), (one, COMPILED_LENGTHS[:1])):
                torch._dynamo.reset()
                _same_compiled(subject, attention, torch.compile(attention, fullgraph=True, backend=backend), lengths)
    except ConformanceError:
        raise
    except Exception as error:
        raise ConformanceError(f"torch.compile raised {type(error).__name__}: {one_line(error)}") from error
    finally:
        torch._dynamo.reset()
    graphs = ten.frame_count
    require(graphs > 0, "nothing was compiled")
    require(graphs <= MOST_GRAPHS, f"{len(COMPILED_LENGTHS)} lengths took {graphs} graphs; it compiles for each length")
    unfused = [str(item.message) for item in heard if "flex_attention" in str(item.message)]
    require(not unfused, f"flex attention ran unfused: {unfused[:1]}")


def _same_compiled(subject: AttentionSubject, attention: Attention, compiled: Any, lengths: tuple[int, ...]) -> None:
    masks = subject.declared("key_mask") or subject.declared("segments")
    for length in lengths:
        case = subject.own_case(length, dtype=torch.float32).leaves()
        terms = {**subject.orders()[-1], **subject.terms(case, *masks)}
        found = []
        for run in (attention, compiled):
            y = case(run, **terms)
            gradients = torch.autograd.grad(
                y.square().sum(), [case.source, *attention.parameters()], allow_unused=True, materialize_grads=True
            )
            found.append([y.detach(), *gradients])
        for got, expected in zip(found[1], found[0], strict=True):
            agree(got, expected, f"compiled, {length} tokens", 1e-4)


def serialisation(subject: AttentionSubject) -> None:
    """Its state_dict is all of its state; copies, pickles, the meta device and `to(dtype)` work."""
    attention = subject.build(bias=True) if subject.build_or_refusal(bias=True) else subject.build()
    options = {"bias": attention.config.bias}
    case = subject.own_case()
    order = subject.orders()[-1]
    y = case(attention, **order)
    state = attention.state_dict()

    other = subject.build(seed=9, **options)
    other.load_state_dict(state)
    agree(case(other, **order), y, "another instance with the same state", 0)
    agree(case(copy.deepcopy(attention), **order), y, "a deep copy", 0)
    agree(case(_attempt("pickle", lambda: pickle.loads(pickle.dumps(attention))), **order), y, "a pickled copy", 0)
    stream = io.BytesIO()
    _attempt("torch.save", lambda: torch.save(attention, stream))
    stream.seek(0)
    agree(case(torch.load(stream, weights_only=False), **order), y, "a saved copy", 0)

    meta = subject.build(device="meta", **options)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    require(
        all(tensor.is_meta for tensor in meta.state_dict().values()), "built on meta, some of its state is elsewhere"
    )
    require({n: tuple(t.shape) for n, t in meta.state_dict().items()} == shapes, "its state on meta has other shapes")
    materialised = meta.to_empty(device="cpu")
    for tensor in (*materialised.parameters(), *materialised.buffers()):
        tensor.detach().fill_(torch.nan if tensor.is_floating_point() else 0)  # what empty memory may hold
    materialised.load_state_dict(state)
    agree(case(materialised, **order), y, "built on meta, with the same state", 0)
    _same_initialisation(subject, options)

    single = copy.deepcopy(attention).to(torch.float32)
    kinds = {tensor.dtype for tensor in single.parameters()}
    require(kinds == {torch.float32}, f"after to(float32) there are parameters of {kinds}")
    near = subject.own_case(12, dtype=torch.float32)
    agree(near(single, **order), y, "after to(float32)", 1e-5)
    agree(case(single.to(torch.float64), **order), y, "after to(float32) and back", 1e-5)


def _same_initialisation(subject: AttentionSubject, options: dict[str, Any]) -> None:
    """`reset_parameters` fills empty memory with what it gives any instance."""
    arguments = subject.options(**options)
    instances = [
        subject.implementation.build(**arguments),
        subject.implementation.build(**{**arguments, "device": "meta"}).to_empty(device="cpu"),
    ]
    for tensor in (*instances[1].parameters(), *instances[1].buffers()):
        tensor.detach().fill_(torch.nan if tensor.is_floating_point() else 0)
    for instance in instances:
        torch.manual_seed(5)
        instance.reset_parameters()
    expected = instances[0].state_dict()
    for name, tensor in instances[1].state_dict().items():
        agree(tensor, expected[name], f"reset_parameters on empty memory: {name}", 0)


def _attempt(what: str, run: Any) -> Any:
    try:
        return run()
    except Exception as error:
        raise ConformanceError(f"{what} raised {type(error).__name__}: {one_line(error)}") from error


def cost_exponent(subject: AttentionSubject) -> None:
    """Operations grow with the number of tokens as the spec says, counted without the projections."""
    few, many = 4096, 16384  # far above the windows, blocks and features of small instances; nothing is computed
    found = math.log(_operations(subject, many) / _operations(subject, few)) / math.log(many / few)
    claimed = subject.spec.cost_exponent
    require(
        abs(found - claimed) <= 0.1, f"operations grow with the power {found:.2f} of tokens, the spec says {claimed}"
    )


def _operations(subject: AttentionSubject, length: int) -> float:
    attention = subject.build(num_heads=2, num_kv_heads=2, device="meta", dtype=torch.float32)
    counted = 0

    def watched(*arguments: Any, **named: Any) -> Tensor:
        nonlocal counted
        before = counter.get_total_flops()
        result = attend(*arguments, **named)
        counted += counter.get_total_flops() - before
        return result

    attend = attention.attend
    attention.attend = watched  # type: ignore[method-assign]
    case = subject.own_case(length, batch=1, dtype=torch.float32)
    case = case.to("meta")
    counter = FlopCounterMode(display=False)
    with use_backend("math"), counter, torch.no_grad():
        case(attention, **subject.orders()[0])
    require(counted > 0, f"no matrix product was counted in attend for {length} tokens")
    return float(counted)
