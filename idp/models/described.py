"""What a model is but for its weights: config, generation settings and tokenizer, had without reading a weight.

All that the keys of a run's products ask of a model is in there, so that they are known before the model is loaded.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path

from idp import fetched, models
from idp.config import Model
from idp.models import ModelSource, streamed
from idp.models.gguf import model as ggufs
from idp.store import Store, canonical


def described(config: Model, source: ModelSource, store: Store) -> Path:
    """A folder with the config, the generation settings and the tokenizer of a model, to be read only.

    A folder's is itself; of a model on the hub those files are fetched; of a GGUF file and of random weights they are
    those of the load product, or are made of the file's header and of the architecture, for as long as this process
    runs.

    Raises:
        UserError: they cannot be had.
    """
    if source.kind == "hub":
        assert config.path is not None
        return source.place or fetched.description(
            config.path, source.identity["commit"], "model", config.trust_remote_code
        )
    if source.kind == "folder":
        assert source.place is not None
        return source.place
    loaded = store.finished(models.identity(config, source))
    if loaded is not None:
        return models.model_folder(loaded)
    if source.kind == "gguf":
        assert source.place is not None
        return written(canonical(source.identity), functools.partial(ggufs.describe, source.place))
    return written(canonical(source.identity), functools.partial(_random, source.identity["architecture"]))


_written: dict[str, tempfile.TemporaryDirectory] = {}


def written(name: str, write: Callable[[Path], None]) -> Path:
    """The folder that `write` has filled in this process for a name; it goes when the process ends."""
    if name not in _written:
        place = tempfile.TemporaryDirectory(prefix="idp-model-")
        write(Path(place.name))
        _written[name] = place
    return Path(_written[name].name)


def _random(architecture: dict, folder: Path) -> None:
    import torch

    with torch.device("meta"):
        model, tokenizer = models.random_model(architecture)
    streamed.save_settings(model, folder)
    tokenizer.save_pretrained(folder)
