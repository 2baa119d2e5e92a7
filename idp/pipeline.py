"""One run, as the papers do it: load, compress, recover, select, measure, latency, record. Each product is stored."""

from __future__ import annotations

import logging
from pathlib import Path

from idp import memory, models, recording, rows, stages
from idp.compress import stage as compressing
from idp.config import Config, values_of
from idp.corpora.corpus import make_awaited
from idp.plan.preflight import Plan, preflight
from idp.records import metrics
from idp.records.schema import Record
from idp.status import Status, run_folder
from idp.store import Product
from idp.store.verification import Damaged
from idp.tracking import Followed, Tracking

log = logging.getLogger(__name__)

ATTEMPTS = 3  # of a run that finds stored weights damaged: as many as it opens models


def run(config: Config) -> tuple[Record, Path]:
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


def _run(config: Config) -> tuple[Record, Path]:
    run_id, folder = recording.run_id_and_folder(config)
    with run_folder(folder, folder.name) as status:
        status.stage("find")
        plan = preflight(config)
        plan.hold()
        status.stage("load")
        dense = stages.load(plan)
        if make_awaited(plan.inputs.texts, config.model, models.model_folder(dense), plan.store):
            plan = preflight(config)  # which now checks what they hold
        values = values_of(plan.config)
        labels = metrics.labels(values, config.compressor.label)
        with Tracking(config.tracker, Followed(folder.name, run_id, folder, values, labels)).following() as tracker:
            made = _walk(plan, dense, folder.name, status, tracker)
            _stage(status, "track")
            record = recording.build(made)
            place = recording.write(folder, record, made)
            tracker.finish(record, place, made.recover.path if made.recover is not None else None)
        status.update(record=str(place))
    return record, place


def _walk(plan: Plan, dense: Product, name: str, status: Status, tracker: Tracking) -> recording.RunResult:
    """The stages from the dense model on, one after the other."""
    config, inputs, store = plan.config, plan.inputs, plan.store

    _stage(status, "compress")
    compressed = stages.compress(plan, dense)

    _stage(status, "recover")
    repair = stages.recover(plan, dense, compressed, tracker.log)

    _stage(status, "select")
    selection = stages.select(
        plan, compressed, repair, lambda row, part, _: status.update(stage=f"select: {row} {part} done")
    )

    _stage(status, "measure")
    measured_dense = compressing.uncompressed(config.model, dense, store) if rows.measures_dense(config) else None
    compared = rows.rows_of(config, measured_dense, compressed, repair, selection)
    measured, per_prompt = rows.measure(
        compared,
        rows.per_prompt(config, compared[-1]),
        plan.benchmark,
        store,
        lambda row, part, _: status.update(stage=f"measure: {row} {part} done"),
    )

    if config.latency.enabled:
        _stage(status, "latency")
    latency = rows.time(config, compared, store, plan.shape.empty.bos)

    return recording.RunResult(
        name=name,
        compressor=config.compressor.label,
        config=values_of(config),
        load=dense,
        compress=compressed,
        recover=repair,
        selection=selection,
        per_prompt=per_prompt,
        measured=measured,
        latency=latency,
        tasks=inputs.tasks,
        documents=config.task.documents,
        transfer=inputs.given.provenance(),
        bos=recording.bos_of(config.recovery, plan.shape.empty, repair),
    )


def _stage(status: Status, name: str) -> None:
    memory.release()  # what the last stage had in memory: the next one may start processes of its own
    status.stage(name)
