"""Data-parallel evaluation: one process per device, each with its own copy of the model, fed batch by batch."""

from __future__ import annotations

import logging
import multiprocessing
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any, cast

from idp import plugins, registry
from idp.errors import UserError, lacks_memory
from idp.evaluate.batching import PackedRow
from idp.evaluate.divergence import Ask
from idp.evaluate.engine import LocalEngine
from idp.hub import first_line
from idp.memory import device_peaks, keep_peaks, release

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from idp.prompting.repaired import RepairedModel

log = logging.getLogger(__name__)

OpenModel = Callable[[str], "RepairedModel"]


class PooledEngine:
    """An engine over several processes. Batches are those of a single process, so scores are the same.

    Args:
        open_model: opens the repaired model on a device; it is sent to each process, so it must be picklable.
        devices: one per process, such as `["cuda:0", "cuda:1"]` or `["cpu", "cpu"]`.
        config: the model's config.
        tokenizer: the model's tokenizer.
    """

    def __init__(
        self,
        open_model: OpenModel,
        devices: Sequence[str],
        config: PretrainedConfig,
        tokenizer: PreTrainedTokenizerBase,
    ):
        self.config, self.tokenizer = config, tokenizer
        release()  # the first process shares its device with this one
        context = multiprocessing.get_context("spawn")  # a fork of a process that has used torch may hang
        self.workers: list[tuple[Any, Connection]] = []
        for device in devices:
            ours, theirs = context.Pipe()
            given = (theirs, open_model, device, len(devices), list(plugins.loaded()))
            process = context.Process(target=_work, args=given, daemon=True)
            process.start()
            theirs.close()
            self.workers.append((process, ours))
        ((_, described),) = self._spread([("describe", ())])
        self.prompts, self.longest_prompt = described["prompts"], described["longest_prompt"]
        self.beginning, self.not_followed = described["beginning"], described["not_followed"]

    def score(
        self, batches: Sequence[Sequence[PackedRow]], shared: list[int], asks: Sequence[Sequence[Ask]] | None = None
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        jobs = [
            ("score_batch", (list(batch), shared, list(asks[number]) if asks else None))
            for number, batch in enumerate(batches)
        ]
        return self._spread(jobs)

    def generate(
        self, batches: Sequence[list[list[int]]], stops: list[str], max_new_tokens: int
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        return self._spread([("generate_batch", (contexts, stops, max_new_tokens)) for contexts in batches])

    def choose(self, batches: Sequence[list[list[int]]]) -> Iterator[tuple[int, list[int | None]]]:
        return self._spread([("choose_batch", (contexts,)) for contexts in batches])

    def close(self) -> None:
        """Ends the processes."""
        for process, connection in self.workers:
            connection.close()
            process.join(10)
            if process.is_alive():
                process.kill()
        self.workers = []

    def _spread(self, jobs: list[tuple[str, tuple]]) -> Iterator[tuple[int, Any]]:
        """Gives each free process the next job, and yields results as they come."""
        todo = iter(enumerate(jobs))
        busy: dict[Connection, int] = {}

        def feed(connection: Connection) -> None:
            if (given := next(todo, None)) is not None:
                number, job = given
                connection.send(job)
                busy[connection] = number

        try:
            for _, connection in self.workers:
                feed(connection)
            while busy:
                for ready in wait(list(busy)):
                    connection = cast(Connection, ready)
                    error, result, peaks = connection.recv()
                    keep_peaks(peaks)
                    if isinstance(error, UserError):
                        raise error
                    if error is not None:
                        kind, line, trace = error
                        log.error("an evaluation process failed:\n%s", trace)
                        raise kind(f"an evaluation process failed: {line}")
                    yield busy.pop(connection), result
                    feed(connection)
        except (EOFError, OSError) as error:
            raise UserError(
                "measure: an evaluation process died, perhaps for lack of memory; lower"
                " evaluation.processes or evaluation.batch_tokens"
            ) from error


def _work(connection: Connection, open_model: OpenModel, device: str, processes: int, modules: list[str]) -> None:
    """What each process does: opens the model, by kinds of the user's own perhaps, then answers jobs until the pipe is
    closed."""
    import torch

    registry.load_plugins(modules)
    if device == "cpu":  # share the cores out instead of fighting for them
        torch.set_num_threads(max(1, torch.get_num_threads() // processes))
    engine = None
    while True:
        try:
            name, arguments = connection.recv()
        except (EOFError, OSError):
            return
        try:
            engine = engine or LocalEngine(open_model(device))
            answer: tuple[Any, Any, dict[str, int]] = (None, getattr(engine, name)(*arguments), device_peaks())
        except UserError as error:  # one line, for the user; this process's own traceback says nothing more
            answer = (error, None, {})
        except Exception as error:
            kind = MemoryError if lacks_memory(error) else RuntimeError  # the library's own may not be picklable
            answer = ((kind, f"{type(error).__name__}: {first_line(error)}", traceback.format_exc()), None, {})
        connection.send(answer)
