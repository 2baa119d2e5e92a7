"""Models, documents and texts that are not here: what a study on them would make, planned as if they were.

The steps are those of any plan, under keys that the same functions give. What is not here is known by its options, in
place of its content: which products runs share follows all the same, and no key is one of a product.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idp import config as schema
from idp.config import Config
from idp.errors import UserError
from idp.plan.inputs import ResolvedInputs, Shape
from idp.plan.sizes import KEPT_POSITION, compressed_bytes, repair_bytes, taught_bytes
from idp.plan.steps import Step, Walk
from idp.plan.workload import FIDELITY, MEASURE, Machine, Workload, task_options, tasks_of, trainings
from idp.store import canonical, digest

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from idp.corpora.corpus import Text
    from idp.models import ModelSource
    from idp.store import Store
    from idp.tasks.own import Own
    from idp.tasks.tasks import TaskSource

BITS = 16  # of a dense weight: bfloat16 or float16
STAND_IN = "llama_7b"  # whose layers give the keys of a model that is known by the number of its weights alone


@dataclass
class Assumed:
    """A model known by its shape, or by the number of its weights alone (`known` is False)."""

    name: str
    parameters: float
    shape: Shape
    known: bool
    downloaded: bool  # it comes from the hub
    converted: bool  # its weights are written out into the store

    @property
    def bytes(self) -> float:
        """Of its weights in 16 bits."""
        return self.parameters * BITS / 8

    @property
    def hidden_size(self) -> int:
        """Of its layers; 0 where that is not known."""
        return self.shape.empty.model.config.get_text_config().hidden_size if self.known else 0


def of_config(model: schema.Model, parameters: float | None, store: Store | None) -> Assumed:
    """The model of a config: by the number of its weights where that is said, else by its shape.

    Raises:
        UserError: nothing here says how large it is.
    """
    from idp.plan.shapes import config_of

    random, hub = model.source == "random", model.source == "hub"
    if parameters is not None:
        return Assumed(model.name, parameters, _shape(config_of(STAND_IN)), False, hub, random)
    shape = _shape(config_of_model(model, store))
    converted = random or model.source == "embedded" or str(model.path).endswith(".gguf")
    return Assumed(model.name, shape.empty.parameters, shape, True, hub, converted)


def config_of_model(model: schema.Model, store: Store | None) -> PretrainedConfig:
    """The config of a model: of a known shape by its name, else from where the model is.

    Raises:
        UserError: it is on the hub, and neither known by name nor to be had.
    """
    from idp import models
    from idp.evaluate import guard
    from idp.models.gguf import model as ggufs
    from idp.plan.shapes import SHAPES, config_of

    if model.name in SHAPES:
        return config_of(model.name)
    if model.source == "local" and Path(model.path or "").is_dir():  # to find it would hash its files
        return guard.config_of(models.ModelSource("folder", Path(model.path or ""), {}), model)
    try:
        source = _found(model, store)
        if source.kind == "gguf" and source.place is not None:
            return ggufs.config_of(source.place)
        return guard.config_of(source, model)
    except UserError as error:
        raise UserError(f"{error}; or give the number of its weights, such as parameters=6.7e9") from error


def tokenizer_of(model: schema.Model, store: Store | None) -> tuple[PreTrainedTokenizerBase, str]:
    """A model's tokenizer and whose it is: the embedded model's where its own is not here, else one of bytes."""
    from transformers import AutoTokenizer

    from idp import models
    from idp.models.gguf import header, tokenizer

    embedded = dataclasses.replace(model, source="embedded", path=None)
    for name, tried in ((model.name, model), ("the embedded model", embedded)):
        try:
            source = _found(tried, store, offline=True)
            if source.kind == "random":
                return models.byte_tokenizer(), name
            if source.kind == "gguf" and source.place is not None:
                return tokenizer.build(tokenizer.check(header.read(source.place))), name
            if source.place is not None:
                return AutoTokenizer.from_pretrained(source.place, trust_remote_code=model.trust_remote_code), name
        except (UserError, OSError, ValueError):
            continue
    return models.byte_tokenizer(), "bytes: more tokens than any model's"


def steps_of(config: Config, model: Assumed, machine: Machine) -> Iterator[Step]:
    """What a run would make, as if all of it were here and nothing were made yet.

    Args:
        config: the run's.
        model: its model.
        machine: which knows the documents; tasks of which it knows none are left out.

    Raises:
        UserError: a file that the recovery names is not what it should be.
    """
    from idp.recover import stage as recovering
    from idp.recover.given import Given

    recovery, given = config.recovery, Given()
    if not recovery.awaited:
        recovery, given = recovering.resolve(recovery)
    here = replace(config.model, device="auto", device_map=None)
    config = replace(config, model=here, recovery=recovery)
    inputs = dataclasses.replace(_inputs(config, model, machine), given=given)
    yield from Walk(config, inputs, model.shape, _resolved(config, model), None, machine).steps()


def works_of(
    config: Config, model: Assumed, machine: Machine, seen: set[tuple[str, str]] | None = None
) -> list[Workload]:
    """What a run computes that is not among `seen`, which then has it; the scores of one model are one work.

    Args:
        config: the run's.
        model: its model.
        machine: which knows the documents.
        seen: what runs before it have computed, by `what` and `key`.
    """
    seen = set() if seen is None else seen
    found: dict[tuple[str, str], Workload] = {}
    for step in steps_of(config, model, machine):
        for work in step.works:
            if (known := (work.what, work.key)) in seen:
                continue
            seen.add(known)
            name = (work.what, work.part_of if work.what in (MEASURE, FIDELITY) else work.key)
            earlier = found.get(name)
            found[name] = work if earlier is None else _together(earlier, work)
    return list(found.values())


def of_run(config: Config, machine: Machine) -> list[Workload]:
    """What one run computes, the dense and the compressed model's scores included."""
    return works_of(config, of_config(config.model, None, None), machine)


