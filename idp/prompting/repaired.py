"""A model with a prefix chosen per input: all that scoring, generation, perplexity and latency know of a repair."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from idp.errors import UserError
from idp.models import LoadedModel
from idp.prompting.prefix import Prefixes, attention_mask, bind

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from idp.prompting.bank import PromptBank
    from idp.prompting.selectors.base import Selector


class RepairedModel:
    """A causal language model, perhaps with an adapter, and perhaps with a bank of prompts and its selector.

    A dense or a compressed model is one without a bank; one prompt is a bank of one, which needs no selector.
    """

    def __init__(self, loaded: LoadedModel, bank: PromptBank | None = None, selector: Selector | None = None):
        self.model: PreTrainedModel = loaded.model
        self.tokenizer: PreTrainedTokenizerBase = loaded.tokenizer
        self.device: torch.device = loaded.device
        self.bank = bank
        self.prefixes: Prefixes | None = bind(self.model, bank) if bank else None
        self.selector = selector if bank is not None and len(bank) > 1 else None
        if bank is not None and len(bank) > 1 and selector is None:
            raise UserError("a bank of several prompts needs a selector")
        if self.selector is not None:
            self.selector.bind(self.model, self.prefixes)

    @property
    def longest_prompt(self) -> int:
        """Tokens of the longest prompt; 0 without a bank."""
        return max(self.bank.lengths) if self.bank is not None else 0

    def choose(self, contexts: Sequence[Sequence[int]]) -> torch.Tensor | None:
        """The index of each context's prompt, [contexts]; None without a bank.

        Args:
            contexts: token ids of what may be read for the choice: the question, never an answer.
        """
        if self.bank is None:
            return None
        return self.choose_padded(*right_padded(contexts, self.device))

    def choose_padded(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor | None:
        """`choose` for contexts that are a tensor already: [contexts, longest] padded on the right, and [contexts]."""
        import torch

        if self.bank is None:
            return None
        if self.selector is None:
            return torch.zeros(len(tokens), dtype=torch.long, device=self.device)
        with torch.inference_mode():
            return self.selector.scores(tokens, lengths).argmax(dim=1)

    def attention_inputs(
        self,
        visible: torch.Tensor,
        positions: torch.Tensor,
        choice: torch.Tensor | None,
        prefixes: Prefixes | None = None,
    ) -> dict[str, Any]:
        """What to pass to the model, beside the tokens, so that each row follows its own prompt.

        Args:
            visible: [rows, tokens, tokens], True where a token may see a token of its row; every one sees itself.
            positions: [rows, tokens], from 0 at the start of the input.
            choice: [rows], the prefix that each row follows; None for none.
            prefixes: the prefixes meant, where they are not the bank's own.
        """
        import torch

        prefixes = prefixes or self.prefixes
        if choice is None:
            mask = attention_mask(self.model, visible, positions, positions)
            return {"attention_mask": mask, "position_ids": positions, "past_key_values": None, "use_cache": False}
        rows, tokens = positions.shape
        valid = prefixes.valid(choice)
        shifted = positions + prefixes.lengths[choice][:, None]
        before = torch.arange(valid.shape[1], device=positions.device).expand(rows, -1)
        return {
            "attention_mask": attention_mask(
                self.model,
                torch.cat([valid[:, None, :].expand(rows, tokens, -1), visible], dim=2),
                shifted,
                torch.cat([before, shifted], dim=1),
            ),
            "position_ids": shifted,
            "past_key_values": prefixes.cache(choice),
            "use_cache": True,
        }

    def logits_at(
        self,
        tokens: torch.Tensor,
        visible: torch.Tensor,
        positions: torch.Tensor,
        choice: torch.Tensor | None,
        wanted: torch.Tensor,
        prefixes: Prefixes | None = None,
    ) -> torch.Tensor:
        """Logits at the wanted places only: [wanted, vocabulary], in the model's dtype.

        Args:
            tokens: [rows, tokens].
            visible: as for `attention_inputs`.
            positions: as for `attention_inputs`.
            choice: as for `attention_inputs`.
            wanted: [wanted] indices into the flattened tokens, row * width + column.
            prefixes: as for `attention_inputs`.
        """
        inputs = self.attention_inputs(visible, positions, choice, prefixes)
        with head_only_at(self.model, wanted):
            return self.model(input_ids=tokens, **inputs).logits[0].to(self.device)


@contextlib.contextmanager
def head_only_at(model: PreTrainedModel, wanted: torch.Tensor) -> Iterator[None]:
    """Within the block, the output head sees the wanted places only, and logits are [1, wanted, vocabulary].

    What a model does to its logits after the head (a soft cap, a scale) still happens. Slicing as `logits_to_keep`
    does hands the head a tensor that is not contiguous, for which torch copies the weight once per row.

    Args:
        model: a causal language model.
        wanted: [wanted] indices into the flattened tokens, row * width + column.
    """

    def gather(_: Any, arguments: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        hidden = arguments[0].reshape(1, -1, arguments[0].shape[-1])
        return (hidden[:, wanted.to(hidden.device)],)

    hook = model.get_output_embeddings().register_forward_pre_hook(gather)
    try:
        yield
    finally:
        hook.remove()


def right_padded(rows: Sequence[Sequence[int]], device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids as [rows, longest], padded on the right with zeros, and their lengths [rows]."""
    import torch

    lengths = torch.tensor([len(row) for row in rows], device=device)
    tokens = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
    for number, row in enumerate(rows):
        tokens[number, : len(row)] = torch.tensor(row, dtype=torch.long)
    return tokens.to(device), lengths
