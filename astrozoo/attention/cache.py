"""Caches of what earlier tokens left behind. The caller owns them; attention modules keep no state.

Any chunking of a sequence gives what one pass gives, with padding on any side that `key_mask` declares: positions count
the real tokens of each row, so they come from the cache.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from astrozoo.errors import InputError

__all__ = [
    "Cache",
    "CachedTokens",
    "ContextCache",
    "KVCache",
    "LatentCache",
    "StateCache",
    "StaticKVCache",
    "TokenCache",
    "WindowKVCache",
]


class CachedTokens(NamedTuple):
    """What a cache holds after new tokens joined it.

    Attributes:
        tensors: The cached tensors, such as key and value, with all tokens.
        key_mask: bool (batch, key), which of them are real; None if all are.
        positions: int (batch, key) of all tokens; None if they are 0, 1, 2, ... in every row.
    """

    tensors: tuple[Tensor, ...]
    key_mask: Tensor | None
    positions: Tensor | None


class Cache(ABC):
    """What all caches have.

    Attributes:
        lengths: int64 (batch,), real tokens that each row has seen.
    """

    lengths: Tensor

    def next_positions(self, count: int, key_mask: Tensor | None) -> Tensor:
        """Positions (batch, token) of `count` new tokens: real ones are counted, padding repeats the last."""
        if key_mask is None:
            return self.lengths[:, None] + torch.arange(count, device=self.lengths.device)
        return self.lengths[:, None] + key_mask.long().cumsum(dim=1) - 1

    def _count(self, count: int, key_mask: Tensor | None) -> None:
        self.lengths = self.lengths + (count if key_mask is None else key_mask.sum(dim=1))

    @abstractmethod
    def tensors(self) -> Mapping[str, Tensor]:
        """All tensors it holds, by name, batch first."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` of a cache of the same kind gave."""

    @abstractmethod
    def reset(self) -> None:
        """Forget all tokens."""

    @abstractmethod
    def reorder(self, rows: Tensor) -> None:
        """Let row i continue what row `rows[i]` had, as beam search does; the batch may change size."""

    @abstractmethod
    def crop(self, length: int) -> None:
        """Forget the tokens at positions from `length` on.

        Raises:
            InputError: The cache cannot go back.
        """

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def state_dict(self) -> dict[str, Tensor]:
        """All tensors, for saving."""
        return dict(self.tensors())


class TokenCache(Cache):
    """Grows with every token: any tensors of shape (batch, ..., token, feature).

    Args:
        batch: Number of rows.
        names: Names of the tensors it holds.
        device: Where it lives.
    """

    def __init__(self, batch: int, names: tuple[str, ...], *, device: torch.device | str | None = None) -> None:
        self.batch, self.names = batch, names
        self.device = device
        self.reset()

    def reset(self) -> None:
        """As `Cache.reset`."""
        self.lengths = torch.zeros(self.batch, dtype=torch.int64, device=self.device)
        self.held: tuple[Tensor, ...] = ()
        self.mask: Tensor | None = None  # None while all tokens are real
        self.positions = self.lengths.new_zeros(self.batch, 0)

    def append(self, *new: Tensor, key_mask: Tensor | None = None, positions: Tensor | None = None) -> CachedTokens:
        """Add tokens and return all.

        Args:
            new: One tensor for each name, (batch, ..., token, feature).
            key_mask: bool (batch, token), which of the new tokens are real.
            positions: (batch | 1, token); by default the real tokens are counted.
        """
        count = new[0].shape[-2]
        if positions is None:
            positions = self.next_positions(count, key_mask)
        if key_mask is not None or self.mask is not None:
            before = self.mask
            if before is None:
                before = torch.ones_like(self.positions, dtype=torch.bool)
            added = key_mask if key_mask is not None else torch.ones_like(positions, dtype=torch.bool)
            self.mask = torch.cat((before, added.expand(before.shape[0], -1)), dim=1)
        self.positions = torch.cat((self.positions, positions.expand(self.positions.shape[0], -1)), dim=1)
        joined = zip(self.held, new, strict=True) if self.held else ((None, tensor) for tensor in new)
        self.held = tuple(tensor if old is None else torch.cat((old, tensor), dim=-2) for old, tensor in joined)
        self._count(count, key_mask)
        return CachedTokens(self.held, self.mask, None if self.mask is None else self.positions)

    def tensors(self) -> Mapping[str, Tensor]:
        """As `Cache.tensors`."""
        found = dict(zip(self.names, self.held, strict=False))
        if self.mask is not None:
            found["mask"] = self.mask
        return {**found, "positions": self.positions, "lengths": self.lengths}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """As `Cache.load_state_dict`."""
        self.lengths, self.positions = state["lengths"], state["positions"]
        self.mask, self.batch = state.get("mask"), self.lengths.shape[0]
        self.held = tuple(state[name] for name in self.names if name in state)

    def reorder(self, rows: Tensor) -> None:
        """As `Cache.reorder`."""
        self.held = tuple(tensor.index_select(0, rows) for tensor in self.held)
        self.lengths, self.positions = self.lengths[rows], self.positions[rows]
        self.mask = None if self.mask is None else self.mask[rows]
        self.batch = rows.shape[0]

    def crop(self, length: int) -> None:
        """As `Cache.crop`."""
        if self.mask is None:
            self.held = tuple(tensor[..., :length, :] for tensor in self.held)
            self.positions = self.positions[:, :length]
        else:
            self.mask = self.mask & (self.positions < length)
        self.lengths = self.lengths.clamp(max=length)


