"""The Hugging Face Hub, through its own client: fetch files, push models.

The client's environment variables hold: `HF_ENDPOINT` (a mirror), `HF_HUB_OFFLINE`, `HF_HOME`, `HF_TOKEN`.
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
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
        """Download one file, or find it in the cache; what was interrupted resumes.

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
    from astrozoo.weights.save import save_model

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
            )
        except Exception as error:
            explained = _explain(error, f"push to {repo_id}", repo_id, revision or "", None, False)
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
    return Path(os.environ.get("HF_HUB_CACHE") or (Path(home) / "hub" if home else constants.HF_HUB_CACHE))


def _explain(
    error: Exception, where: str, repository: str, revision: str, cache: Path | None, offline: bool
) -> WeightsError | None:
    """What went wrong and what to do, or None for an error that is nobody's but ours."""
    site = endpoint()
    if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # the client wraps what fails in its upload threads
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
    text: str | None = None
    if isinstance(error, GatedRepoError):
        text = (
            f"{repository} is gated. Ask for access at {site}/{repository}, then log in with `hf auth login` or set "
            f"HF_TOKEN"
        )
    elif isinstance(error, RepositoryNotFoundError) or status in (401, 403):
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
    elif isinstance(error, LocalEntryNotFoundError):
        text = f"it is not in the cache {cache}, and {site} cannot be reached ({_root(error)}). Check the connection"
    elif isinstance(error, HFValidationError):
        text = f"{error}. A Hub id looks like org/name"
    elif status:
        text = f"{site} answered {status}: {error}. Try again later"
    elif isinstance(error, PermissionError) or (isinstance(error, OSError) and error.errno in (13, 28, 30)):
        text = (
            f"the cache {cache} cannot be written ({error.strerror or error}). Make room or make it writable, or "
            f"choose another with HF_HOME or cache="
        )
    elif isinstance(error, OSError) or type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore"):
        text = f"the transfer from {site} failed: {error}. Run the same command again; it resumes where it stopped"
    return None if text is None else WeightsError(f"Could not get {where}: {text}.".replace("get push", "push"))


def _root(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}"
