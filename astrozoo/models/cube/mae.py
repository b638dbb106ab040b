"""cube_mae: a masked autoencoder of fields, to pretrain `cube_vit` on archives without targets, and to fill gaps.

Paper: He, Chen, Xie, Li, Dollar, Girshick (2021), "Masked Autoencoders Are Scalable Vision Learners", arXiv:2111.06377:
most patches are hidden, a large encoder sees only the rest, a small decoder fills in what was hidden.
Where we differ, and why:
- The encoder is that of `cube_vit` (`astrozoo.models.patches`): patches with levels, tokens per variable, positions on
  the sphere. `CubeViT.load_encoder(mae)` takes it over.
- The loss is weighted by area where the batch says where it is, and cells without a value count nothing.
- In evaluation the mask is always the same, for all samples: a hash of the patches' numbers and of `mask_seed` orders
  them. Training draws one for each sample from torch's generator.
- A mask may be given, one that hides gaps for instance: hidden patches may hold NaN. Samples may then hide as many
  patches as they like, so all are computed and hidden ones are not seen; the result is that of leaving them out.
- Fields that do not change, such as orography, are known everywhere: the decoder sees those of hidden patches too.

Layout: `x[batch, var, level, lat, lon]`, optional `static[batch, static, lat, lon]` and `condition[batch, param]` ->
`reconstruction[batch, var, level, lat, lon]`, `mask[batch, patch]`; patches in row-major order of (level, lat, lon).
Levels may be one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from astrozoo.batch import Batch
from astrozoo.errors import InputError
from astrozoo.models.fields import FieldModel, field_tensor
from astrozoo.models.patches import FieldEncoder, into_patches, out_of_patches
from astrozoo.models.tokens import SUBSET_ATTENTIONS, SUBSET_TOKENS, TokenConfig, TokenTrunk
from astrozoo.nn import checks
from astrozoo.objectives.area import area_weights
from astrozoo.objectives.losses import weighted_mse
from astrozoo.registry.family import Family
from astrozoo.registry.fit import TokenUse
from astrozoo.registry.spec import Dim, Paper, TensorSpec

__all__ = ["CubeMAE", "CubeMAEConfig", "CubeMAEOutput"]


@dataclass(frozen=True, kw_only=True, slots=True)
class CubeMAEConfig(TokenConfig):
    """Configuration of `CubeMAE`: that of token models, see `TokenConfig`, for the encoder, and more.

    Attributes:
        out_vars: Always as many as in_vars, which 0 stands for: what is reconstructed is the input.
        mask_ratio: Share of the patches that is hidden; at least one stays visible.
        mask_seed: Of the mask that evaluation uses.
        patch_norm: Whether the target is each patch of each variable less its mean, over its standard deviation: what
            varies within patches then counts alike everywhere. The reconstruction is in these units too.
        decoder_dim: Width of the decoder's tokens.
        decoder_depth: Blocks of the decoder.
        decoder_heads: Heads of its attention; divides decoder_dim.
    """

    use: ClassVar[TokenUse] = SUBSET_TOKENS

    out_vars: int = 0
    mask_ratio: float = 0.75
    mask_seed: int = 0
    patch_norm: bool = False
    decoder_dim: int = 128
    decoder_depth: int = 2
    decoder_heads: int = 4

    def __post_init__(self) -> None:
        checks.at_least(self, 0, "out_vars", "mask_seed")
        if self.out_vars not in (0, self.in_vars):
            raise checks.fail(self, "out_vars", f"as many as in_vars, {self.in_vars}: the input is reconstructed")
        object.__setattr__(self, "out_vars", self.in_vars)  # the dataclass is frozen; this is still its construction
        TokenConfig.__post_init__(self)
        checks.between(self, 0, 1, "mask_ratio")
        if not isinstance(self.patch_norm, bool):
            raise checks.fail(self, "patch_norm", "True, False")
        checks.at_least(self, 1, "decoder_dim", "decoder_depth", "decoder_heads")
        if self.decoder_dim % self.decoder_heads:
            raise checks.fail(self, "decoder_heads", f"a divisor of decoder_dim, {self.decoder_dim}")


class CubeMAEOutput(NamedTuple):
    """What `CubeMAE` returns.

    Attributes:
        reconstruction: `[batch, var, level, lat, lon]`: what the decoder says where patches were hidden, and the input
            where they were not; both in units of the patch with `patch_norm`.
        mask: bool `[batch, patch]`, true where hidden.
    """

    reconstruction: Tensor
    mask: Tensor


class MaskedDecoder(nn.Module):
    """Visible tokens, and a learned one in the place of every hidden one, into tokens that know of the cells."""

    def __init__(self, config: CubeMAEConfig) -> None:
        super().__init__()
        self.plane, self.longitude = (1, config.patch, config.patch), config.longitude
        self.project = nn.Linear(config.dim, config.decoder_dim)
        self.static = None
        if config.static_vars:
            self.static = nn.Linear(config.static_vars * config.patch**2, config.decoder_dim, bias=False)
        self.hidden_token = nn.Parameter(torch.empty(config.decoder_dim))
        self.trunk = TokenTrunk(
            config.decoder_dim,
            config.decoder_depth,
            config.decoder_heads,
            longitude=config.longitude,
            patch=config.cell_patch,
            attention=config.attention,
            attention_options=dict(config.attention_options),
            use=config.use,
            mlp_ratio=config.mlp_ratio,
            dropout=config.dropout,
            condition_width=config.condition_width if config.condition_dim else 0,
        )

    def reset_parameters(self) -> None:
        nn.init.normal_(self.hidden_token, std=0.02)

    def forward(
        self,
        tokens: Tensor,
        cells: tuple[int, int, int],
        static: Tensor | None,
        embedding: Tensor | None,
        mask: Tensor,
        chosen: Tensor | None,
        run: Callable[..., Any],
    ) -> Tensor:
        """Decode.

        Args:
            tokens: `[batch, visible, dim]` if they were chosen, else all, `[batch, token, dim]`.
            cells: Sizes (level, lat, lon) of the fields.
            static: `[batch, static, lat, lon]`, where the configuration has such.
            embedding: `[batch, condition_width]`, of the condition.
            mask: bool `[batch, token]`, true where hidden.
            chosen: int64 `[batch, visible]`, or None.
            run: `model.run`.

        Returns:
            `[batch, token, decoder_dim]`.
        """
        tokens = self.project(tokens)
        hidden = self.hidden_token.to(tokens.dtype).expand(*mask.shape, -1)
        if chosen is None:
            tokens = torch.where(mask[..., None], hidden, tokens)
        else:
            tokens = hidden.scatter(1, chosen[..., None].expand(-1, -1, tokens.shape[-1]), tokens)
        tokens = tokens.unflatten(1, self.trunk.position.sizes(cells))
        if self.static is not None and static is not None:
            plane = into_patches(static[:, :, None], self.plane, longitude=self.longitude).flatten(2)
            tokens = tokens + self.static(plane).unflatten(1, (1, *tokens.shape[2:4]))
        tokens = self.trunk.place(tokens, cells)
        decoded: Tensor = self.trunk(tokens, cells, embedding, run=run)
        return decoded


class CubeMAE(FieldModel):
    """The autoencoder. `loss` needs no targets: the input is the target where it was hidden."""

    task = "masked_modeling"

    def __init__(
        self, config: CubeMAEConfig, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__(config)
        with torch.device("meta"):
            self.encoder = FieldEncoder(config, SUBSET_TOKENS)
            self.decoder = MaskedDecoder(config)
            level, lat, lon = config.cell_patch
            self.head = nn.Linear(config.decoder_dim, level * config.in_vars * lat * lon)  # levels first
        self.materialize(device, dtype)

    def reset_parameters(self) -> None:
        """As the layers say; zero for the head."""
        super().reset_parameters()
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @classmethod
    def grid_minimum(cls, config: CubeMAEConfig) -> tuple[int, int, int]:
        """A patch."""
        return 1, config.patch, config.patch

    @classmethod
    def longitude_step(cls, config: CubeMAEConfig) -> int | str:  # noqa: ARG003
        """None: what is hidden stays where it is."""
        return "the mask that evaluation uses does not turn along; with a given mask that does, a patch"

    @classmethod
    def output_specs(cls, config: CubeMAEConfig) -> tuple[TensorSpec, ...]:
        """`reconstruction`, on the grid of `x`, and `mask`."""
        reconstruction = field_tensor("reconstruction", "var", config.in_vars, cls.grid_minimum(config))
        count = 1
        for dim, size in zip(reconstruction.dims[2:], config.cell_patch, strict=True):
            count *= -(-dim.example // size)
        dims = (Dim("batch", 2), Dim("patch", count))
        return reconstruction, TensorSpec(name="mask", dims=dims, dtype="bool", quantity="true where hidden")

    @classmethod
    def target_specs(cls, config: CubeMAEConfig) -> tuple[TensorSpec, ...]:  # noqa: ARG003
        """None: the input is the target."""
        return ()

    @classmethod
    def feature_stages(cls, config: CubeMAEConfig) -> tuple[str, ...]:
        """`tokens` as they enter the encoder's trunk, and `block1` to the last, with nothing hidden."""
        return ("tokens", *(f"block{index + 1}" for index in range(config.depth)))

    def forward(
        self, x: Tensor, static: Tensor | None = None, condition: Tensor | None = None, *, mask: Tensor | None = None
    ) -> CubeMAEOutput:
        """Hide patches and reconstruct them.

        Args:
            x: `[batch, var, level, lat, lon]`, latitudes in either order.
            static: `[batch, static, lat, lon]`, exactly where `static_vars` is not 0.
            condition: `[batch, param]`, exactly where `condition_dim` is not 0.
            mask: bool `[batch, patch]`, true for patches to hide, in place of a share of `mask_ratio` at random. What
                it hides is not read and may be NaN.

        Raises:
            InputError: The mask is not bool, or not one for each patch of each sample.
        """
        self.check_inputs(x=x, static=static, condition=condition)
        cells = _cells(x)
        chosen = None
        if mask is None:
            mask, chosen = self._drawn(x, cells)
        else:
            self._check_mask(mask, x, cells)
        embedding = self.encoder.embedded(condition)
        hidden = mask if chosen is None else None
        tokens = self.encoder(x, static, embedding, chosen=chosen, hidden=hidden, run=self.run)
        decoded = self.decoder(tokens, cells, static, embedding, mask, chosen, self.run)
        return CubeMAEOutput(self._assembled(decoded, x, mask), mask)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Mean squared error where patches were hidden and `x` has a value, weighted by area where `lat` is known.

        `"loss"`, and `"hidden"`, the share of the cells with a value that it is the mean over.
        """
        reconstruction, mask = self(**batch.inputs)
        x = batch.inputs["x"]
        hidden = self._of_cells(mask, x)
        lat = batch.context.get("lat")
        area = torch.ones_like(x[0, 0, 0, :, :1]) if lat is None else area_weights(lat)[:, None]
        error = weighted_mse(reconstruction, self.targets(x), hidden * area)
        known = torch.isfinite(x)
        return {"loss": error, "hidden": (known & hidden).sum() / known.sum().clamp_min(1)}

    def features(  # type: ignore[override]
        self, x: Tensor, static: Tensor | None = None, condition: Tensor | None = None
    ) -> dict[str, Tensor]:
        """What the encoder makes of the fields when nothing is hidden.

        Returns:
            `[batch, dim, level, lat, lon]` of patches, as they enter the trunk and after each block.
        """
        self.check_inputs(x=x, static=static, condition=condition)
        taps: list[Tensor] = []
        self.encoder(x, static, self.encoder.embedded(condition), run=self.run, taps=taps)
        sizes = self.encoder.trunk.position.sizes(x.shape[2:])
        grids = [tokens.unflatten(1, sizes).movedim(-1, 1) for tokens in taps]
        return dict(zip(self.feature_stages(self.config), grids, strict=True))

    def patches(self, cells: tuple[int, int, int]) -> int:
        """Number of patches that cover fields of sizes `cells` (level, lat, lon): the length of a mask."""
        level, lat, lon = self.encoder.trunk.position.sizes(cells)
        return level * lat * lon

    def targets(self, x: Tensor) -> Tensor:
        """What is reconstructed: `x[batch, var, level, lat, lon]`, or with `patch_norm` each patch in its own units."""
        if not self.config.patch_norm:
            return x
        patches = into_patches(x, self._patch(x), longitude=self.config.longitude)
        patches = patches.to(torch.promote_types(x.dtype, torch.float32))
        deviation, mean = torch.std_mean(patches, -1, correction=0, keepdim=True)
        # As in the paper's code, what hardly varies is not blown up.
        return out_of_patches((patches - mean) / (deviation.square() + 1e-6).sqrt(), self._patch(x), _cells(x)).to(x)

    def _patch(self, x: Tensor) -> tuple[int, int, int]:
        level, lat, lon = self.config.cell_patch
        return (1 if x.shape[2] == 1 else level), lat, lon  # a single level is not repeated

    def _of_cells(self, mask: Tensor, x: Tensor) -> Tensor:
        """`mask[batch, patch]` -> `[batch, 1, level, lat, lon]`, on the cells of `x`."""
        level, lat, lon = self._patch(x)
        grown = mask[:, :, None, None].expand(-1, -1, 1, level * lat * lon)
        return out_of_patches(grown, (level, lat, lon), _cells(x))

    def _drawn(self, x: Tensor, cells: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
        """A mask `[batch, patch]` of the configured ratio, and the numbers `[batch, visible]` of what is visible."""
        batch, count = x.shape[0], self.patches(cells)
        visible = max(count - round(count * self.config.mask_ratio), 1)
        if self.training:
            chosen = torch.rand(batch, count, device=x.device).argsort(1)[:, :visible]
        else:
            numbers = torch.arange(count, device=x.device) + (self.config.mask_seed * 0x9E3779B9 & _WORD)
            chosen = _hash(numbers).argsort()[None, :visible].expand(batch, -1)
        chosen = chosen.sort(1).values
        mask = torch.ones(batch, count, dtype=torch.bool, device=x.device).scatter(1, chosen, False)
        return mask, chosen

    def _check_mask(self, mask: Tensor, x: Tensor, cells: tuple[int, int, int]) -> None:
        if torch.compiler.is_compiling():
            return
        expected = [x.shape[0], self.patches(cells)]
        if mask.dtype != torch.bool or list(mask.shape) != expected:
            raise InputError(
                f"{self._label()} expects mask[batch, patch] as bool of shape {expected}, "
                f"got {mask.dtype} of shape {list(mask.shape)}."
            )

    def _assembled(self, decoded: Tensor, x: Tensor, mask: Tensor) -> Tensor:
        """Cells of the decoded tokens where hidden, the input elsewhere: `[batch, var, level, lat, lon]`."""
        patch = self._patch(x)
        size = self.config.in_vars * patch[0] * patch[1] * patch[2]
        weight, bias = self.head.weight[:size], self.head.bias[:size]
        predicted = nn.functional.linear(decoded, weight, bias)
        # Levels first, so that the cells of a single level are the first rows of the head.
        predicted = predicted.unflatten(-1, (patch[0], self.config.in_vars, -1)).movedim(-3, -2).flatten(-2)
        fields = out_of_patches(predicted, patch, _cells(x)).to(x.dtype)
        return torch.where(self._of_cells(mask, x), fields, self.targets(x))


def _cells(x: Tensor) -> tuple[int, int, int]:
    level, lat, lon = x.shape[2:]
    return level, lat, lon


_WORD = 0xFFFFFFFF


def _hash(numbers: Tensor) -> Tensor:
    """A permutation of 32-bit numbers that looks random, in whole numbers: the same on all devices, and in exports."""
    mixed = numbers & _WORD
    for _ in range(2):
        mixed = ((mixed >> 16) ^ mixed) * 0x45D9F3B & _WORD
    return (mixed >> 16) ^ mixed


FAMILY = Family(
    name="cube_mae",
    domain="cube",
    summary="masked autoencoder of fields with levels, which pretrains cube_vit and fills gaps",
    model=CubeMAE,
    config=CubeMAEConfig,
    miniature={
        "in_vars": 2,
        "static_vars": 1,
        "condition_dim": 3,
        "dim": 16,
        "depth": 2,
        "num_heads": 2,
        "mlp_ratio": 2.0,
        "patch": 2,
        "condition_width": 8,
        "decoder_dim": 16,
        "decoder_depth": 1,
        "decoder_heads": 2,
        "dropout": 0.1,
        "drop_path": 0.1,
    },
    paper=Paper(
        authors="He et al.",
        year=2021,
        title="Masked Autoencoders Are Scalable Vision Learners",
        arxiv="2111.06377",
    ),
    default_attention="flash",
    attentions=SUBSET_ATTENTIONS,
    attention_use=SUBSET_TOKENS,
    stems=("encoder.embed.", "decoder.static."),
    heads=("head.",),
    blocks=("encoder.trunk.blocks.*", "decoder.trunk.blocks.*"),
)

cube_mae_tiny = FAMILY.variant("tiny", "Pretrains cube_vit_tiny on a simulation, or a first run on a GPU.")
cube_mae_small = FAMILY.variant(
    "small",
    "Pretrains cube_vit_small on ensembles of simulations.",
    dim=384,
    depth=8,
    num_heads=6,
    decoder_dim=192,
    decoder_depth=2,
    decoder_heads=6,
)
cube_mae_base = FAMILY.variant(
    "base",
    "Pretrains cube_vit_base on decades of reanalysis.",
    dim=768,
    depth=10,
    num_heads=12,
    condition_width=256,
    drop_path=0.1,
    decoder_dim=384,
    decoder_depth=4,
    decoder_heads=6,
)
cube_mae_large = FAMILY.variant(
    "large",
    "Pretrains cube_vit_large on multi-model archives, on several GPUs.",
    dim=1024,
    depth=20,
    num_heads=16,
    condition_width=512,
    drop_path=0.1,
    decoder_dim=512,
    decoder_depth=4,
    decoder_heads=8,
)
