"""Makes one repair and writes it: what its recovery needs is opened, and what it gives back is put into files.

bank/            its prompts (`idp.prompting.bank`)
adapter/         low-rank updates of layers, in PEFT's format
values/          new values of the model's parameters
scales/          new scales of its quantised weights
own/             what its kind has saved itself
repair.json      its kind, and how many numbers and bytes it has
history.json     the curves of its trainings
search.json      what searches tried, where there were any
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idp import config as schema
from idp import models
from idp.beginning import Beginning
from idp.compress import freeze
from idp.compress.sizes import SCALE_BITS, claims_of
from idp.config import CALIBRATION, DENSE, GRID, TEXT, WEIGHTS
from idp.memory import release
from idp.prompting import storage
from idp.recover import cached, search, weight_side
from idp.recover.cached import CachedTeacher
from idp.recover.context import CalibrationText, RepairContext, RepairResult
from idp.recover.identity import Basis
from idp.recover.teacher import open_teacher
from idp.recover.training import History, Report, report_rows
from idp.recover.weight_side import COUNTED, WeightSide
from idp.store import CHECKPOINT, MANIFEST, Product, write_json

if TYPE_CHECKING:
    import torch

    from idp.corpora.corpus import Text

REPAIR, HISTORY, SEARCH = weight_side.DESCRIPTION, "history.json", "search.json"


@dataclass(frozen=True)
class Sources:
    """What a repair can be made from: the dense model and the compressed one, texts, and the run's seed."""

    model: schema.Model
    dense: Product
    compressed: Product
    text: Text
    calibration: CalibrationText | None
    seed: int

    @property
    def basis(self) -> Basis:
        """The same by keys."""
        return Basis(self.model, self.dense.key, self.compressed.key, self.text, self.calibration, self.seed)


def make(
    recovery: schema.Recovery,
    sources: Sources,
    first: Product | None,
    beginning: Beginning,
    folder: Path,
    report: Report | None,
    taught: CachedTeacher | None = None,
) -> None:
    """Makes a repair in `folder`.

    Args:
        recovery: what is made.
        sources: what from.
        first: the repair beneath, on whose model this one is made.
        beginning: the BOS of every input, and its place about a prompt.
        folder: the product's own.
        report: called with each training step's figures.
        taught: what is kept of the dense model's predictions, of a recovery that learns from that.
    """
    release()  # what made the repair beneath
    _check_weights(recovery, sources.compressed)
    context = RepairContext(_opened(recovery, sources), sources.seed, folder / CHECKPOINT, folder, report=report)
    context.beginning = beginning
    beneath = _take_over(first, context) if first is not None else RepairResult()
    _provide(recovery, sources, context, taught)
    made: RepairResult = (
        _searched_and_made(recovery.trained, context) if recovery.trained is not None else recovery.make(context)
    )
    base = str(models.model_folder(sources.compressed))
    if made.whole is not None:
        _take_whole(made.whole, folder, base, beginning, recovery.content() or {})
        return
    weight_side.save(made, context.loaded, folder)
    made = made.on(beneath)
    if made.bank is not None:
        made.bank.beginning = beginning
        made.bank.save(folder / "bank", context.loaded.model.config, base)
    described = {"kind": recovery.kind, "added": made.added, "trainable": made.trainable}
    write_json(folder / REPAIR, {**described, "bytes": tensor_bytes(folder) if made.added else 0})
    write_json(folder / HISTORY, {name: vars(history) for name, history in made.histories.items()})
    if made.searches:
        write_json(folder / SEARCH, made.searches)


def _check_weights(recovery: schema.Recovery, compressed: Product) -> None:
    """Asks a recovery once more, of the weights as they were measured."""
    if not (compressed.path / "weights.json").is_file():
        return
    measured, config = compressed.read("weights.json"), compressed.manifest["config"]
    bits = claims_of(config).bits
    if "external" in config:  # which claims layer by layer; some of a GGUF file's formats have no single number
        known = [row["bits"] for row in measured["layers"].values() if row.get("bits") is not None]
        stored = measured["bits_per_weight"]
        packed = stored if config["external"]["kind"] == "gguf" and stored < SCALE_BITS else None
        bits = min(known, default=packed)
    recovery.check_weights(measured["sparsity"], bits)


