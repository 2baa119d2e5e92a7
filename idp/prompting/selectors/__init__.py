"""Selectors: ways to pick one prompt of a bank for one input. One file each; `build` finds them by their kind."""

from __future__ import annotations

from typing import TYPE_CHECKING

from idp import config
from idp.errors import UserError
from idp.prompting.selectors.base import Selector

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def check(options: config.Selector, model: PretrainedConfig, prompts: int | None = None) -> None:
    """Refuses options that the model or the bank does not have.

    Args:
        options: the selector's.
        model: the model's config.
        prompts: of the bank; None where that is not known yet.

    Raises:
        UserError: a layer, a head or a prompt that does not exist.
    """
    prompt = getattr(options, "prompt", None)
    if prompts is not None and isinstance(prompt, int) and prompt >= prompts:
        raise UserError(f"recovery.selector.prompt={prompt}: the bank has prompts 0 to {prompts - 1}")
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


def needs_fit(options: config.Selector) -> bool:
    """Whether a selector learns something from held-out text before it can choose."""
    if isinstance(options, config.AttentionSelector):
        return options.calibrated
    if isinstance(options, config.FixedSelector):
        return not isinstance(options.prompt, int)
    return isinstance(options, (config.NearestSelector, config.LearnedSelector))


def build(options: config.Selector) -> Selector:
    """The selector that a config describes, not fitted yet where it needs that.

    Raises:
        UserError: the oracle, which chooses after the fact and cannot choose for an input.
    """
    if isinstance(options, config.AttentionSelector):
        from idp.prompting.selectors.attention import Attention

        return Attention(options.layer, options.softmax, options.reduce, options.heads, options.calibrated)
    if isinstance(options, config.RandomSelector):
        from idp.prompting.selectors.random import Random

        return Random(options.seed)
    if isinstance(options, config.FixedSelector):
        from idp.prompting.selectors.fixed import Fixed

        return Fixed(options.prompt)
    if isinstance(options, config.LikelihoodSelector):
        from idp.prompting.selectors.likelihood import Likelihood

        return Likelihood()
    if isinstance(options, config.NearestSelector):
        from idp.prompting.selectors.nearest import Nearest

        return Nearest()
    if isinstance(options, config.LearnedSelector):
        from idp.prompting.selectors.learned import Learned

        return Learned(options.objective, options.penalty)
    if isinstance(options, config.OracleSelector):
        raise UserError(
            "recovery.selector=oracle chooses with the answers in hand: it can be evaluated, not used; take another"
            " selector of the same bank"
        )
    raise ValueError(f"no selector of kind {options.kind}")
