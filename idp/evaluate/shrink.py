"""A small model of the same class and layer pattern as a given config, with random weights: what guards try things on.

Sizes shrink, patterns stay: every kind of layer is there, windows and chunks are shorter than the rows that are run,
and where rotary frequencies change at a length, rows stand on both sides of it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

WINDOW, SWITCH, ROOM = 24, 48, 512  # tokens: of a window or chunk, at which frequencies change, of the model
VOCABULARY = 256
GAIN = 1.5  # of random weights, in units of 1 / sqrt(fan in): attention is neither flat nor one-hot

# Sizes by the names that configs give them. A size that is smaller already stays.
SIZES: dict[str, int] = {
    name: size
    for size, names in (
        (64, "hidden_size n_embd d_model dim embedding_size word_embed_proj_dim"),
        (96, "intermediate_size ffn_dim n_inner decoder_ffn_dim encoder_ffn_dim d_ff ffn_hidden_size"),
        (96, "dense_intermediate_size intermediate_size_mlp expert_ffn_hidden_size"),
        (32, "moe_intermediate_size shared_expert_intermediate_size shared_intermediate_size"),
        (4, "num_attention_heads n_head n_heads decoder_attention_heads encoder_attention_heads"),
        (4, "num_experts num_local_experts n_routed_experts moe_num_experts n_experts"),
        (2, "num_experts_per_tok moe_k moe_topk top_k_experts"),
        (1, "n_group topk_group first_k_dense_replace moe_layer_start_index num_dense_layers"),
        (16, "head_dim d_kv kv_channels attention_head_dim global_head_dim hidden_size_per_layer_input"),
        (32, "q_lora_rank index_head_dim o_lora_rank"),
        (16, "kv_lora_rank qk_nope_head_dim"),
        (12, "v_head_dim"),
        (8, "qk_rope_head_dim"),
        (WINDOW, "sliding_window attention_chunk_size window_size attention_window local_attention"),
        (WINDOW, "index_topk floor_scale"),
        (SWITCH, "original_max_position_embeddings"),
        (ROOM, "max_position_embeddings n_positions max_seq_len n_ctx block_size"),
        (VOCABULARY, "vocab_size vocab_size_per_layer_input"),
    )
    for name in names.split()
}
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers")
KEY_HEADS = (
    "num_key_value_heads",
    "num_global_key_value_heads",
    "swa_num_key_value_heads",
    "n_head_kv",
    "num_kv_heads",
)
FEW, SHARING = 2, 2  # layers; and such as have no keys of their own
TOO_MANY = 10**8  # parameters: seconds, and half a gigabyte


def shrunken(config: PretrainedConfig) -> Iterator[PretrainedConfig]:
    """Configs of the same class, the smallest first; the last has the config's own sizes and few layers."""
    for sizes in (SIZES, {name: size for name, size in SIZES.items() if size in (WINDOW, SWITCH, VOCABULARY)}, {}):
        values = copy.deepcopy(config.to_dict())
        for part in _parts(values):
            _shrink(part, sizes)
        values.pop("quantization_config", None)
        yield values_as(config, values)


def values_as(config: PretrainedConfig, values: dict[str, Any]) -> PretrainedConfig:
    """A config of the same class with other values, or the exception that its class raises on them."""
    known = {name: value for name, value in values.items() if name not in ("transformers_version", "dtype")}
    try:
        made = type(config).from_dict(known)
    except Exception:  # a class that does not take what it writes
        made = copy.deepcopy(config)
        _set(made, values)
    made._attn_implementation = None
    made.name_or_path = config.name_or_path  # where code that is not transformers' own is found
    return made


def random_model(config: PretrainedConfig, seed: int = 0, remote_code: bool = False) -> PreTrainedModel:
    """The smallest model of the config's class that can be built and run, float32, on the CPU, with random weights.

    Raises:
        Exception: whatever its class raises, where it cannot be built at all.
    """
    import torch

    failure: Exception | None = None
    for small in _tries(config):
        try:
            with torch.device("meta"):
                numbers = sum(parameter.numel() for parameter in build(small, remote_code).parameters())
            if numbers > TOO_MANY:
                raise ValueError(
                    f"{type(config).__name__}: its smallest model has {numbers / 1e6:.0f} million parameters"
                )
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                model = build(small, remote_code)
                randomise(model)
                with torch.inference_mode():
                    model(input_ids=torch.arange(1, 9)[None], use_cache=False)
            return model
        except Exception as error:  # the next one is larger
            failure = failure or error
    assert failure is not None
    raise failure


def _tries(config: PretrainedConfig) -> Iterator[PretrainedConfig]:
    tries = shrunken(config)
    while True:
        try:
            small = next(tries)
        except StopIteration:
            return
        except Exception:  # a class that checks its sizes; a generator that raised is spent
            return
        yield small


