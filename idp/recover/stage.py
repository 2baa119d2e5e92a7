"""Stage 3: checks a recovery, and makes its repair as a product; `opening` puts it back on its model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from idp import config as schema
from idp import models
from idp.config import CALIBRATION, TEXT
from idp.errors import UserError, out_of_memory_is_explained
from idp.prompting import storage
from idp.recover import bases, cached, empty_prompt, few_bits, making
from idp.recover.context import CalibrationText
from idp.recover.given import Given
from idp.recover.identity import Basis, identity_of, needs
from idp.recover.identity import identities as identities_of
from idp.recover.making import Sources
from idp.recover.training import Report, report_rows
from idp.store import Identity, Product, Store

if TYPE_CHECKING:
    from idp.corpora.corpus import Text


def resolve(recovery: schema.Recovery) -> tuple[schema.Recovery, Given]:
    """Finds the files that a recovery names, and says what follows from them in the recovery's own options.

    Returns:
        the recovery, with the lengths of joined prompts or the selector of a transferred bank; and what was found.

    Raises:
        UserError: a file is not there, damaged, or not what it should be.
    """
    found, given = recovery.find()
    return found, given if given is not None else Given()


def reads_corpus(recovery: schema.Recovery) -> bool:
    """Whether a recovery reads the run's corpus: to train on it, to compare prompts on it, or to fit a selector."""
    return TEXT in needs(recovery) or _compares(recovery)


def reads_calibration(recovery: schema.Recovery) -> bool:
    """Whether a recovery reads the run's calibration text."""
    return CALIBRATION in needs(recovery)


def router_tasks(recovery: schema.Recovery, task: schema.Task) -> schema.Task | None:
    """The tasks on whose outcomes a recovery's selector is fitted; None where it learns from none.

    Args:
        recovery: what is asked for.
        task: the run's own, which says where documents are.
    """
    choice = recovery.choice
    if choice is None or not choice.learns_outcomes or len(recovery.bank_lengths()) < 2:
        return None
    return choice.selector.router_tasks(task)


def _compares(recovery: schema.Recovery) -> bool:
    """Whether a recovery compares its prompts on held-out text: as controls, or to fit their selector."""
    choice = recovery.choice
    return choice is not None and choice.compares and len(recovery.bank_lengths()) > 1


def check_given(
    given: Given,
    model: schema.Model,
    dense: Product | Identity,
    empty: models.LoadedModel,
    recovery: schema.Recovery,
) -> None:
    """Holds what was given against the run's model, and against where the recovery puts its BOS.

    Raises:
        UserError: it belongs to another model, both are named; or it was made with another BOS.
    """
    given.check(model, dense.key, empty, recovery.beginning(empty.bos))


def check(
    recovery: schema.Recovery, empty: models.LoadedModel, text: Text, calibration: CalibrationText | None = None
) -> None:
    """Checks a recovery against the model's layers and window and the texts that it reads, before anything is made.

    Args:
        recovery: what is asked for.
        empty: the model without weights.
        text: the training corpus.
        calibration: the calibration text; None only where the recovery does not read it.

    Raises:
        UserError: LoRA targets that match no layer, a selector's layer or heads that do not exist, a prompt longer
            than the window, or too little text.
    """
    from idp.corpora.corpus import check_blocks

    if recovery.beneath is not None:
        check(recovery.beneath, empty, text, calibration)
    recovery.check_model(empty)
    longest, bos = longest_prompt(recovery, empty), len(recovery.beginning(empty.bos))
    training = recovery.trained.training if recovery.trained is not None else None
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
            check_blocks(text, part, empty.tokenizer, training.sequence_length, 1, 0)
    if CALIBRATION in recovery.needs:
        _check_calibration(recovery, calibration, empty, window)
    if recovery.choice is not None and _compares(recovery):
        _check_fit(recovery.choice.fit, longest, bos, window)
        check_blocks(text, "heldout", empty.tokenizer, recovery.choice.fit.tokens, 2, 0)


