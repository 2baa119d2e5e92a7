"""One run: the stages in a straight line, each one's product stored, and one record at the end."""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from idp import memory, models
from idp import recording as records
from idp.compress import stage as compressing
from idp.config import GRAPH, Config, Evaluation, Recovery, values_of
from idp.errors import UserError
from idp.prompting.selectors.fixed import fixed
from idp.prompting.variants import Variants
from idp.records import metrics
from idp.records.record import identity
from idp.recover import opening
from idp.recover import selection as selecting
from idp.recover import stage as recovering
from idp.recover.work import CalibrationText
from idp.status import Status, run_folder
from idp.store import Product, Store, digest
from idp.store.verification import Damaged
from idp.tracking import Followed, Tracking

log = logging.getLogger(__name__)


@dataclass
class Found:
    """All that a run needs from outside, found before anything is computed."""

    source: models.Source
    tasks: list[Any]
    corpus: Any
    calibration: Any
    external: models.Source | None
    perplexity: dict[str, Any]


ATTEMPTS = 3  # of a run that finds stored weights damaged: as many as it opens models


def run(config: Config) -> tuple[dict[str, Any], Path]:
    """Runs one config from model to record.

    Returns:
        the record, and where it was written.

    Raises:
        UserError: in one line, what went wrong, where, and what to do.
    """
    for left in reversed(range(ATTEMPTS)):
        try:
            return _run(config)
        except Damaged as damage:
            if not left:
                raise
            log.warning("%s. The run begins again: it makes that anew, and reuses all that is whole", damage)
    raise AssertionError


def _run(config: Config) -> tuple[dict[str, Any], Path]:
    run_id, folder = whereabouts(config)
    name = folder.name
    with run_folder(folder, name) as status:
        store = Store(Path(config.store).expanduser())
        status.stage("find")
        recovery, given = recovering.find(config.recovery)
        config = replace(config, recovery=recovery)
        values = values_of(config)
        found = find(config, store)
        given.refuse_evaluated(found.tasks)
        _check_forward(config, found, store)

        status.stage("load")
        dense = models.load(config.model, found.source, store)
        if found.source.kind == "gguf":
            _check_forward(config, found, store, models.model_folder(dense))
        empty = models.open_empty(models.model_folder(dense), config.model)
        models.device_map(models.model_folder(dense), config.model)  # before hours of work: does it fit?
        config = replace(config, evaluation=_sized(config, empty))
        resolved = compressing.check(config.compressor, empty, found.calibration, config.model, found.external, store)
        recovering.check(config.recovery, empty, found.corpus, _calibration(config, found))
        recovering.check_given(given, config.model, dense, empty, config.recovery)
        _check_perplexity(config, empty, found)
        _check_latency(config, empty)
        _check_generation(config, empty, found)
        labels = metrics.labels(values, config.compressor.label)
        tracker = Tracking(config.tracker, Followed(name, run_id, folder, values, labels))

        def stage(name: str) -> None:
            memory.release()  # what the last stage had in memory: the next one may start processes of its own
            status.stage(name)

        try:
            stage("compress")
            compressed = _compress(config, resolved, dense, found, store)
            stage("recover")
            repair = _recover(config, dense, compressed, found, store, tracker)
            stage("select")
            selection = _select(config, compressed, repair, found, store)
            stage("measure")
            rows = compared(config, dense, compressed, repair, selection, found, store)
            alone = each_prompt(config, rows, found, store, status)
            measured = measure(config, rows, alone, found, store, status)
            if config.latency.enabled:
                stage("latency")
            latency = time_models(config, rows, store, empty.bos)

            stage("track")
            record = records.build(
                name=name,
                compressor=config.compressor.label,
                config=values,
                stages={"load": dense, "compress": compressed, "recover": repair},
                selection=selection,
                alone=alone,
                measured=measured,
                latency=latency,
                sources=found.tasks,
                documents=config.task.documents,
                transfer=given.provenance(),
                bos=_bos(config, empty, repair),
            )
            place = records.write(folder, record, measured, alone, found.tasks)
            tracker.finish(record, place, repair.path if repair is not None else None)
        except Exception:
            tracker.fail()
            raise
        except BaseException:  # stopped from outside: the same command continues it
            tracker.stop()
            raise
        status.update(record=str(place))
    return record, place


