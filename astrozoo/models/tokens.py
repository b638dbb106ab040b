"""What families share that turn fields into tokens: configuration, attentions that fit, and the trunk of blocks.

Tokens are patches of a latitude-longitude grid with levels, in row-major order (level, lat, lon). Any attention works
by name that needs nothing but tokens, their grid or their places; `GRID_ATTENTIONS` lists those of the zoo.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from astrozoo import registry
from astrozoo.attention.geometry import Grid, Points
from astrozoo.models.fields import FieldConfig
from astrozoo.nn import GridPosition, TransformerBlock, checks, turns_longitude
from astrozoo.nn.position import LONGITUDE_ROTARY
from astrozoo.registry.fit import TokenUse, misuse

__all__ = [
    "GRID_ATTENTIONS",
    "GRID_TOKENS",
    "SUBSET_ATTENTIONS",
    "SUBSET_TOKENS",
    "TokenConfig",
    "TokenTrunk",
    "check_attention",
    "is_relative",
    "longitude_step",
    "misfit",
]

GRID_TOKENS = TokenUse(geometries=("grid", "points"))  # all tokens of a grid, each sees all
SUBSET_TOKENS = TokenUse(masks=("key_mask",), geometries=("points",))  # some of them: no grid, and no sequence either
GRID_ATTENTIONS = (
    "axial", "block_sparse", "differential", "dilated", "flash", "grouped_query", "latent", "linear", "linformer",
    "metric_bias", "multiscale", "neighborhood", "perceiver", "performer", "ring", "sliding_window",
)  # fmt: skip
SUBSET_ATTENTIONS = (
    "differential", "flash", "grouped_query", "latent", "linear", "metric_bias", "perceiver", "performer", "ring",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenConfig(FieldConfig):
    """Configuration of models whose trunk is one stack of blocks over patches.

    Attributes:
        in_vars, out_vars, static_vars, condition_dim, longitude, poles: As of every model of fields.
        dim: Width of the tokens.
        depth: Number of blocks.
        num_heads: Heads of the attention; divides dim.
        mlp_ratio: Hidden width of the perceptrons, in units of dim.
        patch: Cells of a token in lat and in lon.
        level_patch: Levels of a token; fields of a single level are not repeated to fill it.
        attention: Name of the attention; `spec.attentions` lists those that fit.
        attention_options: Further options of it, as a mapping such as `{"window": 64}`, or as pairs of name and value,
            which is how they are kept.
        condition_width: Width of the embedding of `condition`.
        dropout: Probability of dropping attention weights and activations of perceptrons during training.
        drop_path: Probability of dropping the last block; it rises linearly from 0 at the first.
    """

    use: ClassVar[TokenUse] = GRID_TOKENS

    dim: int = 192
    depth: int = 6
    num_heads: int = 6
    mlp_ratio: float = 4.0
    patch: int = 4
    level_patch: int = 2
    attention: str = "flash"
    attention_options: Any = ()
    condition_width: int = 128
    dropout: float = 0.0
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        FieldConfig.__post_init__(self)
        checks.at_least(self, 1, "dim", "depth", "num_heads", "patch", "level_patch", "condition_width")
        if self.dim % self.num_heads:
            raise checks.fail(self, "num_heads", f"a divisor of dim, {self.dim}")
        checks.between(self, 0.125, 16, "mlp_ratio")
        checks.between(self, 0, 1, "dropout", "drop_path")
        check_attention(self, self.use)

    @property
    def cell_patch(self) -> tuple[int, int, int]:
        """Cells of a token (level, lat, lon)."""
        return self.level_patch, self.patch, self.patch


def misfit(attention: str, use: TokenUse) -> str:
    """Why an attention does not fit a trunk, or an empty string if it does.

    Raises:
        UnknownModelError: Nobody offers it; the nearest names are offered.
    """
    spec = registry.attention_info(attention)
    if (reason := misuse(spec, use)) or "grid" in use.geometries:
        return reason
    if spec.geometry == "points" and attention != spec.name:
        return "it presets distances in a sequence, and tokens at random places are none"
    if spec.geometry == "grid":
        return "it is for whole grids, and the tokens are some of one"
    if spec.softmax and not (spec.exact and spec.cost_exponent >= 2):
        return "it sees parts of a sequence, and tokens at random places are none"
    return ""


def check_attention(config: Any, use: TokenUse) -> None:
    """The field `attention` of a configuration names one that fits, and `attention_options` become a tuple of pairs.

    Raises:
        ConfigError: It does not fit, with the reason and those that do, or the options are no mapping.
        UnknownModelError: Nobody offers it; the nearest names are offered.
    """
    if not isinstance(config.attention, str):
        raise checks.fail(config, "attention", "the name of an attention")
    if reason := misfit(config.attention, use):
        fitting = [name for name in registry.list_attentions() if not misfit(name, use)]
        raise checks.fail(config, "attention", f"{', '.join(map(repr, fitting))}; of this one {reason}")
    options = config.attention_options
    try:
        pairs = tuple(sorted((name, _frozen(value)) for name, value in dict(options).items()))
    except (TypeError, ValueError):
        raise checks.fail(config, "attention_options", "a mapping of option to value") from None
    object.__setattr__(config, "attention_options", pairs)  # the dataclass is frozen; this is still its construction


def _frozen(value: Any) -> Any:
    """Lists, which come from files, as tuples."""
    return tuple(_frozen(item) for item in value) if isinstance(value, (list, tuple)) else value


def is_relative(attention: str) -> bool:
    """Whether the trunk gives an attention differences of longitude only.

    Aliases of attentions with a geometry preset what breaks that: fixed windows, distances in a sequence.
    """
    spec = registry.attention_info(attention)
    return turns_longitude(spec) and (spec.geometry is None or attention == spec.name)


def longitude_step(config: Any, columns: int) -> int | str:
    """Columns by which turning a global field turns the output of a token model along; or why there are none.

    Args:
        config: With fields `longitude` and `attention`.
        columns: Of a patch.
    """
    if config.longitude != "periodic":
        return "a region has edges"
    if not is_relative(config.attention):
        return f"attention {config.attention!r} takes no relative longitudes; they are added to the tokens"
    return columns


class TokenTrunk(nn.Module):
    """Blocks of attention over the patches of a grid, and what tells them where the patches lie.

    Call `place` with the tokens of the whole grid, then the trunk with these, or with some of them and their numbers.

    Args:
        dim: Width of the tokens.
        depth: Number of blocks.
        num_heads: Number of heads.
        longitude: As the configuration's.
        patch: Cells of a token (level, lat, lon).
        attention: Name of the attention.
        attention_options: Further options of it.
        use: What is asked of it: `GRID_TOKENS`, or `SUBSET_TOKENS` where only some tokens enter.
        mlp_ratio: Hidden width of the perceptrons, in units of dim.
        dropout: Of attention weights and perceptrons.
        drop_path: Of the last block; it rises linearly from 0.
        condition_width: Width of the vector that every block is scaled and shifted by; 0 for none.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        num_heads: int,
        *,
        longitude: str,
        patch: tuple[int, int, int] = (1, 1, 1),
        attention: str = "flash",
        attention_options: Mapping[str, Any] | None = None,
        use: TokenUse = GRID_TOKENS,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        condition_width: int = 0,
    ) -> None:
        super().__init__()
        relative = is_relative(attention)
        options: dict[str, Any] = {"rope": LONGITUDE_ROTARY} if relative else {}
        self.position = GridPosition(dim, patch, longitude=longitude, relative=relative)
        spec = registry.attention_info(attention)
        self.geometry = None if spec.geometry == "points" and attention != spec.name else spec.geometry
        self.blocks = nn.ModuleList(
            TransformerBlock(
                dim,
                num_heads,
                attention=attention,
                attention_options={**options, **(attention_options or {})},
                use=use,
                mlp_ratio=mlp_ratio,
                dropout=dropout,
                drop_path=drop_path * index / max(depth - 1, 1),
                condition_dim=condition_width,
            )
            for index in range(depth)
        )
        self.norm = nn.LayerNorm(dim)

    def place(self, tokens: Tensor, cells: Sequence[int], chosen: Tensor | None = None) -> Tensor:
        """Tell tokens where they lie.

        Args:
            tokens: `[batch, level, lat, lon, dim]`, the whole grid, or `[batch, token, dim]` of what is chosen of it.
            cells: Sizes (level, lat, lon) of the fields that the whole grid covers.
            chosen: int64 `[batch, token]`, which of the grid's tokens these are; None for all.

        Returns:
            `[batch, token, dim]`.
        """
        if chosen is None:
            placed: Tensor = self.position(tokens, cells)
            return placed.flatten(1, 3)
        encoding = self.position.encoding(cells, tokens)
        encoding = encoding.expand(*self.position.sizes(cells), -1).flatten(0, 2)
        return tokens + encoding[chosen]

    def terms(self, tokens: Tensor, cells: Sequence[int], chosen: Tensor | None = None) -> dict[str, Any]:
        """What an attention over the tokens is told beside them: `positions`, `geometry`.

        Args:
            tokens: `[batch, token, dim]`.
            cells: Sizes (level, lat, lon) of the fields that the whole grid covers.
            chosen: int64 `[batch, token]`, which of the grid's tokens these are; None for all.
        """
        terms: dict[str, Any] = {}
        if (angles := self.position.angles(cells, tokens)) is not None:
            terms["positions"] = angles if chosen is None else angles[0, :, 0][chosen][..., None]
        if self.geometry == "grid":
            sizes = self.position.sizes(cells)
            terms["geometry"] = Grid(sizes, periodic=(False, False, self.position.periodic))
        elif self.geometry == "points":
            coords, weights = self.position.points(cells, tokens)
            if chosen is not None:
                coords, weights = coords[0][chosen], None if weights is None else weights[0][chosen]
            metric = "great_circle" if self.position.periodic else "euclidean"
            terms["geometry"] = Points(coords, metric=metric, weights=weights)
        return terms

    def forward(
        self,
        tokens: Tensor,
        cells: Sequence[int],
        condition: Tensor | None = None,
        *,
        chosen: Tensor | None = None,
        key_mask: Tensor | None = None,
        run: Callable[..., Any] | None = None,
        taps: list[Tensor] | None = None,
    ) -> Tensor:
        """`[batch, token, dim]` -> the same, normalised.

        Args:
            tokens: As `place` gives them, all or some.
            cells: Sizes (level, lat, lon) of the fields that the whole grid covers.
            condition: `[batch, condition_width]`, where the trunk has one.
            chosen: int64 `[batch, token]`, which of the grid's tokens these are; None for all.
            key_mask: bool `[batch, token]`, true for tokens that others may see; None for all.
            run: `model.run`, through which blocks are checkpointed; plain calls by default.
            taps: Is filled with the tokens after each block, not normalised.
        """
        terms = self.terms(tokens, cells, chosen)
        if key_mask is not None:
            terms["key_mask"] = key_mask
        for block in self.blocks:

            def step(tokens: Tensor, block: nn.Module = block) -> Tensor:
                stepped: Tensor = block(tokens, condition=condition, **terms)
                return stepped

            tokens = step(tokens) if run is None else run(step, tokens)
            if taps is not None:
                taps.append(tokens)
        normed: Tensor = self.norm(tokens)
        return normed
