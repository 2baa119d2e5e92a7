"""Records, wherever they lie, as one structure: a row for each model that was measured.

A sweep is read as it stands. What cannot be used (half a record, one of another schema, the same run twice) is left
out, and said in `notes`; a run without a record is listed with what its `status.json` says, and a cell that was not
even started is known from the sweep's own list.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from idp.errors import UserError
from idp.records.measured import ModelScores, Setting, groups_of, models_of, sample_of
from idp.records.record import RECORD, comparable, load
from idp.records.schema import Record
from idp.records.sweeps import SWEEP
from idp.records.sweeps import read as cells_of_sweep
from idp.status import STATUS
from idp.store import digest

RUNS, SWEEPS = "runs", "sweeps"
IN_NAMES = ("model", "compressor", "recovery", "budget")  # of runs
EXAMPLE = "`python -m idp.run compressor=gptq4 recovery=idp budget=smoke`"


@dataclass(frozen=True)
class Unfinished:
    """A run without a record: still going, failed, killed, or a sweep's cell that was never started."""

    name: str
    folder: Path
    state: str  # running, failed, unknown, missing
    stage: str
    error: str | None
    settings: str = ""  # the overrides that tell it from the other cells of its sweep, where it is of one

    @property
    def line(self) -> str:
        """What is said of it."""
        name = f"{self.name} ({self.settings})" if self.settings else self.name
        why = f": {self.error}" if self.error else f", at {self.stage}" if self.state == "running" else ""
        return f"unfinished: {name}: {self.state}{why}"


@dataclass
class Collection:
    """All that the given places hold."""

    models: list[ModelScores] = field(default_factory=list)
    settings: list[Setting] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)  # by name; the same run once
    files: list[Path] = field(default_factory=list)  # where they were read, in the same order
    unfinished: list[Unfinished] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what was left out, and what is not to be compared
    _index: dict[str, ModelScores] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def notices(self) -> list[str]:
        """What stands at the head of a report: what was left out, and what is not finished."""
        return [*self.notes, *(run.line for run in self.unfinished)]

    def of(self, setting: Setting) -> list[ModelScores]:
        """The models of one setting: dense, then each compressed model with its repairs."""
        return [model for model in self.models if model.setting == setting.id]

    def get(self, identity: str | None) -> ModelScores | None:
        """The model of that `id`."""
        return self._by_id().get(identity or "")

    def dense(self, model: ModelScores) -> ModelScores | None:
        """The dense model of the same setting."""
        return next((each for each in self.models if each.setting == model.setting and each.role == "dense"), None)

    def _by_id(self) -> dict[str, ModelScores]:
        if len(self._index) != len(self.models):
            self._index = {model.id: model for model in self.models}
        return self._index


def collect(places: Sequence[str | Path]) -> Collection:
    """Reads every record in the given files and folders.

    Args:
        places: records, folders of runs, or folders that hold such folders.

    Raises:
        UserError: nothing is there, or nothing of it can be used.
    """
    found = Collection()
    read: list[tuple[Path, Record]] = []
    faults: list[str] = []
    sweeps: list[Path] = []
    files = _files(places, found.unfinished, sweeps)
    listed = _listed(sweeps)
    found.unfinished = [
        replace(run, settings=listed[run.folder.name].settings) if run.folder.name in listed else run
        for run in found.unfinished
    ]
    started = {file.parent.name for file in files} | {run.folder.name for run in found.unfinished}
    found.unfinished += [run for name, run in listed.items() if name not in started]
    for file in files:
        try:
            read.append((file, _read(file)))
        except UserError as error:
            faults.append(str(error))
    if not read:
        _nothing(places, found.unfinished, faults)
    found.notes += [f"left out: {fault}" for fault in faults]
    kept = _once(read, found.notes)
    found.files, found.records = [file for file, _ in kept], [record for _, record in kept]
    found.notes += several_machines(found.records)
    found.settings, members = _settings(kept, found.notes)
    for (file, record), setting in zip(kept, members, strict=True):
        for group, tasks in groups_of(record).items():  # of two runs that name a group, the one with more of its tasks
            setting.groups[group] = max(setting.groups.get(group, []), tasks, key=len)
        for model in models_of(record, file.parent, setting):
            _add(found, model)
    known = {model.id for model in found.models}
    for model in found.models:
        if model.parent not in known:
            model.parent = None
    found.models = _in_order(found.models)
    return found