def stored(config: Config, model: Assumed) -> dict[str, float]:
    """What a run keeps in the store that is large, in bytes, each product by its key."""
    empty = model.shape.empty if model.known else None
    found = {}
    for step in steps_of(config, model, Machine({}, {})):
        if step.stage == "load":
            size = model.bytes if model.converted else 0.0
        elif step.stage == "compress":
            plain = len(step.works) < 2 and not (step.identity and "external" in step.identity.config)
            size = 0.0 if plain else compressed_bytes(config.compressor, model.parameters, BITS // 8, empty)
        elif step.recovery is not None:
            size = repair_bytes(step.recovery, config.compressor, empty)
        elif step.stage == "teacher" and step.identity is not None:
            size = taught_bytes(step.identity, model.shape.empty.model.config.get_text_config().vocab_size)
        elif step.stage == "reference":
            size = _positions(config) * KEPT_POSITION
        else:
            continue
        if size and step.key is not None:
            found[step.key] = size
    return found


def training_peaks(config: Config, model: Assumed) -> tuple[float, float] | None:
    """The most bytes that a training step holds: as it is, and with all that is spared where memory runs out.

    None where nothing is trained, or the model is known by the number of its weights alone.
    """
    from idp.plan.shapes import SHAPES

    if model.name not in SHAPES:
        return None
    found = [
        _peaks(
            model.name,
            "lora" if of.adapts and of.beneath is None else of.method,
            training.objective == "distill" and not training.cached,
            training.batch_size,
            training.sequence_length,
            max(lengths, default=0),
        )
        for of, training, lengths, _ in trainings(config.recovery)
    ]
    return (max(plain for plain, _ in found), max(spared for _, spared in found)) if found else None


@functools.cache
def _peaks(shape: str, method: str, distilled: bool, rows: int, tokens: int, length: int) -> tuple[float, float]:
    from idp.plan.peaks import CHECKPOINTED, PLAIN, TrainingStep, peaks

    kind = method if method in ("lora", "prefix") else "prompt"
    if distilled and kind == "prompt":
        kind = "distilled prompt"
    found = peaks(TrainingStep(shape, kind, rows, tokens, length or 1))
    beside = found["weights"] if distilled and kind != "distilled prompt" else 0  # a teacher beside it
    return found[PLAIN] + beside, found[CHECKPOINTED]


def _inputs(config: Config, model: Assumed, machine: Machine) -> ResolvedInputs:
    """Inputs that are known by their options alone."""
    from idp.models import ModelSource
    from idp.recover.given import Given
    from idp.tasks import catalog

    compressor = config.compressor
    mine = catalog.find_own(config.task.include_path) if config.task.include_path else catalog.NONE
    tasks, *of_router = [
        [_task(task, options, mine, machine) for task in tasks_of(options) if task in machine.documents]
        for options in task_options(config)
    ]
    source = ModelSource("gguf" if model.converted else "hub", None, {"assumed": asdict(config.model)})
    by_others = None
    if schema.WEIGHTS in compressor.needs:
        by_others = ModelSource("hub", None, {"assumed": schema.values_of(compressor)})
    return ResolvedInputs(
        source,
        tasks,
        _text(config, "corpus"),
        _text(config, compressor.calibration.corpus or "corpus"),
        by_others,
        {name: _text(config, name) for name in config.evaluation.perplexity},
        Given(),
        *of_router,
    )


def _task(task: str, options: schema.Task, mine: Own, machine: Machine) -> TaskSource:
    from idp.tasks import suites
    from idp.tasks.tasks import TaskSource

    shots = [options.fewshot, suites.value_of(options.fewshot_of, task, mine)]
    return TaskSource(
        name=task,
        runs=task,
        source="assumed",
        split="",
        documents=machine.documents[task],
        fingerprint=digest([task, shots]),
        stand_in=False,
        note="",
        at_most=suites.value_of(options.documents_of, task, mine),
        _config={"output_type": "multiple_choice"},
        _splits={},
    )


def _text(config: Config, name: str) -> Text:
    from idp.corpora.corpus import Text

    is_run_corpus = name in ("corpus", config.corpus.name)
    options = asdict(config.corpus) if is_run_corpus else name
    return Text(config.corpus.name if is_run_corpus else name, [], digest(options), (), None)


def _resolved(config: Config, model: Assumed) -> Any:
    from idp.compress import stage

    return config.compressor.resolve(model.shape.empty.model) if stage.works(config.compressor) else None


def _shape(config: PretrainedConfig) -> Shape:
    """A config as the folder that keys are made of, and as layers without numbers; its tokenizer is one of bytes."""
    from idp import models
    from idp.models.described import written

    def write(folder: Path) -> None:
        config.save_pretrained(folder)
        models.byte_tokenizer().save_pretrained(folder)

    folder = written(canonical(["assumed", digest(config.to_json_string())]), write)
    return Shape(folder, models.LoadedModel(_on_meta(config), None, ()))


def _on_meta(config: PretrainedConfig) -> PreTrainedModel:
    """A model of that shape without numbers."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.tie_weights()
    return model


def _together(one: Workload, other: Workload) -> Workload:
    """Two works of one kind, as one."""
    tokens, steps = one.tokens + other.tokens, one.steps + other.steps
    return replace(one, key=one.part_of, tokens=tokens, steps=steps)


def _positions(config: Config) -> int:
    from idp.evaluate.fidelity import TEXT_POSITIONS

    return min(config.evaluation.perplexity_tokens or TEXT_POSITIONS, TEXT_POSITIONS)


def _found(model: schema.Model, store: Store | None, offline: bool = False) -> ModelSource:
    from idp import hub, models

    with hub.offline() if offline else contextlib.nullcontext():
        return models.find_model(model, store)
