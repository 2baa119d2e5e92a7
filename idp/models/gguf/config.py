"""The function that a GGUF file's metadata states, as transformers' config: all of it, or refused by name.

transformers' own reader takes a dozen keys and drops the rest without a word (rotary scaling, soft caps, windows,
head sizes). Here each architecture says which keys it reads; a key that nobody read, and that is not known to be
harmless, stops the file. What GGUF leaves unsaid is as llama.cpp takes it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from idp.errors import UserError
from idp.models.gguf import rope
from idp.models.gguf.header import Header, HeaderReader
from idp.models.gguf.tokenizer import special_id

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def settings(header: Header) -> dict[str, Any]:
    """What `AutoConfig.for_model` takes for a GGUF file.

    Raises:
        UserError: an architecture that is not read, a key that is missing or not read.
    """
    if header.architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UserError(
            f"{header.file}: GGUF files of the architecture {header.architecture} are not read; these are: {known}."
            " Take the model as safetensors"
        )
    if "token_embd.weight" not in header.tensors:
        raise UserError(f"{header.file}: it has no token_embd.weight: not a language model")
    read = HeaderReader(header)
    try:
        found = ARCHITECTURES[header.architecture](read)
    except (TypeError, ValueError, ZeroDivisionError) as error:  # a value that is no such number
        raise UserError(f"{header.file}: cannot be read as a GGUF model: {error}") from error
    read.refuse_unread()
    rows = header.tensors["token_embd.weight"].shape[0]
    for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        number = special_id(header, theirs)
        found[f"{ours}_token_id"] = number if number is not None and number < rows else None
    return {
        "vocab_size": rows,
        "tie_word_embeddings": "output.weight" not in header.tensors,
        **found,
    }


def config_of(header: Header, like: PretrainedConfig | None = None) -> PretrainedConfig:
    """The config of a GGUF file.

    Args:
        header: the file.
        like: the config of a model that the file may be of. GGUF writes several models under one name, and several
            spellings of one function: where the file's function can be stated as `like` states it, it is.

    Raises:
        UserError: something that shapes the computation is not read, or the file cannot say what `like` asks.
    """
    from transformers import AutoConfig

    found = settings(header)
    if like is not None:
        found = _stated_as(like.get_text_config(), found, header)
    try:
        return AutoConfig.for_model(**found)
    except (ValueError, TypeError, KeyError) as error:
        line = " ".join(str(error).split())[:200]
        raise UserError(f"{header.file}: cannot be read as a GGUF model: {line}") from error


def _stated_as(like: Any, found: dict[str, Any], header: Header) -> dict[str, Any]:
    """The same function in the words of `like`."""
    found = dict(found)
    if like.model_type == "mistral" and found["model_type"] == "llama":
        window, context = getattr(like, "sliding_window", None), found["max_position_embeddings"]
        if window is not None and window < context:
            raise UserError(
                f"{header.file}: it says llama, as GGUF files of Mistral do, and not whether it has the sliding window"
                f" of {window} that the model has; take the checkpoint as safetensors"
            )
        found |= {"model_type": "mistral", "sliding_window": window}
        for name in ("attention_bias", "mlp_bias"):
            if not found.pop(name, False):
                continue
            raise UserError(f"{header.file}: it has biases, which Mistral has not")
    theirs = getattr(like, "rope_parameters", None)
    if rope.FACTORS in header.tensors and isinstance(theirs, dict) and theirs.get("rope_type") == "llama3":
        theta, factors = found["rope_parameters"]["rope_theta"], header.numbers(rope.FACTORS)
        same = rope.same_factors(factors, rope.llama3_factors(theirs, theta, 2 * len(factors)))
        if same and math.isclose(theta, theirs["rope_theta"], rel_tol=1e-6):
            found["rope_parameters"] = dict(theirs)  # many parameters give these factors
    return found


def _decoder(read: HeaderReader, model_type: str) -> dict[str, Any]:
    """What nearly all decoders share."""
    heads, width = read.whole("attention.head_count"), read.whole("embedding_length")
    head = read.whole("attention.key_length", width // heads)
    if read.whole("attention.value_length", head) != head:
        raise UserError(f"{read.where}: its keys and values are of different lengths, which is not read")
    return {
        "model_type": model_type,
        "max_position_embeddings": read.whole("context_length"),
        "num_hidden_layers": read.whole("block_count"),
        "hidden_size": width,
        "intermediate_size": read.whole("feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": read.whole("attention.head_count_kv", heads),
        "head_dim": head,
    }


def _rotary(read: HeaderReader, found: dict[str, Any], partial: bool = False) -> dict[str, Any]:
    """`found` with its rotary positions, over all of a head's dimensions unless `partial` is known to the model."""
    head = found["head_dim"]
    rotated = read.whole("rope.dimension_count", head)
    if rotated != head and not partial:
        raise UserError(f"{read.where}: it rotates {rotated} of {head} dimensions of a head, which is not read")
    parameters = rope.parameters(read, rotated, found["max_position_embeddings"])
    if partial:
        parameters["partial_rotary_factor"] = rotated / head
    return {**found, "rope_parameters": parameters}


def _attention_scalar(read: HeaderReader, found: dict[str, Any], large: int) -> int | float:
    """Gemma's `query_pre_attn_scalar`: stated as a scale, or llama.cpp's rule (another one for the largest model)."""
    scale = read("attention.scale", 0.0)
    if scale:
        return round(scale**-2, 4)
    if found["num_hidden_layers"] == large:
        return found["hidden_size"] // found["num_attention_heads"]
    return found["head_dim"]


