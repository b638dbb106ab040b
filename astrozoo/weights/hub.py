"""The Hugging Face Hub, through its own client: fetch files, push models.

The client's environment variables hold: `HF_ENDPOINT` (a mirror), `HF_HUB_OFFLINE`, `HF_HOME`, `HF_TOKEN`.
"""

from __future__ import annotations

import os
import re
import tempfile
from errno import EACCES, ENOSPC, EROFS
from pathlib import Path

from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from torch import nn

from astrozoo.errors import WeightsError

__all__ = ["HubSource", "MissingFileError", "hub_cache", "push_model"]


class MissingFileError(WeightsError):
    """A place that exists and answers, but does not have the file."""


class HubSource:
    """Weights on the Hub, at `hf://org/name`."""

    scheme = "hf"

    def fetch(self, source: str, revision: str, filename: str, cache: Path) -> Path:
        """Download one file, or find it in the cache; a transfer that breaks off is tried again from where it stopped.

        Raises:
            MissingFileError: The repository does not have the file.
            WeightsError: It cannot be had; the message says where it was looked for and what to do.
        """
        repository = source.removeprefix("hf://").strip("/")
        offline = is_offline()
        where = f"{filename} of {source}" + (f" at revision {revision}" if revision else "")
        try:
            return Path(
                hf_hub_download(
                    repository,
                    filename,
                    revision=revision or None,
                    cache_dir=cache,
                    endpoint=endpoint(),
                    local_files_only=offline,
                )
            )
        except Exception as error:
            explained = _explain(error, where, repository, revision, cache, offline)
            if explained is None:  # not one of the ways in which the Hub or the disk fails: a bug, let it be seen
                raise
            raise explained from error

    @staticmethod
    def commit_of(path: Path) -> str:
        """The commit a file in the Hub's cache belongs to, or an empty string."""
        match = re.search(r"[/\\]snapshots[/\\]([0-9a-f]{40})[/\\]", str(path))
        return match[1] if match else ""


def push_model(
    model: nn.Module,
    repo_id: str,
    *,
    revision: str | None = None,
    private: bool | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
    licence: str | None = None,
    token: str | None = None,
    max_shard_bytes: int = 5_000_000_000,
) -> str:
    """Save a model and upload it to the Hub with a model card; the repository is made when it does not exist.

    Args:
        model: A model from `create_model` or `load_model`.
        repo_id: `org/name`.
        revision: Branch to commit to; default: the main one.
        private: Whether a new repository is private; default: the organisation's setting.
        commit_message: Default: the model's name.
        create_pr: Open a pull request instead of committing.
        licence: SPDX identifier of the weights; default: that of the code.
        token: Default: the one `hf auth login` or `HF_TOKEN` set.
        max_shard_bytes: As for `save_model`.

    Returns:
        `hf://org/name@commit`, which `load_model` takes.

    Raises:
        WeightsError: The model cannot be saved, or the Hub refuses; the message says why.
    """
    from astrozoo.weights.card import model_card
    from astrozoo.weights.save import OURS, save_model

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id):
        raise WeightsError(f"Cannot push to {repo_id!r}: a Hub id looks like org/name, or user/name.")
    if is_offline():
        raise WeightsError(f"Cannot push to {repo_id}: HF_HUB_OFFLINE is set. Unset it, then push again.")
    with tempfile.TemporaryDirectory() as temporary:
        folder = save_model(model, Path(temporary) / "model", max_shard_bytes=max_shard_bytes)
        card, name = model_card(folder, model, repo_id, licence)
        (folder / "README.md").write_text(card, encoding="utf-8")
        api = HfApi(endpoint=endpoint(), token=token)
        try:
            api.create_repo(repo_id, private=private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                revision=revision,
                commit_message=commit_message or f"Add {name}",
                create_pr=create_pr,
                delete_patterns=list(OURS),  # such as the shards of a larger model pushed before
            )
        except Exception as error:
            explained = _explain_push(error, repo_id, revision or "")
            if explained is None:
                raise
            raise explained from error
    return f"hf://{repo_id}@{commit.oid}"


def endpoint() -> str:
    """The Hub or its mirror; read at every call, so that setting `HF_ENDPOINT` after the import works too."""
    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def is_offline() -> bool:
    """Whether the user forbade the network."""
    value = os.environ.get("HF_HUB_OFFLINE", "").upper()
    return value in constants.ENV_VARS_TRUE_VALUES if value else bool(constants.HF_HUB_OFFLINE)


