"""A bank of soft prompts or of trained prefixes, stored so that PEFT can load each of them.

bank.json                       kind, names, lengths and width, in order
prompt_0/adapter_config.json    a PEFT prompt-tuning or prefix-tuning adapter
prompt_0/adapter_model.safetensors
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idp.errors import UserError
from idp.store import write_json

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

TENSOR = "prompt_embeddings"  # PEFT's name


@dataclass
class PromptBank:
    """m prompts, `prompts[i]` float32 with one row per token; `kind` says what a row is.

    `prompt`: [tokens, hidden_size], in the space of the input embeddings.
    `prefix`: [tokens, layers * 2 * kv_heads * head_dim], keys and values of every layer, in PEFT's order.
    """

    prompts: list[torch.Tensor]
    names: list[str]
    kind: str = "prompt"

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each prompt."""
        return [prompt.shape[0] for prompt in self.prompts]

    @property
    def parameters(self) -> int:
        """Numbers stored: the width of a row times the sum of the lengths."""
        return sum(prompt.numel() for prompt in self.prompts)

    def first(self) -> PromptBank:
        """The bank of its first prompt alone."""
        return PromptBank(self.prompts[:1], self.names[:1], self.kind)

    def save(self, folder: Path, config: PretrainedConfig, base_model: str) -> None:
        """Writes the bank; `config` is the model's, `base_model` what PEFT calls its name or path."""
        from safetensors.torch import save_file

        for number, prompt in enumerate(self.prompts):
            place = folder / f"prompt_{number}"
            place.mkdir(parents=True, exist_ok=True)
            save_file({TENSOR: prompt.detach().float().cpu().contiguous()}, place / "adapter_model.safetensors")
            write_json(place / "adapter_config.json", _adapter_config(self.kind, prompt, config, base_model))
        described = {
            "kind": self.kind,
            "names": self.names,
            "lengths": self.lengths,
            "width": self.prompts[0].shape[1],
        }
        write_json(folder / "bank.json", described)

    @classmethod
    def load(cls, folder: Path) -> PromptBank:
        """Reads a bank that `save` wrote.

        Raises:
            UserError: there is none, or a prompt's size is not what `bank.json` says.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            described = json.loads((folder / "bank.json").read_text(encoding="utf-8"))
            prompts = [
                load_file(folder / f"prompt_{number}" / "adapter_model.safetensors")[TENSOR]
                for number in range(len(described["names"]))
            ]
            kind, width = described["kind"], described["width"]
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise UserError(f"{folder}: not a prompt bank: {error}") from error
        for name, prompt, length in zip(described["names"], prompts, described["lengths"], strict=True):
            if tuple(prompt.shape) != (length, width):
                raise UserError(f"{folder}: prompt {name} is {tuple(prompt.shape)}, bank.json says ({length}, {width})")
        return cls(prompts, described["names"], kind)


def _adapter_config(kind: str, prompt: torch.Tensor, config: PretrainedConfig, base_model: str) -> dict[str, Any]:
    described = {
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "num_virtual_tokens": prompt.shape[0],
        "num_transformer_submodules": 1,
        "num_layers": config.num_hidden_layers,
        "revision": None,
    }
    if kind == "prefix":
        heads, head_dim = kv_shape(config)
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
        "num_attention_heads": config.num_attention_heads,
        "prompt_tuning_init": "RANDOM",
        "prompt_tuning_init_text": None,
        "tokenizer_name_or_path": None,
    }


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
