"""A bank of soft prompts, stored so that PEFT can load each of them.

bank.json                       names, lengths and hidden size, in order
prompt_0/adapter_config.json    a PEFT prompt-tuning adapter
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
    """m soft prompts: `prompts[i]` is [tokens, hidden_size], float32, in the space of the input embeddings."""

    prompts: list[torch.Tensor]
    names: list[str]

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each prompt."""
        return [prompt.shape[0] for prompt in self.prompts]

    @property
    def parameters(self) -> int:
        """Numbers stored: hidden_size times the sum of the lengths."""
        return sum(prompt.numel() for prompt in self.prompts)

    def save(self, folder: Path, config: PretrainedConfig, base_model: str) -> None:
        """Writes the bank; `config` is the model's, `base_model` what PEFT calls its name or path."""
        from safetensors.torch import save_file

        for number, prompt in enumerate(self.prompts):
            place = folder / f"prompt_{number}"
            place.mkdir(parents=True, exist_ok=True)
            save_file({TENSOR: prompt.detach().float().cpu().contiguous()}, place / "adapter_model.safetensors")
            write_json(place / "adapter_config.json", _adapter_config(prompt, config, base_model))
        described = {"names": self.names, "lengths": self.lengths, "hidden_size": self.prompts[0].shape[1]}
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
                load_file(folder / place / "adapter_model.safetensors")[TENSOR]
                for place in described.get("folders") or [f"prompt_{n}" for n in range(len(described["names"]))]
            ]
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise UserError(f"{folder}: not a prompt bank: {error}") from error
        for name, prompt, length in zip(described["names"], prompts, described["lengths"], strict=True):
            if tuple(prompt.shape) != (length, described["hidden_size"]):
                raise UserError(
                    f"{folder}: prompt {name} is {tuple(prompt.shape)}, bank.json says"
                    f" ({length}, {described['hidden_size']})"
                )
        return cls(prompts, described["names"])


def _adapter_config(prompt: torch.Tensor, config: PretrainedConfig, base_model: str) -> dict[str, Any]:
    return {
        "peft_type": "PROMPT_TUNING",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "num_virtual_tokens": prompt.shape[0],
        "token_dim": prompt.shape[1],
        "num_transformer_submodules": 1,
        "num_attention_heads": config.num_attention_heads,
        "num_layers": config.num_hidden_layers,
        "prompt_tuning_init": "RANDOM",
        "prompt_tuning_init_text": None,
        "tokenizer_name_or_path": None,
        "revision": None,
    }
