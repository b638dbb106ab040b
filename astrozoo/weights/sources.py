"""Where weights come from: folders, the Hugging Face Hub, and sources that plugins add.

`locate` turns what a user writes into a `Place`, which gives local paths of single files. Downloads go through weight
sources (`registry.hookspecs.WeightSource`), one per scheme.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlparse

from astrozoo import registry
from astrozoo.errors import WeightsError
from astrozoo.registry.hookspecs import WeightSource
from astrozoo.weights.config import CONFIG_FILE
from astrozoo.weights.files import find_file
from astrozoo.weights.hub import HubSource, MissingFileError, hub_cache
from astrozoo.weights.save import OURS, sha256_of

__all__ = ["FileSource", "LocalPlace", "Place", "RemotePlace", "locate", "refuse_pickle", "source_for", "verify"]

_PICKLES = (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[^@]+)?")


class Place(Protocol):
    """A folder of a saved model, here or elsewhere."""

    @property
    def label(self) -> str:
        """What messages call it."""
        ...

    def find(self, name: str) -> Path | None:
        """The local path of a file, or None when the place does not have it."""
        ...


@dataclass(frozen=True, slots=True)
class LocalPlace:
    """A folder on this machine."""

    folder: Path

    @property
    def label(self) -> str:
        """What messages call it."""
        return str(self.folder)

    def find(self, name: str) -> Path | None:
        """The path of a file, or None."""
        return find_file(self.folder, name)


@dataclass(slots=True)
class RemotePlace:
    """Files of one revision of a source, fetched one by one when asked for."""

    source: str
    revision: str
    cache: Path
    fetcher: WeightSource
    sha256: Mapping[str, str] | None = None

    @property
    def label(self) -> str:
        """What messages call it."""
        return f"{self.source}@{self.revision}" if self.revision else self.source

    def find(self, name: str) -> Path | None:
        """The local path of a file, fetched and, where digests are pinned, verified."""
        if self.sha256 is not None and name not in self.sha256:
            return None
        try:
            path = self.fetcher.fetch(self.source, self.revision, name, self.cache)
        except MissingFileError:
            return None
        if self.sha256 is not None:
            verify(path, self.sha256[name], f"{name} of {self.label}")
        elif name == CONFIG_FILE:
            # A branch may move between two downloads; the first one fixes the commit for the others.
            self.revision = HubSource.commit_of(path) or self.revision
        return path


class FileSource:
    """Weights in a folder named by a `file://` address."""

    scheme = "file"

    def fetch(self, source: str, revision: str, filename: str, cache: Path) -> Path:  # noqa: ARG002 - the protocol
        """The file itself; nothing is copied."""
        folder = Path(unquote(urlparse(source).path))
        path = find_file(folder, filename)
        if path is None:
            raise MissingFileError(f"{filename} is not in {folder}; check the folder that {source} names.")
        return path


def locate(path_or_id: str | os.PathLike[str], *, revision: str | None = None, cache: Path | None = None) -> Place:
    """What the user means: a folder, `hf://org/name@revision`, a bare Hub id, or the address of another source.

    Raises:
        WeightsError: It is a pickle, or neither a folder nor an address.
    """
    text = os.fspath(path_or_id)
    if "://" in text and not isinstance(path_or_id, os.PathLike):
        return _remote(text, revision, cache)
    path = Path(text).expanduser()
    refuse_pickle(path)
    if path.is_file():
        if not any(fnmatch(path.name, pattern) for pattern in OURS):
            raise WeightsError(
                f"{path} is no file that save_model writes ({', '.join(OURS)}); give the folder of the saved model, or "
                f"take the weights in with `astrozoo convert {path} OUT --name NAME`."
            )
        path = path.parent
    if path.is_dir():
        if revision is not None:
            raise WeightsError(
                f"{path} is a local folder, which has no revision {revision!r}; leave revision out, "
                f"or write hf://{text} for the repository on the Hub."
            )
        return LocalPlace(path)
    if isinstance(path_or_id, str) and _HUB_ID.fullmatch(text):
        return _remote(f"hf://{text}", revision, cache)
    if isinstance(path_or_id, str) and text in registry.list_models():
        raise WeightsError(
            f"{text!r} is the name of a model, not a place of weights. For its published weights use "
            f"create_model({text!r}, pretrained=True); for your own give the folder that save_model wrote."
        )
    raise WeightsError(
        f"No saved model at {text!r}: there is no such folder (looked for {path.absolute()}), and it is no Hub id "
        f"(org/name) and no address (hf://org/name@revision)."
    )


def source_for(address: str) -> WeightSource:
    """The weight source of an address; `hf` and `file` are ours, others come from plugins.

    Raises:
        WeightsError: No installed source understands the scheme.
    """
    scheme = address.partition("://")[0]
    sources: dict[str, WeightSource] = {"hf": HubSource(), "file": FileSource()}
    if scheme not in sources:
        for offered in registry.plugin_manager().hook.astrozoo_weight_sources():
            for source in offered:
                sources.setdefault(source.scheme, source)
    if scheme not in sources:
        raise WeightsError(
            f"No weight source understands {address!r}; known schemes are {', '.join(sorted(sources))}. A plugin adds "
            f"more with the hook astrozoo_weight_sources."
        )
    return sources[scheme]


def refuse_pickle(path: Path) -> None:
    """Refuse what torch.load would have to unpickle.

    Raises:
        WeightsError: With the reason and the command that converts such a file.
    """
    if path.suffix.lower() in _PICKLES:
        raise WeightsError(
            f"{path} is a pickle, and unpickling can run any code that its author put there, so astrozoo never loads "
            f"one. Convert it once, if you trust where it comes from: astrozoo convert {path} OUT --name NAME"
        )


def verify(path: Path, expected: str, what: str) -> None:
    """Compare a file's sha256 with the one that was pinned, before anything is read from it.

    Raises:
        WeightsError: They differ; both are named.
    """
    actual = sha256_of(path)
    if actual != expected.lower():
        raise WeightsError(
            f"{what} has sha256 {actual}, expected {expected}. The file at {path} was damaged or replaced and is not "
            f"used; delete it and download again, and if it happens again tell whoever published the weights."
        )


def cache_for(address: str, cache: Path | None) -> Path:
    """The folder downloads of an address are kept in."""
    if cache is not None:
        return cache
    if address.startswith("hf://"):
        return hub_cache()  # shared with every other tool that uses the Hub
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("ASTROZOO_CACHE") or Path(home) / "astrozoo")


def _remote(address: str, revision: str | None, cache: Path | None) -> Place:
    fetcher = source_for(address)
    if isinstance(fetcher, HubSource) and not _HUB_ID.fullmatch(address.removeprefix("hf://")):
        raise WeightsError(f"{address} is no address on the Hub. A Hub id looks like org/name or org/name@revision.")
    if isinstance(fetcher, FileSource):
        folder = Path(unquote(urlparse(address).path))
        if not folder.is_dir():
            raise WeightsError(f"No saved model at {address}: there is no folder {folder}.")
        return LocalPlace(folder)
    plain, _, pinned = address.partition("@")
    if revision and pinned and revision != pinned:
        raise WeightsError(f"{address} names revision {pinned!r}, but revision={revision!r} was given; choose one.")
    return RemotePlace(plain, revision or pinned, cache_for(address, cache), fetcher)
