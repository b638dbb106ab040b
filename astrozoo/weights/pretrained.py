"""Published weights: found by tag in a variant's spec, fetched, verified against pinned digests, then read."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch

from astrozoo import registry
from astrozoo.errors import WeightsError
from astrozoo.module import ZooModel
from astrozoo.registry.family import Variant
from astrozoo.registry.names import suggest
from astrozoo.registry.spec import PretrainedWeights
from astrozoo.weights.config import CONFIG_FILE
from astrozoo.weights.files import atomic_folder
from astrozoo.weights.load import load_place, read_saved, weight_files
from astrozoo.weights.save import INDEX_FILE
from astrozoo.weights.sources import Place, RemotePlace, cache_for, locate, source_for

__all__ = ["download", "load_pretrained", "published"]


def load_pretrained(
    variant: Variant,
    tag: str | bool | None = None,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    adapt: bool = False,
    cache: Path | None = None,
    **overrides: Any,
) -> ZooModel:
    """A variant with published weights, in training mode as `create_model` returns models.

    Every file is verified against its pinned sha256 before anything in it is read.

    Args:
        variant: What to build.
        tag: Which of its weights; None or True for the first.
        device: Where the weights go.
        dtype: Converts floating weights.
        adapt: As for `load_model`.
        cache: Folder for downloads.
        overrides: Fields that replace those of the configuration the weights bring.

    Raises:
        WeightsError: There are no such weights, they cannot be had, are not what was published, or do not fit.
    """
    place = _pinned(published(variant, tag), cache)
    model = load_place(place, variant=variant, device=device, dtype=dtype, adapt=adapt, overrides=overrides)
    return model.train()


def published(variant: Variant, tag: str | bool | None = None) -> PretrainedWeights:
    """The entry of a tag; None or True for the first.

    Raises:
        WeightsError: The variant has no published weights, or none of that tag.
    """
    if not variant.pretrained:
        raise WeightsError(f"{variant.name} has no published weights; train it, or leave out pretrained=.")
    if tag is None or tag is True:
        return variant.pretrained[0]
    tags = [weights.tag for weights in variant.pretrained]
    if tag not in tags:
        raise WeightsError(
            f"{variant.name} has no weights {tag!r}.{suggest(str(tag), tags)} It has {', '.join(map(repr, tags))}."
        )
    return variant.pretrained[tags.index(tag)]


def download(
    name_or_id: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    tag: str | None = None,
    revision: str | None = None,
    cache: str | os.PathLike[str] | None = None,
) -> Path:
    """Fetch a model's files, for use without a network later.

    Args:
        name_or_id: Name of a variant with published weights, or what `load_model` takes.
        out: Folder to copy the files to; default: they stay in the cache.
        tag: Which published weights of a variant.
        revision: Branch, tag or commit of a Hub repository.
        cache: Folder for downloads; default: the Hub's own.

    Returns:
        The folder that `load_model` takes.

    Raises:
        WeightsError: Something cannot be had; the message says which file, where it was looked for, and what to do.
    """
    kept = Path(cache) if cache is not None else None
    known = isinstance(name_or_id, str) and not Path(name_or_id).exists() and name_or_id in registry.list_models()
    if known and revision is not None:
        raise WeightsError(f"The published weights of {name_or_id} pin their revision; leave out {revision!r}.")
    if tag is not None and not known:
        raise WeightsError(
            f"tag={tag!r} selects published weights of a model, and {str(name_or_id)!r} is no model's name."
        )
    if known:
        place: Place = _pinned(published(registry.load_variant(str(name_or_id)), tag), kept)
    else:
        place = locate(name_or_id, revision=revision, cache=kept)
    files = _all_files(place)
    folders = {path.parent for path in files.values()}
    if out is None and len(folders) == 1 and all(path.name == name for name, path in files.items()):
        return folders.pop()
    if out is None:
        raise WeightsError(f"The source of {place.label} keeps its files apart; say where to gather them with out=.")
    with atomic_folder(out) as staging:
        for name, path in files.items():
            shutil.copyfile(path, staging / name)
    return Path(out)


def _pinned(weights: PretrainedWeights, cache: Path | None) -> RemotePlace:
    if CONFIG_FILE not in weights.sha256:
        raise WeightsError(f"The published weights {weights.tag!r} pin no sha256 of {CONFIG_FILE}; tell their author.")
    return RemotePlace(
        weights.source,
        weights.revision,
        cache_for(weights.source, cache),
        source_for(weights.source),
        weights.sha256,
    )


def _all_files(place: Place) -> dict[str, Path]:
    saved = read_saved(place)
    config = place.find(CONFIG_FILE)
    assert config is not None
    weights = weight_files(place, saved)
    files = {CONFIG_FILE: config, **weights.paths}
    return files if weights.index is None else {**files, INDEX_FILE: weights.index}
