"""A model with a prefix chosen per input: all that scoring, generation, perplexity and latency know of a repair."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from idp.beginning import Beginning
from idp.errors import UserError
from idp.models import LoadedModel
from idp.prompting import finite
from idp.prompting.frequencies import switch_of
from idp.prompting.masks import attention_mask
from idp.prompting.packed import packed_attention
from idp.prompting.packing import Packed
from idp.prompting.prefix import Prefixes, bind

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from idp.prompting.bank import PromptBank
    from idp.prompting.selectors.base import Selector

CPU_LOGITS, GPU_LOGITS = 2**22, 2**28  # logits at a time: what a CPU's cache holds, what a GPU's memory does


class RepairedModel:
    """A causal language model, perhaps with an adapter, and perhaps with a bank of prompts and its selector.

    A dense or a compressed model is one without a bank; one prompt is a bank of one, which needs no selector.

    `beginning` is the BOS of every input and its place: the bank's own, else the model's, as the text's first token.
    `bos` is the model's, as it is without a bank.
    """

    def __init__(self, loaded: LoadedModel, bank: PromptBank | None = None, selector: Selector | None = None):
        self.model: PreTrainedModel = loaded.model
        self.tokenizer: PreTrainedTokenizerBase = loaded.tokenizer
        self.device: torch.device = loaded.device
        self.bank = bank
        self.bos: tuple[int, ...] = loaded.bos
        self.beginning: Beginning = (bank.beginning if bank else None) or Beginning(loaded.bos)
        self.prefixes: Prefixes | None = bind(self.model, bank, self.beginning) if bank else None
        self.selector = selector if bank is not None and len(bank) > 1 else None
        if bank is not None and len(bank) > 1 and selector is None:
            raise UserError("a bank of several prompts needs a selector")
        if self.selector is not None and self.prefixes is not None:
            if self.selector.temperature is not None:
                self.prefixes.check_mixable()
            self.selector.bind(self.model, self.prefixes)

    @property
    def longest_prompt(self) -> int:
        """Tokens of the longest prompt, with the BOS before it where that is its place; 0 without a bank."""
        if self.bank is None or self.prefixes is None:
            return 0
        return max(self.bank.lengths) + self.prefixes.ahead

    def choose(self, contexts: Sequence[Sequence[int]]) -> torch.Tensor | None:
        """The index of each context's prompt, [contexts]; None without a bank.

        Where the selector mixes prompts, it is their weights, [contexts, prompts]; `followed` takes either.

        Args:
            contexts: token ids of what may be read for the choice: the question, never an answer.
        """
        import torch

        if self.bank is None:
            return None
        if (selector := self.selector) is None:
            return torch.zeros(len(contexts), dtype=torch.long, device=self.device)
        with torch.inference_mode():
            scores = selector.scores(contexts)
            # A prompt may be infinitely far, which is never chosen; the one that is chosen may not, and a NaN wins.
            best = scores.amax(dim=1)
            finite.check(best, self.model, lambda: selector.scores(contexts), "the selector's scores")
            if selector.temperature is None:
                return scores.argmax(dim=1)
            return (scores.float() / (selector.temperature * selector.unit)).softmax(dim=1)

    def followed(self, choice: torch.Tensor) -> tuple[Prefixes, torch.Tensor]:
        """The prefixes that rows follow, and which of them each row follows, [rows].

        They are the bank's, or where `choice` are weights, each row's own mixture.
        """
        import torch

        assert self.prefixes is not None  # they are what was chosen among
        if not choice.is_floating_point():
            return self.prefixes, choice
        return self.prefixes.mixed(choice), torch.arange(len(choice), device=choice.device)

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
            choice: what each row follows, as `choose` gives it; None for nothing.
            prefixes: of which `choice` are the numbers, as `followed` gives them; None: the bank's.
        """
        import torch

        if choice is None:
            mask = attention_mask(self.model, visible, positions, positions)
            return {"attention_mask": mask, "position_ids": positions, "past_key_values": None, "use_cache": False}
        if prefixes is None:
            prefixes, choice = self.followed(choice)
        rows, tokens = positions.shape
        valid = prefixes.valid(choice)
        shifted = positions + prefixes.lengths[choice][:, None]
        switch = switch_of(self.model.config)
        long = None if switch is None else shifted.amax(dim=1) >= switch
        before = torch.arange(valid.shape[1], device=positions.device).expand(rows, -1)
        return {
            "attention_mask": attention_mask(
                self.model,
                torch.cat([valid[:, None, :].expand(rows, tokens, -1), visible], dim=2),
                shifted,
                torch.cat([before, shifted], dim=1),
            ),
            "position_ids": shifted,
            "past_key_values": prefixes.cache(choice, long),
            "use_cache": True,
        }

    def logits_at(
        self, packed: Packed, wanted: torch.Tensor, prefixes: Prefixes | None = None
    ) -> Iterator[tuple[int, torch.Tensor]]:
        """Logits at the wanted places only, a few at a time: each first place's number and [places, vocabulary].

        All of them at once would be hundreds of megabytes, written and read again from memory at every step that
        follows; a few stay in the cache.

        Args:
            packed: the rows.
            wanted: [wanted] indices into the packed sequence.
            prefixes: the prefixes that the rows follow, where they are not the bank's own.
        """
        yield from logits_at(self.model, packed, wanted, prefixes or self.prefixes, self._bare_head)

    @functools.cached_property
    def _bare_head(self) -> bool:
        return head_is_bare(self.model)


