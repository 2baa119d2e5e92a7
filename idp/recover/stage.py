"""Stage 3: makes a repair and stores it; `opening` puts it back on its model."""

from __future__ import annotations

import logging
import shutil
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from idp import config as schema
from idp import models
from idp.beginning import Beginning
from idp.errors import UserError, out_of_memory_is_explained
from idp.memory import release
from idp.prompting import storage
from idp.prompting.bank import PromptBank
from idp.recover import lora, search, transfer
from idp.recover.banks import assembled
from idp.recover.teacher import open_teacher
from idp.recover.training import History, Report, named, rows
from idp.recover.work import Made, Work
from idp.store import CHECKPOINT, Identity, Product, Store, write_json

log = logging.getLogger(__name__)

VERSION = 3
STORAGE_VERSION = 1
SEARCH = "search.json"
CHOICE = ("selector", "fit", "controls", "storage")  # options of a recovery that its trained repair does not depend on
RESOLVED = ("bos",)  # those that enter by what they come to with the model


@dataclass
class Given:
    """What a recovery takes from elsewhere: prompts to join, or the repair of another run."""

    members: list[assembled.Member]
    source: transfer.Source | None


def find(recovery: schema.Recovery) -> tuple[schema.Recovery, Given]:
    """Finds the files that a recovery names, and says what follows from them in the recovery's own options.

    Returns:
        the recovery, with the lengths of joined prompts or the selector of a transferred bank; and what was found.

    Raises:
        UserError: a file is not there, damaged, or not what it should be.
    """
    if isinstance(recovery, transfer.Transfer):
        source = transfer.find(getattr(recovery, "from"))
        return transfer.resolved(recovery, source), Given([], source)
    if _joined(recovery):
        members = assembled.members(recovery.bank)
        return replace(recovery, lengths=[len(member.prompt) for member in members]), Given(members, None)
    return recovery, Given([], None)


def reads_corpus(recovery: schema.Recovery) -> bool:
    """Whether a recovery reads the run's corpus: to train on it, to compare prompts on it, or to fit a selector."""
    return recovery.trains or _compares(recovery)


def _compares(recovery: schema.Recovery) -> bool:
    """Whether a recovery compares its prompts on held-out text: as controls, or to fit their selector."""
    selector = getattr(recovery, "selector", None)
    if selector is None or len(recovery.prompt_lengths()) < 2:
        return False
    return recovery.controls or selector.fits


def check_given(
    given: Given,
    model: schema.Model,
    dense: Product | Identity,
    empty: models.LoadedModel,
    recovery: schema.Recovery | None = None,
) -> None:
    """Holds what was given against the run's model, and against where the recovery puts its BOS.

    Raises:
        UserError: it belongs to another model, both are named; or it was made with another BOS.
    """
    hidden_size = empty.model.get_input_embeddings().weight.shape[1]
    assembled.check(given.members, model, dense.key, hidden_size)
    if recovery is not None:
        assembled.check_bos(given.members, recovery.beginning(empty.bos))
    if given.source is not None:
        transfer.check(given.source, model, dense.key, hidden_size, empty.bos)


def check(recovery: schema.Recovery, empty: models.LoadedModel, text: Any) -> None:
    """Checks a recovery against the model's layers and window and the training text, before anything is trained.

    Args:
        recovery: what is asked for.
        empty: the model without weights.
        text: the training corpus.

    Raises:
        UserError: LoRA targets that match no layer, a selector's layer or heads that do not exist, a prompt longer
            than the window, or too little text.
    """
    from idp.corpora.corpus import blocks

    if recovery.beneath is not None:
        check(recovery.beneath, empty, text)
    recovery.check_model(empty)
    longest, bos = longest_prompt(recovery, empty), len(recovery.beginning(empty.bos))
    training = recovery.training if recovery.trains else None
    length = training.sequence_length if training is not None else 0
    window = empty.model.config.get_text_config().max_position_embeddings
    if longest + bos + length > window:
        parts = f"a prompt of {longest} tokens{f', {bos} of BOS' if bos else ''}"
        raise UserError(
            f"recovery: {parts} and {length} of text do not fit in the model's window of {window}; lower"
            " recovery.training.sequence_length or the prompt's length"
        )
    if training is not None:
        for part in ("train", "heldout"):
            blocks(text, part, empty.tokenizer, training.sequence_length, 1, 0)
    if _compares(recovery):
        _check_fit(recovery.fit, longest, bos, window)
        blocks(text, "heldout", empty.tokenizer, recovery.fit.tokens, 2, 0)


