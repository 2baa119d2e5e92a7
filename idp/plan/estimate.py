"""Seconds, memory and disk of a product before it is made: from tokens, from the model's shape, from what was timed."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idp import models
from idp.config import DENSE, WEIGHTS, Config, Recovery
from idp.evaluate.room import token_bytes
from idp.plan.sizes import FLOAT, KEPT_POSITION, compressed_bytes, repair_bytes, taught_bytes
from idp.plan.workload import FORWARD, GUARD, LOAD, TRAIN, Workload, own_trainings
from idp.store import MANIFEST, Store, read_json

if TYPE_CHECKING:
    from idp.plan.steps import Step

CARD_OPERATIONS = 1e14  # a second: a third of what an A100's maker gives for bfloat16
CORE_OPERATIONS = 2e10  # the same of a processor's core in float32, where nothing was timed yet
CARD_BYTES, DISK_BYTES = 1.5e12, 1.0e9  # a second: a card reads its own memory, a node reads the store
# Where a model is small: to launch the kernels of a layer, to open a model, to try a small one of its class.
LAYER_SECONDS, OPENING_SECONDS, GUARD_SECONDS = 1e-3, 0.2, 4.0
SEEN, LEAST = 24, 5000  # products of a store that are looked at, the newest first; tokens that tell a speed
LIBRARIES = 1.2e9  # bytes of main memory: torch and the others
# What a training step keeps of each token and layer for its backward pass, in numbers for each of the hidden and of the
# inner size: fitted to the peaks that `idp.plan.peaks` counts of LLaMA's shapes, which they meet within 4 %.
KEPT = {False: (5.4, 3.9), True: (13.9, 3.9)}  # of a prompt; of an adapter, whose dropout keeps more
DOCUMENT_BYTES, SMALL_BYTES = 2000, 20_000  # of scores: those of a document, and beside them


@dataclass(frozen=True)
class Speed:
    """Operations a second in training and elsewhere, and where that is from."""

    evaluation: float
    training: float
    origin: str
    card: bool = True  # whether a pass waits for a card's memory
    layers: int = 0  # of the model, whose kernels each pass launches; 0: that is not counted

    def seconds(self, work: Workload, parameters: float, weight_bytes: float) -> float:
        """How long something takes on a model of so many weights."""
        if work.what == GUARD:
            return GUARD_SECONDS
        if work.what == LOAD:
            return work.opened * (weight_bytes / DISK_BYTES + (OPENING_SECONDS if self.layers else 0.0))
        speed = self.training if work.what == TRAIN else self.evaluation
        read = work.steps * weight_bytes / CARD_BYTES if self.card else 0.0
        launched = work.steps * self.layers * LAYER_SECONDS
        return max(work.operations * work.tokens * parameters / speed, read, launched)


def speed_here(config: Config, store: Store, layers: int) -> Speed:
    """What this machine does: as it did in runs whose products the store has, or else by what processors do.

    Args:
        config: the run's.
        store: where products are.
        layers: of its model.
    """
    import torch

    device, numerics = models.device_of(config.model), models.numerics(config.model)
    card = device.type != "cpu"
    found = sorted(_timed(store, numerics))
    if found:
        speed = statistics.median(found)
        return Speed(speed, speed, f"as timed in {len(found)} products of this store", card, layers)
    if card:
        return Speed(CARD_OPERATIONS, CARD_OPERATIONS, "assumed for a card; nothing was timed here yet", card, layers)
    speed = CORE_OPERATIONS * torch.get_num_threads()
    return Speed(speed, speed, "assumed for this processor; nothing was timed here yet", card, layers)


def _timed(store: Store, numerics: dict[str, str]) -> Iterator[float]:
    """Operations a second of scores in the store that were made in such numbers on such a device."""
    places = [place for place in store.root.glob("measure/*") if "." not in place.name]
    for place in sorted(places, key=_time, reverse=True)[:SEEN]:
        try:
            manifest, results = read_json(place / MANIFEST), read_json(place / "results.json")
            tokens = results["idp"]["tokens_run"]
            weights = _parameters(store.root, manifest["parent"])
            config = manifest["config"]
        except Exception:  # of a corpus, damaged, or being made
            continue
        if weights and tokens >= LEAST and {name: config.get(name) for name in numerics} == numerics:
            yield FORWARD * tokens * weights / manifest["seconds"]


def _time(place: Path) -> float:
    try:
        return place.stat().st_mtime
    except OSError:
        return 0.0


def _parameters(root: Path, key: str) -> int | None:
    """Weights of the model that a product was made from, by the key of its compressed model or of its repair."""
    while (root / "recover" / key / MANIFEST).is_file():
        key = read_json(root / "recover" / key / MANIFEST)["parent"]
    file = root / "compress" / key / "weights.json"
    return read_json(file)["parameters"] if file.is_file() else None


@dataclass(frozen=True)
class Size:
    """A model's: its number of weights, and the bytes of one in the dtype that it runs in."""

    parameters: int
    itemsize: int
    on_card: bool
    shape: Any  # the config of the text model

    @property
    def bytes(self) -> int:
        """Of its weights in memory."""
        return self.parameters * self.itemsize