def _files(places: Sequence[str | Path], unfinished: list[Unfinished], sweeps: list[Path]) -> list[Path]:
    """The records in the given places, each once; the runs that have none, and the lists of sweeps, are added."""
    files: dict[Path, Path] = {}
    for place in map(Path, places):
        place = place.expanduser()
        if not place.exists():
            raise UserError(f"{place}: there is nothing here; name a folder of runs, or make one: {EXAMPLE}")
        for file in [place] if place.is_file() else _below(place, unfinished, sweeps):
            files.setdefault(file.resolve(), file)
        if place.name == RUNS:
            sweeps += sorted(place.parent.glob(f"{SWEEPS}/*/{SWEEP}"))
    return sorted(files.values())


def _below(place: Path, unfinished: list[Unfinished], sweeps: list[Path]) -> Iterable[Path]:
    for folder, folders, names in os.walk(place, followlinks=True):
        # Stored products, trackers' folders and other reports hold no runs, but many files.
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in ("wandb", "plots"))
        if "locks" in folders and {"load", "compress"} & set(folders):
            folders[:] = []
        elif RECORD in names:
            yield Path(folder, RECORD)
        elif STATUS in names:
            unfinished.append(_unfinished(Path(folder)))
        elif SWEEP in names:
            sweeps.append(Path(folder, SWEEP))


def _unfinished(folder: Path) -> Unfinished:
    try:
        values = json.loads((folder / STATUS).read_text(encoding="utf-8"))
        return Unfinished(values["name"], folder, values["state"], values["stage"], values["error"])
    except (OSError, ValueError, KeyError, TypeError):
        return Unfinished(folder.name, folder, "unknown", "unknown", None)


def _listed(sweeps: Iterable[Path]) -> dict[str, Unfinished]:
    """The cells that sweeps list, by the names of their folders, each as it stands if there is no such folder."""
    found: dict[str, Unfinished] = {}
    for file in dict.fromkeys(file.resolve() for file in sweeps):
        try:
            cells = cells_of_sweep(file.parent).cells
        except UserError:  # a sweep that was killed as it began: its cells are not known
            continue
        common = set.intersection(*(set(cell.overrides) for cell in cells)) if cells else set()
        for cell in cells:
            name = Path(cell.folder).name if cell.folder is not None else " ".join(cell.overrides)
            state = "missing" if cell.error is None else "failed"
            apart = [word for word in cell.overrides if word not in common] if cell.folder is not None else []
            run = Unfinished(name, Path(cell.folder or file.parent), state, "", cell.error, _settings_label(apart))
            if name not in found or len(run.settings) > len(found[name].settings):
                found[name] = run  # of two sweeps that have it, the one that varies more says more of it
    return found


def _settings_label(overrides: Iterable[str]) -> str:
    """Overrides as the tables say settings, but those that a run's name says."""
    words = [word.lstrip("+~").partition("=") for word in overrides]
    return " ".join(f"{re.split('[./]', key)[-1]}={value}" for key, _, value in words if key not in IN_NAMES)


def _read(file: Path) -> Record:
    record = load(file)
    record.pop("configs", None)  # lm-eval's task definitions: most of the file, and nothing reads them here
    try:
        setting = Setting("", record["config"]["model"], record["config"]["model_dtype"], sample_of(record))
        models_of(record, file.parent, setting), groups_of(record)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{file}: half a record ({type(error).__name__}: {error}); run its command again") from error
    return record


def _nothing(places: Sequence[str | Path], unfinished: list[Unfinished], faults: list[str]) -> None:
    if faults:
        raise UserError("; ".join(faults))
    place = ", ".join(map(str, places))
    if unfinished:
        runs = "; ".join(f"{run.name} ({run.state}: {run.error or run.stage})" for run in unfinished[:3])
        raise UserError(f"{place}: no record here, but {len(unfinished)} unfinished: {runs}")
    raise UserError(f"{place}: no record here; {EXAMPLE} makes one")


def _once(read: list[tuple[Path, Record]], notes: list[str]) -> list[tuple[Path, Record]]:
    """Each run once, by name: the newer of two records."""
    newest: dict[str, tuple[Path, Record]] = {}
    same: list[tuple[Path, Path]] = []
    for file, record in sorted(read, key=lambda pair: pair[0].stat().st_mtime, reverse=True):
        name = record["idp"]["name"]
        if name in newest:
            place, other = newest[name]
            if comparable(record) == comparable(other):  # as of studies that have a store and runs in common
                same.append((file, place))
            else:
                notes.append(f"left out: {file}: an older result of the same config than {place}")
            continue
        newest[name] = file, record
    if same:
        (file, place), others = same[0], f", and {len(same) - 1} more such copies" if len(same) > 1 else ""
        notes.append(f"left out: {file}: the same as {place}{others}")
    return [newest[name] for name in sorted(newest)]