def _check_fit(fit: schema.Fitting, longest: int, bos: int, window: int) -> None:
    if longest + bos + fit.tokens > window:
        raise UserError(
            f"recovery.fit.tokens={fit.tokens}: with a prompt of {longest} tokens{f' and {bos} of BOS' if bos else ''}"
            f" it does not fit in the model's window of {window}; use {window - longest - bos} or less"
        )


def longest_prompt(recovery: schema.Recovery, empty: models.LoadedModel) -> int:
    """Tokens of the longest prompt that a recovery puts before the input."""
    return max(recovery.prompt_lengths(empty.tokenizer), default=0)


def recover(
    recovery: schema.Recovery,
    model: schema.Model,
    compressed: Product,
    text: Any,
    seed: int,
    store: Store,
    report: Report | None = None,
    *,
    dense: Product,
) -> Product | None:
    """Stage 3: the repair as a product; None for `recovery=none`.

    The selector is not part of it: the same bank serves every selector.

    Args:
        recovery: what to make.
        model: the model's config.
        compressed: the product of stage 2, whose model stays frozen.
        text: the training corpus, an `idp.corpora.corpus.Text`.
        seed: everything random draws from it.
        store: where products live.
        report: called with each training step's figures.
        dense: the product of stage 1, the teacher where the objective is to be like it.
    """
    if not recovery.repairs:
        return None
    if isinstance(recovery, transfer.Transfer):
        beginning = recovery.beginning(models.bos_of(models.model_folder(compressed), model))
        return transfer.apply(transfer.find(getattr(recovery, "from")), compressed, store, beginning)
    repair = _make(recovery, model, compressed, text, seed, store, report, dense)
    stored = getattr(recovery, "storage", None)
    return repair if storage.is_plain(stored) else _store_in_few_bits(repair, stored, model, compressed, store)


def identities(
    recovery: schema.Recovery, model: schema.Model, compressed: str, folder: Path, text: Any, seed: int, dense: str
) -> list[tuple[schema.Recovery, Identity]]:
    """What the products of a repair are, before there are any, in the order in which they are made.

    Args:
        recovery: what to make, as `find` gave it back.
        model: the model's config.
        compressed: the key of the model that is repaired.
        folder: of that model's config and tokenizer, which are the dense model's; no weight of it is read.
        text: the training corpus.
        seed: everything random draws from it.
        dense: the key of the dense model.

    Returns:
        each with the recovery that makes it; the last is the repair. Empty where nothing is repaired.
    """
    if not recovery.repairs:
        return []
    beginning = recovery.beginning(models.bos_of(folder, model))
    if isinstance(recovery, transfer.Transfer):
        return [(recovery, transfer.identity(recovery, compressed, beginning))]
    found = []
    if recovery.beneath is not None:
        found = identities(recovery.beneath, model, compressed, folder, text, seed, dense)
    made = _identity_of(recovery, model, compressed, beginning, text, seed, dense)
    found.append((recovery, made))
    stored = getattr(recovery, "storage", None)
    if not storage.is_plain(stored):
        found.append((recovery, _stored_identity(made.key, stored)))
    return found


