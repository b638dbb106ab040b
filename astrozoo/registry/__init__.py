"""Registry: names, specs and plugins, known from metadata and catalogues without importing anybody's code.

Importing this package, and listing, imports neither torch nor pluggy nor numpy.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from astrozoo.errors import ConfigError
from astrozoo.registry.names import matching, sort_key

if TYPE_CHECKING:
    import pluggy

    from astrozoo.registry.family import AttentionImplementation, Variant
    from astrozoo.registry.spec import AttentionSpec, ModelSpec
    from astrozoo.registry.state import PluginStatus, Registry

__all__ = [
    "attention_info",
    "current",
    "list_attentions",
    "list_models",
    "list_plugins",
    "load_attention",
    "load_variant",
    "model_info",
    "plugin_manager",
    "refresh",
    "unavailable",
]

_MODELS, _ATTENTION = "astrozoo.models", "astrozoo.attention"
_CAPABILITIES = ("compile", "export", "grad_checkpointing", "features", "bfloat16", "float16")
_current: Registry | None = None
_making = threading.RLock()  # re-entrant: a warning about a plugin may run a user's code


def current() -> Registry:
    """The registry of this process, made on first use."""
    global _current
    with _making:
        if _current is None:
            from astrozoo.registry.state import Registry

            _current = Registry()
        return _current


def refresh() -> None:
    """Forget what was found: the next call reads `sys.path` and `ASTROZOO_DISABLE_PLUGINS` again."""
    global _current
    import importlib

    importlib.invalidate_caches()  # what was installed since is importable, too
    with _making:
        _current = None


def list_models(
    pattern: str | Iterable[str] | None = None,
    *,
    domain: str | None = None,
    family: str | None = None,
    task: str | None = None,
    size: str | None = None,
    max_params: float | None = None,
    license: str | None = None,  # noqa: A002 - the word users search with
    capability: str | Iterable[str] | None = None,
    attention: str | None = None,
    plugin: str | None = None,
    pretrained: bool | str | None = None,
) -> list[str]:
    """Names of the installed models, by family and then from small to large.

    Filters read catalogues and import nothing. A third-party model without a catalogue row matches no filter about its
    details until it has been loaded.

    Args:
        pattern: Shell pattern such as `"cube_*"`, or several of which one must match.
        domain: Kind of data, such as `cube`.
        family: Architecture, such as `cube_unet`.
        task: What it is trained for, such as `field_regression`.
        size: `nano`, `tiny`, `small`, `base`, `large`, `huge`, or what else `model_info` shows.
        max_params: Largest number of parameters.
        license: SPDX identifier of the code, in any case.
        capability: `compile`, `export`, `grad_checkpointing`, `features`, `bfloat16`, `float16`, or several.
        attention: Models that take this attention.
        plugin: Distribution that offers the model.
        pretrained: True for models with published weights, False for those without, or the tag they must have.

    Raises:
        ConfigError: A capability that does not exist.
    """
    registry = current()
    listed = registry.indices[_MODELS].listed
    names = [name for name in matching(listed, pattern) if _offered_by(listed[name].distribution, plugin)]
    capabilities = [capability] if isinstance(capability, str) else list(capability or ())
    for item in capabilities:
        if item not in _CAPABILITIES:
            raise ConfigError(f"There is no capability {item!r}; there are {', '.join(_CAPABILITIES)}.")
    exact = {"domain": domain, "family": family, "task": task, "size": size}
    exact = {key: value for key, value in exact.items() if value is not None}
    if exact or capabilities or any(value is not None for value in (max_params, license, attention, pretrained)):

        def passes(spec: Any) -> bool:
            return (
                spec is not None
                and all(getattr(spec, key) == value for key, value in exact.items())
                and (max_params is None or (spec.costs is not None and spec.costs.parameters <= max_params))
                and (license is None or spec.licence.lower() == license.lower())
                and all(spec.capabilities.supports(item) for item in capabilities)
                and (attention is None or attention in spec.attentions)
                and (pretrained is None or _has_weights(spec, pretrained))
            )

        names = [name for name in names if passes(registry.known_spec(_MODELS, listed[name]))]
    return sorted(names, key=sort_key)


def list_attentions(
    pattern: str | Iterable[str] | None = None,
    *,
    causal: bool | None = None,
    cross: bool | None = None,
    grouped_query: bool | None = None,
    mask: str | None = None,
    cache: str | None = None,
    plugin: str | None = None,
) -> list[str]:
    """Names of the installed attentions, in alphabetical order.

    Args:
        pattern: Shell pattern, or several of which one must match.
        causal: Whether it must (True) or must not (False) honour causal masks.
        cross: The same for keys from another sequence.
        grouped_query: The same for fewer key than query heads.
        mask: A kind of mask it must honour, such as `key_mask`.
        cache: The kind of cache it must keep.
        plugin: Distribution that offers it.
    """
    registry = current()
    listed = registry.indices[_ATTENTION].listed
    names = [name for name in matching(listed, pattern) if _offered_by(listed[name].distribution, plugin)]
    exact = {"causal": causal, "cross": cross, "grouped_query": grouped_query, "cache": cache}
    exact = {key: value for key, value in exact.items() if value is not None}
    if exact or mask is not None:

        def passes(spec: Any) -> bool:
            return (
                spec is not None
                and all(getattr(spec, key) == value for key, value in exact.items())
                and (mask is None or mask in spec.masks)
            )

        names = [name for name in names if passes(registry.known_spec(_ATTENTION, listed[name]))]
    return sorted(names, key=sort_key)


def model_info(name: str) -> ModelSpec:
    """The spec of a model: inputs, outputs, configuration, costs, paper, licence, origin.

    Raises:
        UnknownModelError, AmbiguousNameError: As for `create_model`.
        PluginError: No catalogue describes it and loading it failed.
    """
    spec: ModelSpec = current().spec(_MODELS, name)
    return spec


def attention_info(name: str) -> AttentionSpec:
    """The spec of an attention; raises what `model_info` raises."""
    spec: AttentionSpec = current().spec(_ATTENTION, _unaliased(name))
    return spec


def load_variant(name: str) -> Variant:
    """The variant called `name`; imports its family and nothing else.

    Raises:
        UnknownModelError, AmbiguousNameError: As for `create_model`.
        PluginError: Its module fails, or holds something else; the original error is the cause.
    """
    variant: Variant = current().load(_MODELS, name)
    return variant


def load_attention(name: str) -> AttentionImplementation:
    """The attention implementation called `name`, or that has it as an alias; raises what `load_variant` raises."""
    implementation: AttentionImplementation = current().load(_ATTENTION, _unaliased(name))
    return implementation


def _unaliased(name: str) -> str:
    """The name of the attention that has `name` as an alias; `name` itself if there is none."""
    registry = current()
    listed = registry.indices[_ATTENTION].listed
    if name not in listed:
        for other, entry in listed.items():
            spec: Any = registry.known_spec(_ATTENTION, entry)
            if spec is not None and name in spec.aliases:
                return other
    return name


def unavailable(names: Iterable[str] | None = None) -> Mapping[str, str]:
    """Which listed models could not be loaded so far, and why. Nothing is imported to find out."""
    registry = current()
    reasons = {name: registry.unavailable(_MODELS, name) for name in (list_models() if names is None else names)}
    return {name: reason for name, reason in reasons.items() if reason}


def list_plugins(*, load: bool = False) -> list[PluginStatus]:
    """Every installed distribution that offers something, with its state.

    Args:
        load: Import everything that is declared first, so that each state is `ok` or says what is wrong.
    """
    registry = current()
    if load:
        from astrozoo.registry.hooks import load_everything

        load_everything(registry)
    return registry.statuses()


def plugin_manager() -> pluggy.PluginManager:
    """The hooks of all installed plugins, as in `plugin_manager().hook.astrozoo_datasets()`; imports the plugins."""
    from astrozoo.registry.hooks import manager

    return manager(current())


def _offered_by(distribution: str, plugin: str | None) -> bool:
    from astrozoo.registry.discovery import normalized

    return plugin is None or normalized(distribution) == normalized(plugin)


def _has_weights(spec: ModelSpec, wanted: bool | str) -> bool:
    if isinstance(wanted, str):
        return any(weights.tag == wanted for weights in spec.pretrained)
    return bool(spec.pretrained) == wanted
