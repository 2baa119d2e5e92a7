"""How many tokens go through a model at once, where `evaluation.batch_tokens` does not say.

It is part of every score's key, and batches are planned before scoring starts, so that a killed task goes on with the
batches that are left. The choice therefore rests on what stays: the model's shape, its dtype, and the card's memory,
never on what of it is free just now.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from idp import models

if TYPE_CHECKING:
    import torch

    from idp import config as schema

FEWEST, MOST = 2**12, 2**15  # tokens
LAYER_FLOPS = 1.5e12  # of a layer and batch: about 3 ms of an H100; the kernels of a layer take some 1 ms to launch
SHARE = 4  # of the memory beside the weights, batches take one part in so many: logits and caches take others
DECODED = 4  # times the keys and values of what is read: those of what is generated, and padding


def batch_tokens(model: schema.Model, evaluation: schema.Evaluation, empty: models.LoadedModel) -> int:
    """Tokens per forward pass.

    Args:
        model: the model's options.
        evaluation: its `batch_tokens`, where it is set, is what it says.
        empty: the dense model without its weights: all models of a run take batches of one size.
    """
    if evaluation.batch_tokens is not None:
        return evaluation.batch_tokens
    memory = None if model.device_map else card_bytes(models.device_of(model))
    if memory is None:
        return FEWEST
    weights = sum(parameter.numel() for parameter in empty.model.parameters())
    return fitting(empty.model.config.get_text_config(), weights, models.dtype_of(model).itemsize, memory)


def card_bytes(device: torch.device) -> int | None:
    """All memory of a GPU; None elsewhere, where larger batches win nothing."""
    import torch

    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None


def fitting(shape: Any, weights: int, itemsize: int, memory: int) -> int:
    """The tokens that keep a card busy with a layer for longer than its kernels take to launch, if they fit.

    A layer of LLaMA-7B does with 4,096 of them; one of 135 million weights would need 200,000.

    Args:
        shape: the config of the text model.
        weights: how many there are.
        itemsize: bytes of each, and of activations.
        memory: bytes of the card.

    Returns:
        a power of two, from `FEWEST` to `MOST`.
    """
    token, layers = token_bytes(shape, itemsize), shape.num_hidden_layers
    wanted = LAYER_FLOPS / (2 * weights / layers)
    room = (memory - itemsize * weights) / SHARE / token
    tokens = FEWEST
    while tokens < min(wanted, MOST) and 2 * tokens <= room:
        tokens *= 2
    return tokens


def token_bytes(shape: Any, itemsize: int) -> int:
    """Bytes that a token of a forward pass takes: its activations in a layer, its keys and values in all of them.

    Args:
        shape: the config of the text model.
        itemsize: bytes of an activation.
    """
    layers, hidden = shape.num_hidden_layers, shape.hidden_size
    inner = getattr(shape, "intermediate_size", None) or 4 * hidden
    heads = shape.num_attention_heads
    kv_heads = getattr(shape, "num_key_value_heads", None) or heads
    head_dim = getattr(shape, "head_dim", None) or hidden // heads
    cache = 2 * layers * kv_heads * head_dim
    return itemsize * (8 * hidden + 3 * inner + DECODED * cache)
