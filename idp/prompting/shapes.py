"""The shapes of keys and values, as a model's config says them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def kv_shape(config: PretrainedConfig) -> tuple[int, int]:
    """Key/value heads of a layer and the width of one."""
    config = config.get_text_config()
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return getattr(config, "num_key_value_heads", None) or heads, head_dim


def prefix_width(config: PretrainedConfig) -> int:
    """Numbers that a trained prefix takes per token: 2 * layers * kv_heads * head_dim."""
    heads, head_dim = kv_shape(config)
    return 2 * config.get_text_config().num_hidden_layers * heads * head_dim
