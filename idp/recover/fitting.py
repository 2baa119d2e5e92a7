"""The loss that training lowers, in as many passes as it takes to fit in memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from idp import memory
from idp.errors import lacks_memory
from idp.recover.determinism import give_up, is_refusal

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

MICRO_BATCH, NOT_DETERMINISTIC = "micro_batch_size", "operations that are not deterministic"


@dataclass
class Loss:
    """What `train` lowers.

    Args:
        of: the mean loss in nats per token of token ids [rows, tokens], all rows counting alike.
        spare: does something about memory that changes no value, when it has run out, and says what; None: nothing
            is left to do.
        split: of a loss that is no mean over rows: summands of a batch's loss, each from a few rows.
    """

    of: Callable[[torch.Tensor], torch.Tensor]
    spare: Callable[[], str | None] = lambda: None
    split: Callable[[torch.Tensor, int], Iterator[torch.Tensor]] | None = None

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        return self.of(batch)

    def summands(self, batch: torch.Tensor, rows: int) -> Iterator[torch.Tensor]:
        """What adds up to the loss of a batch, and so do the gradients; each from `rows` rows at most."""
        if rows >= len(batch):
            yield self.of(batch)
        elif self.split is not None:
            yield from self.split(batch, rows)
        else:
            for part in batch.split(rows):
                yield self.of(part) * (len(part) / len(batch))


@dataclass
class FitResult:
    """Passes of as many rows as fit in memory.

    Args:
        loss: what is asked first to spare memory.
        rows: of one pass; halved when nothing else is left.
        changes: a history's: what a killed training had come to do holds for its continuation.
    """

    loss: Loss
    rows: int
    changes: list[dict[str, Any]]

    def resume(self) -> None:
        """Makes the changes of a killed training again."""
        for row in self.changes:
            if MICRO_BATCH in row:
                self.rows = row[MICRO_BATCH]
            elif row["changed"] == NOT_DETERMINISTIC:
                give_up()
            else:
                self.loss.spare()

    def attempt(self, step: int, compute: Callable[[int], float]) -> float:
        """What `compute` gives for a number of rows per pass; after a change again, where it could not be computed."""
        while True:
            try:
                return compute(self.rows)
            except Exception as error:
                if (row := self._change(error)) is None:
                    raise
                log.warning(
                    "step %d: %s: training goes on with %s", step, str(error).partition("\n")[0], row["changed"]
                )
                self.changes.append({"step": step, **row})
            memory.release()  # when the error, and with it what its frames held, is gone

    def _change(self, error: Exception) -> dict[str, Any] | None:
        if is_refusal(error):
            give_up()
            return {"changed": NOT_DETERMINISTIC}
        if not lacks_memory(error):
            return None
        if (spared := self.loss.spare()) is not None:
            return {"changed": spared}
        if self.rows > 1:
            self.rows = -(-self.rows // 2)
            return {"changed": f"{MICRO_BATCH}={self.rows}", MICRO_BATCH: self.rows}
        return None