def _check_calibration(
    recovery: schema.Recovery, calibration: CalibrationText | None, empty: models.LoadedModel, window: int
) -> None:
    if calibration is None:
        raise UserError(f"recovery={recovery.kind} reads calibration text, and this run has none")
    read = calibration.read_by(recovery)
    if read.options.length > window:
        own = read.options.length != calibration.options.length
        where = "recovery.sample_length" if own else "compressor.calibration.length"
        raise UserError(f"{where}={read.options.length}: the model's window is {window}; use {window} or less")
    recovery.check_calibration(read.options.samples)
    read.check(empty)


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
    text: Text,
    seed: int,
    store: Store,
    report: Report | None = None,
    *,
    dense: Product,
    calibration: CalibrationText | None = None,
) -> Product | None:
    """Stage 3: the repair as a product; None for `recovery=none`.

    The selector is not part of it: the same bank serves every selector.

    Args:
        recovery: what to make.
        model: the model's config.
        compressed: the product of stage 2, whose model stays frozen.
        text: the training corpus.
        seed: everything random draws from it.
        store: where products live.
        report: called with each training step's figures.
        dense: the product of stage 1, the teacher where the objective is to be like it.
        calibration: the calibration text, where the recovery reads it.
    """
    return _recover(recovery, Sources(model, dense, compressed, text, calibration, seed), store, report)


def identities(
    recovery: schema.Recovery,
    model: schema.Model,
    compressed: str,
    folder: Path,
    text: Text,
    seed: int,
    dense: str,
    calibration: CalibrationText | None = None,
) -> list[tuple[schema.Recovery, Identity]]:
    """What the products of a repair are, before there are any, in the order in which they are made.

    Args:
        recovery: what to make, as `resolve` gave it back.
        model: the model's config.
        compressed: the key of the model that is repaired.
        folder: of that model's config and tokenizer, which are the dense model's; no weight of it is read.
        text: the training corpus.
        seed: everything random draws from it.
        dense: the key of the dense model.
        calibration: the calibration text, where the recovery reads it.

    Returns:
        each with the recovery that makes it; the last is the repair. Empty where nothing is repaired.
    """
    basis = Basis(model, dense, compressed, text, calibration, seed)
    return identities_of(recovery, basis, models.bos_of(folder, model))


def _recover(recovery: schema.Recovery, sources: Sources, store: Store, report: Report | None) -> Product | None:
    if not recovery.repairs:
        return None
    bos = models.bos_of(models.model_folder(sources.compressed), sources.model)
    beginning = recovery.beginning(bos)

    def make(folder: Path) -> None:
        beneath = recovery.beneath
        # Before there is a model of this one's in memory.
        first = _recover(beneath, sources, store, report) if beneath is not None else None
        making.make(recovery, sources, first, beginning, folder, report, _taught(recovery, sources, store))
        bases.make_relative(folder)

    with out_of_memory_is_explained("recover"):
        texts = _made_texts(recovery, sources, store)
        repair = store.obtain(identity_of(recovery, sources.basis, beginning), make, after=texts)
        if recovery.holds_empty:
            repair = empty_prompt.joined(repair, store)
    stored = recovery.stored
    if stored is None or storage.is_plain(stored):
        return repair
    return few_bits.stored(repair, stored, sources, store)


def _made_texts(recovery: schema.Recovery, sources: Sources, store: Store) -> list[Product]:
    """What a recovery reads that the dense model has written."""
    read = needs(recovery)
    texts = [sources.text] if TEXT in read else []
    texts += [sources.calibration.text] if CALIBRATION in read and sources.calibration is not None else []
    found = [store.finished(text.made.product) for text in texts if text.made is not None]
    return [product for product in found if product is not None]


def _taught(recovery: schema.Recovery, sources: Sources, store: Store) -> cached.CachedTeacher | None:
    """What is kept of the dense model's predictions, for a recovery that learns from that."""
    trained = recovery.trained
    if trained is None or not trained.training.cached:
        return None
    return cached.obtain(trained.training, sources.model, sources.dense, sources.text, store, trained.texts)


def taught_identities(
    recovery: schema.Recovery, model: schema.Model, dense: str, folder: Path, text: Text
) -> list[Identity]:
    """What is kept of the dense model's predictions for a recovery, what is made beneath it left out.

    Args:
        recovery: what learns from it.
        model: the model's config.
        dense: the key of the dense model.
        folder: of that model's config and tokenizer.
        text: the training corpus.
    """
    trained = recovery.trained
    if trained is None or not trained.training.cached:
        return []
    bos = models.bos_of(folder, model)
    return list(cached.identities(trained.training, model, dense, bos, text, trained.texts).values())


def prompts(repair: Product | None) -> int:
    """How many prompts a repair holds."""
    if repair is None or not (repair.path / "bank").is_dir():
        return 0
    return len(repair.read("bank/bank.json")["names"])


def training_rows(repair: Product) -> list[dict[str, float]]:
    """The training curves of a stored repair, as `report` was given them when it was made."""
    found: list[dict[str, float]] = []
    report_rows(repair.read("history.json"), found.append)
    return found
