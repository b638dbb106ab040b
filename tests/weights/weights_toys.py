"""Small families that exercise what real ones do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from astrozoo.module import ZooModel
from astrozoo.registry.family import Family
from astrozoo.registry.spec import Dim, Paper, TensorSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class ToyConfig:
    channels: int = 3
    outputs: int = 2
    width: int = 8
    depth: int = 2
    tied: bool = False
    widths: tuple[int, ...] = (1, 2)


class Positions(nn.Module):
    """A buffer no file holds, and a parameter beside it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(width))
        self.register_buffer("angles", torch.empty(width), persistent=False)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.scale)
        self.angles.copy_(torch.arange(self.angles.numel()) / 7)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.angles


class Toy(ZooModel):
    task = "field_regression"

    def __init__(self, config: ToyConfig, *, device: Any = None, dtype: Any = None) -> None:
        super().__init__(config)
        with torch.device("meta"):
            self.stem = nn.Conv1d(config.channels, config.width, 3, padding=1)
            self.positions = Positions(config.width)
            self.blocks = nn.ModuleList(nn.Linear(config.width, config.width) for _ in range(config.depth))
            self.register_buffer("count", torch.empty((), dtype=torch.int64))
            self.norm = nn.LayerNorm(config.width)
            self.norm.bias.requires_grad_(False)
            self.head = nn.Linear(config.width, config.outputs)
        if config.tied:
            self.blocks[-1].weight = self.blocks[0].weight
        self.materialize(device, dtype)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        self.count.fill_(5)

    @classmethod
    def input_specs(cls, config: ToyConfig) -> tuple[TensorSpec, ...]:
        dims = (Dim("batch", 2), Dim("channel", config.channels, fixed=True), Dim("step", 6))
        return (TensorSpec(name="x", dims=dims, quantity="flux, normalised", unit="W m-2"),)

    @classmethod
    def output_specs(cls, config: ToyConfig) -> tuple[TensorSpec, ...]:
        dims = (Dim("batch", 2), Dim("step", 6), Dim("class", config.outputs, fixed=True))
        return (TensorSpec(name="y", dims=dims, quantity="scores"),)

    def forward(self, x: Tensor) -> Tensor:
        self.check_inputs(x=x)
        y = self.positions(self.stem(x).mT)
        for block in self.blocks:
            y = y + block(y).tanh()
        return self.head(self.norm(y)) * self.count


class Peeking(Toy):
    """Its initialisation reads the value of a weight, which a model on the meta device does not have."""

    def reset_parameters(self) -> None:
        super().reset_parameters()
        self.positions.angles.fill_(float(self.count) / 2)


def family(name: str, model: type[ZooModel] = Toy) -> Family:
    return Family(
        name=name,
        domain="test",
        summary=f"{name} for tests",
        model=model,
        config=ToyConfig,
        miniature={},
        stems=("stem.",),
        heads=("head.",),
        paper=Paper(authors="Doe et al.", year=2020, title="A Toy", arxiv="2001.00001"),
    )
