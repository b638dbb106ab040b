"""Ten lengths through `torch.compile(fullgraph=True)`: how many graphs that takes, and whether a softmax fell apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._dynamo.backends.registry import lookup_backend

from astrozoo import registry
from astrozoo.attention import explain_attention
from astrozoo.bench.attention.cases import case_of
from astrozoo.bench.attention.contestants import build
from astrozoo.bench.attention.interleave import reason_of, release
from astrozoo.bench.attention.setting import Setting
from astrozoo.bench.rows import Rows

__all__ = ["LENGTHS", "compiled_lengths"]

LENGTHS = (16, 36, 45, 64, 99, 128, 160, 200, 256, 320)
_FEW = len(LENGTHS) // 2  # of lengths and sides of a grid that turn from constants to symbols; a storm is one for each


def compiled_lengths(names: Sequence[str], setting: Setting, backend: str) -> Rows:
    """A table of graphs, recompilations and unfused graphs of the named attentions, forward and backward.

    Args:
        names: Of attentions.
        setting: Device, dtype, heads; the length does not matter.
        backend: Of torch.compile; what is counted does not depend on it.
    """
    comparison = Rows(f"torch.compile(fullgraph=True), {len(LENGTHS)} lengths of {LENGTHS[0]} to {LENGTHS[-1]}", {})
    rows: list[dict[str, Any]] = []
    for name in names:
        graphs: list[Any] = []
        failure = ""
        try:
            _run(name, setting, _counting(backend, graphs))
        except Exception as error:  # whatever tracing raises is a finding about this attention alone
            failure = reason_of(error)
            comparison.notes.append(f"{name} failed after {len(graphs)} graphs: {failure}")
        unfused = sum(_falls_apart(graph) for graph in graphs)
        rows.append(
            {"": name, "graphs": len(graphs), "recompilations": max(len(graphs) - 1, 0), "unfused": unfused,
             "failure": failure}
        )  # fmt: skip
        if unfused:
            comparison.notes.append(f"{name} computes softmax in full: {_reasons(name, setting)}")
        label, count = (
            (f"graphs of {name}, which failed,", len(LENGTHS)) if failure else (f"graphs of {name}", len(graphs))
        )
        comparison.target(label, count, at_most=_FEW, unit="")
        comparison.target(f"graphs of {name} with a softmax of its own", unfused, at_most=0, unit="")
        torch._dynamo.reset()
        release()
    comparison.rows = rows
    return comparison


def _run(name: str, setting: Setting, backend: Callable[..., Any]) -> None:
    torch._dynamo.reset()
    causal = case_of(name).is_causal(registry.attention_info(name))
    module = build(name, setting.replace(tokens=LENGTHS[-1], causal=causal)).train()
    compiled = torch.compile(module, fullgraph=True, backend=backend)
    for tokens in LENGTHS:
        inputs, terms = _call(name, setting.replace(tokens=tokens, causal=causal))
        compiled(*inputs, **terms).sum().backward()


def _call(name: str, setting: Setting) -> tuple[list[torch.Tensor], dict[str, Any]]:
    shape = (setting.batch, setting.tokens, setting.width)
    inputs = [torch.randn(shape, device=setting.device, dtype=setting.dtype, requires_grad=True)]
    if registry.attention_info(name).needs_context:
        inputs.append(torch.randn_like(inputs[0]))
    return inputs, {"causal": setting.causal, "geometry": case_of(name).geometry(setting)}


def _reasons(name: str, setting: Setting) -> str:
    """What the backends said, for the last of the lengths."""
    causal = case_of(name).is_causal(registry.attention_info(name))
    last = setting.replace(tokens=LENGTHS[-1], causal=causal)
    inputs, terms = _call(name, last)
    try:
        table = explain_attention(build(name, last).train(), *inputs, **terms)
    except Exception as error:  # one that could not be compiled may not be explained either
        return reason_of(error)
    return "; ".join(" ".join(line.split()) for line in table.splitlines() if line)


def _counting(backend: str, graphs: list[Any]) -> Callable[..., Any]:
    compile_graph = lookup_backend(backend)

    def count(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return compile_graph(graph, inputs)

    return count


def _falls_apart(graph: torch.fx.GraphModule) -> bool:
    return any("softmax" in str(node.target) for node in graph.graph.nodes if node.op.startswith("call_"))
