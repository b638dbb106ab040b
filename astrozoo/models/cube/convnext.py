"""cube_convnext: a ConvNeXt V2 encoder-decoder for fields, with pretraining on fields without targets.

Paper: Woo, Debnath, Hu, Chen, Liu, Kweon, Xie (2023), "ConvNeXt V2", arXiv:2301.00808.

A block is a depthwise convolution of 7 x 7 cells that mixes places, then a perceptron of four times the width that
mixes channels, with global response normalisation inside. `MaskedPretraining` is the other half of the paper: learning
the encoder from fields without targets, by filling in what is masked.

Where we differ, and why:
- Convolutions wrap around in longitude and continue across the poles; levels are mixed by a second, one-dimensional
  kernel (`astrozoo.nn.separable`). The response of a channel is a mean by area (`astrozoo.nn.response`).
- A U-shape (`astrozoo.models.ushape`) with a light decoder makes fields of the classifier's features, and the stem is a
  3 x 3 convolution at full resolution instead of patches of 4 x 4, since the fine grid comes back.
- Weights start variance-preserving; with the paper's 0.02, made for widths from 96 and hundreds of epochs, narrow
  models stay near the identity for too long.
- Layers between scales normalise first, as in the paper, also on the way up.
- In pretraining, masked cells are zeros before each convolution. That equals the paper's sparse convolutions.

Layout: `x[batch, var, level, lat, lon]`, optional `static[batch, static, lat, lon]` and `condition[batch, param]`
-> `y[batch, out_var, level, lat, lon]`. Levels may be one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from astrozoo.batch import Batch
from astrozoo.errors import ConfigError
from astrozoo.models.ushape import UShapeConfig, UShapeModel
from astrozoo.nn import ChannelNorm, Coarsen, DepthwiseGridConv3d, DropPath, FiLM, Refine, ResponseNorm, checks
from astrozoo.registry.family import Family
from astrozoo.registry.spec import Paper

__all__ = ["CubeConvNeXt", "CubeConvNeXtConfig", "MaskedPretraining"]


@dataclass(frozen=True, kw_only=True, slots=True)
class CubeConvNeXtConfig(UShapeConfig):
    """Configuration of `CubeConvNeXt`: that of the U-shape, see `UShapeConfig`.

    Attributes:
        kernel: Extent of the depthwise convolutions in lat and lon, odd.
        expansion: Width of the perceptron inside a block, in widths of the block.
    """

    widths: tuple[int, ...] = (24, 64, 128, 256)
    depths: tuple[int, ...] = (0, 2, 6, 2)
    decoder_depths: tuple[int, ...] = (1, 1, 1)
    strides: tuple[int, ...] = (2, 2, 2)
    level_strides: tuple[int, ...] = (2, 2, 2)
    kernel: int = 7
    expansion: int = 4

    def __post_init__(self) -> None:
        UShapeConfig.__post_init__(self)
        checks.at_least(self, 1, "kernel", "expansion")
        if self.kernel % 2 == 0:
            raise checks.fail(self, "kernel", "an odd number of cells")


class ConvNeXtBlock(nn.Module):
    """`x + pointwise(response_norm(gelu(pointwise(norm(depthwise(x))))))`."""

    def __init__(self, config: CubeConvNeXtConfig, width: int, drop_path: float) -> None:
        super().__init__()
        hidden = config.expansion * width
        self.depthwise = DepthwiseGridConv3d(
            width,
            kernel=config.kernel,
            level_kernel=config.level_kernel,
            longitude=config.longitude,
            poles=config.poles,
        )
        self.norm = ChannelNorm(width)
        self.film = FiLM(config.condition_width, width) if config.condition_dim else None
        self.expand = nn.Linear(width, hidden)
        self.response = ResponseNorm(hidden, globe=config.poles == "cross")
        self.dropout = nn.Dropout3d(config.dropout)
        self.reduce = nn.Linear(hidden, width)
        self.drop_path = DropPath(drop_path)

    def reset_parameters(self) -> None:
        for layer in (self.expand, self.reduce):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, condition: Tensor | None, visible: Tensor | None = None) -> Tensor:
        """`x[batch, channel, level, lat, lon]`, `condition[batch, embedding]` -> like `x`.

        `visible[batch, 1, 1, lat, lon]` is 0 where cells are masked in pretraining, and `x` zero: they stay zero and
        have no part in the response of channels.
        """
        branch = self.norm(self.depthwise(x))
        if self.film is not None:
            branch = self.film(branch, condition)
        # Channels last, which they are in memory: pointwise convolutions are plain matrix products.
        hidden = F.gelu(self.expand(branch.movedim(1, -1))).movedim(-1, 1)
        if visible is not None:
            hidden = hidden * visible
        branch = self.reduce(self.dropout(self.response(hidden)).movedim(1, -1)).movedim(-1, 1)
        if visible is not None:
            branch = branch * visible
        return x + self.drop_path(branch)


class NormCoarsen(nn.Module):
    """A norm, then patches become cells."""

    def __init__(self, width: int, out_width: int, stride: tuple[int, int, int], *, longitude: str) -> None:
        super().__init__()
        self.norm = ChannelNorm(width)
        self.patches = Coarsen(width, out_width, stride, longitude=longitude)

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, width, level, lat, lon]` -> `[batch, out_width, ceil(size / stride), ...]`."""
        return self.patches(self.norm(x))


