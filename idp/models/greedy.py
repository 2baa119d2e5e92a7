"""Generation is plain greedy decoding: where it ends, what a task may ask of it, and which settings of a model's own
generation_config.json it does not follow."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idp.errors import UserError
from idp.store import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

# Settings that would change what is generated, with the values at which they do nothing.
NEUTRAL: dict[str, tuple] = {
    "do_sample": (False,),
    "temperature": (1.0,),
    "top_k": (50,),  # transformers' default, which older files spell out
    "top_p": (1.0,),
    "min_p": (),
    "top_h": (),
    "typical_p": (1.0,),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "diversity_penalty": (0.0,),
    "penalty_alpha": (0.0,),
    "length_penalty": (1.0,),
    "early_stopping": (False,),
    "repetition_penalty": (1.0,),
    "encoder_repetition_penalty": (1.0,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "exponential_decay_length_penalty": (),
    "bad_words_ids": ([],),
    "force_words_ids": ([],),
    "constraints": ([],),
    "sequence_bias": ({}, []),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "forced_decoder_ids": ([],),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "stop_strings": ([], ""),
    "guidance_scale": (1.0,),
    "watermarking_config": (),
    "dola_layers": (),
}


def options(task: str, asked: dict[str, Any], longest: int) -> dict[str, Any]:
    """A task's `generation_kwargs` in lm-eval's normal form: `until`, a list, and `max_gen_toks`, or else `longest`.

    Raises:
        UserError: they ask for anything but greedy decoding.
    """
    from lm_eval.models.utils import normalize_gen_kwargs

    found = normalize_gen_kwargs(asked, longest)
    if found.get("do_sample") or set(found) - {"do_sample", "temperature", "until", "max_gen_toks"}:
        raise UserError(f"{task}: generation options {asked} are not greedy decoding")
    return found


def ends_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The tokens that end a text: the tokenizer's EOS, and each that the model's generation settings name."""
    settings = getattr(model, "generation_config", None)
    return frozenset(_ids(tokenizer.eos_token_id)) | frozenset(_ids(getattr(settings, "eos_token_id", None)))


def ends_beside_eos(folder: Path, trust_remote_code: bool) -> list[int]:
    """The tokens that end a text for the model of `folder` beside its tokenizer's EOS, ascending, found on disk."""
    stamps = tuple(sorted((file.name, file.stat().st_mtime_ns) for file in folder.glob("*.json")))
    return list(_ends_beside_eos(str(folder), trust_remote_code, stamps))


@functools.lru_cache(maxsize=64)
def _ends_beside_eos(folder: str, trust_remote_code: bool, _stamps: tuple) -> tuple[int, ...]:
    from transformers import AutoTokenizer

    found: set[int] = set()
    for name in ("generation_config.json", "config.json"):  # the second where there is no first, as transformers has it
        if (file := Path(folder) / name).is_file():
            values = read_json(file)
            values = values if values.get("eos_token_id") is not None else values.get("text_config") or {}
            found = set(_ids(values.get("eos_token_id")))
            break
    if not found:
        return ()
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    return tuple(sorted(found - set(_ids(tokenizer.eos_token_id))))


def not_followed(model: PreTrainedModel) -> list[str]:
    """The model's generation settings that greedy decoding does not follow, such as `repetition_penalty=1.1`."""
    settings = getattr(model, "generation_config", None)
    found = []
    for name, neutral in NEUTRAL.items():
        value = getattr(settings, name, None)
        if value is not None and value not in neutral:
            shown = str(value)
            found.append(f"{name}={shown if len(shown) <= 40 else shown[:37] + '...'}")
    return found


@functools.cache
def say_not_followed(settings: tuple[str, ...]) -> None:
    """Warns of `not_followed`, once in a process."""
    if settings:
        log.warning(
            "generation is plain greedy decoding: of the model's generation_config.json, %s %s not followed",
            ", ".join(settings),
            "are" if len(settings) > 1 else "is",
        )


def _ids(value: Any) -> Iterable[int]:
    if value is None:
        return []
    value = value.tolist() if hasattr(value, "tolist") else value
    return [int(token) for token in (value if isinstance(value, (list, tuple)) else [value]) if token is not None]
