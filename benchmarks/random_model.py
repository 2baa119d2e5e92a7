"""A model of any shape with random weights, made where it will run: what speed and memory need of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from idp.models import LoadedModel


def random_model(shape: dict[str, Any], dtype: torch.dtype, device: torch.device | str, seed: int = 0) -> LoadedModel:
    """A frozen causal language model with a tokenizer of bytes; nothing is read from disk or passes through a CPU.

    Args:
        shape: arguments of `transformers.AutoConfig.for_model`. A vocabulary larger than the tokenizer's is kept, since
            the output head's cost depends on it; one that is not named is the tokenizer's.
        dtype: of the weights.
        device: where they are drawn.
        seed: the same weights each time, on the same kind of device.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from idp.models import LoadedModel, byte_tokenizer

    tokenizer = byte_tokenizer()
    ids = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 0}
    values = ids | shape
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    torch.manual_seed(seed)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return LoadedModel(model.eval().requires_grad_(False), tokenizer)