def _sized(config: Config, empty: models.LoadedModel) -> Evaluation:
    """The options of evaluation with the tokens per forward pass that are meant on this machine."""
    from idp.evaluate.room import batch_tokens

    return replace(config.evaluation, batch_tokens=batch_tokens(config.model, config.evaluation, empty))


def whereabouts(config: Config) -> tuple[str, Path]:
    """A run's id, from the hash of its config, and its folder."""
    run_id = identity(values_of(config))[:12]
    name = f"{config.model.name}-{config.compressor.label}-{config.recovery.kind}-{config.budget.name}-{run_id}"
    return run_id, Path(config.output).expanduser() / "runs" / name


def find(config: Config, store: Store | None = None) -> Found:
    """Finds model, documents and texts, and checks that they go together; computes nothing.

    What the hub has of them is fetched once for a store.

    Raises:
        UserError: something is missing, unreadable, too small, or evaluates on what it trains on.
    """
    from idp.corpora.corpus import named_corpus, refuse_evaluated
    from idp.tasks.tasks import find_tasks

    source = models.find(config.model, store)
    compressed_by_others = compressing.find(config.compressor, store)
    models.dtype_of(config.model)
    models.devices(config.model, config.evaluation.processes)
    tasks = find_tasks(config.task, store)
    texts: dict[str, Any] = {}

    def text(name: str) -> Any:
        if name not in texts:
            texts[name] = named_corpus(name, config.corpus, config.data_dir, store)
        return texts[name]

    calibration = text(config.compressor.calibration.corpus or "corpus")
    if compressing.works(config.compressor) or recovering.reads_calibration(config.recovery):
        refuse_evaluated(calibration, tasks)
    if recovering.reads_corpus(config.recovery):
        refuse_evaluated(text("corpus"), tasks)
    perplexity = {text(name).name: text(name) for name in config.evaluation.perplexity}
    return Found(source, tasks, text("corpus"), calibration, compressed_by_others, perplexity)


@dataclass
class Row:
    """One model that a run measures: compressed weights, a repair of them or None, and how it was made."""

    weights: Product
    repair: Product | None
    recovery: Recovery | None
    selection: selecting.Selection | None = None  # how one of several prompts is chosen

    @property
    def key(self) -> str:
        return (self.repair or self.weights).key

    @property
    def fitted(self) -> Product | None:
        """The selector's own product, where it learned from held-out text."""
        return self.selection.fitted if self.selection is not None else None


def compared(
    config: Config,
    dense: Product,
    compressed: Product,
    repair: Product | None,
    selection: selecting.Selection | None,
    found: Found,
    store: Store,
) -> dict[str, Row]:
    """The run's own model, last, and before it, unless `baselines=false`, the dense and the compressed one."""
    uncompressed = not config.compressor.needs
    rows = {}
    if config.baselines and not uncompressed:
        rows["dense"] = Row(compressing.uncompressed(config.model, dense, store), None, None)
    if config.baselines or repair is None:
        rows["dense" if uncompressed else "compressed"] = Row(compressed, None, None)
    if repair is not None:
        rows["repaired"] = Row(compressed, repair, config.recovery, selection)
    return rows


def measure(
    config: Config, rows: dict[str, Row], alone: list[Any], found: Found, store: Store, status: Status
) -> dict[str, Any]:
    """Scores of every row on every task and corpus, by the row's name; those of the oracle are taken from `alone`."""
    from idp.evaluate import oracle

    measured = {}
    for name, row in rows.items():
        if row.selection is not None and row.selection.options.peeks:
            measured[name] = oracle.measure(
                name,
                alone,
                row.key,
                row.selection.options,
                config.model,
                config.evaluation,
                found.tasks,
                config.task.documents,
                found.perplexity,
                store,
                models.bos_of(models.model_folder(row.weights), config.model),
            )
        else:
            keeps = name == "dense" and len(rows) > 1 and config.evaluation.fidelity
            dense = measured.get("dense")
            measured[name] = _measure_row(name, row, config, found, store, status, keeps, dense)
    return measured


