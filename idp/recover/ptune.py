"""P-tuning (Liu et al., 2103.10385): a prompt as the output of a small encoder, which is dropped after training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from idp.config import WIDE, option
from idp.models import LoadedModel
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
        return make_with(encoder(self, context.loaded, context.seed), self, context, "prompt")


def encoder(options: PTuning, loaded: LoadedModel, seed: int) -> nn.Module:
    """What makes the prompt, [tokens, hidden_size], while it is trained."""
    from idp.recover.nets.reparameterization import PromptEncoder

    start = options.start.prompt(loaded, options.length, seed)
    return PromptEncoder(start, options.encoder, options.encoder_hidden_size, options.residual, seed)