class NormRefine(nn.Module):
    """A norm, then cells become patches."""

    def __init__(self, width: int, out_width: int, stride: tuple[int, int, int]) -> None:
        super().__init__()
        self.norm = ChannelNorm(width)
        self.patches = Refine(width, out_width, stride)

    def forward(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        """`[batch, width, level, lat, lon]` and the sizes `(level, lat, lon)` -> `[batch, out_width, *sizes]`."""
        return self.patches(self.norm(x), sizes)


class CubeConvNeXt(UShapeModel):
    """The encoder-decoder: ConvNeXt V2 blocks down through the scales and up again."""

    def make_layers(self, config: CubeConvNeXtConfig) -> None:
        """As the U-shape, with norms between scales."""
        super().make_layers(config)
        widths = config.widths
        steps = [
            (fine, coarse, (level, space, space))
            for fine, coarse, level, space in zip(
                widths, widths[1:], config.level_strides, config.strides, strict=False
            )
        ]
        self.coarsen = nn.ModuleList(NormCoarsen(*step, longitude=config.longitude) for step in steps)
        self.refine = nn.ModuleList(NormRefine(coarse, fine, stride) for fine, coarse, stride in reversed(steps))

    def make_block(self, config: CubeConvNeXtConfig, scale: int, drop_path: float) -> nn.Module:
        """A ConvNeXt V2 block."""
        return ConvNeXtBlock(config, config.widths[scale], drop_path)


class MaskedPretraining(nn.Module):
    """Pretraining of a `CubeConvNeXt` encoder without targets: most of the fields are masked and filled in (FCMAE).

        pretraining = MaskedPretraining(model)
        pretraining.loss(batch)["loss"].backward()   # its parameters are those of the encoder and of a small decoder
        model.loss(batch)                            # afterwards: the encoder is the model's own

    What is masked are columns of the atmosphere as wide as a cell of the coarsest scale. The loss is the mean squared
    error in masked cells; fields are not normalised by patch, since amplitudes mean something.
    """

    def __init__(self, model: CubeConvNeXt, *, ratio: float = 0.6) -> None:
        """Make it on the device of the model.

        Args:
            model: Its stem, encoder and embedding of the condition are trained in place; its decoder and head are not.
            ratio: Share of cells that is masked, between 0 and 1.

        Raises:
            ConfigError: The ratio is out of range.
        """
        super().__init__()
        if not 0 < ratio < 1:
            raise ConfigError(f"ratio is {ratio!r}; allowed: a number between 0 and 1, such as 0.6.")
        config = model.config
        width, space = config.widths[-1], math.prod(config.strides)
        self.ratio, self.space = ratio, space
        # In a list, the model is no submodule: its decoder is none of the parameters to train.
        self.models = [model]
        self.stem, self.embed, self.encoder, self.coarsen = model.stem, model.embed, model.encoder, model.coarsen
        self.enter = nn.Conv3d(width, width, 1)
        self.block = ConvNeXtBlock(config, width, 0.0)
        self.predict = Refine(width, config.in_vars, (math.prod(config.level_strides), space, space))
        self.token = nn.Parameter(torch.zeros(width))
        for layer in (self.enter, self.block, self.predict):
            for module in reversed(list(layer.modules())):  # children before parents
                reset: Callable[[], None] | None = getattr(module, "reset_parameters", None)
                if reset is not None:
                    reset()
        nn.init.normal_(self.token, std=0.02)
        self.to(device=model.device, dtype=model.dtype)

    def random_mask(self, x: Tensor) -> Tensor:
        """Cells `[batch, 1, 1, lat, lon]` of the coarsest scale: 1 if visible, 0 in a share `ratio` of each sample."""
        rows, columns = (-(-size // self.space) for size in x.shape[3:])
        cells = rows * columns
        rank = torch.rand(x.shape[0], cells, device=x.device).argsort(1).argsort(1)
        return (rank >= round(self.ratio * cells)).to(x.dtype).reshape(-1, 1, 1, rows, columns)

    def encode(self, x: Tensor, static: Tensor | None, condition: Tensor | None, visible: Tensor) -> Tensor:
        """Features of the coarsest scale that know nothing of masked cells, in which they are zero.

        Args:
            x: `[batch, var, level, lat, lon]`.
            static: `[batch, static, lat, lon]` or None.
            condition: `[batch, param]` or None.
            visible: As of `random_mask`.

        Returns:
            `[batch, widths[-1], level, lat, lon]` of the coarsest grid.
        """
        seen = _spread(visible, self.space, x)
        # Off under the mask even if it is NaN: what is missing in the data may be masked on purpose.
        x = torch.where(seen > 0, x, 0)
        if static is not None:
            static = static * seen[:, 0]
        embedding = None if self.embed is None or condition is None else self.embed(condition)
        x = self.stem(x.contiguous(memory_format=torch.channels_last_3d), static) * seen
        scale_space = self.space
        for scale, blocks in enumerate(self.encoder):
            if scale:
                x = self.coarsen[scale - 1](x)
                scale_space //= self.models[0].config.strides[scale - 1]
                seen = _spread(visible, scale_space, x)
                x = x * seen
            for block in blocks.children():
                x = self.models[0].run(block, x, embedding, seen)
        return x

    def forward(
        self, x: Tensor, static: Tensor | None = None, condition: Tensor | None = None, visible: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Fields filled in `[batch, var, level, lat, lon]`, and what was visible `[batch, 1, 1, lat, lon]`."""
        self.models[0].check_inputs(x=x, static=static, condition=condition)
        visible = self.random_mask(x) if visible is None else visible
        embedding = None if self.embed is None or condition is None else self.embed(condition)
        coarse = self.enter(self.encode(x, static, condition, visible))
        coarse = coarse * visible + self.token[:, None, None, None] * (1 - visible)
        return self.predict(self.block(coarse, embedding), x.shape[2:]), _spread(visible, self.space, x)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Mean squared error of the inputs `x` in masked cells; targets are not looked at."""
        filled, seen = self(**batch.inputs)
        x, masked = batch.inputs["x"], seen == 0
        error = torch.where(masked, filled - x, 0).square().sum(dtype=torch.float32)
        return {"loss": error / (masked.sum() * (x.shape[1] * x.shape[2]))}


def _spread(visible: Tensor, space: int, x: Tensor) -> Tensor:
    """Cells `[batch, 1, 1, lat, lon]` of the coarsest scale on the grid of `x[..., lat, lon]`, finer by `space`."""
    fine = visible.repeat_interleave(space, -2).repeat_interleave(space, -1)
    return fine[..., : x.shape[-2], : x.shape[-1]].to(x.dtype)


FAMILY = Family(
    name="cube_convnext",
    domain="cube",
    summary="3-D ConvNeXt V2 encoder-decoder for fields with levels on a latitude-longitude grid",
    model=CubeConvNeXt,
    config=CubeConvNeXtConfig,
    miniature={
        "in_vars": 2,
        "out_vars": 2,
        "static_vars": 1,
        "condition_dim": 3,
        "widths": (8, 16),
        "depths": (1, 1),
        "decoder_depths": (1,),
        "strides": (2,),
        "level_strides": (2,),
        "condition_width": 8,
        "dropout": 0.1,
        "drop_path": 0.1,
    },
    paper=Paper(
        authors="Woo et al.",
        year=2023,
        title="ConvNeXt V2: Co-designing and Scaling ConvNets with Masked Autoencoders",
        arxiv="2301.00808",
    ),
    stems=("stem.",),
    heads=("head.",),
    blocks=("encoder.*.*", "decoder.*.*"),
)

cube_convnext_nano = FAMILY.variant(
    "nano",
    "A few decades of annual fields, trained in minutes on a laptop.",
    widths=(16, 32, 64, 128),
    depths=(0, 1, 2, 2),
)
cube_convnext_tiny = FAMILY.variant(
    "tiny",
    "Monthly fields of one simulation, or a first run on a GPU.",
    widths=(48, 96, 192),
    depths=(2, 4, 4),
    decoder_depths=(2, 2),
    strides=(2, 2),
    level_strides=(1, 2),
)
cube_convnext_small = FAMILY.variant(
    "small",
    "Daily fields, or an ensemble of simulations, on one GPU.",
    widths=(40, 112, 224, 448),
    depths=(0, 3, 9, 3),
)
cube_convnext_base = FAMILY.variant(
    "base",
    "Decades of 6-hourly reanalysis at 1 to 2 degrees.",
    widths=(64, 192, 384, 768),
    depths=(0, 3, 15, 4),
    drop_path=0.1,
)
cube_convnext_large = FAMILY.variant(
    "large",
    "Reanalysis with many variables and levels, on several GPUs.",
    widths=(96, 320, 640, 1280),
    depths=(0, 3, 27, 4),
    drop_path=0.2,
)
