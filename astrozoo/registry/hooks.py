"""The plugin manager: hook implementations of installed plugins, each isolated from the others and from the host."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pluggy

from astrozoo.errors import AstrozooError, PluginError
from astrozoo.registry import hookspecs
from astrozoo.registry.discovery import ATTENTION, MODELS, PLUGINS, Entry
from astrozoo.registry.loading import describe, output_to_stderr
from astrozoo.registry.names import suggest
from astrozoo.registry.state import Registry

__all__ = ["load_everything", "manager"]

_ITEMS: Mapping[str, type] = {
    "astrozoo_weight_sources": hookspecs.WeightSource,
    "astrozoo_attention_backends": hookspecs.AttentionBackend,
    "astrozoo_accelerators": hookspecs.Accelerator,
    "astrozoo_cli_commands": hookspecs.CliCommand,
}
_MAPPINGS = ("astrozoo_datasets", "astrozoo_convert_state_dict")


def manager(registry: Registry) -> pluggy.PluginManager:
    """The plugin manager of `registry`, made on first use; imports every plugin that is not blocked."""
    with registry.lock:
        if registry.plugins is None:
            plugins = registry.plugins = pluggy.PluginManager("astrozoo")
            plugins.add_hookspecs(hookspecs)
            try:
                # pluggy calls the last registered first; backwards, plugins are called in the order of their names.
                for offer in reversed(registry.offers.values()):
                    skipped = registry.disabled_hooks(offer)
                    for entry in offer.entries[PLUGINS].values():
                        if not offer.blocked and entry not in skipped:
                            _register(registry, plugins, entry)
            except BaseException:  # Ctrl-C: the next call starts again, instead of going on with half of the plugins
                registry.plugins = None
                raise
        return registry.plugins


def load_everything(registry: Registry) -> None:
    """Import all that is declared, to learn what of it works. Failures end up in the states, not here."""
    manager(registry)
    for group in (MODELS, ATTENTION):
        for name in registry.indices[group].listed:
            try:
                registry.load(group, name)
            except PluginError:
                continue  # recorded, with its warning
    for distribution in registry.offers:
        registry.catalog(distribution)


def _register(registry: Registry, plugins: pluggy.PluginManager, entry: Entry) -> None:
    label = f"{entry.distribution}:{entry.name}"
    try:
        plugin = registry.timed_import(entry)
        if plugins.is_registered(plugin):
            raise ValueError(f"{entry.value} is already registered as {plugins.get_name(plugin)}")
        with output_to_stderr():
            _add(plugins, plugin, label)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # as in `Registry.load`
        registry.report(entry.distribution, f"hooks {entry.value} failed: {describe(error)}")
    else:
        registry.mark_loaded(entry, plugin)
        for caller in plugins.get_hookcallers(plugin) or ():
            for implementation in caller.get_hookimpls():
                if implementation.plugin is plugin:
                    guarded = _guarded(registry, entry, caller.name, implementation.function)
                    implementation.function = guarded  # type: ignore[misc]  # pluggy has no call-time isolation


def _add(plugins: pluggy.PluginManager, plugin: Any, label: str) -> None:
    """Register `plugin` wholly or not at all."""
    if isinstance(plugin, (str, int, float, bool, type(None))):
        raise TypeError(f"expected a module or an object with hook functions, got {plugin!r}")
    try:
        plugins.register(plugin, name=label)
        callers = plugins.get_hookcallers(plugin) or []
        if not callers:
            raise TypeError("it implements no hook; mark functions with @astrozoo.hookimpl")
        for caller in callers:
            mine = [item for item in caller.get_hookimpls() if item.plugin is plugin]
            if not caller.has_spec() and not all(item.optionalhook for item in mine):
                known = [name for name in vars(hookspecs) if name.startswith("astrozoo_")]
                raise TypeError(f"there is no hook {caller.name!r}.{suggest(caller.name, known)}")
            if any(item.wrapper or item.hookwrapper for item in mine):
                raise TypeError(f"{caller.name} is a hook wrapper, which cannot be isolated; make it a plain function")
    except Exception:
        if plugins.is_registered(plugin):
            plugins.unregister(plugin)
        raise


def _guarded(registry: Registry, entry: Entry, hook: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, whose errors and nonsense become a warning and the answer None, which pluggy leaves out."""

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        try:
            with output_to_stderr():
                answer = function(*args)
            if answer is not None:
                _check_answer(hook, answer)
        except (AstrozooError, KeyboardInterrupt):
            raise  # deliberate: a refusal, or weights that cannot be had
        except BaseException as error:  # as in `Registry.load`
            registry.report(entry.distribution, f"hook {hook} of {entry.value} failed: {describe(error)}")
            return None
        return answer

    return call


def _check_answer(hook: str, answer: Any) -> None:
    if hook in _ITEMS:
        protocol = _ITEMS[hook]
        if isinstance(answer, (str, bytes)) or not isinstance(answer, Sequence):
            raise TypeError(f"it returned a {type(answer).__name__}, expected a list of {protocol.__name__}")
        for item in answer:
            if isinstance(item, type) or not isinstance(item, protocol):
                raise TypeError(f"it returned a {type(item).__name__} in its list, expected a {protocol.__name__}")
            for name, kind in protocol.__annotations__.items():
                if kind == "str" and not isinstance(value := getattr(item, name), str):
                    raise TypeError(f"the {name} of its {type(item).__name__} is {value!r}, expected a string")
    elif hook in _MAPPINGS:
        if not isinstance(answer, Mapping):
            raise TypeError(f"it returned a {type(answer).__name__}, expected a mapping")
        for name, value in answer.items():
            if hook == "astrozoo_datasets" and not (isinstance(name, str) and callable(value)):
                raise TypeError(f"it returned {name!r}: {value!r}, expected names and callables")
