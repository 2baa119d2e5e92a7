"""P-tuning (Liu et al., 2103.10385): a prompt as the output of a small encoder, which is dropped after training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from idp.config import PTuning
from idp.models import LoadedModel
from idp.recover.prompt import initial

if TYPE_CHECKING:
    from torch import nn


def encoder(options: PTuning, loaded: LoadedModel, seed: int) -> nn.Module:
    """What makes the prompt, [tokens, hidden_size], while it is trained."""
    from idp.recover.reparameterization import PromptEncoder

    start = initial(loaded, options.length, options.init, options.init_text, seed)
    return PromptEncoder(start, options.encoder, options.encoder_hidden_size, options.residual, seed)
