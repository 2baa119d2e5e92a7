"""Whose weights compute a prompt's keys and values, and which tokens stand first in it and are not trained.

A prompt's states are otherwise computed by the compressed model, and much of what a prompt must first make good is the
damage to its own. They do not depend on the input, so the dense model can compute them once (IntactKV, Liu et al.,
2403.01241); as a prefix they then cost what any prefix does. A first token that stays is the attention sink that the
rest of the prompt leans on (Cartridges, Eyuboglu et al., 2506.06266).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from idp.beginning import sink_of
from idp.config import DENSE_STATES
from idp.errors import UserError
from idp.models import LoadedModel
from idp.prompting.frequencies import switch_of
from idp.prompting.shapes import prefix_width
from idp.prompting.states import flatten, run_prompt
from idp.recover.context import RepairContext

if TYPE_CHECKING:
    import torch
    from torch import nn


class Standing(Protocol):
    """What is asked of a recovery's options here; see `idp.config.Prompted`."""

    states: str
    sink: str

    def held(self, loaded: Any) -> list[int]: ...


def check(options: Standing, empty: LoadedModel) -> None:
    """Holds them against a model.

    Raises:
        UserError: it has no token for a sink, or keys that depend on how long the input is.
    """
    if options.sink == "keep" and sink_of(empty.bos, empty.tokenizer) is None:
        raise UserError(
            "recovery.sink=keep: the model's tokenizer has neither a BOS nor an end-of-text token that could be the"
            " first; use recovery.sink=none"
        )
    if options.states == DENSE_STATES and switch_of(empty.model.config) is not None:
        raise UserError(
            f"recovery.states=dense: {type(empty.model).__name__} changes its rotary frequencies with the length of the"
            " input, so that no keys fit all; use recovery.states=own"
        )


def width(options: Standing, empty: LoadedModel) -> int:
    """Numbers that are stored of a token of a prompt: its embedding, or its keys and values."""
    config = empty.model.config
    return prefix_width(config) if options.states == DENSE_STATES else config.get_text_config().hidden_size


def source(options: Standing, context: RepairContext) -> LoadedModel:
    """As `model_of`, for a recovery's options."""
    return model_of(options.states, context)


def model_of(states: str, context: RepairContext) -> LoadedModel:
    """The model that computes a prompt's states: the one that is repaired (`own`), or the dense one (`dense`).

    Raises:
        UserError: the dense one has other layers or heads.
    """
    if states != DENSE_STATES:
        return context.loaded
    dense = context.dense()
    here, there = (prefix_width(each.model.config) for each in (context.loaded, dense))
    if here != there:
        raise UserError(
            f"recovery.states=dense: the dense model has keys and values of {there} numbers a token, the compressed one"
            f" {here}: it belongs to another model; use recovery.states=own"
        )
    return dense


def rows(loaded: LoadedModel, prompt: torch.Tensor, ahead: Sequence[int] = ()) -> torch.Tensor:
    """Keys and values of a prompt as a bank holds them, float32 and without gradients, those of `ahead` first.

    Args:
        loaded: the model that computes them.
        prompt: [tokens, hidden_size] in the space of its input embeddings.
        ahead: token ids before it.

    Returns:
        [ahead and tokens, 2 * layers * kv_heads * head_dim].
    """
    import torch

    with torch.no_grad():
        layers = run_prompt(loaded.model, prompt, ahead)
        return flatten([(keys.to(loaded.device), values.to(loaded.device)) for keys, values in layers]).float()


def standing(maker: nn.Module, options: Standing, source: LoadedModel, context: RepairContext) -> tuple[nn.Module, str]:
    """What gives the whole prompt while it is trained, and its kind, as in `PromptBank`.

    Args:
        maker: gives a soft prompt's own rows, [tokens, hidden_size], in the space of `source`'s embeddings.
        options: the recovery's.
        source: as the function of that name gives it.
        context: the work.
    """
    from idp.recover.initial import embed
    from idp.recover.nets.reparameterization import Held, StatesOf

    held = options.held(context.loaded)
    if options.states == DENSE_STATES:
        return StatesOf(source.model, maker, held), "prefix"
    return (Held(embed(source, held), maker) if held else maker), "prompt"
