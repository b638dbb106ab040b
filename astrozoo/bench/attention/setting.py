"""One size of the problem that the benchmark poses."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["Setting"]


@dataclass(frozen=True)
class Setting:
    """One size of the problem.

    Attributes:
        device: `cpu` or `cuda`.
        dtype: Of the tensors.
        batch: Rows.
        heads: Query heads.
        head_dim: Width of a head.
        tokens: Length.
        causal: Whether later keys are hidden.
    """

    device: str
    dtype: torch.dtype
    batch: int
    heads: int
    head_dim: int
    tokens: int
    causal: bool

    @property
    def width(self) -> int:
        """Width of the tokens."""
        return self.heads * self.head_dim

    def replace(self, **changes: Any) -> Setting:
        """A copy with some changed."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """All as JSON-able values."""
        return {**dataclasses.asdict(self), "dtype": self.dtype_name}

    @property
    def dtype_name(self) -> str:
        """Such as `bfloat16`."""
        return str(self.dtype).removeprefix("torch.")

    def __str__(self) -> str:
        size = f"{self.tokens} tokens, {self.heads} heads of {self.head_dim}, batch {self.batch}"
        return f"{size}, {self.dtype_name}, {'causal' if self.causal else 'not causal'}"
