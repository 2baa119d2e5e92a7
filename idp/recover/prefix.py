"""Prefix tuning (Li & Liang, 2101.00190): trained keys and values at every layer, before the input's own.

They start as those that real tokens give: a prompt is run through the model once. The paper found that far better than
noise where data are few (its section 7.4).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from idp.beginning import Beginning
from idp.config import WIDE, option
from idp.models import LoadedModel
from idp.prompting.shapes import prefix_width
from idp.prompting.states import flatten, run_prompt
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
        return self.length * prefix_width(empty.model.config)

    def make(self, context: RepairContext) -> RepairResult:
        return make_with(encoder(self, context.loaded, context.seed, context.beginning), self, context, "prefix")


def encoder(options: PrefixTuning, loaded: LoadedModel, seed: int, beginning: Beginning | None = None) -> nn.Module:
    """What gives the prefix, [tokens, 2 * layers * kv_heads * head_dim], while it is trained.

    Its first value are the keys and values of real tokens where it stands: behind the BOS, where that is before it.
    """
    import torch

    from idp.recover.nets.reparameterization import Itself, PrefixEncoder

    embedded = options.start.prompt(loaded, options.length, seed)
    with torch.no_grad():
        ahead = beginning.ahead_of_prompt if beginning is not None else []
        layers = [
            (keys[:, :, len(ahead) :], values[:, :, len(ahead) :])
            for keys, values in run_prompt(loaded.model, embedded, ahead)
        ]
        start = flatten([(keys.to(loaded.device), values.to(loaded.device)) for keys, values in layers]).float()
    if options.encoder == "none":
        return Itself(start)
    return PrefixEncoder(embedded, start, options.encoder_hidden_size, options.residual, seed)
