"""GGUF files as models: opened in memory with dequantised weights, or written out as a folder for every stage."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from idp import hub
from idp.errors import UserError, lacks_memory
from idp.models import streamed, weights
from idp.models.gguf import config as configs
from idp.models.gguf import header as headers
from idp.models.gguf import plain, tokenizer
from idp.models.gguf.header import Header
from idp.models.gguf.tensors import GgufTensors

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

# Raised when files that had been read before come out otherwise.
REVISION = 2


def check(file: Path, with_tokenizer: bool) -> Header:
    """Refuses a GGUF file that is not read as it says, from its header alone.

    Args:
        file: the file.
        with_tokenizer: whether its tokenizer is wanted, or its weights alone.

    Raises:
        UserError: it is no such file, a part of a split, or something in it is not read.
    """
    header = headers.read(file)
    configs.settings(header)
    if with_tokenizer:
        tokenizer.check(header)
    return header


def revision(header: Header) -> dict[str, int]:
    """What a file's identity has beside its hash: nothing where it has always been read as it is now.

    Files of Llama's architecture with plain positions and SmolLM's byte-level tokenizer were; whatever else is in a
    store may be another model or have other tokens than its file says.
    """
    settings = configs.settings(header)
    positions = settings.get("rope_parameters") or {}
    vocabulary = tokenizer.Vocabulary(header)
    as_ever = (
        settings["model_type"] == "llama"
        and positions.get("rope_type") == "default"
        and not settings["attention_bias"]
        and header.token("pre") == "smollm"
        and not vocabulary.add_bos
        and not vocabulary.add_eos
        and len(vocabulary.ends) == 1
    )
    return {} if as_ever else {"revision": REVISION}


def config_of(file: Path, like: PretrainedConfig | None = None) -> PretrainedConfig:
    """A GGUF file's config, without its weights, stated as `like` states it where both are one function.

    Raises:
        UserError: it cannot be read.
    """
    return configs.config_of(headers.read(file), like)


def open_weights(file: Path, dtype: torch.dtype) -> PreTrainedModel:
    """A GGUF file's model with its weights dequantised to `dtype`, one by one; every tensor of the file has its place.

    Raises:
        UserError: it cannot be read, or a tensor is missing, left over or of another shape.
    """
    header = headers.read(file)
    empty = _empty(_as_stored(configs.config_of(header)), dtype)
    with _reading(file):
        model, about = type(empty).from_pretrained(
            None, config=empty.config, state_dict=GgufTensors(header, empty), dtype=dtype, output_loading_info=True
        )
    weights.check_loaded(str(file), about)
    return model


def convert(file: Path, folder: Path) -> None:
    """Writes a GGUF file's dequantised weights, config and tokenizer as a plain float32 folder, tensor by tensor.

    Raises:
        UserError: something in the file is not read.
    """
    import torch

    header = headers.read(file)
    vocabulary = tokenizer.check(header)
    model = _described(header, vocabulary)
    tensors = GgufTensors(header, _empty(_as_stored(model.config), torch.float32))
    with _reading(file):
        streamed.save(model, folder, tensors, where=str(file))
    tokenizer.save(tokenizer.build(vocabulary), folder)


def describe(file: Path, folder: Path) -> None:
    """Writes of a GGUF file what `convert` does, but for the weights.

    Raises:
        UserError: something in the file is not read.
    """
    header = headers.read(file)
    vocabulary = tokenizer.check(header)
    with _reading(file):
        streamed.save_settings(_described(header, vocabulary), folder)
    tokenizer.save(tokenizer.build(vocabulary), folder)


def _described(header: Header, vocabulary: tokenizer.Vocabulary) -> PreTrainedModel:
    """The model of a header without its weights, in float32, with its generation settings."""
    import torch

    model = _empty(configs.config_of(header), torch.float32)
    if len(vocabulary.ends) > 1:
        model.generation_config.eos_token_id = vocabulary.ends
    return model


def _empty(config: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """The model of a config without its weights."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def _as_stored(config: PretrainedConfig) -> PretrainedConfig:
    """The config under whose names the file's tensors are found: Mistral's are stored as Llama's."""
    from transformers import AutoConfig

    if config.model_type != "mistral":
        return config
    other = ("model_type", "sliding_window")
    return AutoConfig.for_model("llama", **{k: v for k, v in config.to_dict().items() if k not in other})


def encoding(file: Path) -> Callable[[str], list[int]]:
    """How a GGUF file's own pieces encode a text, by a plain implementation, without what is added at its ends.

    Raises:
        UserError: the file's tokenizer is not read.
    """
    vocabulary = tokenizer.check(headers.read(file))
    return lambda text: plain.encode(vocabulary, text)


def names(header: Header, layers: list[str]) -> dict[str, str]:
    """The GGUF name of each layer's weight."""
    import gguf

    known = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    table = gguf.get_tensor_name_map(known[header.architecture], int(header.get("block_count")))
    return {layer: f"{found}.weight" for layer in layers if (found := table.get_name(layer)) is not None}


@contextlib.contextmanager
def _reading(file: Path) -> Iterator[None]:
    before = os.environ.get("HF_HUB_OFFLINE")
    os.environ["HF_HUB_OFFLINE"] = "1"  # everything is in the file
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or lacks_memory(error):
            raise
        raise UserError(f"{file}: cannot be read as a GGUF model: {hub.first_line(error)}") from error
    finally:
        if before is None:
            os.environ.pop("HF_HUB_OFFLINE")
        else:
            os.environ["HF_HUB_OFFLINE"] = before
