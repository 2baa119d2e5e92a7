"""The token at the beginning (BOS): which one a text begins with, and where it stands where there is a prompt.

Many models have learned to lean on it: every head that has nothing to say looks there. A model that has it in scoring
and not in training, or a prompt that merely stands in its place, makes a difference that is no repair's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from idp.errors import UserError

if TYPE_CHECKING:
    import torch

AUTO, ALWAYS, NEVER = MODES = ("auto", "always", "never")
BEFORE, AFTER, NONE = PLACES = ("before", "after", "none")
WITHIN = "within"  # before the prompt, as rows of its own: no choice, but what `before` comes to where those are kept


@dataclass(frozen=True)
class Beginning:
    """What every input begins with.

    Args:
        tokens: the model's BOS: one token, or the few that its tokenizer puts there; none where texts have none.
        place: about a prompt: `before` it, `after` it, or `none` at all; `within` it, where a bank's prompts hold it as
            their first rows. Without a prompt the text begins with it.
    """

    tokens: tuple[int, ...] = ()
    place: str = AFTER

    @property
    def ahead_of_prompt(self) -> list[int]:
        """The tokens that stand before the prompt."""
        return list(self.tokens) if self.place == BEFORE else []

    @property
    def ahead_of_text(self) -> list[int]:
        """The tokens that stand before the text, behind the prompt."""
        return list(self.tokens) if self.place == AFTER else []

    @property
    def elsewhere(self) -> list[int]:
        """The model's BOS where no text begins with it."""
        return [] if self.place == AFTER else list(self.tokens)

    def __len__(self) -> int:
        """Tokens that it takes of the model's window."""
        return 0 if self.place == NONE else len(self.tokens)

    def __bool__(self) -> bool:
        return True  # also one of no tokens is known

    def described(self) -> dict[str, Any]:
        """As JSON; places differ only where there is something to place."""
        return {"tokens": list(self.tokens), "place": self.place if self.tokens else NONE}

    def identity(self) -> dict[str, Any]:
        """Its part of a key; nothing where no BOS is in play, so that `place` changes nothing there."""
        return {"bos": self.described()} if self.tokens else {}


def sink_of(bos: Sequence[int], tokenizer: Any) -> int | None:
    """The token that stands first in most of what a model has read, where heads with nothing to say look (its sink).

    Args:
        bos: the model's BOS, as texts have it; empty for none.
        tokenizer: the model's.

    Returns:
        the first BOS token, else the one that the tokenizer knows and does not put there, else that which ends a
        document and so stands before the next one; None where there is none of them.
    """
    if bos:
        return bos[0]
    return tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id


def resolve(mode: str, tokenizer: Any) -> tuple[int, ...]:
    """The BOS that `model.bos` means with a tokenizer; empty for none.

    Raises:
        UserError: `always`, and the tokenizer has none.
    """
    if mode == NEVER:
        return ()
    tokens = added_by(tokenizer)
    if mode == ALWAYS and not tokens:
        if tokenizer.bos_token_id is None:
            raise UserError(
                "model.bos=always: the model's tokenizer has no BOS token (bos_token in its tokenizer_config.json); use"
                " model.bos=never or auto"
            )
        return (tokenizer.bos_token_id,)
    return tokens


def added_by(tokenizer: Any) -> tuple[int, ...]:
    """The tokens that a tokenizer itself puts in front of a text, found by asking it."""
    if tokenizer is None:
        return ()
    plain, whole = tokenizer.encode("a", add_special_tokens=False), tokenizer.encode("a")
    for size in range(len(whole) - len(plain) + 1):
        if whole[size : size + len(plain)] == plain:
            return tuple(whole[:size])
    return ()


class Encoder:
    """Token ids of texts, each of which begins with its BOS: once, also where it is written out in the text.

    Args:
        tokenizer: the model's.
        tokens: what a text begins with; empty: whatever the tokenizer would add is left out.
        elsewhere: the model's BOS where it has its place before a prompt or none: a text that has it written out at its
            beginning loses it.
    """

    def __init__(self, tokenizer: Any, tokens: Sequence[int], elsewhere: Sequence[int] = ()):
        self.tokenizer, self.tokens, self.elsewhere = tokenizer, list(tokens), list(elsewhere)
        self.is_own_habit = list(added_by(tokenizer)) == self.tokens

    def __call__(self, text: str, written: str | None = None) -> list[int]:
        """The ids of a text; `written` is the BOS as text, where it is not simply its tokens decoded."""
        if written is None:
            written = self.tokenizer.decode(self.tokens) if self.tokens else None
        if written and text.startswith(written) and not self.elsewhere:
            return self.tokenizer.encode(text, add_special_tokens=False)
        if self.is_own_habit and not self.elsewhere:
            return self.tokenizer.encode(text)
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        if self.elsewhere and ids[: len(self.elsewhere)] == self.elsewhere:
            ids = ids[len(self.elsewhere) :]
        return [*self.tokens, *ids]


def begun(blocks: torch.Tensor, tokens: Sequence[int]) -> torch.Tensor:
    """Blocks of text, [blocks, tokens], with `tokens` in front of each."""
    import torch

    if not tokens:
        return blocks
    ahead = torch.tensor(list(tokens), dtype=blocks.dtype, device=blocks.device).expand(len(blocks), -1)
    return torch.cat([ahead, blocks], dim=1)
