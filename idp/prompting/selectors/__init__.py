"""Selectors: ways to pick one prompt of a bank for one input. One file each; `build` finds them by their kind."""

from __future__ import annotations

from typing import TYPE_CHECKING

from idp import config
from idp.errors import UserError
from idp.prompting.selectors.base import Selector

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def check(options: config.Selector, model: PretrainedConfig) -> None:
    """Refuses options that the model does not have.

    Raises:
        UserError: a layer or a head that does not exist.
    """
    if not isinstance(options, config.AttentionSelector):
        return
    if options.layer >= model.num_hidden_layers:
        raise UserError(
            f"recovery.selector.layer={options.layer}: the model has layers 0 to {model.num_hidden_layers - 1}"
        )
    for head in options.heads or ():
        if not 0 <= head < model.num_attention_heads:
            raise UserError(
                f"recovery.selector.heads: {head} is not one of the model's heads, 0 to {model.num_attention_heads - 1}"
            )


def build(options: config.Selector) -> Selector:
    """The selector that a config describes."""
    if isinstance(options, config.AttentionSelector):
        from idp.prompting.selectors.attention import Attention

        return Attention(options.layer, options.softmax, options.reduce, options.heads)
    raise ValueError(f"no selector of kind {options.kind}")
