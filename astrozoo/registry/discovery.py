"""Which distributions offer what, read from installed metadata; no code of theirs runs.

A distribution takes part by declaring entry points in `astrozoo.models`, `astrozoo.attention`, `astrozoo.plugins` or
`astrozoo.catalog`. astrozoo's own models are declared the same way.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["CORE", "GROUPS", "Entry", "Offer", "disabled", "normalized", "scan"]

CORE = "astrozoo"
MODELS, ATTENTION, PLUGINS, CATALOG = GROUPS = (
    "astrozoo.models",
    "astrozoo.attention",
    "astrozoo.plugins",
    "astrozoo.catalog",
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry point: the name it gives to an object, and where that object is."""

    group: str
    name: str
    value: str
    distribution: str


@dataclass(slots=True)
class Offer:
    """What one installed distribution declares to astrozoo.

    Attributes:
        distribution: Name as its metadata spell it.
        version: Its version, or `unknown`.
        entries: By group and name.
        problems: What is wrong with the metadata themselves.
        blocked: The reason why nothing of it may be imported, or an empty string.
    """

    distribution: str
    version: str
    entries: dict[str, dict[str, Entry]] = field(default_factory=lambda: {group: {} for group in GROUPS})
    problems: list[str] = field(default_factory=list)
    blocked: str = ""

    def groups(self) -> tuple[str, ...]:
        """The groups it declares anything in."""
        return tuple(group for group in GROUPS if self.entries[group])


def normalized(name: str) -> str:
    """A distribution name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def disabled() -> tuple[str, ...]:
    """Names in `ASTROZOO_DISABLE_PLUGINS`, normalised; `*` stands for every third party."""
    names = os.environ.get("ASTROZOO_DISABLE_PLUGINS", "").split(",")
    return tuple(normalized(name.strip()) for name in names if name.strip())


def scan() -> list[Offer]:
    """Every distribution on `sys.path` that declares something, astrozoo's own first, then by name.

    Only files that contain the word are parsed: a large environment holds hundreds of distributions, and reading a
    file is far cheaper than parsing its metadata.
    """
    offers: dict[str, Offer] = {}
    for distribution in importlib.metadata.distributions():
        text = _entry_points(distribution)
        if "astrozoo." not in text:
            continue
        entries, problems = _parse(text)
        if not entries and not problems:
            continue
        name, version = _identity(distribution)
        key = normalized(name)
        if key in offers or _shadowed(name, text):
            continue  # the first on the path wins, as it does for imports
        offer = offers[key] = Offer(name, version, problems=problems)
        for group, entry_name, value in entries:
            _add(offer, Entry(group, entry_name, value, name))
    _block(offers)
    return sorted(offers.values(), key=lambda offer: (normalized(offer.distribution) != CORE, offer.distribution))


def _entry_points(distribution: importlib.metadata.Distribution) -> str:
    try:
        return distribution.read_text("entry_points.txt") or ""
    except (OSError, UnicodeDecodeError):
        return ""  # unreadable metadata belong to somebody else until they name astrozoo


def _parse(text: str) -> tuple[list[tuple[str, str, str]], list[str]]:
    entries, problems, group = [], [], ""
    for line in map(str.strip, text.splitlines()):
        if not line or line.startswith(("#", ";")):
            continue
        if line.startswith("[") and line.endswith("]"):
            group = line[1:-1].strip()
        elif group in GROUPS:
            name, equals, value = (part.strip() for part in line.partition("="))
            if not (equals and name and value):
                problems.append(f"entry point line {line!r} in [{group}] is not `name = module:object`")
            elif group in (MODELS, ATTENTION) and ("/" in name or len(name.split()) > 1):
                # `dist/name` is ours to give: a name with a slash could pose as that of another distribution.
                problems.append(f"the name {name!r} in [{group}] is left out: a name has no `/` and no blank")
            else:
                entries.append((group, name, value.split("[")[0].strip()))
    return entries, problems


def _add(offer: Offer, entry: Entry) -> None:
    known = offer.entries[entry.group]
    first = known.setdefault(entry.name, entry)
    if first.value != entry.value:
        offer.problems.append(f"{entry.name!r} is declared twice in [{entry.group}]; {first.value} is used")


def _identity(distribution: importlib.metadata.Distribution) -> tuple[str, str]:
    try:
        metadata = distribution.metadata
    except (OSError, UnicodeDecodeError):
        metadata = None
    name, version = (str(metadata[key] or "") if metadata else "" for key in ("Name", "Version"))
    if not name:  # damaged metadata: the folder is called `name-version.dist-info`
        folder = Path(str(distribution.locate_file(""))).name
        name, version, *_ = [*Path(str(getattr(distribution, "_path", folder))).stem.split("-"), ""]
    return name, version or "unknown"


def _shadowed(name: str, text: str) -> bool:
    try:
        return _entry_points(importlib.metadata.distribution(name)) != text
    except importlib.metadata.PackageNotFoundError:
        return False


def _block(offers: dict[str, Offer]) -> None:
    names = disabled()
    for key, offer in offers.items():
        if key != CORE and ("*" in names or key in names):
            offer.blocked = "disabled by ASTROZOO_DISABLE_PLUGINS"
