"""llmcompressor on our terminal: its own bars and log lines off, one bar that counts layers on."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator
from typing import Any

log = logging.getLogger(__name__)


@contextlib.contextmanager
def quiet() -> Iterator[list[str]]:
    """Keeps the bars and log lines of llmcompressor and what it calls off the terminal.

    Yields:
        its warnings so far, one line each; they also go to our log.
    """
    # Read when it is imported. (LLM_COMPRESSOR_LOG_DISABLED would make GPTQ fail.)
    os.environ.setdefault("LLM_COMPRESSOR_LOG_LEVEL", "ERROR")
    from llmcompressor.logger import logger

    captured: list[str] = []

    def note(message: Any) -> None:
        captured.append(" ".join(message.record["message"].split()))
        log.debug("llmcompressor: %s", captured[-1])

    logger.remove()  # the handler that the import added: it writes to standard output
    sink = logger.add(note, level="WARNING")
    logging.getLogger("torch.fx").setLevel(logging.ERROR)
    try:
        with no_bars(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Attempting to save a model with offloaded modules")
            yield captured
    finally:
        logger.remove(sink)


@contextlib.contextmanager
def no_bars() -> Iterator[None]:
    """Keeps the progress bars of libraries off the terminal, also those that heed no setting."""
    import tqdm

    bar = tqdm.std.tqdm.__init__

    def silent(self: Any, *arguments: Any, **options: Any) -> None:
        bar(self, *arguments, **{**options, "disable": True})

    tqdm.std.tqdm.__init__ = silent
    try:
        yield
    finally:
        tqdm.std.tqdm.__init__ = bar


def counting(bar: Any) -> Any:
    """A modifier that changes nothing and moves `bar` by one whenever a decoder layer is done."""
    from llmcompressor.modifiers import Modifier

    class Counting(Modifier):
        def on_initialize(self, state: Any, **kwargs: Any) -> bool:
            return True

        def on_sequential_epoch_end(self, state: Any, event: Any, **kwargs: Any) -> None:
            if bar.n < bar.total:  # the output head counts as a layer there
                bar.update(1)

    return Counting()
