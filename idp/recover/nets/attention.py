"""Attention in training on a CPU, by plain products.

Torch's fused attention keeps no scores, and computes them anew for the gradient: on a GPU that saves memory and time,
on a CPU its backward pass takes several times as long as that of two products and a softmax. While the scores are few
enough, keeping them is cheap.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PLAIN = "idp_plain"
SCORES = 2**21  # of a layer at most: beyond, what is kept for the gradient outweighs the time
OTHERS = ("s_aux", "softcap", "position_bias")  # what the products below know nothing of


@contextlib.contextmanager
def plain_attention(model: PreTrainedModel) -> Iterator[None]:
    """Within the block, a model on a CPU that uses torch's attention attends by plain products where they are quicker.

    Results differ by the rounding of the model's dtype. Models on other devices or with other attention are left alone.
    """
    config = model.config.get_text_config()
    before = config._attn_implementation
    if before != "sdpa" or any(parameter.device.type != "cpu" for parameter in model.parameters()):
        yield
        return
    AttentionInterface.register(PLAIN, attend)
    AttentionMaskInterface.register(PLAIN, sdpa_mask)
    config._attn_implementation = PLAIN
    try:
        yield
    finally:
        config._attn_implementation = before


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
