"""What is said while models are measured: one line for each task or text of each model, once it is done."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from idp.evaluate.benchmark import Benchmark
    from idp.store import Product

log = logging.getLogger(__name__)


class Told:
    """Counts what is measured, and says how far that is: `measured 12 of 54: compressed on piqa, 100 documents, 8 s`.

    What was measured before is counted alone: the store says that it is reused. Seconds are those since the line
    before, so that they are of all that was done meanwhile, opening the model included.

    Args:
        benchmark: what every model is measured on.
        models: how many of them.
    """

    def __init__(self, benchmark: Benchmark, models: int):
        self.documents = {source.name: source.counted(benchmark.documents) for source in benchmark.tasks}
        self.total, self.done = models * (len(self.documents) + len(benchmark.corpora)), 0
        self.since = time.monotonic()

    def __call__(self, model: str, part: str, product: Product) -> None:
        """Says that a task or text of a model is done."""
        now, self.done = time.monotonic(), self.done + 1
        seconds, self.since = now - self.since, now
        if product.reused:
            return
        count = self.documents.get(part)
        what = f"{part}, {count:,} document{'s' if count != 1 else ''}" if count is not None else f"the text {part}"
        log.info("measured %d of %d: %s on %s, %.1f s", self.done, self.total, model, what, seconds)