def size_of(config: Config, empty: models.LoadedModel) -> Size:
    """The size of a run's model."""
    on_card = models.device_of(config.model).type != "cpu"
    itemsize = models.dtype_of(config.model).itemsize
    return Size(empty.parameters, itemsize, on_card, empty.model.config.get_text_config())


def seconds_of(works: Iterable[Workload], speed: Speed, size: Size) -> float:
    """How long works take, one after the other."""
    return sum(speed.seconds(work, size.parameters, size.bytes) for work in works)


def memory_of(step: Step, config: Config, size: Size) -> tuple[float, float]:
    """The most bytes of main memory, and of a card, that making a product takes; on a CPU the latter is 0."""
    if step.reused:
        return 0.0, 0.0
    held = _held(step, config, size)
    if not size.on_card:
        return LIBRARIES + held, 0.0
    read = size.bytes if step.stage in ("load", "compress") else 0  # as it is written; else mapped pages of its file
    return LIBRARIES + read, held


def _held(step: Step, config: Config, size: Size) -> float:
    """Bytes of weights and of what goes through them."""
    if step.recovery is not None:
        return training_bytes(step.recovery, size)
    if step.stage == "compress":
        calibration = config.compressor.calibration
        text = calibration.samples * calibration.length * size.shape.hidden_size
        return size.bytes + (2 * text * size.itemsize if step.works and len(step.works) > 1 else 0)
    if step.stage == "load" or not step.works:
        return 0.0
    tokens = config.evaluation.batch_tokens or 0
    if step.stage in ("measure", "reference", "fidelity", "heldout"):
        return size.bytes + tokens * token_bytes(size.shape, size.itemsize)
    latency = config.latency
    if step.stage == "latency":
        rows = max(latency.batch_sizes) * (max(latency.input_tokens) + latency.new_tokens)
        return size.bytes + rows * token_bytes(size.shape, size.itemsize)
    return size.bytes


def training_bytes(recovery: Recovery, size: Size) -> float:
    """The most that a training step holds, as it is where nothing is spared."""
    most = float(size.bytes) * len({WEIGHTS, DENSE} & recovery.needs)
    for of, training, lengths, _ in own_trainings(recovery):
        shape, rows = size.shape, training.micro_batch_size or training.batch_size
        inner = getattr(shape, "intermediate_size", None) or 4 * shape.hidden_size
        hidden, wide = KEPT[not of.prompts]
        tokens = rows * (training.sequence_length + max(lengths, default=0))
        layers = 1 if training.checkpointing else shape.num_hidden_layers
        kept = tokens * layers * (hidden * shape.hidden_size + wide * inner) * size.itemsize
        models_held = 1 + (DENSE in of.needs and not training.cached)
        most = max(most, models_held * size.bytes + kept + of.bytes_beside_weights * size.parameters)
    return most


def disk_of(step: Step, config: Config, size: Size, empty: models.LoadedModel) -> float:
    """Bytes that a product adds to the store."""
    if step.reused or step.identity is None:
        return 0.0 if step.reused else SMALL_BYTES
    if step.stage == "load":
        outside = step.identity.config["kind"] in ("folder", "hub")
        return 0.0 if outside else size.parameters * FLOAT
    if step.stage == "compress":
        plain = len(step.works) < 2 and "external" not in step.identity.config
        return SMALL_BYTES if plain else compressed_bytes(config.compressor, size.parameters, size.itemsize, empty)
    if step.recovery is not None:
        return SMALL_BYTES + repair_bytes(step.recovery, config.compressor, empty)
    if step.stage == "teacher":
        return SMALL_BYTES + taught_bytes(step.identity, size.shape.vocab_size)
    if step.stage == "reference":
        return _positions(step, config) * KEPT_POSITION
    if step.stage == "measure" and step.documents:
        return SMALL_BYTES + step.documents * DOCUMENT_BYTES
    return SMALL_BYTES


def _positions(step: Step, config: Config) -> int:
    """At how many positions a reference keeps what the dense model predicts."""
    from idp.evaluate.contexts import DOCUMENTS, POSITIONS
    from idp.evaluate.fidelity import TEXT_POSITIONS

    if step.identity is not None and "contexts" in step.identity.config:
        return DOCUMENTS * POSITIONS
    return min(config.evaluation.perplexity_tokens or TEXT_POSITIONS, TEXT_POSITIONS)
