"""Which name means which entry point.

Built-in names always stay ours, and so do those of our official plugins where they are installed. A third party's name
that is taken stays reachable as `dist/name`; a name that several third parties claim is listed, and created, in that
qualified form only.
"""

from __future__ import annotations

from collections.abc import Iterable

from astrozoo.errors import AmbiguousNameError, PluginError, UnknownModelError
from astrozoo.registry.discovery import ATTENTION, CORE, MODELS, Entry, Offer, normalized
from astrozoo.registry.names import nearest
from astrozoo.registry.official import ATTENTION_BACKENDS, install_command, official_names

__all__ = ["Index"]

_NOUNS = {MODELS: "model", ATTENTION: "attention"}


class Index:
    """Names of one entry-point group.

    Attributes:
        listed: Every name a user can create, and its entry point.
        clashes: By distribution, why names of it are not listed plainly.
    """

    def __init__(self, offers: Iterable[Offer], group: str) -> None:
        self.noun = _NOUNS[group]
        self.listed: dict[str, Entry] = {}
        self.clashes: dict[str, list[str]] = {}
        self._qualified: dict[str, Entry] = {}
        self._installed: dict[str, Offer] = {}
        self._blocked: dict[str, Offer] = {}
        claims: dict[str, list[Entry]] = {}
        for offer in offers:
            self._installed[normalized(offer.distribution)] = offer
            for name, entry in offer.entries[group].items():
                if offer.blocked:
                    self._blocked.setdefault(name, offer)
                    self._blocked[f"{normalized(offer.distribution)}/{name}"] = offer
                else:
                    claims.setdefault(name, []).append(entry)
                    self._qualified[f"{normalized(offer.distribution)}/{name}"] = entry
        self._claims = claims
        for name, entries in claims.items():
            self._list(name, entries)

    def _list(self, name: str, entries: list[Entry]) -> None:
        if len(entries) == 1:
            self.listed[name] = entries[0]
            return
        homes = (CORE, official_names(self.noun).get(name))
        ours = [entry for entry in entries if normalized(entry.distribution) in homes]
        others = [entry for entry in entries if entry not in ours]
        if ours:
            self.listed[name] = ours[0]
        for entry in others:
            rivals = [other.distribution for other in ours or others if other is not entry]
            self.listed[f"{entry.distribution}/{name}"] = entry
            reason = f"{self.noun} name {name!r} is also offered by {', '.join(rivals)}: create it as "
            self.clashes.setdefault(entry.distribution, []).append(f"{reason}{entry.distribution}/{name}")

    def resolve(self, name: str) -> Entry:
        """The entry point behind `name` or `dist/name`.

        Raises:
            UnknownModelError: Nobody installed offers it; the message gives the nearest names, or how to install the
                official distribution that does.
            AmbiguousNameError: Several third parties offer it; the message gives a qualified name for each.
            PluginError: Its distribution is blocked.
        """
        if not isinstance(name, str):
            raise UnknownModelError(f"A {self.noun} name is a string such as 'cube_unet_nano', got {name!r}.")
        if name in self.listed:
            return self.listed[name]
        distribution, slash, plain = name.rpartition("/")
        key = f"{normalized(distribution)}/{plain}" if slash else name
        if key in self._qualified:
            return self._qualified[key]
        if len(self._claims.get(name, ())) > 1:  # and none of them ours, or it would be listed
            offers = " or ".join(repr(f"{entry.distribution}/{name}") for entry in self._claims[name])
            raise AmbiguousNameError(f"Several distributions offer the {self.noun} {name!r}; choose {offers}.")
        if key in self._blocked:
            offer = self._blocked[key]
            raise PluginError(
                f"The {self.noun} {name!r} belongs to {offer.distribution} {offer.version}, which is {offer.blocked}; "
                "take it out of that variable to use it."
            )
        raise UnknownModelError(self._unknown(name, plain))

    def _unknown(self, name: str, plain: str) -> str:
        message = f"There is no {self.noun} {name!r}."
        official = official_names(self.noun)
        if self.noun == "attention" and any(name in backends for backends in ATTENTION_BACKENDS.values()):
            return f"{message} It is a backend: create_attention('flash', backend={name!r}, ...) forces it."
        if plain in official:
            return f"{message} {self._remedy(official[plain])}"
        # A name that is not installed must be much nearer: the table is long, and a wrong install command misleads.
        known = [*self.listed, *nearest(plain.lower(), official, cutoff=0.85)]
        if near := nearest(name, known) or nearest(plain.lower(), known):
            hint = f"{message} Did you mean {', '.join(map(repr, near))}?"
            if near[0] not in self.listed:
                hint += f" {near[0]!r}{self._remedy(official[near[0]]).removeprefix('It')}"
            return hint
        if not self.listed:
            return f"{message} No installed distribution offers any."
        return f"{message} astrozoo.list_{self.noun}s() lists the {len(self.listed)} installed ones."

    def _remedy(self, distribution: str) -> str:
        installed = self._installed.get(distribution)
        if installed is None:
            return f"It belongs to {distribution}, which is not installed: {install_command(distribution)}"
        return (
            f"It belongs to {distribution}, whose installed version {installed.version} does not offer it: "
            f"{install_command(distribution, upgrade=True)}"
        )
