"""The registry of this process: what is installed, what of it was loaded, and what of it failed."""

from __future__ import annotations

import dataclasses
import threading
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from astrozoo.errors import AstrozooPluginWarning, PluginError
from astrozoo.registry import discovery
from astrozoo.registry.catalog import Catalog, CatalogError, locate, misfit, parse
from astrozoo.registry.discovery import ATTENTION, CATALOG, CORE, MODELS, PLUGINS, Entry, Offer, normalized
from astrozoo.registry.family import AttentionImplementation, Family, Variant
from astrozoo.registry.index import Index
from astrozoo.registry.loading import describe, import_object, output_to_stderr
from astrozoo.registry.spec import AttentionSpec, ModelSpec

if TYPE_CHECKING:
    import pluggy

__all__ = ["PluginStatus", "Registry"]

_KINDS: dict[str, type[Any]] = {MODELS: Variant, ATTENTION: AttentionImplementation}


@dataclass(frozen=True, kw_only=True, slots=True)
class PluginStatus:
    """The state of one plugin: an installed distribution that offers something to astrozoo.

    Attributes:
        name, distribution, version: As its metadata say; `name` and `distribution` are the same.
        groups: Entry-point groups it declares names in.
        models, attentions, hooks: The names it declares.
        state: `ok` (something of it was loaded, nothing failed), `not loaded`, `failed`, `blocked` or `ambiguous`.
        reason: Why it failed, is blocked or ambiguous; empty when it is fine.
        import_seconds: How long importing its code took so far, with what it was the first to need (such as torch).
    """

    name: str
    distribution: str
    version: str
    groups: tuple[str, ...]
    models: tuple[str, ...]
    attentions: tuple[str, ...]
    hooks: tuple[str, ...]
    state: str
    reason: str = ""
    import_seconds: float = 0.0


