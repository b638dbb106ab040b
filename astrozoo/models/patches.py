"""Fields into tokens, variable by variable, and the encoder that `cube_vit` and `cube_mae` share.

Every variable has its own patch embedding, and one attention per patch aggregates the variables, so that the trunk
costs the same for five of them as for fifty (ClimaX: Nguyen et al. 2023, arXiv:2301.10343). There, a patch of each
variable is embedded, an embedding of the variable is added, and a learned query attends to the results. Logits and
values are then linear in the patch. Here the products of the matrices are the parameters: for each variable, a map from
a patch to the logit of every head and one to its values. The function is the same, and nothing of width times width is
computed for each variable and patch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from astrozoo.models.fields import ConditionEmbedding
from astrozoo.models.tokens import GRID_TOKENS, TokenTrunk
from astrozoo.nn.resample import fill_up
from astrozoo.registry.fit import TokenUse

__all__ = ["FieldEncoder", "VariableProjection", "VariableTokens", "into_patches", "out_of_patches"]


def into_patches(x: Tensor, patch: tuple[int, int, int], *, longitude: str) -> Tensor:
    """Cut fields into patches; what the last ones lack is filled up as `nn.resample.fill_up` does.

    Args:
        x: `[batch, var, level, lat, lon]`.
        patch: Cells (level, lat, lon) of a patch.
        longitude: `periodic` or `regional`.

    Returns:
        `[batch, patch, var, cell]`, patches and cells in row-major order of (level, lat, lon).
    """
    x = fill_up(x, patch, longitude=longitude)
    level, lat, lon = (size // step for size, step in zip(x.shape[2:], patch, strict=True))
    x = x.reshape(*x.shape[:2], level, patch[0], lat, patch[1], lon, patch[2])
    return x.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(5).flatten(1, 3)


def out_of_patches(patches: Tensor, patch: tuple[int, int, int], cells: tuple[int, int, int]) -> Tensor:
    """The inverse of `into_patches`, cropped to `cells` (level, lat, lon): `[batch, var, level, lat, lon]`."""
    level, lat, lon = (-(-size // step) for size, step in zip(cells, patch, strict=True))
    x = patches.reshape(patches.shape[0], level, lat, lon, patches.shape[2], *patch)
    x = x.permute(0, 4, 1, 5, 2, 6, 3, 7).flatten(6).flatten(4, 5).flatten(2, 3)
    return x[:, :, : cells[0], : cells[1], : cells[2]]


class VariableProjection(nn.Module):
    """Values and logits of every variable's patches: what a shared query finds at each variable.

    Args:
        variables: Number of variables.
        patch: Cells (level, lat, lon) of a patch.
        dim: Width of the values of all heads.
        num_heads: Heads, each with a logit.
        sources: Variables that the softmax shares its weight among, these and others.
    """

    def __init__(self, variables: int, patch: tuple[int, int, int], dim: int, num_heads: int, sources: int) -> None:
        super().__init__()
        self.sources = sources
        self.value = nn.Parameter(torch.empty(variables, *patch, dim))
        self.value_bias = nn.Parameter(torch.empty(variables, dim))
        self.logit = nn.Parameter(torch.empty(variables, *patch, num_heads))
        self.logit_bias = nn.Parameter(torch.empty(variables, num_heads))

    def reset_parameters(self) -> None:
        """Variables weigh the same, as with the query of zeros of ClimaX; tokens of independent cells have size 1."""
        cells = self.value[0, ..., 0].numel()
        nn.init.normal_(self.value, std=(self.sources / cells) ** 0.5)
        nn.init.normal_(self.value_bias, std=0.02 * self.sources**0.5)
        nn.init.zeros_(self.logit)
        nn.init.zeros_(self.logit_bias)

    def forward(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Values `[batch, patch, var, dim]` and logits `[batch, patch, var, head]` of `[batch, patch, var, cell]`."""
        value: Tensor = self.value
        logit: Tensor = self.logit
        if patches.shape[-1] < value[0, ..., 0].numel():  # a single level, as if repeated
            value, logit = value.sum(1), logit.sum(1)
        by_variable = patches.permute(2, 0, 1, 3).flatten(1, 2)  # [var, batch * patch, cell]
        value, logit = value.flatten(1, -2), logit.flatten(1, -2)
        values = torch.baddbmm(self.value_bias[:, None], by_variable, value)
        logits = torch.baddbmm(self.logit_bias[:, None], by_variable, logit)
        sizes = patches.shape[:2]
        return values.unflatten(1, sizes).permute(1, 2, 0, 3), logits.unflatten(1, sizes).permute(1, 2, 0, 3)


