"""How many tokens the tasks' documents have, and what a machine does in a second: from a record, or from the documents.

Without a record the documents are formatted and cut into requests as they are when a model is measured; only the model
is left out.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from idp.beginning import Beginning
from idp.config import Config
from idp.errors import UserError
from idp.finished import Finished
from idp.plan.workload import FORWARD, TRAINED, DocumentTokens, Machine

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from idp.evaluate.engine import Engine
    from idp.plan.inputs import Known
    from idp.store import Store
    from idp.tasks.tasks import TaskSource

log = logging.getLogger(__name__)

SAMPLED = 48  # documents of a task whose tokens are counted
FEW = 8  # the same for a plan, which is asked for before each run


def machine_of(run: Finished, place: str) -> Machine:
    """What a run's record and its samples say of the documents and of the machine.

    Args:
        run: it has measured tasks.
        place: its folder or its record.

    Raises:
        UserError: its samples are gone.
    """
    from pyarrow import parquet
    from transformers import AutoTokenizer

    from idp.models import model_folder
    from idp.records.record import SAMPLES

    about = run.record["idp"]
    path = Path(place).expanduser()
    file = (path if path.is_dir() else path.parent) / SAMPLES
    if not file.is_file() or not about["data"]:
        raise UserError(f"{place}: its documents are gone; name a run that has measured the tasks")
    tokenizer = AutoTokenizer.from_pretrained(model_folder(run.made("load")))

    def count(text: str | None) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False)) if text else 0

    lengths: dict[str, list[int]] = {}
    contexts: dict[str, list[int]] = {}
    columns = ["asked_for", "model", "context", "choices", "generation"]
    for row in parquet.read_table(file, columns=columns).to_pylist():
        if row["model"] == about["row"]:
            context = count(row["context"])
            # A choice's last token predicts nothing and is not run.
            continuation = sum(max(count(text) - 1, 0) for text in row["choices"] or []) + count(row["generation"])
            contexts.setdefault(row["asked_for"], []).append(context)
            lengths.setdefault(row["asked_for"], []).append(context + continuation)
    tokens = {task: sum(found) / len(found) for task, found in lengths.items()}
    measured = sum(tokens[task] * about["data"][task]["documents"] for task in tokens)
    measured += sum(found["tokens"] for found in about["perplexity_details"].values())
    weights = about["parameters"]["model"]
    seconds = {stage: made["seconds"] for stage in ("recover", "measure") if (made := about["stages"].get(stage))}
    training, options = None, about["config"]["recovery"].get("training")
    if about["training"] and options and seconds.get("recover"):
        training = _trained_tokens(options) * len(about["training"]) * weights * TRAINED / seconds["recover"]
    environment = about["environment"]
    return Machine(
        tokens,
        {task: about["data"][task]["documents_in_split"] for task in tokens},
        training,
        measured * weights * FORWARD / seconds["measure"],
        f"{run.model.name} on {environment['device']}, {environment['threads']} threads",
        {task: sum(found) / len(found) for task, found in contexts.items()},
    )


def counted(configs: Sequence[Config], tokenizer: PreTrainedTokenizerBase, store: Store | None = None) -> Machine:
    """What the documents themselves say, of all tasks of some runs that are to be had here; the machine is not known.

    A text that is generated counts with the most tokens that its task allows.

    Args:
        configs: the runs'.
        tokenizer: the model's, or another one's.
        store: where what comes from the hub is kept.
    """
    from idp.plan.workload import task_options, tasks_of
    from idp.tasks.tasks import find_tasks

    machine = Machine({}, {}, label="documents as they are here")
    asked = [(config, options) for config in configs for options in task_options(config)]
    for config, options in asked:
        for task in tasks_of(options):
            if task in machine.documents:
                continue
            try:
                few = min(SAMPLED, options.documents or SAMPLED)
                (source,) = find_tasks(replace(options, names=[task], documents=few), store)
            except UserError as error:
                log.warning("%s: not counted (%s)", task, error)
                continue
            each = document_of(source, few, tokenizer, config.evaluation.batch_tokens)
            machine.tokens[task], machine.contexts[task] = each.tokens, each.context
            machine.documents[task] = source.documents
            if source.generates:
                machine.steps[task] = each.steps
    return machine


def document_of(
    source: TaskSource, few: int, tokenizer: PreTrainedTokenizerBase, batch_tokens: int | None = None
) -> DocumentTokens:
    """A document of a task, as a mean over `few` that are formatted and cut into requests as they are when measured."""
    from idp.evaluate.room import FEWEST
    from idp.evaluate.scorer import Scorer
    from idp.tasks.tasks import run_task

    engine, batch = Counting(tokenizer), batch_tokens or FEWEST
    scorer = Scorer(cast("Engine", engine), batch, "count")
    _, rows = run_task(scorer, source, few, bootstrap_iters=0)
    context = engine.contexts / len(rows)
    # A batch of as many as fit takes the steps of its longest answer.
    steps = engine.longest / max(1.0, batch / context) if source.generates else 0.0
    return DocumentTokens(scorer.tokens_run / len(rows), context, steps)


class Here(Machine):
    """The documents of a run that has been resolved; those of a task are counted when first asked for."""

    def __init__(self, tasks: Sequence[TaskSource], tokenizer: PreTrainedTokenizerBase, known: Known):
        super().__init__({}, {source.name: source.documents for source in tasks})
        self.sources, self.tokenizer, self.known = {source.name: source for source in tasks}, tokenizer, known

    def document(self, task: str) -> DocumentTokens:
        source = self.sources[task]
        asked = ["document", source.runs, source.fingerprint, self.tokenizer.name_or_path]
        return self.known.once(asked, lambda: document_of(source, FEW, self.tokenizer))


class Counting:
    """An `idp.evaluate.engine.Engine` without a model: it says how many tokens would go through one.

    `contexts` is the sum of the tokens of the contexts, `longest` the most new tokens that were asked for.
    """

    prompts: tuple[str, ...] = ()
    longest_prompt = 0
    not_followed: tuple[str, ...] = ()

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig | None = None):
        from transformers import PretrainedConfig

        self.tokenizer = tokenizer
        self.config = config or PretrainedConfig(max_position_embeddings=2048)
        self.beginning = Beginning(())
        self.contexts, self.longest = 0, 0

    def score(
        self, batches: Sequence[Sequence[Any]], shared: list[int], asks: Any = None
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, batch in enumerate(batches):
            targets = sum(len(row.targets) for row in batch)
            self.contexts += sum(len(row.reads) for row in batch)
            found = {"values": [-1.0] * targets, "hits": [False] * targets, "choice": [None] * len(batch)}
            yield number, found | {"tokens": sum(len(row.tokens) for row in batch)}

    def generate(
        self, batches: Sequence[list[list[int]]], stops: list[str], max_new_tokens: int
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        self.longest = max(self.longest, max_new_tokens)
        for number, contexts in enumerate(batches):
            read = sum(map(len, contexts))
            self.contexts += read
            tokens = read + max_new_tokens * len(contexts)
            yield number, {"texts": [""] * len(contexts), "choice": [None] * len(contexts), "tokens": tokens}

    def close(self) -> None:
        """Nothing to end."""


def _trained_tokens(training: dict[str, Any]) -> float:
    """Tokens that one training reads; those of held-out text, whose pass is forward only, count for half."""
    steps, length = training["steps"], training["sequence_length"]
    evaluations = 1 + -(-steps // training["evaluate_every"])
    heldout = evaluations * training["heldout_sequences"] * length
    return steps * training["batch_size"] * length + heldout * FORWARD / TRAINED
