"""Prefix tuning (Li & Liang, 2101.00190): trained keys and values at every layer, before the input's own.

They start as those that real tokens give: a prompt is run through the model once. The paper found that far better than
noise where data are few (its section 7.4).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from idp.beginning import Beginning
from idp.config import WIDE, option
from idp.models import LoadedModel
from idp.prompting.shapes import prefix_width
from idp.recover import prompt_states
from idp.recover.context import RepairContext, RepairResult
from idp.recover.prompt import PromptTuning
from idp.recover.tuning import make_with

if TYPE_CHECKING:
    from torch import nn


@dataclass
class PrefixTuning(PromptTuning):
    method: ClassVar[str] = "prefix"

    encoder: str = option("what makes the prefix while it is trained: itself, or an MLP", choices=("none", "mlp"))
    encoder_hidden_size: int = option("encoder=mlp: width of its hidden layer", minimum=1, maximum=WIDE)
    residual: bool = option("encoder=mlp: add its output, which then starts at zero, to the initial prefix")

    @property
    def unused(self) -> set[str]:
        of_the_mlp = {"encoder_hidden_size", "residual"} if self.encoder == "none" else set()
        return super().unused | of_the_mlp

    def numbers(self, empty: LoadedModel) -> int:
        return (self.length + self.count_held(empty)) * prefix_width(empty.model.config)

    def make(self, context: RepairContext) -> RepairResult:
        source = prompt_states.source(self, context)
        made = encoder(
            self, source, context.seed, context.beginning, self.held(context.loaded), context.beginning_of_text
        )
        del source  # a dense model has said what it has to say
        return make_with(made, self, context, "prefix")


def encoder(
    options: PrefixTuning,
    loaded: LoadedModel,
    seed: int,
    beginning: Beginning | None = None,
    held: Sequence[int] = (),
    corpus: Callable[[int], list[int]] | None = None,
) -> nn.Module:
    """What gives the prefix, [tokens, 2 * layers * kv_heads * head_dim], while it is trained.

    Its first value are the keys and values of real tokens where they stand: behind the BOS, where that is before them.

    Args:
        options: how it starts, and what makes it.
        loaded: the model that computes the first keys and values.
        seed: draws the start.
        beginning: the BOS and its place.
        held: tokens that are the prefix's first, and stay what they are.
        corpus: as for `Start.prompt`.
    """
    from idp.recover.nets.reparameterization import Held, Itself, PrefixEncoder

    embedded = options.start.prompt(loaded, options.length, seed, corpus)
    ahead = beginning.ahead_of_prompt if beginning is not None else []
    rows = prompt_states.rows(loaded, embedded, [*ahead, *held])[len(ahead) :]
    first, start = rows[: len(held)], rows[len(held) :]
    if options.encoder == "none":
        maker: nn.Module = Itself(start)
    else:
        maker = PrefixEncoder(embedded, start, options.encoder_hidden_size, options.residual, seed)
    return Held(first, maker) if held else maker