def _llama(read: HeaderReader) -> dict[str, Any]:
    tensors = read.header.tensors
    found = _rotary(read, _decoder(read, "llama"))
    found |= {
        "rms_norm_eps": read("attention.layer_norm_rms_epsilon"),
        "attention_bias": "blk.0.attn_q.bias" in tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in tensors,
    }
    window = read.whole("attention.sliding_window", 0)
    if 0 < window < found["max_position_embeddings"]:  # that is Mistral
        found |= {"model_type": "mistral", "sliding_window": window}
        if found.pop("attention_bias") | found.pop("mlp_bias"):
            raise UserError(f"{read.where}: a llama with a sliding window and with biases is not read")
    return found


def _qwen2(read: HeaderReader) -> dict[str, Any]:
    found = _rotary(read, _decoder(read, "qwen2"))
    if found.pop("head_dim") * found["num_attention_heads"] != found["hidden_size"]:
        raise UserError(f"{read.where}: a Qwen2 whose heads are not its width divided among them is not read")
    return {**found, "rms_norm_eps": read("attention.layer_norm_rms_epsilon")}


def _qwen3(read: HeaderReader) -> dict[str, Any]:
    return {**_rotary(read, _decoder(read, "qwen3")), "rms_norm_eps": read("attention.layer_norm_rms_epsilon")}


def _gemma2(read: HeaderReader) -> dict[str, Any]:
    found = _rotary(read, _decoder(read, "gemma2"))
    return {
        **found,
        "rms_norm_eps": read("attention.layer_norm_rms_epsilon"),
        "query_pre_attn_scalar": _attention_scalar(read, found, large=46),
        "sliding_window": read.whole("attention.sliding_window", 4096),
        "attn_logit_softcapping": float(read("attn_logit_softcapping", 50.0)) or None,
        "final_logit_softcapping": float(read("final_logit_softcapping", 30.0)) or None,
    }


def _gemma3(read: HeaderReader) -> dict[str, Any]:
    found = _rotary(read, _decoder(read, "gemma3_text"))
    layers, window = found["num_hidden_layers"], read.whole("attention.sliding_window", 0)
    pattern = read("attention.sliding_window_pattern", 6)
    if isinstance(pattern, list):
        slides = [bool(value) for value in pattern[:layers]]
    else:
        slides = [pattern > 0 and (layer + 1) % pattern != 0 for layer in range(layers)]
    if not window:
        slides = [False] * layers
    local = {"rope_type": "default", "rope_theta": float(read("rope.freq_base_swa", 10000.0))}
    return {
        **found,
        "rope_parameters": {"full_attention": found["rope_parameters"], "sliding_attention": local},
        "rms_norm_eps": read("attention.layer_norm_rms_epsilon"),
        "query_pre_attn_scalar": _attention_scalar(read, found, large=62),
        "sliding_window": window or 4096,
        "layer_types": ["sliding_attention" if slide else "full_attention" for slide in slides],
        "attn_logit_softcapping": None,
        "final_logit_softcapping": float(read("final_logit_softcapping", 0.0)) or None,
    }


def _phi3(read: HeaderReader) -> dict[str, Any]:
    found = _rotary(read, _decoder(read, "phi3"), partial=True)
    if found.pop("head_dim") * found["num_attention_heads"] != found["hidden_size"]:
        raise UserError(f"{read.where}: a Phi-3 whose heads are not its width divided among them is not read")
    context = found["max_position_embeddings"]
    return {
        **found,
        "rms_norm_eps": read("attention.layer_norm_rms_epsilon"),
        "original_max_position_embeddings": read.whole("rope.scaling.original_context_length", context),
        "sliding_window": read.whole("attention.sliding_window", 0) or None,
    }


def _starcoder2(read: HeaderReader) -> dict[str, Any]:
    found = _rotary(read, _decoder(read, "starcoder2"))
    if found.pop("head_dim") * found["num_attention_heads"] != found["hidden_size"]:
        raise UserError(f"{read.where}: a StarCoder2 whose heads are not its width divided among them is not read")
    return {
        **found,
        "norm_epsilon": read("attention.layer_norm_epsilon"),
        "use_bias": "blk.0.attn_output.bias" in read.header.tensors,
    }


def _gpt2(read: HeaderReader) -> dict[str, Any]:
    found = _decoder(read, "gpt2")
    if found["num_key_value_heads"] != found["num_attention_heads"]:
        raise UserError(f"{read.where}: a GPT-2 with grouped queries is not read")
    width = found["hidden_size"]
    return {
        "model_type": "gpt2",
        "n_positions": found["max_position_embeddings"],
        "n_layer": found["num_hidden_layers"],
        "n_embd": width,
        "n_head": found["num_attention_heads"],
        "n_inner": None if found["intermediate_size"] == 4 * width else found["intermediate_size"],
        "layer_norm_epsilon": read("attention.layer_norm_epsilon"),
    }


# Each is held by a test that writes a model as GGUF, opens it, and compares logits.
ARCHITECTURES: dict[str, Callable[[HeaderReader], dict[str, Any]]] = {
    "llama": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "phi3": _phi3,
    "starcoder2": _starcoder2,
    "gpt2": _gpt2,
}