class KVCache(TokenCache):
    """Keys (batch, head, token, dim) and values, growing with every token."""

    def __init__(self, batch: int, *, device: torch.device | str | None = None) -> None:
        super().__init__(batch, ("key", "value"), device=device)


class LatentCache(TokenCache):
    """The rotary key (batch, 1, token, dim) and the joint latent (batch, 1, token, rank) of latent attention."""

    def __init__(self, batch: int, *, device: torch.device | str | None = None) -> None:
        super().__init__(batch, ("rope_key", "latent"), device=device)


class ContextCache(TokenCache):
    """Keys and values of another sequence, which is projected once and serves the queries of many calls."""

    def __init__(self, batch: int, *, device: torch.device | str | None = None) -> None:
        super().__init__(batch, ("key", "value"), device=device)

    def append(self, *new: Tensor, key_mask: Tensor | None = None, positions: Tensor | None = None) -> CachedTokens:
        """As `TokenCache.append`, in the place of a sequence that was held before."""
        self.reset()
        return super().append(*new, key_mask=key_mask, positions=positions)

    def context(self) -> CachedTokens:
        """What it holds.

        Raises:
            InputError: It holds nothing yet.
        """
        if not self.held:
            raise InputError("the cache holds no context yet; pass context (batch, key, context_dim) once.")
        return CachedTokens(self.held, self.mask, None if self.mask is None else self.positions)


class WindowKVCache(TokenCache):
    """Keys and values of the last tokens only, and of the first `sinks`.

    Args:
        batch: Number of rows.
        window: A query sees keys less than this many positions away; the cache keeps window - 1 tokens between calls.
        sinks: The first tokens, which stay for ever.
        device: Where it lives.
    """

    def __init__(self, batch: int, window: int, *, sinks: int = 0, device: torch.device | str | None = None) -> None:
        self.window, self.sinks = window, sinks
        super().__init__(batch, ("key", "value"), device=device)

    def append(self, *new: Tensor, key_mask: Tensor | None = None, positions: Tensor | None = None) -> CachedTokens:
        """As `TokenCache.append`; returns the kept tokens and the new ones, then forgets what no later query sees."""
        if self.mask is None:
            self.mask = torch.ones_like(self.positions, dtype=torch.bool)
        result = super().append(*new, key_mask=key_mask, positions=positions)
        assert self.mask is not None  # set above
        keep = min(self.positions.shape[1], self.window - 1 + self.sinks)
        # Sinks first, then the latest: rank tokens by position, with sinks above all and padding below.
        rank = torch.where(self.positions < self.sinks, self.positions + 2**40, self.positions)
        rank = torch.where(self.mask, rank, -1)
        chosen = rank.topk(keep, dim=1).indices.sort(dim=1).values
        self.mask, self.positions = self.mask.gather(1, chosen), self.positions.gather(1, chosen)
        self.held = tuple(
            tensor.gather(2, chosen[:, None, :, None].expand(-1, tensor.shape[1], -1, tensor.shape[3]))
            for tensor in self.held
        )
        return result

    def crop(self, length: int) -> None:
        """As `Cache.crop`.

        Raises:
            InputError: Tokens that were forgotten would be seen again.
        """
        if bool((self.lengths > length).any()):
            raise InputError(
                "a window cache cannot go back: the tokens before its window are forgotten. Start it anew."
            )