def _make(
    recovery: schema.Recovery,
    model: schema.Model,
    compressed: Product,
    text: Any,
    seed: int,
    store: Store,
    report: Report | None,
    dense: Product,
) -> Product:
    beginning = recovery.beginning(models.bos_of(models.model_folder(compressed), model))

    def make(folder: Path) -> None:
        first = None
        if recovery.beneath is not None:  # before there is a model of this one's in memory
            first = recover(recovery.beneath, model, compressed, text, seed, store, report, dense=dense)
            release()  # its model
        opened = models.open_model if recovery.reads_weights else models.open_empty
        loaded = opened(models.model_folder(compressed), model)
        work = Work(loaded, seed, folder / CHECKPOINT, folder, report=report, beginning=beginning)
        beneath = _take_over(first, work) if first is not None else Made()
        if recovery.trains:
            if work.loaded.device.type == "cpu":
                models.keep_freed_memory()
            work.text = _text(recovery.training, text, work.loaded, seed, recovery.texts)
            if recovery.training.objective == "distill":
                work.teacher = open_teacher(models.model_folder(dense), model, recovery.training, work.loaded)
            made = _trained(recovery, work)
        else:
            made = recovery.make(work)
        made = made.on(beneath)
        if made.bank is not None:
            made.bank.beginning = beginning
            made.bank.save(folder / "bank", work.loaded.model.config, str(models.model_folder(compressed)))
        described = {"kind": recovery.kind, "added": made.added, "trainable": made.trainable}
        write_json(folder / "repair.json", {**described, "bytes": _bytes(folder) if made.added else 0})
        write_json(folder / "history.json", {name: vars(history) for name, history in made.histories.items()})
        if made.searches:
            write_json(folder / SEARCH, made.searches)

    identity = _identity_of(recovery, model, compressed.key, beginning, text, seed, dense.key)
    with out_of_memory_is_explained("recover"):
        return store.obtain(identity, make)


def _identity_of(
    recovery: schema.Recovery,
    model: schema.Model,
    compressed: str,
    beginning: Beginning,
    text: Any,
    seed: int,
    dense: str,
) -> Identity:
    """A repair as it is made. How it is chosen and stored comes after it."""
    if _joined(recovery):
        config: dict[str, Any] = {"prompts": assembled.identity(recovery.bank)}
    else:
        config = {"recovery": _options(recovery), **models.numerics(model)}
        parts = [part for part in (recovery, recovery.beneath) if part is not None and part.trains]
        if parts:
            config |= {"seed": seed, "corpus": text.fingerprint}
        if any(part.training.objective == "distill" for part in parts):
            config["teacher"] = dense
    return Identity("recover", compressed, config | beginning.identity(), VERSION, recovery.kind)


def _options(recovery: schema.Recovery) -> dict[str, Any]:
    """What of a recovery's options decides what comes out: the same work never has two keys."""
    options = {name: value for name, value in asdict(recovery).items() if name not in (*CHOICE, *RESOLVED)}
    options = {name: value for name, value in options.items() if name not in recovery.unused}
    if isinstance(recovery, schema.Trained):
        training, tried = options["training"], options.pop("search")
        unused = {"checkpoint_every", "checkpointing", "teacher"}
        if training["micro_batch_size"] is None:
            unused.add("micro_batch_size")
        if training["objective"] == "lm":
            unused |= {"temperature", "lm_weight"}
        if tried["learning_rates"]:
            unused.add("learning_rate")
        options["training"] = {name: value for name, value in training.items() if name not in unused}
        if tried["inits"]:
            del options["init"]
        if search.wanted(recovery):
            options["search"] = tried
    for item in fields(recovery):
        if isinstance(part := getattr(recovery, item.name), schema.Recovery):
            options[item.name] = _options(part)
    return options


