"""Show what goes into a model, what comes out, what it costs, what it can do, and how it is configured.

A dimension with a number is fixed by the configuration; the others may have any size from their minimum up.

Examples:
  astrozoo info cube_unet_nano
  astrozoo info cube_unet_nano --json
  astrozoo info sliding_window
  astrozoo info auto
"""

from __future__ import annotations

import argparse

from astrozoo.cli.arguments import add_model_argument
from astrozoo.cli.output import Output
from astrozoo.errors import UnknownModelError
from astrozoo.readable import format_bytes, format_count, format_flops
from astrozoo.registry import router
from astrozoo.registry.spec import AttentionSpec, ModelSpec, TensorSpec

_CAPABILITIES = {
    "compile": "torch.compile",
    "export": "torch.export",
    "grad_checkpointing": "gradient checkpointing",
    "features": "features by stage",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The name."""
    add_model_argument(parser, help="a model or an attention")


def run(args: argparse.Namespace, out: Output) -> int:
    """Print the spec of a model, or of an attention of that name."""
    from astrozoo.registry import attention_info, model_info

    spec: ModelSpec | AttentionSpec
    if args.name == "auto":
        return _print_rule(out)
    try:
        spec = model_info(args.name)
    except UnknownModelError as error:
        try:
            spec = attention_info(args.name)
        except UnknownModelError as unknown:
            raise error from unknown
    if out.as_json:
        out.document(spec.to_dict())
    elif isinstance(spec, ModelSpec):
        _print_model(spec, out)
    else:
        _print_attention(spec, out)
    return 0


def _print_rule(out: Output) -> int:
    rules = [{"name": rule.name, "when": rule.when} for rule in router.RULES]
    if out.as_json:
        out.document(rules)
    else:
        out.line("create_attention('auto', ...) makes the first that applies:")
        out.table(("attention", "when"), [(rule["name"], rule["when"]) for rule in rules])
    return 0


def _print_model(spec: ModelSpec, out: Output) -> None:
    origin = f"{spec.distribution} {spec.version}".strip()
    out.line(spec.name + (f" ({origin})" if origin else ""), style="bold")
    out.line(spec.summary)
    out.line()
    facts: list[tuple[str, object]] = [
        ("family", f"{spec.family}, {spec.domain}, {spec.size}"),
        ("task", spec.task),
        ("licence", spec.licence),
        ("paper", spec.paper or "none"),
    ]
    if spec.costs:
        facts += [
            ("parameters", format_count(spec.costs.parameters)),
            ("operations", f"{format_flops(spec.costs.flops)} forward, one example, float32"),
            ("activations", f"{format_bytes(spec.costs.activation_bytes)} kept for the backward pass, one example"),
            ("checkpoint", f"{format_bytes(spec.costs.checkpoint_bytes)} on disk"),
        ]
    else:
        facts.append(("costs", "not measured; `astrozoo estimate` measures them"))
    if spec.attentions:
        others = ", ".join(name for name in spec.attentions if name != spec.default_attention)
        facts.append(("attention", f"{spec.default_attention}" + (f"; also {others}" if others else "")))
    if spec.requires:
        facts.append(("requires", ", ".join(spec.requires)))
    out.table(("", "value"), facts)
    out.line()
    _print_tensors("inputs", spec.inputs, out)
    _print_tensors("outputs", spec.outputs, out)
    if spec.targets != spec.outputs:
        _print_tensors("targets of training", spec.targets, out)
    rows = [(label, *_answer(getattr(spec.capabilities, name))) for name, label in _CAPABILITIES.items()]
    rows.append(("mixed precision", "yes" if spec.capabilities.amp else "no", ", ".join(spec.capabilities.amp)))
    out.table(("capability", "", "which, or why not"), rows, title="capabilities")
    out.line()
    out.table(
        ("field", "value"),
        [(name, repr(value)) for name, value in spec.config.items()],
        title="configuration (fields that create_model takes as overrides)",
    )
    if spec.pretrained:
        out.line()
        weights = [(item.tag, item.source, item.licence, item.trained_on) for item in spec.pretrained]
        out.table(("tag", "source", "licence", "trained on"), weights, title="pretrained weights")


def _print_tensors(title: str, tensors: tuple[TensorSpec, ...], out: Output) -> None:
    rows = []
    for tensor in tensors:
        limits = [f"{dim.name} >= {dim.minimum}" for dim in tensor.dims if not dim.fixed and dim.minimum > 1]
        limits += [f"{dim.name} a multiple of {dim.multiple_of}" for dim in tensor.dims if dim.multiple_of > 1]
        if tensor.optional:
            limits.insert(0, "optional")
        if tensor.high is not None:
            limits.append(f"values below {tensor.high}")
        shape = " x ".join(str(size) for size in tensor.example_shape())
        rows.append((tensor, shape, tensor.dtype, tensor.unit, tensor.quantity, "; ".join(limits)))
    out.table(("tensor", "example", "dtype", "unit", "quantity", "limits"), rows, title=title)
    out.line()


def _answer(value: bool | str | tuple[str, ...]) -> tuple[str, str]:
    if isinstance(value, tuple):
        return ("yes", ", ".join(value)) if value else ("no", "the family has no stages")
    return ("yes", "") if value is True else ("no", str(value) if value else "")


def _print_attention(spec: AttentionSpec, out: Output) -> None:
    out.line(f"{spec.name} ({spec.distribution} {spec.version})".replace(" ( )", ""), style="bold")
    out.line(spec.summary)
    out.line()
    out.table(
        ("", "value"),
        [
            *((("also called", ", ".join(spec.aliases)),) if spec.aliases else ()),
            ("exactness", spec.exactness),
            ("cost", spec.cost),
            ("causal", "always" if spec.causal_only else "yes" if spec.causal else "no"),
            ("cross-attention", "always" if spec.needs_context else "yes" if spec.cross else "no"),
            ("geometry", (spec.geometry or "none") + (", required" if spec.needs_geometry else "")),
            ("masks", ", ".join(spec.masks) or "none"),
            ("grouped key/value heads", "yes" if spec.grouped_query else "no"),
            ("cache", spec.cache or "none"),
            ("paper", spec.paper or "none"),
        ],
    )
