"""What the forward passes of a training do to need less memory, and what more they do once it has run out."""

from __future__ import annotations

import contextlib
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
        options: `checkpointing` and `teacher`, where null and auto leave the choice to what memory there is.
        model: the model that is repaired.
        teacher: the dense one, for objective=distill.
    """

    def __init__(self, options: Training, model: PreTrainedModel, teacher: LoadedModel | None = None):
        self.options, self.model, self.teacher = options, model, teacher
        self.checkpointing = bool(options.checkpointing)

    @contextlib.contextmanager
    def forward(self, keep_cache: bool = False) -> Iterator[None]:
        """A block for one forward pass of the model; `keep_cache`: its cache is read afterwards."""
        from idp.recover.nets.attention import training_attention
        from idp.recover.nets.checkpointing import checkpointed

        with training_attention(self.model), contextlib.ExitStack() as stack:
            if self.checkpointing:
                stack.enter_context(checkpointed(self.model, keep_cache))
            yield

    def spare(self) -> str | None:
        """Gives up time for memory: says what for, and None where nothing is left. No value or gradient changes."""
        from idp.recover import teacher

        if self.options.checkpointing is None and not self.checkpointing:
            self.checkpointing = True
            return CHECKPOINTING
        if self.teacher is not None and self.options.teacher == "auto" and teacher.can_be_streamed(self.teacher):
            teacher.stream(self.teacher.model, self.teacher.device)
            return STREAMED
        return None