def several_machines(records: Iterable[Record]) -> list[str]:
    """A note where runs were made on machines that round otherwise, as far as their records tell."""
    counts = Counter(machine for record in records if (machine := machine_of(record)))
    if len(counts) < 2:
        return []
    listed = ", ".join(f"{machine} ({count})" for machine, count in counts.most_common())
    return [
        f"runs of several machines: {listed}. They round differently, and a repair that is trained on one comes out"
        " otherwise on another: compare within one"
    ]


def machine_of(record: Record) -> str:
    """The GPU, or the CPU with the instructions that torch uses there; empty where an older record does not say."""
    about = record["idp"].get("environment") or {}
    if about.get("devices"):
        return about.get("device", "")
    return f"{about['device']}, {about['instructions']}" if "instructions" in about and "device" in about else ""


def _settings(kept: list[tuple[Path, Record]], notes: list[str]) -> tuple[list[Setting], list[Setting]]:
    """Groups of runs that may be compared, and that of each record; those with the most tasks come first."""
    settings: list[Setting] = []
    bases: list[str] = []
    members: dict[int, Setting] = {}
    samples = [sample_of(record) for _, record in kept]
    for index in sorted(range(len(kept)), key=lambda index: -len(samples[index])):
        record, sample = kept[index][1], samples[index]
        model, dtype = record["config"]["model"], record["config"]["model_dtype"]
        loaded = record["idp"]["stages"]["load"]
        base = digest([model, dtype, loaded and loaded["key"]])
        place = next((n for n, each in enumerate(settings) if bases[n] == base and each.admits(sample)), None)
        if place is None:
            settings.append(Setting("", model, dtype, {}))
            bases.append(base)
            place = len(settings) - 1
        settings[place].sample |= sample
        members[index] = settings[place]
    for setting, base in zip(settings, bases, strict=True):
        setting.id = digest([base, sorted(setting.sample.items())])[:12]
    for number, base in enumerate(bases):
        for other in range(number):
            if bases[other] == base:
                notes.append(_not_paired(settings[other], settings[number]))
    return settings, [members[index] for index in range(len(kept))]


def _not_paired(one: Setting, other: Setting) -> str:
    apart = [name for name, read in other.sample.items() if one.sample.get(name, read) != read]
    name = apart[0]
    samples = [
        f"{read[-1]} documents" if name.startswith("task:") else f"{read[0]} tokens in windows of {read[1]}"
        for read in (one.sample[name], other.sample[name])
    ]
    if samples[0] == samples[1]:
        samples = ["as many documents", "but others, or put in other words"]
    names = ", ".join(each.split(":", 1)[1] for each in apart)
    return (
        f"not compared: runs of {one.model} read different samples of {names} ({samples[0]}; {samples[1]}): they"
        " stand in tables of their own"
    )


def _add(found: Collection, model: ModelScores) -> None:
    """Adds a model, or what a further run has measured of one that is there."""
    known = found.get(model.id)
    if known is None:
        found.models.append(model)
        return
    known.runs += model.runs
    known.folders += model.folders
    for task, score in model.tasks.items():
        before = known.tasks.setdefault(task, score)
        if before.value != score.value:
            found.notes.append(
                f"{known.role} model {known.compressor} of {known.model}: {task} is {before.value:.4f} in"
                f" {known.runs[0]} and {score.value:.4f} in {model.runs[0]}; the first is shown"
            )
    for corpus, value in model.perplexity.items():
        first = known.perplexity.setdefault(corpus, value)
        if first.stderr is None and first.value == value.value:
            known.perplexity[corpus] = value
    known.latency = known.latency or model.latency
    if model.fidelity is not None:
        existing = known.fidelity or {}
        known.fidelity = {
            part: {**(found or {}), **(existing.get(part) or {})} for part, found in model.fidelity.items()
        }
    if len(model.weights) > len(known.weights):  # measured in a run of its own
        known.weights = model.weights


def _in_order(models: list[ModelScores]) -> list[ModelScores]:
    roles = {"dense": 0, "compressed": 1, "repaired": 2}
    return sorted(
        models,
        key=lambda model: (
            model.model,
            model.setting,
            model.compressor != "none",
            model.compressor,
            roles[model.role],
            model.recovery,
            model.selector or "",
            model.parameters["added"],
            model.seed,
        ),
    )
