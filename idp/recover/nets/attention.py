"""Attention in training.

On a CPU by plain products: torch's fused attention keeps no scores, and computes them anew for the gradient. On a GPU
that saves memory and time, on a CPU its backward pass takes several times as long as that of two products and a
softmax. While the scores are few enough, keeping them is cheap.

Elsewhere without a mask wherever each token sees all before it, a prompt included: torch's flash attention takes no
mask as a tensor, and knows the causal one whose last query sees the last key.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch.backends import cuda
from torch.nn.attention import bias
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from idp.prompting.masks import has_local_attention

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

PLAIN, MASKLESS = "idp_plain", "idp_maskless"
KERNELS = ("cuda", "meta")  # where torch has kernels that know the mask of `lower_right`; `meta` stands for a card
SCORES = 2**21  # of a layer at most: beyond, what is kept for the gradient outweighs the time
OTHERS = ("s_aux", "softcap", "position_bias")  # what the products below know nothing of


@contextlib.contextmanager
def training_attention(model: PreTrainedModel) -> Iterator[None]:
    """Within the block, a model that uses torch's attention attends in the way that trains best on its devices.

    Results differ by the rounding of the model's dtype. Models with other attention are left alone.
    """
    config = model.config.get_text_config()
    before = config._attn_implementation
    if before != "sdpa":
        yield
        return
    on_cpu = all(parameter.device.type == "cpu" for parameter in model.parameters())
    AttentionInterface.register(PLAIN, attend)
    AttentionMaskInterface.register(PLAIN, sdpa_mask)
    AttentionInterface.register(MASKLESS, attend_without_mask)
    AttentionMaskInterface.register(MASKLESS, no_mask)
    config._attn_implementation = PLAIN if on_cpu else MASKLESS
    try:
        yield
    finally:
        config._attn_implementation = before


def unmasked(model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, Any]:
    """What a model within `training_attention` is called with: no mask, where it says no more than the order does.

    Args:
        model: a causal language model.
        inputs: `input_ids`, [rows, tokens], and perhaps a cache of what all of them see, and a mask; no row is padded.
    """
    config, cache = model.config.get_text_config(), inputs.get("past_key_values")
    if config._attn_implementation != MASKLESS or cache is None:
        return inputs
    if not type(model).__module__.startswith("transformers."):
        return inputs  # code of a model's own may make another mask of none
    keys = cache.get_seq_length() + inputs["input_ids"].shape[1]
    if has_local_attention(model) and (_window(config) or 0) < keys:
        return inputs
    return {**inputs, "attention_mask": None}


def _window(config: PretrainedConfig) -> int | None:
    chunked = "chunked_attention" in (getattr(config, "layer_types", None) or ())
    return config.attention_chunk_size if chunked else config.sliding_window


def no_mask(
    *arguments: Any, kv_length: int, local_size: int | None = None, allow_is_causal_skip: bool = True, **named: Any
) -> torch.Tensor | None:
    """A mask function as transformers calls them: none where it would be causal, since no row is padded in training."""
    if allow_is_causal_skip and (local_size is None or local_size >= kv_length):
        return None
    return sdpa_mask(
        *arguments, kv_length=kv_length, local_size=local_size, allow_is_causal_skip=allow_is_causal_skip, **named
    )


def attend_without_mask(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **rest: Any,
) -> tuple[torch.Tensor, None]:
    """An attention function with the arguments of `attend`; None for a mask: the last query sees all keys, each query
    before it one key less."""
    width, keys = query.shape[2], key.shape[2]
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    ends_last = mask is None and causal and width not in (1, keys)
    if ends_last and query.device.type in KERNELS and all(rest.get(name) is None for name in OTHERS):
        return lower_right(query, key, value, dropout, scaling).transpose(1, 2).contiguous(), None
    if ends_last:  # torch would take None for the mask of a first query that sees the first key alone
        mask = torch.ones(1, 1, width, keys, dtype=torch.bool, device=query.device).tril(keys - width)
    return sdpa_attention_forward(
        module, query, key, value, mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **rest
    )


def lower_right(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout: float = 0.0, scaling: float | None = None
) -> torch.Tensor:
    """Attention, [rows, heads, queries, head_size], whose last query sees all keys and each before it one key less.

    No kernel of torch's is given a mask as a tensor for it: flash, or else the memory-efficient one.
    """
    shared = query.shape[1] != key.shape[1]
    if shared and not _flash_takes(query, key, value, dropout):  # no other kernel lets heads share keys
        key, value = (repeat_kv(tensor, query.shape[1] // key.shape[1]) for tensor in (key, value))
        shared = False
    mask = bias.causal_lower_right(query.shape[2], key.shape[2])
    return torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=dropout, scale=scaling, enable_gqa=shared
    )


def _flash_takes(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout: float) -> bool:
    # Asked as CausalBias asks: of its own causal flag torch would say that it wants as many queries as keys.
    return cuda.can_use_flash_attention(cuda.SDPAParams(query, key, value, None, dropout, False, True))


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **rest: Any,
) -> tuple[torch.Tensor, None]:
    """An attention function as transformers calls them.

    Args:
        module: the attention layer.
        query: [rows, heads, queries, head_size].
        key: [rows, key heads, keys, head_size].
        value: the same.
        mask: [rows or 1, 1, queries, keys], true where a key is seen, or what is added to the scores; None: each query
            sees all keys up to its own.
        dropout: of the weights.
        scaling: of the scores; None: 1 / sqrt(head_size).
        is_causal: what None means as a mask; None: as the layer says.
        rest: what else a model hands on.

    Returns:
        [rows, queries, heads, head_size], and None for the weights.
    """
    rows, heads, width, size = query.shape
    kv_heads, keys = key.shape[1:3]
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if (
        rows * heads * width * keys > SCORES
        or dropout
        or any(rest.get(name) is not None for name in OTHERS)
        or (mask is None and not (causal and keys == width))
        or (mask is not None and mask.shape[1] != 1)
    ):
        return sdpa_attention_forward(
            module, query, key, value, mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **rest
        )
    if mask is None:
        mask = torch.ones(1, 1, width, keys, dtype=torch.bool, device=query.device).tril()
    # Heads that share keys stand below one another: their products are one, and no key is repeated.
    query = (query * (size**-0.5 if scaling is None else scaling)).reshape(rows, kv_heads, -1, size)
    scores = query @ key.transpose(-1, -2)
    scores, mask = scores.view(rows, kv_heads, -1, width, keys), mask[:, :, None]
    scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    output = scores.softmax(-1).view(rows, kv_heads, -1, keys) @ value
    return output.view(rows, heads, width, size).transpose(1, 2).contiguous(), None
