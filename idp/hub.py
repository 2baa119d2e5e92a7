"""The Hugging Face hub: whether it answers, asked once, so that a machine without network fails in seconds; what is on
it; and downloads."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from idp.errors import UserError
from idp.store import read_json

ENDPOINT = "https://huggingface.co"
SECONDS_TO_ANSWER = 4
OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")

_kept_offline: contextvars.ContextVar[bool] = contextvars.ContextVar("kept_offline", default=False)


class NotAnswering(Exception):
    """The hub cannot be asked now, or does not say."""


def reachable() -> bool:
    """Whether the hub answers; asked once per process, and never when the user has set an offline variable."""
    return not _kept_offline.get() and _answers()


@functools.cache
def _answers() -> bool:
    if any(os.environ.get(name, "").lower() in {"1", "true", "yes", "on"} for name in OFFLINE_VARIABLES):
        return False
    import urllib.error
    import urllib.request

    endpoint = os.environ.get("HF_ENDPOINT", ENDPOINT)
    try:
        with urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=SECONDS_TO_ANSWER):
            return True
    except urllib.error.HTTPError as error:
        return error.code < 500 and error.code not in (403, 407)  # those two are how a proxy refuses
    except (OSError, ValueError):
        return False


def load_dataset(path: str, **options: Any) -> Any:
    """`datasets.load_dataset`, which without network reads its local cache and never retries.

    Raises:
        whatever `datasets` raises: the caller knows what to tell the user.
    """
    import datasets

    with contextlib.nullcontext() if reachable() else offline():
        return datasets.load_dataset(path, **options)


def reason(error: Exception) -> str:
    """Why `load_dataset` failed, in a few words."""
    return " ".join(str(error).split())[:160] if reachable() else "no network, and not in the local cache"


def dataset_commit(path: str, revision: str | None) -> str:
    """The commit that a revision of a data set is now; None is the default branch.

    Raises:
        NotAnswering: the hub does not say; whoever then reads the data set finds out why.
    """
    from httpx import HTTPError
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if not reachable():
        raise NotAnswering(path)
    try:
        return HfApi().dataset_info(path, revision=revision, timeout=10).sha
    except (HfHubHTTPError, HTTPError, OfflineModeIsEnabled, OSError, RuntimeError, ValueError) as error:
        raise NotAnswering(path) from error


@dataclass(frozen=True)
class Repository:
    """A hub repository as it is now, or as it was downloaded earlier.

    `config` is its config.json, or the hub's summary of it; `files` are the names of its files.
    """

    commit: str
    config: dict[str, Any]
    files: list[str]


def repository(path: str, revision: str | None, option: str) -> Repository:
    """What `revision` of a hub repository is now, or what a copy downloaded earlier is.

    Args:
        path: the hub id.
        revision: branch, tag or commit; None for the default branch.
        option: the config group that names it: errors say `<option>.path=...`.

    Raises:
        UserError: it is not there, gated, or the hub cannot be reached and no copy was downloaded earlier.
    """
    from httpx import HTTPError
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    where = f"{option}.path={path}"
    try:
        info = HfApi().model_info(path, revision=revision, timeout=10)
        files = [file.rfilename for file in getattr(info, "siblings", None) or []]
        return Repository(info.sha, getattr(info, "config", None) or {}, files)
    except GatedRepoError as error:
        raise UserError(_gated(where, path)) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{where}: not on the hub, or private, and no folder here; check the id or the path, and if it is private,"
            " run `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(f"{option}.revision={revision}: {path} has no such branch, tag or commit") from error
    except HFValidationError as error:
        raise UserError(f"{where}: neither a hub id (owner/name) nor a folder here") from error
    except (HfHubHTTPError, HTTPError, OfflineModeIsEnabled, OSError, RuntimeError, ValueError) as error:
        # Not reachable: a copy that was downloaded earlier serves as well.
        if (copy := _downloaded_copy(path, revision)) is not None:
            return Repository(copy.name, read_json(copy / "config.json"), sorted(file.name for file in copy.iterdir()))
        other = (
            "model=<folder or GGUF file>, or the embedded default" if option == "model" else f"{option}.path=<folder>"
        )
        raise UserError(
            f"{where}: the hub cannot be reached and there is no downloaded copy ({first_line(error)}); `idp fetch` on"
            f" a machine with network downloads it; without one use {other}"
        ) from error


def _gated(where: str, path: str) -> str:
    """What to do about a repository whose licence is to be accepted first."""
    endpoint = os.environ.get("HF_ENDPOINT", ENDPOINT)
    return f"{where}: gated; accept its licence at {endpoint}/{path}, then run `hf auth login` and this again"


def _downloaded_copy(path: str, revision: str | None) -> Path | None:
    """The snapshot of a repository in the hub's cache: the revision's, or the only one where that is not known.

    What was downloaded by its commit leaves no word of the branch that the commit was of.
    """
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.file_download import repo_folder_name

    cached = try_to_load_from_cache(path, "config.json", revision=revision)
    if isinstance(cached, str):
        return Path(cached).parent
    snapshots = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=path, repo_type="model") / "snapshots"
    found = list(snapshots.glob("*/config.json"))
    return found[0].parent if revision is None and len(found) == 1 else None


def download(
    path: str, revision: str | None, option: str, pickles: bool = True, code: bool = False, weights: bool = True
) -> Path:
    """The folder of a hub repository's config, tokenizer and weights, downloaded unless it is there.

    Args:
        path: the hub id.
        revision: branch, tag or commit; None for the default branch.
        option: the config group that names it.
        pickles: whether `.bin` weights serve where there are no safetensors.
        code: whether the model's own Python is wanted, to be run.
        weights: whether weights are wanted; else config and tokenizer alone.

    Raises:
        UserError: it is gated, or the download failed.
    """
    from httpx import HTTPError
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError

    # The licence and the card go with an export.
    wanted = ["*.json", "*.model", "*.txt", "LICENSE*", "NOTICE*", "README.md"]
    wanted += ["*.py", "*.tiktoken"] if code else []
    wanted += ["*.safetensors"] if weights else []
    try:
        folder = Path(snapshot_download(path, revision=revision, allow_patterns=wanted))
        if weights and pickles and not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(path, revision=revision, allow_patterns=[*wanted, "*.bin"]))
    except GatedRepoError as error:
        raise UserError(_gated(f"{option}.path={path}", path)) from error
    except (LocalEntryNotFoundError, HTTPError, OSError) as error:
        raise UserError(f"{option}.path={path}: the download failed: {first_line(error)}") from error
    return folder


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its kind where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """Inside, the hub counts as not reachable, and the libraries keep to what they have.

    They read their environment variables on import only, hence the switches themselves.
    """
    import datasets
    import huggingface_hub.constants

    switches = [
        (datasets.config, "HF_HUB_OFFLINE"),
        (datasets.config, "HF_DATASETS_OFFLINE"),
        (huggingface_hub.constants, "HF_HUB_OFFLINE"),
    ]
    before = [(module, name, getattr(module, name)) for module, name in switches if hasattr(module, name)]
    for module, name, _ in before:
        setattr(module, name, True)
    token = _kept_offline.set(True)
    try:
        yield
    finally:
        _kept_offline.reset(token)
        for module, name, value in before:
            setattr(module, name, value)
