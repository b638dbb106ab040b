"""The model card: a README from the spec, so that whoever finds the weights knows what goes in and comes out."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import ModelCardData
from torch import nn

from astrozoo.errors import WeightsError
from astrozoo.registry.spec import ModelSpec, TensorSpec
from astrozoo.weights.config import CONFIG_FILE, SavedModel, read_config
from astrozoo.weights.save import unwrapped

__all__ = ["model_card"]


def model_card(folder: Path, model: nn.Module, repo_id: str, licence: str | None) -> tuple[str, str]:
    """The text of the card for a saved model, and the model's name."""
    zoo_model = unwrapped(model)
    spec, saved = zoo_model.spec, read_config(folder / CONFIG_FILE)
    if spec is None:
        raise WeightsError("A model without a registry name has no card.")
    data = ModelCardData(
        library_name="astrozoo",
        license=(licence or spec.licence).lower(),
        tags=["astrozoo", spec.domain, spec.family, spec.task],
    )
    sections = [
        f"---\n{data.to_yaml()}\n---",
        f"# {repo_id.rpartition('/')[2]}",
        f"`{spec.name}` of [astrozoo](https://pypi.org/project/astrozoo/): {spec.summary} "
        f"{zoo_model.num_parameters():,} parameters.",
        f'```python\nimport astrozoo\n\nmodel = astrozoo.load_model("{repo_id}")\n```',
        "## Inputs and outputs\n\n" + _tensors(spec),
        *_facts(spec, saved, licence),
    ]
    return "\n\n".join(sections) + "\n", spec.name


def _tensors(spec: ModelSpec) -> str:
    rows = ["| | tensor | quantity | unit | dtype |", "|---|---|---|---|---|"]
    for role, tensors in (("input", spec.inputs), ("output", spec.outputs)):
        rows += [_row(role, tensor) for tensor in tensors]
    return "\n".join(rows)


def _row(role: str, tensor: TensorSpec) -> str:
    optional = " (optional)" if tensor.optional else ""
    return f"| {role}{optional} | `{tensor}` | {tensor.quantity} | {tensor.unit} | {tensor.dtype} |"


def _facts(spec: ModelSpec, saved: SavedModel, licence: str | None) -> list[str]:
    facts = []
    variables = (saved.preprocessing or {}).get("variables")
    if variables:
        facts.append(f"## Variables\n\n```\n{variables}\n```")
    if spec.paper is not None:
        facts.append(f"## Paper\n\n{spec.paper}")
    facts.append(f"## Licence\n\nWeights: {licence or spec.licence}. Code: {spec.licence}.")
    origin = {**saved.provenance, **saved.versions}
    facts.append("## Provenance\n\n" + "\n".join(f"- {name}: {value}" for name, value in origin.items()))
    return facts