def hub_cache() -> Path:
    """The cache all tools that use the Hub share."""
    home = os.environ.get("HF_HOME")
    cache = os.environ.get("HF_HUB_CACHE") or (Path(home) / "hub" if home else constants.HF_HUB_CACHE)
    return Path(cache).expanduser()


def _explain(
    error: Exception, where: str, repository: str, revision: str, cache: Path | None, offline: bool
) -> WeightsError | None:
    """What went wrong and what to do, or None for an error that is nobody's but ours."""
    site, status = endpoint(), _status(error)
    text: str | None = None
    if isinstance(error, GatedRepoError):
        text = (
            f"{repository} is gated. Ask for access at {site}/{repository}, then log in with `hf auth login` or set "
            f"HF_TOKEN"
        )
    elif isinstance(error, RepositoryNotFoundError) or (status in (401, 403) and not offline):
        text = (
            f"{site} has no repository {repository!r}, or it is private and you have no access (answer {status}). "
            f"Check the name; for a private one log in with `hf auth login` or set HF_TOKEN"
        )
    elif isinstance(error, RevisionNotFoundError):
        text = f"{repository} on {site} has no revision {revision!r}. Check the branch, tag or commit"
    elif isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
        return MissingFileError(f"{where} does not exist on {site}. Check that the repository holds a saved model.")
    elif offline or isinstance(error, OfflineModeIsEnabled):
        text = (
            f"it is not in the cache {cache}, and HF_HUB_OFFLINE forbids looking on {site}. Unset it once to download"
        )
    elif status:
        text = f"{site} answered {_line(_root(error))}. Try again later, and check HF_ENDPOINT where it names a mirror"
    elif isinstance(error, LocalEntryNotFoundError):
        text = (
            f"it is not in the cache {cache}, and {site} cannot be reached ({_line(_root(error))}). "
            f"Check the connection"
        )
    elif isinstance(error, HFValidationError):
        text = f"{_line(error)}. A Hub id looks like org/name"
    elif isinstance(error, OSError) and (error.filename is not None or error.errno in (EACCES, ENOSPC, EROFS)):
        text = (
            f"the cache {cache} cannot be written ({error.strerror or error}). Make room or make it writable, or "
            f"choose another with HF_HOME or cache="
        )
    elif _is_transfer(error):
        text = (
            f"the transfer from {site} failed: {_line(error)}. Run the same command again; "
            f"what has arrived whole is not fetched again"
        )
    return None if text is None else WeightsError(f"Could not get {where}: {text}.")


def _explain_push(error: Exception, repository: str, revision: str) -> WeightsError | None:
    """As `_explain`, for an upload."""
    if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # the client wraps what fails in its upload threads
    site, status = endpoint(), _status(error)
    text: str | None = None
    if isinstance(error, RevisionNotFoundError):
        text = f"it has no branch {revision!r}. Make the branch first, or leave out revision"
    elif status in (401, 403) or isinstance(error, LocalTokenNotFoundError | RepositoryNotFoundError):
        answer = f"answer {status}" if status else "no token"
        text = (
            f"{site} does not let you write there ({answer}). Log in with `hf auth login`, set HF_TOKEN or give "
            f"token=, with a token that may write to it"
        )
    elif isinstance(error, HFValidationError):
        text = f"{_line(error)}. A Hub id looks like org/name"
    elif status:
        text = f"{site} answered {_line(error)}. Try again later"
    elif _is_transfer(error):
        text = f"the transfer to {site} failed: {_line(error)}. Run the same command again; nothing was committed"
    return None if text is None else WeightsError(f"Could not push to {repository}: {text}.")


def _status(error: BaseException) -> int:
    """The status the Hub answered with, or 0 when there was no answer."""
    while True:
        response = getattr(error, "response", None)
        if response is not None:
            return int(response.status_code)
        if error.__cause__ is None:
            return 0
        error = error.__cause__


def _is_transfer(error: Exception) -> bool:
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore")


def _root(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _line(error: BaseException) -> str:
    """The first line of an error, without its last stop: the client appends advice that is not for our users."""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return first.rstrip(".")