def each_prompt(config: Config, rows: dict[str, Row], found: Found, store: Store, status: Status) -> list[Any]:
    """Scores of each prompt of the bank alone, in order: controls for a choice among several, and the oracle's source.

    They are the products of `recovery.selector=fixed recovery.selector.prompt=<number>`. Empty where there is no choice
    or no control is asked for.
    """
    row = list(rows.values())[-1]
    if row.selection is None:
        return []
    if not (config.recovery.choice.controls or row.selection.options.peeks):
        return []
    measured = []
    for number, prompt in enumerate(row.selection.prompts):
        options = fixed(number)
        only = replace(
            row,
            recovery=replace(row.recovery, selector=options),
            selection=replace(row.selection, options=options, fitted=None),
        )
        measured.append(_measure_row(prompt, only, config, found, store, status))
    return measured


def _measure_row(
    name: str,
    row: Row,
    config: Config,
    found: Found,
    store: Store,
    status: Status,
    keeps: bool = False,
    dense: Any = None,
) -> Any:
    from idp.evaluate.stage import measure as measure_model

    return measure_model(
        name,
        functools.partial(
            opening.open_repaired, config.model, row.weights, row.repair, row.recovery, fitted=row.fitted
        ),
        models.model_folder(row.weights),
        row.key,
        row.selection.identity if row.selection is not None else None,
        config.model,
        config.evaluation,
        found.tasks,
        config.task.documents,
        found.perplexity,
        store,
        finished=lambda row, part, _: status.update(stage=f"measure: {row} {part} done"),
        keeps=keeps,
        dense=dense,
    )


def time_models(config: Config, rows: dict[str, Row], store: Store, bos: tuple[int, ...] = ()) -> Product | None:
    """Latency of the rows side by side; None unless it is asked for."""
    from idp.evaluate.stage import time_models as time_variants

    if not config.latency.enabled:
        return None

    def open_variants() -> Variants:
        own = list(rows.values())[-1]
        variants = opening.open_variants(
            config.model,
            own.weights,
            own.repair,
            own.recovery,
            config.latency.merged,
            own.fitted,
        )
        if "dense" in rows and rows["dense"].weights != own.weights:
            variants.stand_in("dense", "compressed", variants["compressed"])
        return variants

    parents = [row.key for row in rows.values()]
    parents += [digest(row.selection.identity) for row in rows.values() if row.selection is not None]
    return time_variants(open_variants, parents, config.latency, config.model, store, bos)


def _bos(config: Config, empty: models.LoadedModel, repair: Product | None) -> dict[str, Any] | None:
    """The BOS that was in play, for the record, and its place where there was a prompt; None where none was."""
    beginning = config.recovery.beginning(empty.bos)
    if not beginning.tokens:
        return None
    prompted = repair is not None and (repair.path / "bank").is_dir()
    tokens = list(beginning.tokens)
    text = empty.tokenizer.decode(tokens)
    return {"tokens": tokens, "text": text, "place": beginning.place if prompted else None}


def _check_forward(config: Config, found: Found, store: Store, folder: Path | None = None) -> None:
    """Holds what this project makes of a model to the model's own forward pass, on a small one of its class.

    A GGUF file's config is known once the file is read: `folder` is then that of the model.
    """
    from idp.evaluate import guard, trial

    shape = guard.config_of(found.source, config.model, folder)
    if shape is None:
        return
    parts = [trial.PACKED, trial.GENERATION]
    if config.recovery.prompts:
        parts += [trial.PROMPTED, trial.GENERATION_PROMPTED]
    if config.recovery.prompts and config.recovery.trains:
        parts.append(trial.TRAINING)
    guard.check(shape, store, parts, config.model.trust_remote_code)