class VariableTokens(nn.Module):
    """Patches of all variables, and of fields without levels, into one token each.

    Args:
        config: With the fields of `TokenConfig`.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.patch, self.longitude, self.num_heads = config.cell_patch, config.longitude, config.num_heads
        sources = config.in_vars + config.static_vars
        self.fields = VariableProjection(config.in_vars, self.patch, config.dim, config.num_heads, sources)
        self.static = None
        if config.static_vars:
            plane = (1, *self.patch[1:])
            self.static = VariableProjection(config.static_vars, plane, config.dim, config.num_heads, sources)

    def cut(self, x: Tensor, static: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """`x[batch, var, level, lat, lon]`, `static[batch, static, lat, lon]` -> `[batch, token, var, cell]`, twice."""
        level, lat, lon = self.patch
        patches = into_patches(x, (1 if x.shape[2] == 1 else level, lat, lon), longitude=self.longitude)
        if static is None:
            return patches, None
        plane = into_patches(static[:, :, None], (1, lat, lon), longitude=self.longitude)
        return patches, plane.repeat(1, patches.shape[1] // plane.shape[1], 1, 1)

    def forward(self, patches: Tensor, static: Tensor | None = None) -> Tensor:
        """Embed `[batch, token, var, cell]` of both, as `cut` gives them, or of some tokens: `[batch, token, dim]`."""
        values, logits = self.fields(patches)
        if self.static is not None and static is not None:
            static_values, static_logits = self.static(static)
            values, logits = torch.cat([values, static_values], 2), torch.cat([logits, static_logits], 2)
        weights = logits.softmax(2).to(values.dtype)
        values = values.unflatten(-1, (self.num_heads, -1))  # [batch, token, var, head, dim / head]
        return (weights[..., None] * values).sum(2).flatten(2)


class FieldEncoder(nn.Module):
    """Fields into tokens that know of each other: embedding, aggregation over variables, trunk.

    Args:
        config: With the fields of `TokenConfig`.
        use: What is asked of the attention.
    """

    def __init__(self, config: Any, use: TokenUse = GRID_TOKENS) -> None:
        super().__init__()
        self.embed = VariableTokens(config)
        self.condition = None
        if config.condition_dim:
            self.condition = ConditionEmbedding(config.condition_dim, config.condition_width)
        self.trunk = TokenTrunk(
            config.dim,
            config.depth,
            config.num_heads,
            longitude=config.longitude,
            patch=config.cell_patch,
            attention=config.attention,
            attention_options=dict(config.attention_options),
            use=use,
            mlp_ratio=config.mlp_ratio,
            dropout=config.dropout,
            drop_path=config.drop_path,
            condition_width=config.condition_width if config.condition_dim else 0,
        )

    def embedded(self, condition: Tensor | None) -> Tensor | None:
        """`condition[batch, param]` -> `[batch, condition_width]`."""
        return None if self.condition is None or condition is None else self.condition(condition)

    def forward(
        self,
        x: Tensor,
        static: Tensor | None,
        embedding: Tensor | None,
        *,
        chosen: Tensor | None = None,
        hidden: Tensor | None = None,
        run: Callable[..., Any] | None = None,
        taps: list[Tensor] | None = None,
    ) -> Tensor:
        """Encode all patches, or only some: what is not chosen is not computed, what is hidden is not read.

        Args:
            x: `[batch, var, level, lat, lon]`.
            static: `[batch, static, lat, lon]`, where the configuration has such.
            embedding: `[batch, condition_width]`, from `embedded`.
            chosen: int64 `[batch, token]`, which patches, in row-major order of (level, lat, lon); None for all.
            hidden: bool `[batch, token]`, patches of the whole grid that no other may see; their tokens mean nothing.
            run: `model.run`, through which blocks are checkpointed.
            taps: Is filled with the tokens as they enter the trunk and after each block.

        Returns:
            `[batch, token, dim]`, normalised.
        """
        cells = x.shape[2:]
        patches, plane = self.embed.cut(x, static)
        if chosen is not None:
            patches = _chosen(patches, chosen)
            plane = None if plane is None else _chosen(plane, chosen)
        if hidden is not None:  # a gap may hold NaN, which would reach the gradients even if nobody looked
            patches = patches.masked_fill(hidden[:, :, None, None], 0)
        tokens = self.embed(patches, plane)
        if chosen is None:
            tokens = tokens.unflatten(1, self.trunk.position.sizes(cells))
        tokens = self.trunk.place(tokens, cells, chosen)
        if taps is not None:
            taps.append(tokens)
        seen = None if hidden is None else ~hidden
        encoded: Tensor = self.trunk(tokens, cells, embedding, chosen=chosen, key_mask=seen, run=run, taps=taps)
        return encoded


def _chosen(patches: Tensor, chosen: Tensor) -> Tensor:
    """`patches[batch, patch, ...]`, `chosen[batch, token]` -> `[batch, token, ...]`."""
    places = chosen.reshape(*chosen.shape, *(1,) * (patches.ndim - 2))
    return patches.gather(1, places.expand(-1, -1, *patches.shape[2:]))
