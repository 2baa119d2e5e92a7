"""llmcompressor on our terminal: its own bars and log lines off, one bar that counts layers on."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps the bars and log lines of llmcompressor and what it calls off the terminal."""
    # Read when it is imported. (LLM_COMPRESSOR_LOG_DISABLED would make GPTQ fail.)
    os.environ.setdefault("LLM_COMPRESSOR_LOG_LEVEL", "ERROR")
    import tqdm
    from loguru import logger

    logger.remove()  # its handler writes to standard output
    logging.getLogger("torch.fx").setLevel(logging.ERROR)
    bar = tqdm.std.tqdm.__init__

    def silent(self: Any, *arguments: Any, **options: Any) -> None:
        bar(self, *arguments, **{**options, "disable": True})

    tqdm.std.tqdm.__init__ = silent
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Attempting to save a model with offloaded modules")
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
