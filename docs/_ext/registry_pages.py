"""Sphinx extension: writes the model and attention catalogue from the registry into `docs/generated` before a build.

One page lists all variants, one page per family tells what goes in and out, its configuration and its costs. Pages are
written only when their text changes, so that a second build is incremental.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from astrozoo import registry
from astrozoo.registry.spec import AttentionSpec, ModelSpec, TensorSpec

if TYPE_CHECKING:
    from sphinx.application import Sphinx

FOLDER = "generated"


def setup(app: Sphinx) -> dict[str, Any]:
    """Entry point of Sphinx."""
    app.connect("builder-inited", write_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def write_pages(app: Sphinx) -> None:
    """Write every generated page below the source folder, and remove those of families that no longer exist."""
    specs = [registry.model_info(name) for name in registry.list_models(plugin="astrozoo")]
    attentions = [registry.attention_info(name) for name in registry.list_attentions()]
    pages = {"models.md": models_page(specs), "attentions.md": attentions_page(attentions)}
    for family, variants in groupby(specs, key=lambda spec: spec.family):
        pages[f"families/{family}.md"] = family_page(list(variants))
    root = Path(app.srcdir) / FOLDER
    for name, text in pages.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
    for path in root.rglob("*.md"):
        if path.relative_to(root).as_posix() not in pages:
            path.unlink()


def models_page(specs: Sequence[ModelSpec]) -> str:
    """All variants by domain, and the pages of their families."""
    families = sorted({spec.family for spec in specs})
    lines = [
        "# Model catalogue",
        "",
        f"{count(len(specs), 'variant')} of {count(len(families), 'family', 'families')} are in this release. Sizes "
        "mean the same everywhere: nano < tiny < small < base < large < huge. Parameters and operations are those of "
        "the default configuration at the example size, batch 1.",
        "",
    ]
    for domain, members in groupby(sorted(specs, key=lambda spec: spec.domain), key=lambda spec: spec.domain):
        lines += [f"## {domain}", ""]
        lines += table(
            ["variant", "family", "task", "parameters", "GFLOPs", "for"],
            (
                [
                    f"`{spec.name}`",
                    f"[{spec.family}](families/{spec.family}.md)",
                    spec.task,
                    *costs(spec),
                    spec.summary,
                ]
                for spec in members
            ),
        )
    lines += ["```{toctree}", ":hidden:", "", *(f"families/{family}" for family in families), "```", ""]
    return "\n".join(lines)


def family_page(specs: Sequence[ModelSpec]) -> str:
    """One family: what it computes, its tensors, its variants, its configuration, what it can do."""
    first = specs[0]
    family = registry.load_variant(first.name).family
    lines = [f"# {first.family}", "", family.summary, ""]
    if first.paper:
        lines += [f"Paper: {first.paper}", ""]
    lines += [f"Domain: {first.domain}. Task: {first.task}. Licence: {first.licence}.", ""]
    lines += ["## Inputs and outputs", ""]
    lines += table(
        ["tensor", "role", "dims (example size)", "dtype", "quantity", "unit"],
        (
            [f"`{tensor.name}`", role, dims(tensor), tensor.dtype, tensor.quantity, tensor.unit]
            for role, tensors in (("input", first.inputs), ("output", first.outputs), ("target", first.targets))
            for tensor in tensors
        ),
    )
    lines += ["## Variants", ""]
    lines += table(
        ["name", "parameters", "GFLOPs", "checkpoint", "summary"],
        ([f"`{spec.name}`", *costs(spec), megabytes(spec), spec.summary] for spec in specs),
    )
    lines += [
        "## Configuration",
        "",
        f"Any field is an override of `create_model`, as in `create_model({first.name!r}, {override(family.config)})`.",
        "",
    ]
    lines += table(
        ["field", *(f"`{spec.size}`" for spec in specs)],
        (
            [f"`{field.name}`", *(f"`{spec.config[field.name]!r}`" for spec in specs)]
            for field in dataclasses.fields(family.config)
        ),
    )
    lines += ["```{eval-rst}", f".. autoclass:: {family.config.__module__}.{family.config.__qualname__}", "```", ""]
    lines += ["## Capabilities", "", *capabilities(first), ""]
    if first.attentions:
        lines += [f"Default attention: `{first.default_attention}`. Compatible: {', '.join(first.attentions)}.", ""]
    return "\n".join(lines)


def attentions_page(specs: Sequence[AttentionSpec]) -> str:
    """All attention implementations, or a plain statement that this release has none."""
    lines = ["# Attention catalogue", ""]
    if not specs:
        return "\n".join([*lines, "This release ships no attention implementation.", ""])
    lines += table(
        ["name", "cost", "causal", "cross", "masks", "grouped heads", "cache", "geometry"],
        (
            [
                f"[`{spec.name}`](#{spec.name.replace('_', '-')})",
                spec.cost,
                "always" if spec.causal_only else yes(spec.causal),
                "always" if spec.needs_context else yes(spec.cross),
                ", ".join(f"`{name}`" for name in spec.masks) or "none",
                yes(spec.grouped_query),
                spec.cache or "no",
                f"{spec.geometry}{', required' if spec.needs_geometry else ''}" if spec.geometry else "none",
            ]
            for spec in specs
        ),
    )
    lines += ["How to use them: [the guide](../guide/attention.md).", ""]
    for spec in specs:
        lines += [f"## {spec.name}", "", f"{spec.summary[0].upper()}{spec.summary[1:]}.", "", f"- {spec.exactness}"]
        lines += [f"- cost: {spec.cost}; measured exponent in the number of tokens: {spec.cost_exponent:g}"]
        lines += [f"- also called {', '.join(f'`{name}`' for name in spec.aliases)}"] if spec.aliases else []
        lines += [f"- {spec.paper}", ""] if spec.paper else [""]
        config = registry.load_attention(spec.name).config
        if config is not None:
            where = f"{config.__module__}.{config.__qualname__}"
            lines += ["```{eval-rst}", f".. autoclass:: {where}", "   :noindex:", "```", ""]
    return "\n".join(lines)


def capabilities(spec: ModelSpec) -> Iterator[str]:
    """One line per capability: yes, what, or the reason why not."""
    for field in dataclasses.fields(spec.capabilities):
        value = getattr(spec.capabilities, field.name)
        if isinstance(value, tuple):
            value = ", ".join(f"`{item}`" for item in value) or "none"
        yield f"- {field.name}: {'yes' if value is True else value}"


def override(config: type[Any]) -> str:
    """The first field whose default is a number, as a keyword argument that shows how an override is written."""
    for field in dataclasses.fields(config):
        if type(field.default) is int:
            return f"{field.name}={field.default}"
    return "..."


def costs(spec: ModelSpec) -> tuple[str, str]:
    """Parameters in millions and forward operations in GFLOPs; a dash where nothing was measured."""
    if spec.costs is None:
        return "-", "-"
    return f"{spec.costs.parameters / 1e6:.2f} M", f"{spec.costs.flops / 1e9:.1f}"


def megabytes(spec: ModelSpec) -> str:
    """Size of a float32 checkpoint."""
    return "-" if spec.costs is None else f"{spec.costs.checkpoint_bytes / 1e6:,.1f} MB"


def dims(tensor: TensorSpec) -> str:
    """Named dimensions with example sizes, optional tensors marked."""
    text = ", ".join(f"{dim.name} ({dim.example})" for dim in tensor.dims)
    return f"{text}; optional" if tensor.optional else text


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table, followed by an empty line."""
    lines = [row(header), row(["---"] * len(header)), *(row(cells) for cells in rows)]
    return [*lines, ""]


def row(cells: Sequence[str]) -> str:
    """One line of a Markdown table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def count(number: int, singular: str, plural: str | None = None) -> str:
    """`1 family`, `6 variants`."""
    return f"{number} {singular if number == 1 else plural or singular + 's'}"


def yes(value: bool) -> str:
    """`yes` or `no`."""
    return "yes" if value else "no"
