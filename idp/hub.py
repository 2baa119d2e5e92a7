"""The Hugging Face hub, asked once whether it answers, so that a machine without network fails in seconds."""

from __future__ import annotations

import contextlib
import functools
import os
import urllib.error
import urllib.request
from typing import Any

SECONDS_TO_ANSWER = 4
OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")


@functools.cache
def reachable() -> bool:
    """Whether the hub answers; asked once per process, and never when the user has set an offline variable."""
    if any(os.environ.get(name, "").lower() in {"1", "true", "yes", "on"} for name in OFFLINE_VARIABLES):
        return False
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
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

    with contextlib.nullcontext() if reachable() else _offline():
        return datasets.load_dataset(path, **options)


def reason(error: Exception) -> str:
    """Why `load_dataset` failed, in a few words."""
    return " ".join(str(error).split())[:160] if reachable() else "no network, and not in the local cache"


@contextlib.contextmanager
def _offline():
    """The libraries read their environment variables on import only, hence the switches themselves."""
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
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)