def _store_in_few_bits(
    repair: Product, stored: schema.Storage, model: schema.Model, compressed: Product, store: Store
) -> Product:
    """The repair with its prompts stored as asked: a product made from the trained one, which is not trained again."""

    def make(folder: Path) -> None:
        shape = models.open_empty(models.model_folder(compressed), model).model.config
        bank = PromptBank.load(repair.path / "bank")
        bank.save(folder / "bank", shape, str(models.model_folder(compressed)), stored)
        write_json(folder / "repair.json", {**repair.read("repair.json"), "bytes": _bytes(folder)})
        write_json(folder / "history.json", repair.read("history.json"))
        for name in ("adapter", SEARCH):  # all else is as it was
            source = repair.path / name
            if source.is_dir():
                shutil.copytree(source, folder / name, dirs_exist_ok=True)
            elif source.exists():
                shutil.copy(source, folder / name)

    return store.obtain(_stored_identity(repair.key, stored), make)


def _stored_identity(repair: str, stored: schema.Storage) -> Identity:
    config = {"storage": storage.described(stored)}
    return Identity("recover", repair, config, STORAGE_VERSION, f"stored in {stored.bits} bits")


def _bytes(folder: Path) -> int:
    """Bytes of a repair's tensors: its prompts' and its adapter's, not the centres, which only some selectors read."""
    return sum(storage.tensor_bytes(place) for place in (*folder.glob("bank/prompt_*"), folder / "adapter"))


def _take_over(first: Product, work: Work) -> Made:
    """Puts the repair beneath on the model and into the product, and gives what became of it when it was made."""
    if first.reused and work.report is not None:
        for row in training_rows(first):
            work.report(row)
    shutil.copytree(first.path / "adapter", work.folder / "adapter", dirs_exist_ok=True)
    work.loaded = lora.attach(work.loaded, work.folder / "adapter")
    repair = first.read("repair.json")
    return Made(
        None,
        repair["trainable"],
        repair["added"],
        {name: History(**values) for name, values in first.read("history.json").items()},
        first.read(SEARCH) if (first.path / SEARCH).exists() else {},
    )


def _trained(recovery: schema.Trained, work: Work) -> Made:
    """What training gives, after the search that is asked for."""
    if not search.wanted(recovery):
        return recovery.make(work)
    recovery, found = search.search(
        recovery,
        lambda candidate, place, label: _tried(
            candidate, replace(work, checkpoint=place, folder=place, report=None, label=label)
        ),
        work.checkpoint / "search",
    )
    made = recovery.make(work)
    made.searches[recovery.part] = found
    return made


def _tried(candidate: schema.Trained, work: Work) -> History:
    """The training curve of one candidate of a search."""
    return next(iter(candidate.make(work).histories.values()))


def _joined(recovery: schema.Recovery) -> bool:
    return isinstance(getattr(recovery, "bank", None), assembled.AssembledBank)


def prompts(repair: Product | None) -> int:
    """How many prompts a repair holds."""
    if repair is None or not (repair.path / "bank").is_dir():
        return 0
    return len(repair.read("bank/bank.json")["names"])


def _text(
    training: schema.Training, text: Any, loaded: models.LoadedModel, seed: int, share: int = 1
) -> tuple[Any, Any]:
    """Training and held-out blocks. The held-out ones are the same for every seed, so that losses compare.

    Training text is that of `share` prompts, where they share it out among them.
    """
    from idp.corpora.corpus import blocks

    wanted = training.steps * training.batch_size * share
    length = training.sequence_length
    return (
        # A long training passes over a small corpus several times.
        blocks(text, "train", loaded.tokenizer, length, wanted, seed, at_most=True),
        blocks(text, "heldout", loaded.tokenizer, length, training.heldout_sequences, 0, at_most=True),
    )


def training_rows(repair: Product) -> list[dict[str, float]]:
    """The training curves of a stored repair, as `report` was given them when it was made."""
    found: list[dict[str, float]] = []
    for name, history in repair.read("history.json").items():
        for row in rows(History(**history)):
            named(found.append, name)(row)
    return found
