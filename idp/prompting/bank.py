"""A bank of soft prompts or of trained prefixes, stored so that PEFT can load each of them.

bank.json                       kind, names, lengths and width, in order; how they were made; how they are stored;
                                which BOS stood where when they were made
prompt_0/adapter_config.json    a PEFT prompt-tuning or prefix-tuning adapter
prompt_0/adapter_model.safetensors
                                (none for the empty prompt)
prompt_0/packed_prompt.safetensors    instead, where prompts are stored in fewer bits than PEFT reads
centres.safetensors             where there are any: for each prompt the mean input embedding of its text
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idp.beginning import Beginning
from idp.config import Storage
from idp.errors import UserError
from idp.prompting import peft_files, storage
from idp.store import write_json

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

EMPTY = "empty"  # what the prompt of no tokens is called
CENTRES = "centres"  # of prompts' text, [prompts, hidden_size]
CENTRES_FILE = f"{CENTRES}.safetensors"


@dataclass
class PromptBank:
    """m prompts, `prompts[i]` float32 with one row per token; `kind` says what a row is.

    `prompt`: [tokens, hidden_size], in the space of the input embeddings.
    `prefix`: [tokens, layers * 2 * kv_heads * head_dim], keys and values of every layer, in PEFT's order.

    A prompt of no tokens is the empty prompt: the input behind it is read as without a bank.

    `centres`, [m, hidden_size] float32, are mean input embeddings of the text that each prompt was trained on, where
    prompts were trained on different text; `made` says how, for `bank.json`.

    `beginning` is the BOS that the prompts were made with, and its place: they are used with it wherever they go. None:
    not known; a text then begins with the BOS of the model that they are put on, behind the prompt.
    """

    prompts: list[torch.Tensor]
    names: list[str]
    kind: str = "prompt"
    centres: torch.Tensor | None = None
    made: dict[str, Any] = field(default_factory=dict)
    beginning: Beginning | None = None

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
        return PromptBank(self.prompts[:1], self.names[:1], self.kind, beginning=self.beginning)

    def save(
        self,
        folder: Path,
        config: PretrainedConfig,
        base_model: str,
        stored: Storage | None = None,
        ahead: torch.Tensor | None = None,
    ) -> None:
        """Writes the bank.

        Args:
            folder: where to.
            config: the model's.
            base_model: what PEFT calls its name or path.
            stored: bits and pruning; None for float32, as trained.
            ahead: rows of the BOS that stands before each prompt, [tokens, width], which are then written as virtual
                tokens ahead of the prompt's own: for PEFT, which puts nothing before a prompt.
        """
        import torch
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        for number, prompt in enumerate(self.prompts):
            place = folder / f"prompt_{number}"
            prompt = prompt.detach().float().cpu()
            prompt = (prompt if ahead is None else torch.cat([ahead.detach().float().cpu(), prompt])).contiguous()
            if not len(prompt):
                continue  # there is nothing to store of the empty prompt, and PEFT knows none of no tokens
            place.mkdir(parents=True, exist_ok=True)
            if stored is not None and not storage.peft_reads(stored):
                save_file(storage.pack(prompt, stored), place / storage.PACKED)
                continue
            save_file({peft_files.TENSOR: prompt.to(storage.float_type(stored))}, place / peft_files.WEIGHTS)
            write_json(place / peft_files.CONFIG, peft_files.config_of(self.kind, prompt, config, base_model))
        described: dict[str, Any] = {"kind": self.kind, "names": self.names, "lengths": self.lengths}
        described["width"] = self.prompts[0].shape[1]
        described |= {"base_model_name_or_path": base_model, "made": self.made}
        if stored is not None and not storage.is_plain(stored):
            described["storage"] = storage.described(stored)
        if self.beginning is not None:
            described["bos"] = self.beginning.described()
            if ahead is not None:
                described["bos"]["virtual_tokens"] = len(ahead)
        if self.centres is not None:
            save_file({CENTRES: self.centres.detach().float().cpu().contiguous()}, folder / CENTRES_FILE)
        write_json(folder / "bank.json", described)

    @classmethod
    def load(cls, folder: Path) -> PromptBank:
        """Reads a bank that `save` wrote, its prompts as float32 whatever they are stored in.

        Raises:
            UserError: there is none, or a prompt's size is not what `bank.json` says.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            described = json.loads((folder / "bank.json").read_text(encoding="utf-8"))
            stored = storage.from_description(described["storage"]) if "storage" in described else None
            # In an export each prompt's folder has the prompt's name.
            places = described.get("folders") or [f"prompt_{number}" for number in range(len(described["names"]))]
            kind, width = described["kind"], described["width"]
            beginning, ahead = beginning_of(described)
            prompts = [
                _read(folder / place, stored, (ahead + length, width))[ahead:]
                for place, length in zip(places, described["lengths"], strict=True)
            ]
            file = folder / CENTRES_FILE
            centres = load_file(file)[CENTRES] if file.exists() else None
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise UserError(f"{folder}: not a prompt bank: {error}") from error
        for name, prompt, length in zip(described["names"], prompts, described["lengths"], strict=True):
            if tuple(prompt.shape) != (length, width):
                raise UserError(f"{folder}: prompt {name} is {tuple(prompt.shape)}, bank.json says ({length}, {width})")
        return cls(prompts, described["names"], kind, centres, described.get("made", {}), beginning)


def beginning_of(described: dict[str, Any]) -> tuple[Beginning | None, int]:
    """The BOS that a bank was made with, from its `bank.json`, and how many rows ahead of each prompt are its.

    None for a bank made before that was written down.
    """
    bos = described.get("bos")
    if bos is None:
        return None, 0
    return Beginning(tuple(bos["tokens"]), bos["place"]), int(bos.get("virtual_tokens", 0))


def _read(place: Path, stored: Storage | None, shape: tuple[int, int]) -> torch.Tensor:
    import torch
    from safetensors.torch import load_file

    if not shape[0]:
        return torch.zeros(shape)
    if stored is None or storage.peft_reads(stored):
        return load_file(place / peft_files.WEIGHTS)[peft_files.TENSOR].float()
    return storage.unpack(load_file(place / storage.PACKED), stored, shape)