def tensor_bytes(folder: Path) -> int:
    """Bytes of a repair's tensors: its prompts' and its weight side's, not the centres, which only some selectors
    read."""
    places = [*folder.glob("bank/prompt_*"), *(folder / name for name in COUNTED)]
    return sum(storage.tensor_bytes(place) for place in places)


def _opened(recovery: schema.Recovery, sources: Sources) -> models.LoadedModel:
    opened = models.open_model if WEIGHTS in recovery.needs else models.open_empty
    return opened(models.model_folder(sources.compressed), sources.model)


def _provide(recovery: schema.Recovery, sources: Sources, context: RepairContext, taught: CachedTeacher | None) -> None:
    """Gives the work what the recovery says that it needs."""
    if TEXT in recovery.needs:
        context.corpus = sources.text
    if CALIBRATION in recovery.needs and sources.calibration is not None:
        context.calibration = sources.calibration.read_by(recovery).blocks(context.loaded)
    if DENSE in recovery.needs:
        context.open_dense = lambda: models.open_model(models.model_folder(sources.dense), sources.model)
    if GRID in recovery.needs:
        context.open_grids = lambda: freeze.stored_grids(sources.compressed)
    if (trained := recovery.trained) is not None:
        if context.loaded.device.type == "cpu":
            models.keep_freed_memory()
        context.text = _text(trained.training, sources.text, context.loaded, sources.seed, trained.texts)
        context.teacher = taught
        if trained.training.objective == "distill" and taught is None:
            folder = models.model_folder(sources.dense)
            context.teacher = open_teacher(folder, sources.model, trained.training, context.loaded)


def _text(
    training: schema.Training, text: Text, loaded: models.LoadedModel, seed: int, share: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Training and held-out blocks; `share` as in `cached.blocks_of`."""
    found = cached.blocks_of(training, text, loaded.tokenizer, seed, share)
    return found["train"], found["heldout"]


def _take_over(first: Product, context: RepairContext) -> RepairResult:
    """Puts the repair beneath on the model and into the product, and gives what became of it when it was made."""
    if first.reused and context.report is not None:
        report_rows(first.read(HISTORY), context.report)
    for part in WeightSide.of(first.path).parts:
        shutil.copytree(part, context.folder / part.name, dirs_exist_ok=True)
    context.loaded = WeightSide.of(first.path).attach(context.loaded)
    repair = first.read(REPAIR)
    return RepairResult(
        None,
        repair["trainable"],
        repair["added"],
        {name: History(**values) for name, values in first.read(HISTORY).items()},
        first.read(SEARCH) if (first.path / SEARCH).exists() else {},
    )


def _take_whole(source: Product, folder: Path, base: str, beginning: Beginning, about: dict[str, Any]) -> None:
    """A stored repair under another model: the same files, with that model and the BOS written down."""
    shutil.copytree(source.path, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST, HISTORY))
    write_json(folder / REPAIR, {**source.read(REPAIR), **about})
    write_json(folder / HISTORY, {})  # nothing was trained here
    for file in (*folder.rglob("adapter_config.json"), *folder.rglob("bank.json")):
        described = json.loads(file.read_text(encoding="utf-8"))
        bos = {"bos": beginning.described()} if file.name == "bank.json" else {}
        write_json(file, {**described, "base_model_name_or_path": base, **bos})


def _searched_and_made(recovery: schema.Trained, context: RepairContext) -> RepairResult:
    """What training gives, after the search that is asked for."""
    if not recovery.search.wanted:
        return recovery.make(context)
    recovery, found = search.search(
        recovery,
        lambda candidate, place, label: _tried(
            candidate, replace(context, checkpoint=place, folder=place, report=None, label=label)
        ),
        context.checkpoint / "search",
    )
    made = recovery.make(context)
    made.searches[recovery.part] = found
    return made


def _tried(candidate: schema.Trained, context: RepairContext) -> History:
    """The training curve of one candidate of a search."""
    return next(iter(candidate.make(context).histories.values()))
