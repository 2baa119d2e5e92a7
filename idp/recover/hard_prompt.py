"""A written instruction as a bank of one: the embeddings of its tokens. Nothing is trained."""

from __future__ import annotations

from idp.config import HardPrompt
from idp.models import LoadedModel
from idp.prompting.bank import PromptBank
from idp.recover.prompt import embed


def make(options: HardPrompt, loaded: LoadedModel) -> PromptBank:
    """The bank that holds the text's own token embeddings."""
    tokens = loaded.tokenizer(options.text, add_special_tokens=False)["input_ids"]
    return PromptBank([embed(loaded, tokens)], ["hard"])
