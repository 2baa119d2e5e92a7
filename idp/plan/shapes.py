"""Architectures of real models by name, as arguments of `transformers.AutoConfig.for_model`: no download is needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def _llama(hidden: int, intermediate: int, layers: int, heads: int, **other: Any) -> dict[str, Any]:
    shape = {
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "max_position_embeddings": 2048,
        "vocab_size": 32000,
        "tie_word_embeddings": False,
    }
    return shape | other


_LLAMA3 = {"num_key_value_heads": 8, "max_position_embeddings": 8192, "vocab_size": 128256}

SHAPES: dict[str, dict[str, Any]] = {
    "llama32_1b": _llama(2048, 8192, 16, 32, **_LLAMA3, head_dim=64, tie_word_embeddings=True),
    "opt_6.7b": {
        "model_type": "opt",
        "hidden_size": 4096,
        "ffn_dim": 16384,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 2048,
        "vocab_size": 50272,
        "word_embed_proj_dim": 4096,
        "tie_word_embeddings": True,
    },
    "llama_7b": _llama(4096, 11008, 32, 32),
    "llama3_8b": _llama(4096, 14336, 32, 32, **_LLAMA3),
    "llama_13b": _llama(5120, 13824, 40, 40),
}


def config_of(name: str, **changed: Any) -> PretrainedConfig:
    """The config of a shape of `SHAPES`; `changed` replaces single values, such as `num_hidden_layers`."""
    from transformers import AutoConfig

    values = {**SHAPES[name], **changed}
    return AutoConfig.for_model(values.pop("model_type"), **values)
