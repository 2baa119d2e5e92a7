"""Whether a checkpoint computes what its dense model computes: their configs, field by field, and their tokenizers.

A checkpoint is evaluated under the dense model's config, so every field that shapes the function must agree. All are
compared but a list of those that do not; a field that a config does not state is its class's default.
"""

from __future__ import annotations

import inspect
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idp.errors import UserError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

# Named first where several differ: what makes two models of one architecture of different sizes.
FIRST = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "rms_norm_eps",
    "rope_parameters",
)
# Fields that do not shape a logit, by the parts of their names that say so, and by name.
HARMLESS_PARTS = ("_token_id", "dropout", "pdrop", "initializer", "init_std", "aux_loss", "jitter", "summary_")
HARMLESS = {
    # names and versions
    *("_name_or_path", "name_or_path", "architectures", "model_type", "transformers_version", "auto_map", "id2label"),
    *("label2id", "num_labels", "problem_type", "task_specific_params", "transformers_weights", "layerdrop"),
    # how it is stored and run
    *("dtype", "torch_dtype", "quantization_config", "compression_config", "use_cache", "return_dict", "torchscript"),
    *("output_attentions", "output_hidden_states", "output_router_logits", "chunk_size_feed_forward", "use_bfloat16"),
    *(
        "pretraining_tp",
        "gradient_checkpointing",
        "tf_legacy_loss",
        "is_encoder_decoder",
        "is_decoder",
        "_attn_implementation",
    ),
    *("attn_implementation", "experts_implementation", "cache_implementation", "distributed_config", "fusion_config"),
    # what the tensors themselves show, by their names and shapes
    *("tie_word_embeddings", "attention_bias", "mlp_bias", "qkv_bias", "use_qkv_bias", "vision_config", "audio_config"),
}
ALIKE = ({"silu", "swish"}, {"gelu_new", "gelu_pytorch_tanh", "gelu_fast"})
# RoPE whose frequencies depend on how long the model's window is; for the others the window is only its room.
BY_WINDOW = ("dynamic", "longrope", "yarn", "su")
PAGE = (
    "The committee met on Tuesday, 12 March 1987, to discuss the repair of the old bridge; it didn't agree.\n\n"
    "\tdef mean(values):\n        return sum(values) / len(values)  # 3.5% of 12,480\n"
    "Ça coûte 1 234,50 €. Größe: 5″. Русский текст, 日本語の文章, 한국어, العربية.\r\n"
    "🙂 👍🏽  <b>x</b> &amp; C++ e.g. U.S.A."
)


def compare_configs(
    where: str, there: PretrainedConfig, model: PreTrainedModel, name: str, *, stated_alone: bool = False
) -> None:
    """Refuses a checkpoint whose config computes another function than the dense model.

    Args:
        where: what the line begins with.
        there: the checkpoint's config.
        model: the dense model; it may be on the `meta` device.
        name: what the dense model is called.
        stated_alone: the checkpoint's format states some fields only (GGUF): one that is at its class's default may not
            be stated, and is not held against the dense model unless it is among those that every file has.

    Raises:
        UserError: names the first field that differs.
    """
    there, here = there.get_text_config(), model.config.get_text_config()
    if there.model_type != here.model_type:
        raise UserError(f"{where}: does not fit {name}: it is a {there.model_type}, {name} is a {here.model_type}")
    theirs, ours = _fields(there), _fields(here)
    known = set(_fields(type(here)()))
    source = _source(model)
    for field in [*FIRST, *sorted((theirs.keys() | ours.keys()) - set(FIRST))]:
        if field in HARMLESS or any(part in field for part in HARMLESS_PARTS):
            continue
        if field not in known and field not in source:  # a note of its maker's, which no code reads
            continue
        if field == "max_position_embeddings" and not _by_window(theirs, ours):
            continue
        their_value, our_value = theirs.get(field), ours.get(field)
        if stated_alone:
            if field not in FIRST and their_value == _fields(type(there)()).get(field):
                continue
            if their_value is None or (field in FIRST and our_value is None):
                continue
            if isinstance(their_value, dict) and isinstance(our_value, dict):
                our_value = {key: value for key, value in our_value.items() if key in their_value}
        if difference := _difference(field, their_value, our_value):
            place, *values = difference
            shown = [("absent" if value is None else value) for value in values]
            raise UserError(f"{where}: does not fit {name}: {place} is {shown[0]} there and {shown[1]} in {name}")


