"""The one interface of all attentions: projections, terms, rotary positions and caches around the part that differs.

An implementation gives a configuration class, `attend` (fast) and `reference` (readable, dense or step by step) for the
same projected tensors, and says in its spec what it can; an argument that it does not declare raises.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from astrozoo.attention.cache import Cache, KVCache, StaticKVCache
from astrozoo.attention.choice import BackendChoice, BackendName
from astrozoo.attention.core import attend_terms
from astrozoo.attention.geometry import check_geometry
from astrozoo.attention.reference import dense_attention
from astrozoo.attention.rotary import as_rotary
from astrozoo.attention.terms import Terms, make_terms
from astrozoo.errors import ConfigError, InputError, UnknownOptionError, UnsupportedArgument
from astrozoo.nn.checks import at_least, between, fail
from astrozoo.nn.norm import RMSNorm
from astrozoo.registry.family import AttentionImplementation
from astrozoo.registry.names import suggest
from astrozoo.registry.spec import AttentionSpec

__all__ = ["Attention", "AttentionConfig", "implement", "unsupported"]

Parts = tuple[Tensor, ...]
Mix = Callable[..., Tensor]


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """What every attention takes.

    Attributes:
        dim: Width of the tokens.
        num_heads: Number of query heads.
        num_kv_heads: Number of key and value heads, each shared by a group of query heads; `num_heads` by default.
        head_dim: Width of a head of queries and keys; dim / num_heads by default.
        v_head_dim: Width of a head of values; head_dim by default.
        context_dim: Width of the tokens of another sequence; dim by default.
        dropout: Probability that an attention weight is dropped in training.
        bias: Whether the projections have a bias.
        qk_norm: Whether queries and keys are normalised by their root mean square.
        scale: Factor of the logits; head_dim ** -0.5 by default.
        causal: Default of the argument of the same name.
        rope: Rotary positions: None, True, a base, or a mapping with base, fraction, axes and spacing.
        backend: `auto`, the name of a backend, or a tuple of names to be tried in order.
    """

    dim: int
    num_heads: int
    num_kv_heads: int | None = None
    head_dim: int | None = None
    v_head_dim: int | None = None
    context_dim: int | None = None
    dropout: float = 0.0
    bias: bool = False
    qk_norm: bool = False
    scale: float | None = None
    causal: bool = False
    rope: Any = None
    backend: BackendName = "auto"

    def __post_init__(self) -> None:
        at_least(self, 1, "dim", "num_heads")
        if self.head_dim is None:
            if self.dim % self.num_heads:
                raise ConfigError(
                    f"dim {self.dim} is not divisible by num_heads {self.num_heads}; give head_dim, or another number."
                )
            self._set("head_dim", self.dim // self.num_heads)
        self._set("num_kv_heads", self.num_heads if self.num_kv_heads is None else self.num_kv_heads)
        self._set("v_head_dim", self.head_dim if self.v_head_dim is None else self.v_head_dim)
        self._set("context_dim", self.dim if self.context_dim is None else self.context_dim)
        at_least(self, 1, "head_dim", "num_kv_heads", "v_head_dim", "context_dim")
        if self.num_heads % self.kv_heads:
            raise fail(self, "num_kv_heads", f"a divisor of num_heads, {self.num_heads}")
        between(self, 0, 1, "dropout")
        if self.scale is not None and not self.scale > 0:
            raise fail(self, "scale", "a number above 0, or None")
        self._set("rope", as_rotary(self.rope))
        if self.rope is not None:
            self.rope.pairs(self.key_dim)
        if isinstance(self.backend, list):
            self._set("backend", tuple(self.backend))

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)  # the dataclass is frozen; this is still its construction

    @property
    def key_dim(self) -> int:
        """`head_dim`, which is never None once the configuration exists."""
        assert self.head_dim is not None
        return self.head_dim

    @property
    def value_dim(self) -> int:
        """`v_head_dim`, which is never None once the configuration exists."""
        assert self.v_head_dim is not None
        return self.v_head_dim

    @property
    def kv_heads(self) -> int:
        """`num_kv_heads`, which is never None once the configuration exists."""
        assert self.num_kv_heads is not None
        return self.num_kv_heads


class Attention(nn.Module):
    """Base of all attentions. Implementations override `attend`, `reference`, and what else differs.

    Attributes:
        spec: What it can do; every answer is proved by `astrozoo.testing.check_attention`.
        config: What it was made with.
        last_choice: The backend that ran last, or None (softmax attentions only).
    """

    spec: ClassVar[AttentionSpec]

    def __init__(
        self,
        config: AttentionConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.config: Any = config
        self.last_choice: BackendChoice | None = None
        if not self.spec.grouped_query and config.num_kv_heads != config.num_heads:
            raise unsupported("num_kv_heads", self.spec.name, grouped_query=True)
        if config.causal and not self.spec.causal:
            raise unsupported("causal", self.spec.name, causal=True)
        self.make_projections(config, device=device, dtype=dtype)
        self.reset_parameters()

    def make_projections(self, config: Any, *, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        """Create the parameters: query, key, value and output projections, and norms of queries and keys."""
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self.query = nn.Linear(config.dim, config.num_heads * config.key_dim, bias=config.bias, **made)
        self.key = nn.Linear(config.context_dim, config.kv_heads * config.key_dim, bias=config.bias, **made)
        self.value = nn.Linear(config.context_dim, config.kv_heads * config.value_dim, bias=config.bias, **made)
        self.output = nn.Linear(config.num_heads * config.value_dim, config.dim, bias=config.bias, **made)
        self.query_norm: nn.Module = nn.Identity()
        self.key_norm: nn.Module = nn.Identity()
        if config.qk_norm:
            self.query_norm = RMSNorm(config.key_dim, eps=1e-6, **made)
            self.key_norm = RMSNorm(config.key_dim, eps=1e-6, **made)

    def reset_parameters(self) -> None:
        """Xavier-uniform projections, zero biases, norms of one."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.RMSNorm):
                module.reset_parameters()

    # -- what a caller uses --------------------------------------------------------------------------------------------

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        key_mask: Tensor | None = None,
        bias: Tensor | None = None,
        causal: bool | None = None,
        segments: Tensor | tuple[Tensor, Tensor] | None = None,
        positions: Tensor | None = None,
        context_positions: Tensor | None = None,
        cache: Any = None,
        geometry: Any = None,
    ) -> Tensor:
        """Attend from `x` to `context`, or to itself.

        Args:
            x: float (batch, query, dim).
            context: float (batch, key, context_dim); `x` by default.
            mask: bool or integer (query, key) or (batch | 1, head | 1, query, key), true where a query may attend.
            key_mask: bool or integer (batch, key), true for a real token; what is masked is never read.
            bias: float, shaped as `mask`, added to the scaled logits; -inf hides.
            causal: Whether a query sees no later key; the configuration's by default.
            segments: int (batch, token), or a pair for queries and keys; tokens attend within their segment.
            positions: (query,), (batch | 1, query) or with a last dimension of axes; what rotary positions, `causal`
                and windows use. By default tokens are counted, the last query aligned with the last key.
            context_positions: The same of the keys of `context`.
            cache: From `new_cache`; the tokens of `x` join it and attend to all in it.
            geometry: `Grid`, `Graph` or `Points` of the tokens.

        Returns:
            (batch, query, dim) in the dtype of `x`; rows of queries that see no key are the output's bias, or 0.

        Raises:
            UnsupportedArgument: This attention cannot honour an argument; the message names some that can.
            InputError: A shape or dtype does not fit.
            BackendRefused: The backend that was forced cannot serve the call.
        """
        return self._run(
            self.attend, x, context, mask=mask, key_mask=key_mask, bias=bias, causal=causal, segments=segments,
            positions=positions, context_positions=context_positions, cache=cache, geometry=geometry,
        )[0]  # fmt: skip

    def forward_with(
        self, x: Tensor, context: Tensor | None = None, *, want: tuple[str, ...] = ("weights",), **terms: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """`forward`, and a look inside that never changes its result.

        Args:
            x: As for `forward`.
            context: As for `forward`.
            terms: As for `forward`.
            want: Any of `weights` (batch, head, query, key), `lse`, the log-sum-exp of the logits (batch, head, query),
                and `heads`, the output before its projection (batch, head, query, value dim). The first two are
                computed apart, densely, in float64, without dropout.

        Raises:
            UnsupportedArgument: It has no attention weights.
        """
        for name in want:
            if name not in ("weights", "lse", "heads"):
                raise UnknownOptionError(f"want holds {name!r}; expected weights, lse or heads.")
            if name != "heads" and not self.spec.softmax:
                raise unsupported(f"want={name!r}", self.spec.name, softmax=True)
        y, heads, parts, placed = self._run(self.attend, x, context, **terms)
        aux = {"heads": heads} if "heads" in want else {}
        if "weights" in want or "lse" in want:
            compute: Callable[..., tuple[Tensor, Tensor]] = self.weights  # takes the parts of its own `project`
            weights, lse = compute(*parts, placed)
            aux.update({name: tensor for name, tensor in (("weights", weights), ("lse", lse)) if name in want})
        return y, aux

    def forward_reference(self, x: Tensor, context: Tensor | None = None, **terms: Any) -> Tensor:
        """`forward` with the readable `reference` in the place of `attend`."""
        return self._run(self.reference, x, context, **terms)[0]

    def new_cache(
        self,
        batch: int,
        max_len: int | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Any:
        """An empty cache for `batch` rows, or None where the spec names no kind of cache.

        Args:
            batch: Number of rows.
            max_len: Tokens to reserve memory for, so that shapes never change; growing memory by default.
            device: That of the parameters by default.
            dtype: That of the parameters by default.
        """
        if self.spec.cache != "kv":
            return None
        device, dtype = self.placement(device, dtype)
        if max_len is None:
            return KVCache(batch, device=device)
        config = self.config
        return StaticKVCache(
            batch, config.kv_heads, max_len, config.key_dim, config.value_dim, device=device, dtype=dtype
        )

    # -- what an implementation may override ---------------------------------------------------------------------------

    def project(self, x: Tensor, context: Tensor | None = None) -> Parts:
        """Queries (batch, head, query, dim), keys (batch, key head, key, dim) and values, before positions."""
        source = x if context is None else context
        config = self.config
        query = self.query_norm(self.split(self.query(x), config.num_heads))
        key = self.key_norm(self.split(self.key(source), config.kv_heads))
        value = self.split(self.value(source), config.kv_heads)
        return query.to(value.dtype), key.to(value.dtype), value

    def place(
        self, parts: Parts, terms: Terms, cache: Cache | None, positions: tuple[Tensor | None, Tensor | None]
    ) -> tuple[Parts, Terms]:
        """Turn queries and keys by their positions and join keys and values with those of the cache."""
        query, key, value = parts[:3]
        own, other = positions
        if cache is not None:
            if own is None:
                own = cache.next_positions(query.shape[2], terms.key_mask)
            other = own
        if self.config.rope is not None:
            default = terms.replace(positions=None).resolved_positions(query.shape[2], key.shape[2], query.device)
            query = self.config.rope.turn(query, default[0] if own is None else own)
            key = self.config.rope.turn(key, default[1] if other is None else other)
        if cache is not None:
            given = positions[0]
            held = cache.append(  # type: ignore[attr-defined]  # the caches that reach here hold tokens
                key, value, key_mask=terms.key_mask, positions=None if given is None else given
            )
            key, value = held.tensors
            assert own is not None
            pair = None if held.positions is None else (own, held.positions)
            if given is not None and held.positions is None:
                pair = (own, cache.positions)  # type: ignore[attr-defined]
            terms = terms.replace(key_mask=held.key_mask, positions=pair)
        return (query, key.to(query.dtype), value.to(query.dtype), *parts[3:]), terms

    def attend(self, query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> Tensor:
        """The fast path: (batch, head, query, value dim) from projected tensors."""
        return self.served(query, key, value, terms)

    def reference(self, query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> Tensor:
        """What `attend` must equal, as the formula says and without a thought to speed; float64."""
        return dense_attention(query, key, value, terms).out

    def weights(self, query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> tuple[Tensor, Tensor]:
        """Attention weights (batch, head, query, key) and the log-sum-exp of the logits (batch, head, query)."""
        dense = dense_attention(query, key, value, terms)
        return dense.weights, dense.lse

    def merge(self, heads: Tensor) -> Tensor:
        """(batch, query, dim) from the heads (batch, head, query, value dim)."""
        merged: Tensor = self.output(heads.transpose(1, 2).flatten(2))
        return merged

    # -- helpers -------------------------------------------------------------------------------------------------------

    def served(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        terms: Terms,
        *,
        backend: BackendName | None = None,
        hidden: bool = False,
    ) -> Tensor:
        """The output of `attend_terms`, by default on the backends of the configuration; notes `last_choice`."""
        asked = self.config.backend if backend is None else backend
        result = attend_terms(query, key, value, terms, backend=asked, hidden=hidden)
        self.last_choice = result.choice
        return result.out

    def split(self, tokens: Tensor, heads: int) -> Tensor:
        """(batch, head, token, dim) from (batch, token, head * dim)."""
        return tokens.unflatten(-1, (heads, -1)).transpose(1, 2)

    def placement(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> tuple[torch.device | str, torch.dtype]:
        """Device and dtype, by default those of the parameters."""
        weight = next(self.parameters())
        return device or weight.device, dtype or weight.dtype

    def extra_repr(self) -> str:
        """The configuration, where it differs from the defaults."""
        fields = dataclasses.fields(self.config)
        return ", ".join(
            f"{item.name}={getattr(self.config, item.name)!r}"
            for item in fields
            if getattr(self.config, item.name) != item.default
        )

    def _run(
        self,
        mix: Mix,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        key_mask: Tensor | None = None,
        bias: Tensor | None = None,
        causal: bool | None = None,
        segments: Tensor | tuple[Tensor, Tensor] | None = None,
        positions: Tensor | None = None,
        context_positions: Tensor | None = None,
        cache: Any = None,
        geometry: Any = None,
    ) -> tuple[Tensor, Tensor, Parts, Terms]:
        given = {
            "mask": mask, "key_mask": key_mask, "bias": bias, "segments": segments, "cache": cache,
            "geometry": geometry, "context": context,
        }  # fmt: skip
        causal = self._checked(given, causal)
        _check_tokens(x, "x", self.config.dim)
        if context is not None:
            _check_tokens(context, "context", self.config.context_dim)
            if context.shape[0] != x.shape[0]:
                raise InputError(f"x has {x.shape[0]} rows and context {context.shape[0]}; expected as many.")
        if cache is not None and (mask is not None or bias is not None or segments is not None):
            raise InputError("With a cache only key_mask is taken: mask, bias and segments would need all cached keys.")
        queries, keys = x.shape[1], (x if context is None else context).shape[1]
        own, pair = _pair(positions, context_positions, context)
        terms = make_terms(
            batch=x.shape[0], heads=self.config.num_heads, queries=queries, keys=keys, causal=causal, mask=mask,
            key_mask=key_mask, bias=bias, segments=segments, geometry=geometry, scale=self.config.scale,
            positions=pair, dropout=self.config.dropout if self.training else 0.0,
        )  # fmt: skip
        x, context = _without_unseen(x, context, terms)
        parts, terms = self.place(self.project(x, context), terms, cache, own)
        heads = mix(*parts, terms)
        return self.merge(heads.to(self._mixed_dtype(parts))).to(x.dtype), heads, parts, terms

    def _mixed_dtype(self, parts: Parts) -> torch.dtype:
        return parts[0].dtype

    def _checked(self, given: Mapping[str, Any], causal: bool | None) -> bool:
        spec = self.spec
        for name in ("mask", "key_mask", "bias", "segments"):
            if given[name] is not None and name not in spec.masks:
                raise unsupported(name, spec.name, mask=name)
        if given["context"] is not None and not spec.cross:
            raise unsupported("context", spec.name, cross=True)
        if given["context"] is None and spec.needs_context and given["cache"] is None:
            raise InputError(f"{spec.name} attends to another sequence; pass context (batch, key, context_dim).")
        if given["cache"] is not None and spec.cache is None:
            raise unsupported("cache", spec.name, cached=True)
        geometry = given["geometry"]
        if geometry is not None and spec.geometry is None:
            raise unsupported("geometry", spec.name, geometry=geometry)
        if geometry is not None or spec.needs_geometry:
            assert spec.geometry is not None
            check_geometry(geometry, spec.geometry, spec.name)
        if causal is None:
            return bool(self.config.causal or spec.causal_only)
        if causal and not spec.causal:
            raise unsupported("causal", spec.name, causal=True)
        if not causal and spec.causal_only:
            raise UnsupportedArgument(f"{spec.name} is a recurrence over earlier tokens; it cannot take causal=False.")
        return causal


def _check_tokens(tokens: Tensor, name: str, width: int) -> None:
    if tokens.dim() != 3 or tokens.shape[2] != width:
        raise InputError(f"{name} has shape {tuple(tokens.shape)}; expected (batch, token, dim={width}).")
    if not tokens.is_floating_point():
        raise InputError(f"{name} has dtype {tokens.dtype}; expected a floating dtype.")


def _pair(
    positions: Tensor | None, context_positions: Tensor | None, context: Tensor | None
) -> tuple[tuple[Tensor | None, Tensor | None], tuple[Tensor, Tensor] | None]:
    """Positions (batch | 1, token[, axis]) of queries and keys for `rope`, and the pair that causality uses."""
    if context is None and context_positions is not None:
        raise InputError("context_positions without context: keys are those of x, and so are their positions.")
    own = positions[None] if positions is not None and positions.dim() == 1 else positions
    other = own if context is None else context_positions
    other = other[None] if other is not None and other.dim() == 1 else other
    if context is not None and (own is None) != (other is None):
        raise InputError("Give positions and context_positions, or neither: one alone says nothing of distances.")
    if own is None or other is None or own.dim() == 3:
        return (own, other), None
    return (own, other), (own, other)


def _without_unseen(x: Tensor, context: Tensor | None, terms: Terms) -> tuple[Tensor, Tensor | None]:
    """Zeros where no query may look, so that NaN there reaches neither outputs nor gradients of the projections."""
    if context is None:
        return (x if terms.key_mask is None else x.masked_fill(~terms.key_mask[..., None], 0)), None
    seen = terms.seen_keys()
    return x, context if seen is None else context.masked_fill(~seen[..., None], 0)


def unsupported(argument: str, name: str, **needed: Any) -> UnsupportedArgument:
    """The error that attention `name` cannot honour `argument`, naming those that can.

    Args:
        argument: The argument, as the caller spells it.
        name: The attention.
        needed: What one must be able to: filters of `list_attentions`, `softmax`, `cached` or `geometry`.
    """
    from astrozoo import registry

    geometry = getattr(needed.pop("geometry", None), "kind", None)
    softmax, cached = needed.pop("softmax", None), needed.pop("cached", None)
    able = []
    for other in registry.list_attentions(**needed):
        spec = registry.attention_info(other)
        if geometry is not None and spec.geometry != geometry:
            continue
        if (softmax and not spec.softmax) or (cached and spec.cache is None):
            continue
        able.append(other)
    return UnsupportedArgument(f"Attention {name!r} cannot honour {argument}. Those that can: {', '.join(able)}.")


Module = TypeVar("Module", bound=Attention)


def implement(
    module: type[Attention],
    config: type[AttentionConfig],
    *,
    aliases: Mapping[str, Mapping[str, Any]] | None = None,
    example: Mapping[str, Any] | None = None,
    example_geometry: Callable[[int], Any] | None = None,
    **spec: Any,
) -> AttentionImplementation:
    """The object that an entry point of group `astrozoo.attention` names, made of a module class and what it can do.

    Args:
        module: The class; gets `spec` as its class attribute.
        config: Its configuration class.
        aliases: Other names, each with the options it presets.
        example: Options of a small instance for the conformance kit.
        example_geometry: Called with a number of tokens, makes a geometry for the conformance kit.
        spec: Fields of `AttentionSpec`.
    """
    module.spec = AttentionSpec(**spec, aliases=tuple(aliases or ()))

    def build(
        *, device: torch.device | str | None = None, dtype: torch.dtype | None = None, **options: Any
    ) -> Attention:
        known = [item.name for item in dataclasses.fields(config)]
        for name in options:
            if name not in known:
                raise UnknownOptionError(
                    f"Attention {module.spec.name!r} has no option {name!r}.{suggest(name, known)} "
                    f"Its options are: {', '.join(known)}."
                )
        return module(config(**options), device=device, dtype=dtype)

    return AttentionImplementation(
        spec=module.spec, build=build, config=config, aliases=aliases or {}, example=example or {},
        example_geometry=example_geometry,
    )  # fmt: skip
