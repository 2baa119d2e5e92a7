"""Which tokens a token may see, in the form that a model's layers take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def attention_mask(
    model: PreTrainedModel, visible: torch.Tensor, query_positions: torch.Tensor, key_positions: torch.Tensor
) -> Any:
    """The mask in the form that the model's layers take: additive, and per kind of layer where windows slide.

    Args:
        model: its config says which layers have a sliding window.
        visible: [rows, queries, keys], True where a query may see a key. Every query must see one key at least.
        query_positions: [rows or 1, queries].
        key_positions: [rows or 1, keys].

    Returns:
        [rows, 1, queries, keys], or a dict of such by kind of layer for models that mix kinds.
    """
    if not has_local_attention(model):
        return _additive(model, visible)
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    if "chunked_attention" in kinds:
        size = config.attention_chunk_size
        same = key_positions[:, None, :] // size == query_positions[:, :, None] // size
        return {"full_attention": _additive(model, visible), "chunked_attention": _additive(model, visible & same)}
    near = key_positions[:, None, :] > query_positions[:, :, None] - config.sliding_window
    if "full_attention" in kinds:
        return {"full_attention": _additive(model, visible), "sliding_attention": _additive(model, visible & near)}
    return _additive(model, visible & near)


def has_local_attention(model: PreTrainedModel) -> bool:
    """Whether any layer sees only the nearest tokens, or those of one chunk."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    if "chunked_attention" in kinds:
        return True
    if getattr(config, "sliding_window", None) is None or getattr(config, "use_sliding_window", True) is False:
        return False
    return kinds != {"full_attention"}


def _additive(model: PreTrainedModel, visible: torch.Tensor) -> torch.Tensor:
    import torch

    mask = torch.zeros(visible.shape, dtype=model.dtype, device=visible.device)
    return mask.masked_fill_(~visible, torch.finfo(model.dtype).min)[:, None]