def _check_perplexity(config: Config, empty: models.LoadedModel, found: Found) -> None:
    """Perplexity counts the same tokens for every method, so a window must leave room for the prompt before it."""
    from idp.corpora.corpus import blocks

    window, prompt = config.evaluation.perplexity_window, recovering.longest_prompt(config.recovery, empty)
    room = empty.model.config.get_text_config().max_position_embeddings
    # The baselines' texts have the BOS also where the repaired model's have none.
    bos = max(len(config.recovery.beginning(empty.bos)), len(empty.bos) - prompt)
    if found.perplexity and window + prompt + bos > room:
        before = f"a prompt of {prompt} tokens{f' and {bos} of BOS' if bos else ''}"
        raise UserError(
            f"evaluation.perplexity_window={window}: with {before} it does not fit in the model's window of {room}; use"
            f" {room - prompt - bos} or less for every run that you compare"
        )
    for text in found.perplexity.values():
        blocks(text, "perplexity", empty.tokenizer, window, 1, 0)


def _check_latency(config: Config, empty: models.LoadedModel) -> None:
    latency, prompt = config.latency, recovering.longest_prompt(config.recovery, empty)
    room = empty.model.config.get_text_config().max_position_embeddings
    bos = max(len(config.recovery.beginning(empty.bos)), len(empty.bos) - prompt)
    needed = prompt + bos + max(latency.input_tokens) + latency.new_tokens
    if latency.enabled and needed > room:
        before = f"a prompt of {prompt} tokens{f', {bos} of BOS' if bos else ''}"
        raise UserError(
            f"latency.input_tokens={max(latency.input_tokens)}: with {before} and"
            f" latency.new_tokens={latency.new_tokens} that makes {needed}, and the model's window is {room}"
        )
    if latency.enabled and latency.decode == GRAPH:
        from idp.evaluate import graph

        graph.check(empty.model, models.device_of(config.model))


def _check_generation(config: Config, empty: models.LoadedModel, found: Found) -> None:
    from lm_eval.models.utils import resolve_max_length

    longest = {source.runs: source.longest_answer for source in found.tasks if source.generates}
    prompt = recovering.longest_prompt(config.recovery, empty)
    bos = max(len(config.recovery.beginning(empty.bos)), len(empty.bos) - prompt)
    room = resolve_max_length(empty.model.config, empty.tokenizer, default=2048) - prompt - bos
    for task, tokens in longest.items():
        if tokens >= room:
            raise UserError(
                f"task.names: {task} lets a model generate {tokens} tokens, and the window holds {room} behind a prompt"
                f" of {prompt}; leave the task out, or use a shorter prompt"
            )


def _compress(config: Config, resolved: Any, dense: Product, found: Found, store: Store) -> Product:
    return compressing.compress(
        config.compressor, resolved, config.model, dense, found.calibration, store, found.external
    )


def _recover(
    config: Config, dense: Product, compressed: Product, found: Found, store: Store, tracker: Tracking
) -> Product | None:
    repair = recovering.recover(
        config.recovery,
        config.model,
        compressed,
        found.corpus,
        config.seed,
        store,
        tracker.log,
        dense=dense,
        calibration=_calibration(config, found),
    )
    if repair is not None and repair.reused:  # its curves belong to this run as well
        for row in recovering.training_rows(repair):
            tracker.log(row)
    return repair


def _calibration(config: Config, found: Found) -> CalibrationText:
    return CalibrationText(config.compressor.calibration, found.calibration)


def _select(
    config: Config, compressed: Product, repair: Product | None, found: Found, store: Store
) -> selecting.Selection | None:
    open_bank = functools.partial(opening.open_bank, config.model, compressed, repair)
    return selecting.select(config.recovery, config.model, repair, found.corpus, open_bank, store)
