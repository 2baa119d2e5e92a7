"""Writes models and tokenizers as GGUF files, by the rules of llama.cpp's converter; for tests."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
ARCHITECTURES = {"mistral": "llama", "gemma3_text": "gemma3"}


def write_model(
    folder: Path,
    file: Path,
    tokenizer: dict[str, Any] | None = None,
    more: dict[str, Any] | None = None,
    drop: tuple[str, ...] = (),
    tensors: dict[str, np.ndarray] | None = None,
) -> Path:
    """A model's folder as a GGUF file in single precision.

    Args:
        folder: of the model.
        file: where to.
        tokenizer: values of `tokenizer.*` keys; None: those of `byte_level(folder)`.
        more: further values: of `<architecture>.*` keys where they have no dot-separated prefix of their own.
        drop: keys (without the architecture) and tensors that are left out.
        tensors: further ones.
    """
    import gguf
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    config = model.config
    architecture = ARCHITECTURES.get(config.model_type, config.model_type)
    writer = gguf.GGUFWriter(file, architecture)
    values = {f"{architecture}.{name}": value for name, value in {**_values(config), **(more or {})}.items()}
    values |= byte_level(folder) if tokenizer is None else tokenizer
    for key, value in values.items():
        if key.removeprefix(f"{architecture}.") not in drop and key not in drop:
            add(writer, key, value)
    for name, tensor in _tensors(model, architecture, tensors or {}).items():
        if name not in drop:
            writer.add_tensor(name, np.ascontiguousarray(tensor, dtype=np.float32))
    _close(writer)
    return file


def write_tokenizer(file: Path, values: dict[str, Any]) -> Path:
    """A GGUF file of a llama that has a tokenizer and hardly any weights."""
    import gguf

    writer = gguf.GGUFWriter(file, "llama")
    shape = {"block_count": 1, "context_length": 64, "embedding_length": 8, "feed_forward_length": 8}
    shape |= {"attention.head_count": 1, "attention.layer_norm_rms_epsilon": 1e-5}
    for name, value in shape.items():
        add(writer, f"llama.{name}", value)
    for key, value in values.items():
        add(writer, key, value)
    writer.add_tensor("token_embd.weight", np.zeros((len(values["tokenizer.ggml.tokens"]), 8), dtype=np.float32))
    _close(writer)
    return file


def add(writer: Any, key: str, value: Any) -> None:
    """One value, in the type that llama.cpp's converter gives it."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif value:  # the format has no empty arrays
        writer.add_array(key, value)


def byte_level(folder: Path, pre: str = "gpt-2", **values: Any) -> dict[str, Any]:
    """The keys of a byte-level tokenizer: that of a folder."""
    saved = json.loads((folder / "tokenizer.json").read_text())
    tokens = sorted(saved["model"]["vocab"], key=saved["model"]["vocab"].get)
    special = {token["content"] for token in saved["added_tokens"]}
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in saved["model"]["merges"]]
    found = {
        "model": "gpt2",
        "pre": pre,
        "tokens": tokens,
        "token_type": [CONTROL if token in special else NORMAL for token in tokens],
        "merges": merges,
        "bos_token_id": 0,
        "eos_token_id": 0,
        **values,
    }
    return {f"tokenizer.ggml.{name}": value for name, value in found.items()}


def sentencepiece(words: list[str], space_prefix: bool | None, **values: Any) -> dict[str, Any]:
    """The keys of a SentencePiece tokenizer: bytes, letters, and what is needed to merge `words`, in that order."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    types = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256]
    scores = [0.0] * len(tokens)
    pieces = {}
    for word in words:
        for cut in range(2, len(word) + 1):
            pieces.setdefault(word[:cut])
    letters = dict.fromkeys("".join(words) + "▁")
    for number, piece in enumerate([*pieces, *(letter for letter in letters if letter not in pieces)]):
        tokens.append(piece)
        types.append(NORMAL)
        scores.append(-float(number))
    found = {"model": "llama", "pre": "default", "tokens": tokens, "scores": scores, "token_type": types}
    found |= {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}
    if space_prefix is not None:
        found["add_space_prefix"] = space_prefix
    found |= values
    return {f"tokenizer.ggml.{name}": value for name, value in found.items()}


def llama3_factors(config: Any) -> np.ndarray:
    """`rope_freqs.weight` as llama.cpp's converter computes it, [head_dim / 2]."""
    said = config.rope_parameters
    wavelengths = 2 * math.pi * said["rope_theta"] ** (np.arange(0, config.head_dim, 2) / config.head_dim)
    low, high, factor = (said[name] for name in ("low_freq_factor", "high_freq_factor", "factor"))
    context, factors = said["original_max_position_embeddings"], []
    for wavelength in wavelengths:
        if wavelength < context / high:
            factors.append(1.0)
        elif wavelength > context / low:
            factors.append(factor)
        else:
            smooth = (context / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, dtype=np.float32)


def _values(config: Any) -> dict[str, Any]:
    """What the converter writes of a config, keys without the architecture."""
    heads, width = config.num_attention_heads, config.hidden_size
    found = {
        "context_length": config.max_position_embeddings,
        "embedding_length": width,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": getattr(config, "intermediate_size", None) or 4 * width,
        "attention.head_count": heads,
        "vocab_size": config.vocab_size,
    }
    if getattr(config, "num_key_value_heads", None):
        found["attention.head_count_kv"] = config.num_key_value_heads
    if getattr(config, "head_dim", None):
        found["attention.key_length"] = found["attention.value_length"] = config.head_dim
    for name in ("rms_norm_eps",):
        if hasattr(config, name):
            found["attention.layer_norm_rms_epsilon"] = getattr(config, name)
    for name in ("layer_norm_epsilon", "norm_epsilon"):
        if hasattr(config, name):
            found["attention.layer_norm_epsilon"] = getattr(config, name)
    rope = getattr(config, "rope_parameters", None)
    if rope:
        rope = rope.get("full_attention", rope)
        found["rope.freq_base"] = float(rope["rope_theta"])
    if config.model_type in ("gemma2", "gemma3_text", "phi3"):
        found["attention.sliding_window"] = config.sliding_window or 0
    if config.model_type == "gemma2":
        found["attn_logit_softcapping"] = float(config.attn_logit_softcapping)
        found["final_logit_softcapping"] = float(config.final_logit_softcapping)
    if config.model_type in ("llama", "mistral"):
        found["rope.dimension_count"] = getattr(config, "head_dim", None) or width // heads
    if config.model_type == "phi3":
        share = rope.get("partial_rotary_factor", 1.0)
        found["rope.dimension_count"] = int(share * width) // heads
        found["rope.scaling.original_context_length"] = config.original_max_position_embeddings
    return found


def _tensors(model: Any, architecture: str, more: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    import gguf

    config = model.config
    known = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(known[architecture], config.num_hidden_layers)
    found = dict(more)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        layer, kind = name.rsplit(".", 1)
        values = tensor.numpy()
        if architecture == "llama" and layer.endswith(("q_proj", "k_proj")):
            heads = config.num_attention_heads if layer.endswith("q_proj") else config.num_key_value_heads
            values = values.reshape(heads, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
        if architecture in ("gemma2", "gemma3") and name.endswith("norm.weight"):
            values = values + 1
        if architecture == "gpt2" and name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
            values = values.T
        found[f"{names.get_name(layer)}.{kind}"] = values
    return found


def _close(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
