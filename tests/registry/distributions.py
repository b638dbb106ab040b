"""A family as a plugin author writes it, and real distributions around such code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

FAMILY = """
from dataclasses import dataclass

import torch
from astrozoo.module import ZooModel
from astrozoo.registry.family import Family
from astrozoo.registry.spec import Dim, TensorSpec


@dataclass(frozen=True, kw_only=True)
class Config:
    width: int = 3


class Model(ZooModel):
    task = "regression"

    def __init__(self, config, *, device=None, dtype=None):
        super().__init__(config)
        with torch.device("meta"):
            self.layer = torch.nn.Linear(config.width, 1)
        self.materialize(device, dtype)

    @classmethod
    def input_specs(cls, config):
        return (TensorSpec(name="x", dims=(Dim("batch", 2), Dim("column", config.width, fixed=True))),)

    @classmethod
    def output_specs(cls, config):
        return (TensorSpec(name="y", dims=(Dim("batch", 2), Dim("value", 1, fixed=True))),)

    def forward(self, x):
        return self.layer(x)


FAMILY = Family(name="line", domain="table", summary="A line", model=Model, config=Config, miniature={})
line_nano = FAMILY.variant("nano", "For tests.")
line_tiny = FAMILY.variant("tiny", "For tests.", width=5)
"""


def write_distribution(
    folder: Path, name: str, entries: Mapping[str, Mapping[str, str]], files: Mapping[str, str], version: str = "1.2"
) -> Path:
    """Write an installed distribution into `folder`, as an installer would."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(
        "\n".join(
            f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in names.items()) for group, names in entries.items()
        )
    )
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    (info / "RECORD").write_text("".join(f"{path},,\n" for path in (*files, f"{info.name}/METADATA")))
    return folder
