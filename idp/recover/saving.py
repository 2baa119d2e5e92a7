"""What the forward passes of a training do to need less memory, and what more they do once it has run out."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING

from idp.config import Training

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from idp.models import LoadedModel

CHECKPOINTING, STREAMED = "checkpointing", "teacher=streamed"


class Saving:
    """How a training's passes through the frozen model are run.

    Args:
        options: `checkpointing` and `teacher`, where null and auto leave the choice to what memory there is; None for
            passes that are not trained on.
        model: the model that is repaired.
        teacher: the dense one, for objective=distill.
    """

    def __init__(self, options: Training | None, model: PreTrainedModel, teacher: LoadedModel | None = None):
        self.options, self.model, self.teacher = options, model, teacher
        self.checkpointing = bool(options and options.checkpointing)

    @contextlib.contextmanager
    def forward(self) -> Iterator[None]:
        """A block for the pass over a batch: attention as it trains best, and `recomputing`."""
        from idp.recover.nets.attention import training_attention

        with training_attention(self.model), self.recomputing():
            yield

    @contextlib.contextmanager
    def recomputing(self, keep_cache: bool = False) -> Iterator[None]:
        """A block in which layers are computed anew for their gradients, if they are to be; `keep_cache`: the cache
        that the model is called with is read afterwards."""
        from idp.recover.nets.checkpointing import checkpointed

        with checkpointed(self.model, keep_cache) if self.checkpointing else contextlib.nullcontext():
            yield

    @functools.cached_property
    def bare_on_card(self) -> bool:
        """Whether logits are worth taking a few at a time, and can be: on an accelerator, by a bare head."""
        from idp.prompting.repaired import head_is_bare

        return self.model.get_output_embeddings().weight.device.type != "cpu" and head_is_bare(self.model)

    def spare(self) -> str | None:
        """Gives up time for memory: says what for, and None where nothing is left. No value or gradient changes."""
        from idp.recover import teacher

        if self.options is None:
            return None
        if self.options.checkpointing is None and not self.checkpointing:
            self.checkpointing = True
            return CHECKPOINTING
        if self.teacher is not None and self.options.teacher == "auto" and teacher.can_be_streamed(self.teacher):
            teacher.stream(self.teacher.model, self.teacher.device)
            return STREAMED
        return None
