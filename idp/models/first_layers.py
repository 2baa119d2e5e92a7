"""The first layers of a model, with its embeddings and without its head: enough to choose a prompt for an input."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idp import beginning
from idp.config import Model
from idp.errors import UserError
from idp.models import LoadedModel, device_of, dtype_of, make_current, unpacking, weights
from idp.models.weight_files import WeightFiles
from idp.store import verification

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def open_first_layers(folder: Path, config: Model, layers: int) -> LoadedModel:
    """A model of the first layers alone; the tensors of the others are not read, nor is the head.

    In the head's place are the embeddings: its logits mean nothing.

    Args:
        folder: the model's, its weights packed or not.
        config: dtype and device.
        layers: how many, at least one.

    Raises:
        UserError: the folder cannot be read, or is of a class that has no such layers.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    trust = config.trust_remote_code
    make_current(device_of(config))
    with verification.while_read(folder):
        files = WeightFiles(folder, str(folder))
        if files.pickled:
            raise UserError(f"{folder}: its weights are pickled, of which no part can be read alone; use safetensors")
        shape = cut(unpacking.plain_config(folder, trust), layers)
        with torch.device("meta"):
            empty = AutoModelForCausalLM.from_config(shape, trust_remote_code=trust)
        head = next((name for name, found in empty.named_modules() if found is empty.get_output_embeddings()), "")
        state = {
            name: tensor
            for name, tensor in unpacking.tensors(files).items()
            if (layer_of(name) or 0) < layers and not (head and name.startswith(f"{head}."))
        }
        try:
            with weights.silent() as messages:
                model, about = type(empty).from_pretrained(
                    None,
                    config=shape,
                    state_dict=state,
                    dtype=dtype_of(config),
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,
                )
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise UserError(f"{folder}: cannot be loaded: {weights.first_fault(error, messages)}") from error
        missing = {name for name in map(str, about["missing_keys"]) if not (head and name.startswith(f"{head}."))}
        weights.check_loaded(str(folder), {**about, "missing_keys": missing}, model.config)
    model = model.eval().requires_grad_(False).to(device_of(config))
    return LoadedModel(model, tokenizer, beginning.resolve(config.bos, tokenizer))


def cut(config: PretrainedConfig, layers: int) -> PretrainedConfig:
    """A model's config with its first layers alone, its head tied to its embeddings so that there is none to load."""
    text = config.get_text_config()
    total = text.num_hidden_layers
    described: dict[str, Any] = text.to_dict()
    for name, value in described.items():  # what is said of each layer
        if isinstance(value, list) and len(value) == total:
            setattr(text, name, value[:layers])
    text.num_hidden_layers = min(layers, total)
    config.tie_word_embeddings = text.tie_word_embeddings = True
    return config


def layer_of(name: str) -> int | None:
    """The number of the layer that a tensor or module is of: the first number in its name; None where there is none."""
    found = re.search(r"\.(\d+)(?:\.|$)", name)
    return int(found[1]) if found else None
