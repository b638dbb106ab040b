"""Transformer blocks over tokens, with any attention that fits, by name.

Vaswani et al. 2017 (arXiv:1706.03762) in the pre-norm form of Xiong et al. 2020 (arXiv:2002.04745): the tokens are
normalised before attention and before the perceptron, so that deep stacks train without warm-up tricks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from astrozoo import registry
from astrozoo.errors import ConfigError
from astrozoo.factory import create_attention
from astrozoo.nn.drop import DropPath
from astrozoo.nn.film import FiLM
from astrozoo.registry.fit import TokenUse, misuse

__all__ = ["Mlp", "TransformerBlock", "TransformerStack"]


class Mlp(nn.Module):
    """Two linear layers with a GELU between them, token by token.

    Args:
        dim: Width of the tokens.
        hidden: Width in between.
        dropout: Probability that an activation in between is dropped.
        device: Of the parameters.
        dtype: Of the parameters.
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        *,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.widen = nn.Linear(dim, hidden, device=device, dtype=dtype)
        self.activation = nn.GELU()
        self.dropout = nn.Dropout(dropout)
        self.narrow = nn.Linear(hidden, dim, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform weights, zero biases."""
        for layer in (self.widen, self.narrow):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, token, dim) -> (batch, token, dim)."""
        hidden: Tensor = self.narrow(self.dropout(self.activation(self.widen(tokens))))
        return hidden


class TransformerBlock(nn.Module):
    """Attention, then a perceptron, each on the normalised tokens and added to them.

    Args:
        dim: Width of the tokens.
        num_heads: Number of query heads.
        attention: Name of any attention that fits `use`.
        attention_options: Further options of it, such as `window=512`.
        use: What the block asks of the attention.
        mlp_ratio: Hidden width of the perceptron, in units of `dim`.
        dropout: Of attention weights and of the perceptron.
        drop_path: Probability that a residual branch is dropped in training.
        condition_dim: Width of a vector by which the normalised tokens are scaled and shifted (adaptive normalisation,
            Peebles and Xie 2022, arXiv:2212.09748); 0 for none.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ConfigError: The attention does not fit, with the reason, or an option has a value it cannot take.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        attention: str = "flash",
        attention_options: Mapping[str, Any] | None = None,
        use: TokenUse | None = None,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        condition_dim: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        use = use or TokenUse()
        self.spec = registry.attention_info(attention)
        if reason := misuse(self.spec, use):
            fitting = [name for name in registry.list_attentions() if not misuse(registry.attention_info(name), use)]
            raise ConfigError(f"attention {attention!r} does not fit: {reason}. Those that fit: {', '.join(fitting)}.")
        self.use = use
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self.attention_norm = nn.LayerNorm(dim, **made)
        self.attention = create_attention(
            attention, dim=dim, num_heads=num_heads,
            **{"dropout": dropout, "causal": use.causal, **(attention_options or {})}, **made,
        )  # fmt: skip
        self.mlp_norm = nn.LayerNorm(dim, **made)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), dropout=dropout, **made)
        self.drop_path = DropPath(drop_path)
        self.films = nn.ModuleList(FiLM(condition_dim, dim) for _ in range(2 if condition_dim else 0)).to(**made)
        for film in self.films:
            film.reset_parameters()  # type: ignore[operator]

    def forward(
        self,
        tokens: Tensor,
        context: Tensor | None = None,
        *,
        condition: Tensor | None = None,
        geometry: Any = None,
        **terms: Any,
    ) -> Tensor:
        """(batch, token, dim) -> (batch, token, dim).

        Args:
            tokens: float (batch, token, dim).
            context: float (batch, key, context_dim), for a block that attends to another sequence.
            condition: float (batch, condition_dim), exactly where `condition_dim` is not 0.
            geometry: Where the tokens lie; passed on if the attention takes that kind.
            terms: `mask`, `key_mask`, `bias`, `segments`, `positions`, `cache`, as the attention takes them.
        """
        normed = self._modulated(self.attention_norm(tokens), 0, condition)
        if context is None and self.spec.needs_context and terms.get("cache") is None:
            context = normed  # such an attention sees only what it is given, or what its cache holds
            terms.setdefault("context_positions", terms.get("positions"))
        if geometry is not None and getattr(geometry, "kind", None) == self.spec.geometry:
            terms["geometry"] = geometry
        tokens = tokens + self.drop_path(self.attention(normed, context, **terms))
        return tokens + self.drop_path(self.mlp(self._modulated(self.mlp_norm(tokens), 1, condition)))

    def _modulated(self, tokens: Tensor, branch: int, condition: Tensor | None) -> Tensor:
        if not self.films:
            return tokens
        modulated: Tensor = self.films[branch](tokens, condition, channels_last=True)
        return modulated


class TransformerStack(nn.Module):
    """Several blocks, one after the other, and a final normalisation.

    Args:
        dim: Width of the tokens.
        depth: Number of blocks.
        num_heads: Number of query heads.
        drop_path: Of the last block; it rises linearly from 0.
        block: Other arguments of `TransformerBlock`.
    """

    def __init__(self, dim: int, depth: int, num_heads: int, *, drop_path: float = 0.0, **block: Any) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            TransformerBlock(dim, num_heads, drop_path=drop_path * index / max(depth - 1, 1), **block)
            for index in range(depth)
        )
        self.norm = nn.LayerNorm(dim, device=block.get("device"), dtype=block.get("dtype"))

    def forward(self, tokens: Tensor, context: Tensor | None = None, **terms: Any) -> Tensor:
        """(batch, token, dim) -> (batch, token, dim); arguments as for `TransformerBlock`."""
        for block in self.blocks:
            tokens = block(tokens, context, **terms)
        normed: Tensor = self.norm(tokens)
        return normed
