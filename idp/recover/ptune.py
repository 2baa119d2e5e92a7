"""P-tuning (Liu et al., 2103.10385): a prompt as the output of a small encoder, which is dropped after training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from idp.config import WIDE, option
from idp.models import LoadedModel
from idp.recover import prompt_states
from idp.recover.context import RepairContext, RepairResult
from idp.recover.prompt import PromptTuning
from idp.recover.tuning import make_with

if TYPE_CHECKING:
    from torch import nn


@dataclass
class PTuning(PromptTuning):
    method: ClassVar[str] = "ptune"

    encoder: str = option("what makes the prompt while it is trained", choices=("mlp", "lstm"))
    encoder_hidden_size: int = option("width of the encoder's hidden layers", minimum=1, maximum=WIDE)
    residual: bool = option("add the encoder's input to its output, which then starts at zero")

    def make(self, context: RepairContext) -> RepairResult:
        source = prompt_states.source(self, context)
        made = encoder(self, source, context.seed, context.beginning_of_text)
        maker, kind = prompt_states.standing(made, self, source, context)
        return make_with(maker, self, context, kind)


def encoder(
    options: PTuning, loaded: LoadedModel, seed: int, corpus: Callable[[int], list[int]] | None = None
) -> nn.Module:
    """What makes the prompt, [tokens, hidden_size], while it is trained; `corpus` is as for `Start.prompt`."""
    from idp.recover.nets.reparameterization import PromptEncoder

    start = options.start.prompt(loaded, options.length, seed, corpus)
    return PromptEncoder(start, options.encoder, options.encoder_hidden_size, options.residual, seed)