class Registry:
    """Everything the process knows about installed distributions. Thread-safe; one instance serves a process."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.offers = {normalized(offer.distribution): offer for offer in discovery.scan()}
        self.indices = {group: Index(self.offers.values(), group) for group in (MODELS, ATTENTION)}
        self._objects: dict[Entry, Any] = {}
        self._specs: dict[Entry, ModelSpec | AttentionSpec] = {}  # of what was loaded, without origin and costs
        self._errors: dict[Entry, BaseException] = {}
        self._catalogs: dict[str, Catalog] = {}
        self._reasons: dict[str, list[str]] = {}
        self._seconds: dict[str, float] = {}
        self.plugins: pluggy.PluginManager | None = None
        for key, offer in self.offers.items():
            for problem in [] if offer.blocked else offer.problems:
                self.report(key, problem)
            for index in self.indices.values():
                for clash in index.clashes.get(offer.distribution, []):
                    self._warn(offer, clash)

    # -- failures ------------------------------------------------------------------------------------------------------

    def report(self, distribution: str, reason: str) -> None:
        """Record a failure of a distribution, with one warning however often it is met."""
        key = normalized(distribution)
        known = self._reasons.setdefault(key, [])
        if reason not in known:
            known.append(reason)
            self._warn(self.offers[key], reason)

    @staticmethod
    def _warn(offer: Offer, reason: str) -> None:
        warnings.warn(f"Plugin {offer.distribution} {offer.version}: {reason}", AstrozooPluginWarning, stacklevel=2)

    @staticmethod
    def disabled_hooks(offer: Offer) -> list[Entry]:
        """Entry points of a third party's hooks that `ASTROZOO_DISABLE_PLUGINS` names one by one."""
        names = discovery.disabled()
        third_party = normalized(offer.distribution) != CORE
        return [entry for entry in offer.entries[PLUGINS].values() if third_party and normalized(entry.name) in names]

    def _loaded(self, key: str) -> bool:
        return any(normalized(entry.distribution) == key for entry in self._objects)

    def timed_import(self, entry: Entry) -> Any:
        """The object of an entry point; the time is added to its distribution's."""
        found, seconds = import_object(entry)
        key = normalized(entry.distribution)
        self._seconds[key] = self._seconds.get(key, 0.0) + seconds
        return found

    def mark_loaded(self, entry: Entry, loaded: Any) -> None:
        """Remember what an entry point gave."""
        self._objects[entry] = loaded

    # -- objects -------------------------------------------------------------------------------------------------------

    def load(self, group: str, name: str) -> Any:
        """The variant or attention implementation called `name`; its module is imported once.

        Raises:
            PluginError: It cannot be imported or is something else than its group promises; the cause is the original.
        """
        with self.lock:
            entry = self.indices[group].resolve(name)
            if entry in self._objects:
                return self._objects[entry]
            if entry not in self._errors:
                try:
                    loaded = self.timed_import(entry)
                    with output_to_stderr():
                        self._specs[entry] = _checked_spec(entry, loaded)
                except KeyboardInterrupt:
                    raise
                except BaseException as raised:  # SystemExit and a Rust extension's PanicException are no Exceptions
                    self._errors[entry] = raised
                    self.report(entry.distribution, f"{entry.value} failed: {describe(raised)}")
                else:
                    self.mark_loaded(entry, loaded)
                    return loaded
            error = self._errors[entry]
            version = self.offers[normalized(entry.distribution)].version
            raise PluginError(
                f"{self.indices[group].noun.capitalize()} {name!r} of {entry.distribution} {version} is unavailable: "
                f"{entry.value} failed with {describe(error)}. {self._remedy(group, entry, error)}"
            ) from error

    def _remedy(self, group: str, entry: Entry, error: BaseException) -> str:
        requires = getattr(self.known_spec(group, entry), "requires", ())
        if isinstance(error, ImportError) and requires:
            return f"It requires {', '.join(requires)}: pip install {' '.join(map(repr, requires))}"
        return f"Repair or uninstall {entry.distribution}."

    def unavailable(self, group: str, name: str) -> str:
        """Why `name` could not be loaded so far, or an empty string."""
        error = self._errors.get(self.indices[group].resolve(name))
        return "" if error is None else describe(error)

    # -- specs ---------------------------------------------------------------------------------------------------------

    def catalog(self, distribution: str) -> Catalog:
        """The catalogue of a distribution, empty where it ships none or a damaged one."""
        key = normalized(distribution)
        with self.lock:
            if key not in self._catalogs:
                self._catalogs[key] = self._read_catalog(key)
            return self._catalogs[key]

    def _read_catalog(self, key: str) -> Catalog:
        offer = self.offers[key]
        merged = Catalog({}, {})
        for entry in offer.entries[CATALOG].values():
            try:
                text = locate(entry.value).read_text(encoding="utf-8")
                found = parse(text, distribution=offer.distribution, version=offer.version, check=key != CORE)
            except (CatalogError, OSError, UnicodeDecodeError) as error:
                self.report(key, f"catalogue {entry.value} is ignored: {error}")
            else:
                merged = Catalog({**merged.models, **found.models}, {**merged.attention, **found.attention})
        return merged

    def known_spec(self, group: str, entry: Entry) -> ModelSpec | AttentionSpec | None:
        """The spec as far as it is known without importing anything: from the catalogue or from what was loaded."""
        catalog = self.catalog(entry.distribution)
        listed: Any = (catalog.models if group == MODELS else catalog.attention).get(entry.name)
        spec = self._specs.get(entry)
        if spec is None:
            return listed
        version = self.offers[normalized(entry.distribution)].version
        spec = dataclasses.replace(spec, distribution=entry.distribution, version=version)
        if isinstance(spec, ModelSpec):
            measured = listed is not None and listed.config == spec.config
            spec = dataclasses.replace(spec, costs=listed.costs if measured else None)
        return spec

    def spec(self, group: str, name: str) -> Any:
        """The spec of `name`, loading it only where no catalogue describes it."""
        entry = self.indices[group].resolve(name)
        known = self.known_spec(group, entry)
        if known is None:
            self.load(group, name)
            known = self.known_spec(group, entry)
        return known

    # -- states --------------------------------------------------------------------------------------------------------

    def statuses(self) -> list[PluginStatus]:
        """The state of every plugin, astrozoo's own first."""
        return [self._status(key, offer) for key, offer in self.offers.items()]

    def _status(self, key: str, offer: Offer) -> PluginStatus:
        clashes = [clash for index in self.indices.values() for clash in index.clashes.get(offer.distribution, [])]
        seconds = self._seconds.get(key, 0.0)
        if offer.blocked:
            state, reason = "blocked", offer.blocked
        elif self._reasons.get(key):
            state, reason = "failed", "; ".join(self._reasons[key])
        elif clashes:
            state, reason = "ambiguous", "; ".join(clashes)
        elif (named := [entry.name for entry in self.disabled_hooks(offer)]) and not self._loaded(key):
            state, reason = "blocked", f"hooks {', '.join(named)} are disabled by ASTROZOO_DISABLE_PLUGINS"
        else:
            state, reason = ("ok" if self._loaded(key) else "not loaded"), ""
        return PluginStatus(
            name=offer.distribution,
            distribution=offer.distribution,
            version=offer.version,
            groups=offer.groups(),
            models=tuple(offer.entries[MODELS]),
            attentions=tuple(offer.entries[ATTENTION]),
            hooks=tuple(offer.entries[PLUGINS]),
            state=state,
            reason=reason,
            import_seconds=seconds,
        )


def _checked_spec(entry: Entry, loaded: Any) -> ModelSpec | AttentionSpec:
    """The spec of `loaded`.

    Raises:
        TypeError, ValueError: It is not what its group promises under the name it is declared with, or its spec holds
            something else than the schema says, on which a filter or a table would stumble later.
    """
    kind = _KINDS[entry.group]
    if not isinstance(loaded, kind):
        raise TypeError(f"expected a {kind.__name__}, got {type(loaded).__name__}")
    if isinstance(loaded, Variant):
        if not isinstance(loaded.family, Family):
            raise TypeError(f"its family is a {type(loaded.family).__name__}, expected a Family")
        spec: ModelSpec | AttentionSpec = loaded.spec()
    else:
        spec = loaded.spec
        if not isinstance(spec, AttentionSpec):
            raise TypeError(f"its spec is a {type(spec).__name__}, expected an AttentionSpec")
    if normalized(entry.distribution) != CORE and (wrong := misfit(spec, type(spec))):  # ours are held to it by tests
        raise TypeError(f"its spec is wrong: {wrong}")
    if spec.name != entry.name:
        raise ValueError(f"it is called {spec.name!r}, but declared as {entry.name!r}")
    return spec