class StaticKVCache(Cache):
    """Keys and values in memory of fixed size, for torch.compile and CUDA graphs: shapes never change.

    Args:
        batch: Number of rows.
        heads: Key heads.
        max_len: Tokens it can hold.
        head_dim, v_head_dim: Width of keys and of values.
        v_heads: Heads of the values; as many as of the keys by default.
        device, dtype: Of the tensors.
    """

    def __init__(
        self,
        batch: int,
        heads: int,
        max_len: int,
        head_dim: int,
        v_head_dim: int,
        *,
        v_heads: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.max_len = max_len
        # One slot more, into which padding is written.
        self.key = torch.zeros(batch, heads, max_len + 1, head_dim, device=device, dtype=dtype)
        self.value = torch.zeros(batch, v_heads or heads, max_len + 1, v_head_dim, device=device, dtype=dtype)
        self.lengths = torch.zeros(batch, dtype=torch.int64, device=device)
        self._appended = 0

    def append(self, *new: Tensor, key_mask: Tensor | None = None, positions: Tensor | None = None) -> CachedTokens:
        """As `TokenCache.append`; all slots are returned, with a mask of the filled ones.

        Raises:
            InputError: More tokens than it can hold, or positions of the caller, which it cannot keep.
        """
        key, value = new
        count = key.shape[2]
        self._appended += count
        if self._appended > self.max_len and not torch.compiler.is_compiling():
            added = count if key_mask is None else int(key_mask.sum(dim=1).max())
            if int(self.lengths.max()) + added > self.max_len:
                self._appended -= count
                raise InputError(f"a cache of max_len {self.max_len} cannot take {count} tokens more. Make it longer.")
        if positions is None:
            positions = self.next_positions(count, key_mask)
        slots = self.next_positions(count, key_mask)
        if key_mask is not None:
            slots = torch.where(key_mask, slots, self.max_len)
        index = slots[:, None, :, None]
        self.key = self.key.scatter(2, index.expand(-1, key.shape[1], -1, key.shape[3]), key.to(self.key.dtype))
        self.value = self.value.scatter(
            2, index.expand(-1, value.shape[1], -1, value.shape[3]), value.to(self.value.dtype)
        )
        self._count(count, key_mask)
        every = torch.arange(self.max_len, device=self.lengths.device)[None]
        filled = every < self.lengths[:, None]
        return CachedTokens((self.key[:, :, :-1], self.value[:, :, :-1]), filled, every.expand(filled.shape))

    def tensors(self) -> Mapping[str, Tensor]:
        """As `Cache.tensors`."""
        return {"key": self.key, "value": self.value, "lengths": self.lengths}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """As `Cache.load_state_dict`."""
        self.key, self.value, self.lengths = state["key"], state["value"], state["lengths"]
        self.max_len, self._appended = self.key.shape[2] - 1, int(self.lengths.max())

    def reset(self) -> None:
        """As `Cache.reset`."""
        self.key, self.value = torch.zeros_like(self.key), torch.zeros_like(self.value)
        self.lengths, self._appended = torch.zeros_like(self.lengths), 0

    def reorder(self, rows: Tensor) -> None:
        """As `Cache.reorder`."""
        self.key, self.value, self.lengths = self.key[rows], self.value[rows], self.lengths[rows]

    def crop(self, length: int) -> None:
        """As `Cache.crop`."""
        self.lengths = self.lengths.clamp(max=length)
        self._appended = min(self._appended, length)


class StateCache(Cache):
    """The state of a recurrence: tensors of fixed size, by name, whatever the number of tokens.

    Args:
        batch: Number of rows.
        device: Where it lives.
    """

    def __init__(self, batch: int, *, device: torch.device | str | None = None) -> None:
        self.lengths = torch.zeros(batch, dtype=torch.int64, device=device)
        self.state: dict[str, Tensor] = {}

    def get(self, name: str) -> Tensor | None:
        """The tensor of that name; None before the first token."""
        return self.state.get(name)

    def update(self, count: int, key_mask: Tensor | None, **state: Tensor) -> None:
        """Replace the state after `count` tokens, of which `key_mask` (batch, token) says which are real."""
        self.state = {**self.state, **state}
        self._count(count, key_mask)

    def tensors(self) -> Mapping[str, Tensor]:
        """As `Cache.tensors`."""
        return {**self.state, "lengths": self.lengths}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """As `Cache.load_state_dict`."""
        self.lengths = state["lengths"]
        self.state = {name: tensor for name, tensor in state.items() if name != "lengths"}

    def reset(self) -> None:
        """As `Cache.reset`."""
        self.lengths, self.state = torch.zeros_like(self.lengths), {}

    def reorder(self, rows: Tensor) -> None:
        """As `Cache.reorder`."""
        self.lengths = self.lengths[rows]
        self.state = {name: tensor[rows] for name, tensor in self.state.items()}

    def crop(self, length: int) -> None:
        """Raises: a state holds no single tokens."""
        raise InputError(f"a state cannot go back to {length} tokens: it holds a sum over all. Keep a copy to go back.")