def build(config: PretrainedConfig, remote_code: bool = False) -> PreTrainedModel:
    """A model of the config, in evaluation mode, frozen."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=remote_code)
    return model.eval().requires_grad_(False)


def randomise(model: PreTrainedModel) -> None:
    """Weights that make outputs depend on inputs: the usual 0.02 leaves attention flat and logits level."""
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.is_floating_point() or parameter.numel() == 0:
                continue
            if parameter.dim() >= 2:
                parameter.normal_(0.0, GAIN * parameter.shape[-1] ** -0.5)
            else:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)


def _parts(values: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The config's own values and those of the configs within it."""
    yield values
    for name, value in values.items():
        if isinstance(value, dict) and name.endswith("_config") and name != "quantization_config":
            yield from _parts(value)


def _set(config: Any, values: dict[str, Any]) -> None:
    """Sets a config's attributes, and those of the configs within it, where they are others than they were."""
    for name, value in values.items():
        before = getattr(config, name, None)
        if isinstance(value, dict) and hasattr(before, "to_dict"):
            _set(before, value)
        elif name in config.__dict__ and before != value:
            setattr(config, name, value)


def _shrink(values: dict[str, Any], sizes: dict[str, int]) -> None:
    rotary_alone = values.get("head_dim") == values.get("qk_rope_head_dim")
    heads = next((values[name] for name in ("num_attention_heads", "n_head", "n_heads") if values.get(name)), None)
    for name, size in sizes.items():
        value = values.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > size:
            values[name] = size
        if isinstance(value, list) and all(isinstance(item, int) for item in value):
            values[name] = [min(item, size) for item in value]
    for layer in (values.get("per_layer_config") or {}).values():  # sizes of single layers
        _shrink(layer, sizes)
    if sizes is SIZES:
        if values.get("qk_rope_head_dim") and (heads or 0) and values.get("head_dim") == 16:
            values["head_dim"] = values["qk_rope_head_dim"] if rotary_alone else values["head_dim"]
        if values.get("qk_head_dim") and values.get("qk_nope_head_dim"):
            values["qk_head_dim"] = values["qk_nope_head_dim"] + values["qk_rope_head_dim"]
        if isinstance(values.get("rotary_dim"), int):
            values["rotary_dim"] = min(values["rotary_dim"], 8)
        for name in KEY_HEADS:
            if isinstance(value := values.get(name), int) and not isinstance(value, bool):
                values[name] = 4 if value == heads else min(value, 2)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id"):
        if sizes and values.get(name) is not None:
            values[name] = 0
    _shrink_rope(values, sizes)
    _fewer_layers(values)


def _shrink_rope(values: dict[str, Any], sizes: dict[str, int]) -> None:
    """The length at which frequencies change, and factors for as many frequencies as there are now."""
    stated = [values.get("rope_parameters"), values.get("rope_scaling")]
    stated += [inner for rope in stated if isinstance(rope, dict) for inner in rope.values()]
    for rope in stated:
        if not isinstance(rope, dict):
            continue
        if sizes and isinstance(rope.get("original_max_position_embeddings"), int):
            rope["original_max_position_embeddings"] = min(SWITCH, rope["original_max_position_embeddings"])
        if sizes is not SIZES:
            continue
        heads = values.get("num_attention_heads") or 1
        width = values.get("head_dim") or values.get("qk_rope_head_dim") or values.get("hidden_size", heads) // heads
        share = rope.get("partial_rotary_factor") or values.get("partial_rotary_factor") or 1.0
        pairs = int(width * share) // 2
        for name in ("short_factor", "long_factor"):
            if isinstance(factors := rope.get(name), list) and len(factors) > pairs:
                rope[name] = [factors[place * len(factors) // pairs] for place in range(pairs)]
        if isinstance(section := rope.get("mrope_section"), list) and sum(section) > pairs:
            rope["mrope_section"] = [pairs - 2 * (pairs // 3), pairs // 3, pairs // 3]


def _fewer_layers(values: dict[str, Any]) -> None:
    """As few layers as hold every kind that the config's lists of layers name."""
    name = next((name for name in LAYERS if isinstance(values.get(name), int)), None)
    if name is None:
        return
    count = values[name]
    lists = [key for key, value in values.items() if isinstance(value, list) and len(value) == count and count > 1]
    kinds = [tuple(str(values[key][layer]) for key in lists) for layer in range(count)]
    needed = max((kinds.index(kind) + 1 for kind in set(kinds)), default=0) if lists else 0
    intervals = [values.get(key) for key in ("full_attention_interval", "attn_layer_period", "sliding_window_pattern")]
    needed = max([needed, FEW, *(value for value in intervals if isinstance(value, int))])
    wanted = min(count, needed)
    if values.get("num_kv_shared_layers"):  # the last ones attend to what others before them have computed
        values["num_kv_shared_layers"] = min(values["num_kv_shared_layers"], SHARING)
        wanted = min(count, wanted + values["num_kv_shared_layers"])
    for key in lists:
        values[key] = values[key][:wanted]
    single = values.get("per_layer_config")
    if isinstance(single, dict):
        values["per_layer_config"] = {layer: value for layer, value in single.items() if int(layer) < wanted}
    for key in LAYERS:
        if isinstance(values.get(key), int):
            values[key] = min(values[key], wanted)
