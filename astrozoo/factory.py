"""Create by name: models, attentions, and batches that fit them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from astrozoo import registry
from astrozoo.batch import Batch, random_batch
from astrozoo.errors import ConfigError, PluginError
from astrozoo.module import ZooModel
from astrozoo.registry import router
from astrozoo.registry.family import Variant
from astrozoo.registry.fit import misuse
from astrozoo.registry.names import suggest
from astrozoo.registry.origin import with_origin

__all__ = ["create_attention", "create_model", "example_batch"]


def create_model(
    name: str,
    *,
    pretrained: bool | str = False,
    attention: str | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    **overrides: Any,
) -> ZooModel:
    """A model by name, freshly initialised or with published weights.

    Args:
        name: As `list_models` gives it, or `distribution/name`.
        pretrained: True for the variant's first published weights, or the tag of others.
        attention: Replaces the attention of families with token attention.
        device: Where the weights live; `"meta"` allocates nothing.
        dtype: Floating dtype of the weights.
        overrides: Fields of the family's configuration, such as `in_vars=5`.

    Returns:
        The model in training mode; `model.spec` and `model.config` describe it.

    Raises:
        UnknownModelError: Nobody installed offers the name.
        AmbiguousNameError: Several third parties offer it.
        ConfigError: An override that is no field, a value out of range, or an attention the family cannot take.
        PluginError: The plugin that offers it is broken; the cause is the original error.
        WeightsError: The published weights cannot be had, or do not fit.
    """
    variant = registry.load_variant(name)
    if attention is not None:
        overrides["attention"] = _checked_attention(variant, attention)
    config = variant.config(**overrides)
    hooks = registry.plugin_manager().hook
    hooks.astrozoo_before_create(variant=variant, config=config)
    if pretrained:
        from astrozoo import weights

        # the weights bring their own configuration, of which overrides replace fields
        model = weights.load_pretrained(variant, pretrained, device=device, dtype=dtype, **overrides)
    else:
        model = variant.build(config, device=device, dtype=dtype)
    if not isinstance(model, ZooModel):
        raise PluginError(f"{name!r} built a {type(model).__name__}; every model must derive from astrozoo.ZooModel.")
    model.spec = with_origin(model.spec or variant.spec(model.config), name)
    hooks.astrozoo_after_create(model=model)
    return model


def create_attention(name: str, *, dim: int, num_heads: int, **options: Any) -> nn.Module:
    """An attention module by name.

    `auto` chooses by a fixed rule, the first line that applies of `astrozoo info auto`, from what is said of the
    tokens: `length`, `masks`, `grid`, `geometry`, `context`, `world_size`, as `astrozoo.registry.router.Tokens` has
    them, and `device`.
    The module's attribute `decision` says what was chosen and why.

    Args:
        name: As `list_attentions` gives it, an alias of one, `distribution/name`, or `auto`.
        dim: Width of the tokens.
        num_heads: Number of query heads.
        options: Common ones are `num_kv_heads`, `head_dim`, `v_head_dim`, `dropout`, `bias`, `qk_norm`, `scale`,
            `causal`, `rope`, `backend`, `device` and `dtype`; each implementation has more.

    Raises:
        UnknownModelError, AmbiguousNameError, PluginError: As for `create_model`.
        UnknownOptionError: It has no option of that name; the nearest are offered.
        ConfigError: A value that an option cannot take.
    """
    decision = None
    if name == "auto":
        hints = {hint: options.pop(hint) for hint in router.HINTS if hint in options}
        device = torch.device(options.get("device") or torch.get_default_device()).type
        decision = router.route(router.Tokens(**hints), device)
        name, options = decision.name, {**decision.options, **options}
    implementation = registry.load_attention(name)
    options = {**implementation.aliases.get(name, {}), **options}
    module = implementation.build(dim=dim, num_heads=num_heads, **options)
    if not isinstance(module, nn.Module):
        raise PluginError(f"Attention {name!r} built a {type(module).__name__}; expected a torch.nn.Module.")
    if decision is not None:
        module.decision = decision  # type: ignore[assignment]  # a plain attribute, no submodule
    return module


def example_batch(
    name: str | ZooModel,
    batch_size: int = 2,
    *,
    seed: int = 0,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    sizes: Mapping[str, int] | None = None,
    **overrides: Any,
) -> Batch:
    """A reproducible random batch that fits a model, with targets.

    Args:
        name: Name of a model, or a model: then device, dtype and configuration are its own.
        batch_size: Size of the batch dimension.
        seed: Equal seeds give equal batches, whatever the device.
        device: Where the tensors live.
        dtype: Dtype of the floating tensors; float32 by default.
        sizes: Replaces example sizes by dimension name, such as `{"lat": 33, "lon": 64}`.
        overrides: Fields of the family's configuration, such as `in_vars=5`.

    Raises:
        ConfigError: An override or a dimension that does not exist, or overrides for a model already built.
    """
    if isinstance(name, ZooModel):
        if overrides:
            raise ConfigError(f"The model is already built; it cannot take {', '.join(overrides)} any more.")
        if name.spec is None:
            raise ConfigError(f"{type(name).__name__} was built without the registry; give the name of a variant.")
        spec, device, dtype = name.spec, device or name.device, dtype or name.dtype
    else:
        variant = registry.load_variant(name)
        spec = variant.spec(variant.config(**overrides))
    known = {dim.name for tensor in (*spec.inputs, *spec.targets) for dim in tensor.dims if not dim.fixed} - {"batch"}
    for dim in sizes or {}:
        if dim not in known:
            raise ConfigError(f"{spec.name} has no free dimension {dim!r}; it has {', '.join(sorted(known))}.")
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}; expected at least 1.")
    return random_batch(spec, batch_size, sizes=sizes, seed=seed, device=device, dtype=dtype or torch.float32)


def _checked_attention(variant: Variant, attention: str) -> str:
    """`attention`, if the family takes it: one it names, or a third party's, which judges its own arguments."""
    family = variant.family
    fields = [field.name for field in dataclasses.fields(family.config)]
    if not family.attentions or "attention" not in fields:
        raise ConfigError(f"{variant.name} has no token attention to replace; leave out attention={attention!r}.")
    if attention in family.attentions:
        return attention
    info = registry.attention_info(attention)
    reason = misuse(info, family.attention_use) if family.attention_use is not None else ""
    if info.distribution != "astrozoo" and not reason:
        return attention
    raise ConfigError(
        f"{variant.name} cannot use attention {attention!r}{f': {reason}' if reason else ''}."
        f"{suggest(attention, family.attentions)} "
        f"It takes {', '.join(family.attentions)}."
    )
