"""Soft prompts that PEFT saved, read without PEFT and without unpickling anything.

PEFT writes `adapter_config.json` and one tensor `prompt_embeddings`, [tokens, hidden_size]. P-tuning's encoder is
folded away as it saves, so its folder is read like prompt tuning's.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idp.errors import UserError
from idp.prompting.shapes import kv_shape

if TYPE_CHECKING:
    import torch

CONFIG, WEIGHTS, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
TENSOR = "prompt_embeddings"
PROMPTS = ("PROMPT_TUNING", "P_TUNING")
ELSEWHERE = {
    "PREFIX_TUNING": "it holds keys and values of every layer, no input embeddings",
    "MULTITASK_PROMPT_TUNING": "its prompt depends on the task; save one task's prompt as PROMPT_TUNING",
    "LORA": "it changes weights; a LoRA repair of another run is used with recovery=transfer recovery.from=<its run>",
}


@dataclass
class PeftPrompt:
    """A prompt and what its adapter says of itself."""

    prompt: torch.Tensor  # [tokens, hidden_size], float32
    base_model: str | None  # the model that it was trained on, as its maker called it


def read(folder: Path) -> PeftPrompt:
    """The prompt of a PEFT folder.

    Raises:
        UserError: there is none, it is of a kind that is no soft prompt, its weights are pickled, or they are not
            what its config says.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    described = _config(folder)
    kind = described.get("peft_type")
    if kind not in PROMPTS:
        reason = ELSEWHERE.get(str(kind), f"only {' and '.join(PROMPTS)} are soft prompts")
        raise UserError(f"{folder}: a PEFT adapter of kind {kind} cannot join a bank of prompts: {reason}")
    if described.get("num_transformer_submodules") not in (None, 1):
        raise UserError(f"{folder}: a prompt for an encoder and a decoder; banks are for decoders alone")
    file = folder / WEIGHTS
    if not file.is_file():
        if (folder / PICKLED).exists():
            raise UserError(
                f"{folder}: its weights are pickled ({PICKLED}), and unpickling runs code: load it where you trust it"
                " and save it again with PEFT's save_pretrained(..., safe_serialization=True)"
            )
        raise UserError(f"{folder}: there is no {WEIGHTS} beside its {CONFIG}")
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file}: cannot be read as safetensors: {error}") from error
    if TENSOR not in tensors or tensors[TENSOR].dim() != 2:
        raise UserError(
            f"{file}: no tensor {TENSOR} [tokens, hidden_size], but {', '.join(sorted(tensors)) or 'nothing'}: save it"
            " with PEFT's save_pretrained, which folds an encoder away"
        )
    prompt = tensors[TENSOR].float()
    stated = tuple(
        described.get(key) or size for key, size in zip(("num_virtual_tokens", "token_dim"), prompt.shape, strict=True)
    )
    if stated != tuple(prompt.shape):
        raise UserError(f"{file}: {TENSOR} is {tuple(prompt.shape)}, {CONFIG} says {stated}")
    if not torch.isfinite(prompt).all():
        raise UserError(f"{file}: {TENSOR} has values that are NaN or infinite")
    return PeftPrompt(prompt, described.get("base_model_name_or_path"))


def is_adapter(folder: Path) -> bool:
    """Whether a folder is a PEFT adapter of any kind."""
    return (folder / CONFIG).is_file()


def config_of(kind: str, prompt: torch.Tensor, model: Any, base_model: str) -> dict[str, Any]:
    """The `adapter_config.json` of a prompt or a prefix.

    Args:
        kind: `prompt` or `prefix`, as in `PromptBank`.
        prompt: [tokens, width].
        model: the model's transformers config.
        base_model: what PEFT calls its name or path.
    """
    described = {
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "num_virtual_tokens": prompt.shape[0],
        "num_transformer_submodules": 1,
        "num_layers": model.num_hidden_layers,
        "revision": None,
    }
    if kind == "prefix":
        heads, head_dim = kv_shape(model)
        return described | {
            "peft_type": "PREFIX_TUNING",
            "token_dim": heads * head_dim,  # PEFT takes a head's width from these two
            "num_attention_heads": heads,
            "encoder_hidden_size": None,
            "prefix_projection": False,
        }
    return described | {
        "peft_type": "PROMPT_TUNING",
        "token_dim": prompt.shape[1],
        "num_attention_heads": model.num_attention_heads,
        "prompt_tuning_init": "RANDOM",
        "prompt_tuning_init_text": None,
        "tokenizer_name_or_path": None,
    }


def _config(folder: Path) -> dict[str, Any]:
    try:
        described = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: not a PEFT adapter: {CONFIG} cannot be read ({error})") from error
    if not isinstance(described, dict):
        raise UserError(f"{folder}: not a PEFT adapter: {CONFIG} holds no object")
    return described
