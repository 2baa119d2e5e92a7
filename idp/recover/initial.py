"""What a trained prompt starts from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from idp.errors import UserError
from idp.models import LoadedModel
from idp.prompting.states import embedded
from idp.recover.existing import Existing, Member, prompts_at

if TYPE_CHECKING:
    import torch


LEARNED, SETTING = "learned", "recovery.init_from"


@dataclass(frozen=True)
class Start:
    """What a recovery's options say of it: `init` and, for `init=text`, the `text`, as `initial` takes them.

    For `init=learned`, `place` has the prompt that training goes on from.
    """

    init: str
    text: str = ""
    place: str | None = None

    @property
    def learned(self) -> Member:
        """The one prompt of `place`.

        Raises:
            UserError: it holds none, or several.
        """
        assert self.place is not None  # `check` asks for it
        found = prompts_at(self.place, SETTING)
        if len(found) != 1:
            held = f"{len(found)} prompts ({', '.join(each.name for each in found)})" if found else "no prompt"
            raise UserError(f"{SETTING}: {self.place}: it holds {held}; name the folder of one")
        return found[0]

    def check(self, used: bool) -> None:
        """Raises a UserError where one of the two is said without the other; `used`: whether training starts there."""
        if used and not self.place:
            raise UserError(
                f"recovery.init={LEARNED}: say which prompt it starts from, a run, or a PEFT folder, by {SETTING}"
            )
        if self.place and not used:
            raise UserError(f"{SETTING}={self.place}: training starts from it with recovery.init={LEARNED}; add that")

    def find(self, lengths: list[int]) -> Existing:
        """What `learned` gives, held against the lengths of the prompts that start from it.

        Raises:
            UserError: it is not there, or of another length.
        """
        found = self.learned
        if wrong := [length for length in lengths if length != len(found.prompt)]:
            raise UserError(
                f"{SETTING}: {self.place}: that prompt has {len(found.prompt)} tokens, and {wrong[0]} were asked for;"
                f" recovery.length (of a bank, each of recovery.lengths) has to be {len(found.prompt)}"
            )
        return Existing([found], SETTING)

    def prompt(
        self, loaded: LoadedModel, length: int, seed: int, corpus: Callable[[int], list[int]] | None = None
    ) -> torch.Tensor:
        """As `initial`; of `init=corpus` the embeddings of as many tokens as `corpus` is asked for; or `learned`."""
        if self.init == "corpus":
            if corpus is None:
                raise ValueError("init=corpus without a corpus")
            return embed(loaded, corpus(length))
        if self.init == LEARNED:
            return self.learned.prompt.float()
        return initial(loaded, length, self.init, self.text, seed)


def initial(loaded: LoadedModel, length: int, init: str, text: str, seed: int) -> torch.Tensor:
    """A prompt's first value, [length, hidden_size] float32 on the CPU.

    Args:
        loaded: the model, whose embedding it is drawn from.
        length: tokens.
        init: `vocabulary` (random rows of the embedding), `first_rows` (rows 0..n-1, as in Xu et al.'s code), `text`
            (the tokens of the text, repeated) or `random` (Gaussian with the mean and deviation of the embeddings that
            the model's layers get).
        text: for `text`.
        seed: for `vocabulary` and `random`.

    Raises:
        UserError: the text has no tokens, or the vocabulary fewer rows than the prompt.
    """
    import torch

    weight = loaded.model.get_input_embeddings().weight
    generator = torch.Generator().manual_seed(seed)
    if init == "random":
        sample = embed(loaded, list(range(len(weight))))  # not the table itself: Gemma scales what it looks up
        return sample.mean(0) + sample.std(0) * torch.randn(length, weight.shape[1], generator=generator)
    if init == "text":
        tokens = loaded.tokenizer(text, add_special_tokens=False)["input_ids"]
        if not tokens:
            raise UserError("recovery.init_text has no tokens: give some text, or use recovery.init=vocabulary")
        return embed(loaded, (tokens * (length // len(tokens) + 1))[:length])
    if length > len(weight):
        raise UserError(f"recovery: a prompt of {length} tokens is longer than the vocabulary ({len(weight)})")
    rows = range(length) if init == "first_rows" else torch.randperm(len(weight), generator=generator)[:length].tolist()
    return embed(loaded, list(rows))


def embed(loaded: LoadedModel, tokens: list[int]) -> torch.Tensor:
    """Embeddings of tokens as the model's layers get them, [tokens, hidden_size] float32 on the CPU."""
    return embedded(loaded.model, tokens).float().cpu()