def logits_at(
    model: PreTrainedModel, packed: Packed, wanted: torch.Tensor, prefixes: Prefixes | None, bare: bool
) -> Iterator[tuple[int, torch.Tensor]]:
    """As `RepairedModel.logits_at`, of a model behind any prefixes; `bare` is what `head_is_bare` says."""
    device, head = packed.tokens.device, model.get_output_embeddings()
    few = max(1, (CPU_LOGITS if device.type == "cpu" else GPU_LOGITS) // head.weight.shape[0])
    with packed_attention(model, packed, prefixes) as inputs:
        # Nothing is yielded while attention is replaced: whoever does not ask for the rest would leave it so.
        if bare:
            hidden = hidden_at_head(model, inputs)
        else:
            with head_only_at(model, wanted):
                logits = model(**inputs).logits[0].to(device)
    for start in range(0, len(wanted), few):
        if bare:
            yield start, head(hidden[wanted[start : start + few].to(hidden.device)]).to(device)
        else:
            yield start, logits[start : start + few]


def head_is_bare(model: PreTrainedModel) -> bool:
    """Whether the logits are what the output head gives, with no soft cap or scale behind it; tried out.

    Not to be asked while attention is replaced.
    """
    import torch

    inputs = {
        "input_ids": torch.tensor([[0, 1]], device=model.get_input_embeddings().weight.device),
        "use_cache": False,
    }
    with torch.inference_mode():
        found, expected = model.get_output_embeddings()(hidden_at_head(model, inputs)), model(**inputs).logits[0]
        return torch.equal(found.to(expected.device), expected)  # a spread model's output comes back to its input's


def hidden_at_head(model: PreTrainedModel, inputs: dict[str, Any]) -> torch.Tensor:
    """What a forward pass hands its output head, [rows * tokens, hidden_size], without running the head."""

    def stop(_: Any, arguments: tuple[torch.Tensor]) -> None:
        raise _AtHead(arguments[0])

    hook = model.get_output_embeddings().register_forward_pre_hook(stop)
    try:
        model(**inputs)
    except _AtHead as reached:
        return reached.args[0].flatten(0, -2)
    finally:
        hook.remove()
    raise RuntimeError(f"{type(model).__name__} does not call its output head")


class _AtHead(Exception):
    """Ends a forward pass at the output head, and carries what reached it."""


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