def compare_tokenizers(
    where: str, place: Path, tokenizer: PreTrainedTokenizerBase, name: str, trust: bool
) -> str | None:
    """Refuses a checkpoint whose tokenizer gives a text other ids than the dense model's, with which it is evaluated.

    Args:
        where: what the line begins with.
        place: the checkpoint's folder; one without a tokenizer is of the dense model's.
        tokenizer: the dense model's tokenizer.
        name: what the dense model is called.
        trust: whether code that comes with the checkpoint may run.

    Returns:
        what there is to say of it, if anything.

    Raises:
        UserError: a page of text has other ids, or a token that both have is another id.
    """
    from transformers import AutoTokenizer

    if not any((place / file).is_file() for file in ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")):
        return None
    try:
        theirs = AutoTokenizer.from_pretrained(place, trust_remote_code=trust)
    except Exception as error:  # any of the tokenizer libraries' own
        return f"its tokenizer cannot be read ({type(error).__name__}); the dense model's is used"
    there, here = theirs.get_vocab(), tokenizer.get_vocab()
    if other := next((token for token in sorted(there.keys() & here.keys()) if there[token] != here[token]), None):
        raise UserError(
            f"{where}: does not fit {name}: in its tokenizer {other!r} is token {there[other]}, in {name} it is"
            f" {here[other]}"
        )
    found, expected = (each(PAGE, add_special_tokens=False)["input_ids"] for each in (theirs, tokenizer))
    if found != expected:
        first = next((i for i, pair in enumerate(zip(found, expected, strict=False)) if pair[0] != pair[1]), 0)
        raise UserError(
            f"{where}: does not fit {name}: their tokenizers give one text other tokens:"
            f" {theirs.convert_ids_to_tokens(found[first : first + 3])} there and"
            f" {tokenizer.convert_ids_to_tokens(expected[first : first + 3])} in {name}"
        )
    if theirs("a")["input_ids"] != tokenizer("a")["input_ids"]:
        return "its tokenizer puts other special tokens around a text; the dense model's is used"
    return None


def _fields(config: PretrainedConfig) -> dict[str, Any]:
    """A config's fields with defaults filled in, also those that stand in an old place (`rope_theta`)."""
    found = config.to_dict()
    rope = found.get("rope_parameters")
    if isinstance(rope, dict):
        found["rope_parameters"] = {
            key: _rope(value) if isinstance(value, dict) else value for key, value in _rope(rope).items()
        }
    return found


def _rope(parameters: dict[str, Any]) -> dict[str, Any]:
    """RoPE's parameters without an old name of the type, what is not set, and what is the same unsaid."""
    found = {key: value for key, value in parameters.items() if value is not None and key != "type"}
    if found.get("partial_rotary_factor") == 1.0:
        del found["partial_rotary_factor"]
    return found


def _by_window(*fields: dict[str, Any]) -> bool:
    """Whether the window's length is part of any of these configs' function."""
    for each in fields:
        rope = each.get("rope_parameters") or {}
        for part in (rope, *rope.values()):
            if isinstance(part, dict) and part.get("rope_type") in BY_WINDOW:
                return True
    return False


def _difference(place: str, there: Any, here: Any) -> tuple[str, Any, Any] | None:
    """Where two values differ, and both; a float is equal to what single precision makes of it."""
    if isinstance(there, dict) or isinstance(here, dict):
        there, here = (each if isinstance(each, dict) else {} for each in (there, here))
        for key in sorted(map(str, there.keys() | here.keys())):
            if found := _difference(f"{place}.{key}", there.get(key), here.get(key)):
                return found
        return None
    if isinstance(there, (list, tuple)) and isinstance(here, (list, tuple)) and len(there) == len(here):
        for i, pair in enumerate(zip(there, here, strict=True)):
            if found := _difference(f"{place}[{i}]", *pair):
                return found
        return None
    numbers = all(isinstance(each, (int, float)) and not isinstance(each, bool) for each in (there, here))
    if numbers and math.isclose(there, here, rel_tol=1e-5):
        return None
    words = isinstance(there, str) and isinstance(here, str)
    if there == here or (words and any({there, here} <= alike for alike in ALIKE)):
        return None
    return place.replace("rope_parameters", "rope_parameters (rope_scaling)"), there, here


def _source(model: PreTrainedModel) -> str:
    """The code of a model's class, in which a field that its config class does not declare may be read."""
    try:
        return inspect.getsource(sys.modules[type(model).__module__])
    except (OSError, TypeError, KeyError):
        return ""
