"""Stage 3: makes a repair, stores it, and puts it back on its model."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from idp import config as schema
from idp import models
from idp.errors import UserError, out_of_memory_is_explained
from idp.prompting import selectors, storage
from idp.prompting.bank import PromptBank
from idp.prompting.repaired import RepairedModel
from idp.recover import hard_prompt, lora, selection, transfer
from idp.recover import idp as dynamic
from idp.recover.banks import assembled
from idp.recover.training import History, Report
from idp.store import CHECKPOINT, Product, Store, write_json

log = logging.getLogger(__name__)

VERSION = 2
STORAGE_VERSION = 1
CHOICE = ("selector", "fit", "controls", "storage")  # options of a recovery that its trained repair does not depend on


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
    if isinstance(recovery, schema.Transfer):
        source = transfer.find(getattr(recovery, "from"))
        return transfer.resolved(recovery, source), Given([], source)
    if _joined(recovery):
        members = assembled.members(recovery.bank)
        return replace(recovery, lengths=[len(member.prompt) for member in members]), Given(members, None)
    return recovery, Given([], None)


def trains(recovery: schema.Recovery) -> bool:
    """Whether a recovery trains anything."""
    return hasattr(recovery, "training") and not _joined(recovery)


def check_given(given: Given, model: schema.Model, dense: Product, empty: models.LoadedModel) -> None:
    """Holds what was given against the run's model.

    Raises:
        UserError: it belongs to another model; both are named.
    """
    hidden_size = empty.model.get_input_embeddings().weight.shape[1]
    assembled.check(given.members, model, dense.key, hidden_size)
    if given.source is not None:
        transfer.check(given.source, model, dense.key, hidden_size)


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
    from idp.corpus import blocks

    config = empty.model.config.get_text_config()
    if isinstance(recovery, schema.Lora):
        lora.check_targets(empty, recovery.targets)
    chooses = isinstance(recovery, schema.Idp | schema.Transfer) and recovery.selector is not None
    if chooses:
        selectors.check(recovery.selector, config, len(_lengths(recovery)))
    longest = longest_prompt(recovery, empty)
    training = recovery.training if trains(recovery) else None
    needed = longest + (training.sequence_length if training is not None else 0)
    window = config.max_position_embeddings
    if needed > window:
        raise UserError(
            f"recovery: a prompt of {longest} tokens and {needed - longest} of text do not fit in the model's window"
            f" of {window}; lower recovery.training.sequence_length or the prompt's length"
        )
    if training is not None:
        for part in ("train", "heldout"):
            blocks(text, part, empty.tokenizer, training.sequence_length, 1, 0)
    if chooses and len(_lengths(recovery)) > 1 and (recovery.controls or selectors.needs_fit(recovery.selector)):
        _check_fit(recovery.fit, longest, window)
        blocks(text, "heldout", empty.tokenizer, recovery.fit.tokens, 2, 0)


def _check_fit(fit: schema.Fitting, longest: int, window: int) -> None:
    if longest + fit.tokens > window:
        raise UserError(
            f"recovery.fit.tokens={fit.tokens}: with a prompt of {longest} tokens it does not fit in the model's window"
            f" of {window}; use {window - longest} or less"
        )


def longest_prompt(recovery: schema.Recovery, empty: models.LoadedModel) -> int:
    """Tokens of the longest prompt that a recovery puts before the input."""
    if isinstance(recovery, schema.HardPrompt):
        return len(empty.tokenizer(recovery.text, add_special_tokens=False)["input_ids"])
    return max(_lengths(recovery), default=0)


def _lengths(recovery: schema.Recovery) -> list[int]:
    """Tokens of each prompt that a recovery makes or takes over."""
    if isinstance(recovery, schema.Transfer):
        return transfer.find(getattr(recovery, "from")).lengths
    if isinstance(recovery, schema.Idp):
        return recovery.lengths
    return [recovery.length] if isinstance(recovery, schema.PromptTuning) else []


def recover(
    recovery: schema.Recovery,
    model: schema.Model,
    compressed: Product,
    text: Any,
    seed: int,
    store: Store,
    report: Report | None = None,
) -> Product | None:
    """Stage 3: the repair as a product; None for `recovery=none`.

    The selector is not part of it: the same bank serves every selector.

    Args:
        recovery: what to make.
        model: the model's config.
        compressed: the product of stage 2, whose model stays frozen.
        text: the training corpus, an `idp.corpus.Text`.
        seed: everything random draws from it.
        store: where products live.
        report: called with each training step's figures.
    """
    if isinstance(recovery, schema.NoRecovery):
        return None
    if isinstance(recovery, schema.Transfer):
        return transfer.apply(transfer.find(getattr(recovery, "from")), compressed, store)
    repair = _make(recovery, model, compressed, text, seed, store, report)
    stored = getattr(recovery, "storage", None)
    return repair if storage.is_plain(stored) else _store_in_few_bits(repair, stored, model, compressed, store)


def _make(
    recovery: schema.Recovery,
    model: schema.Model,
    compressed: Product,
    text: Any,
    seed: int,
    store: Store,
    report: Report | None,
) -> Product:
    def make(folder: Path) -> None:
        joined = _joined(recovery)
        opened = models.open_empty if joined else models.open_model
        loaded = opened(models.model_folder(compressed), model)
        checkpoint = folder / CHECKPOINT
        histories: dict[str, History] = {}
        if isinstance(recovery, schema.HardPrompt):
            bank = hard_prompt.make(recovery, loaded)
            trainable = 0
        elif isinstance(recovery, schema.Lora):
            blocks = _text(recovery.training, text, loaded, seed)
            trainable, histories["lora"] = lora.tune(
                loaded, recovery, blocks, folder / "adapter", seed=seed, checkpoint=checkpoint, report=report
            )
            bank = None
        elif joined:
            bank = assembled.make(recovery.bank)
            trainable = bank.parameters
        else:
            blocks = _text(recovery.training, text, loaded, seed, dynamic.share(recovery))
            bank, histories = dynamic.make(recovery, loaded, blocks, seed=seed, checkpoint=checkpoint, report=report)
            trainable = bank.parameters
        if bank is not None:
            bank.save(folder / "bank", loaded.model.config, str(models.model_folder(compressed)))
        # A written prompt stores its text's embeddings, yet adds nothing: the model has them already.
        added = trainable
        described = {"kind": recovery.kind, "added": added, "trainable": trainable}
        write_json(folder / "repair.json", {**described, "bytes": _bytes(folder) if added else 0})
        write_json(folder / "history.json", {name: vars(history) for name, history in histories.items()})

    with out_of_memory_is_explained("recover"):
        return store.get_or_make(
            "recover",
            parent=compressed.key,
            config=_identity(recovery, model, text, seed),
            version=VERSION,
            make=make,
            label=recovery.kind,
        )


def _identity(recovery: schema.Recovery, model: schema.Model, text: Any, seed: int) -> dict[str, Any]:
    """All that decides a repair, but for the model that it repairs. How it is chosen and stored comes after it."""
    if _joined(recovery):
        return {"prompts": assembled.identity(recovery.bank)}
    options = {name: value for name, value in asdict(recovery).items() if name not in CHOICE}
    config = {"recovery": options, **models.numerics(model)}
    if trains(recovery):  # how often a checkpoint is written does not change what comes out
        options["training"] = {k: v for k, v in options["training"].items() if k != "checkpoint_every"}
        config |= {"seed": seed, "corpus": text.fingerprint}
    return config


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

    return store.get_or_make(
        "recover",
        parent=repair.key,
        config={"storage": storage.described(stored)},
        version=STORAGE_VERSION,
        make=make,
        label=f"stored in {stored.bits} bits",
    )


def _bytes(folder: Path) -> int:
    """Bytes of a repair's tensors: its prompts' and its adapter's, not the centres, which only some selectors read."""
    return sum(storage.tensor_bytes(place) for place in (*folder.glob("bank/prompt_*"), folder / "adapter"))


def _joined(recovery: schema.Recovery) -> bool:
    return isinstance(recovery, schema.Idp) and isinstance(recovery.bank, schema.AssembledBank)


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
    from idp.corpus import blocks

    wanted = training.steps * training.batch_size * share
    length = training.sequence_length
    return (
        # A long training passes over a small corpus several times.
        blocks(text, "train", loaded.tokenizer, length, wanted, seed, at_most=True),
        blocks(text, "heldout", loaded.tokenizer, length, training.heldout_sequences, 0, at_most=True),
    )


def training_rows(repair: Product) -> list[dict[str, float]]:
    """The training curves of a stored repair, as `report` was given them when it was made."""
    rows = []
    for name, history in repair.read("history.json").items():
        prefix = "" if name == "lora" else f"{name}/"
        for row in history["heldout"]:
            rows.append({"step": row["step"], f"{prefix}heldout_loss": row["loss"]})
        for row in history["train"]:
            rows.append({key if key == "step" else f"{prefix}{key}": value for key, value in row.items()})
    return rows


def open_repaired(
    model: schema.Model,
    compressed: Product,
    repair: Product | None,
    recovery: schema.Recovery,
    device: str | None = None,
    fitted: Product | None = None,
) -> RepairedModel:
    """The model in memory with its repair on it, on `device` or the config's, ready to be measured.

    Args:
        model: the model's config.
        compressed: the product of stage 2.
        repair: that of stage 3; None for the compressed model itself.
        recovery: how the repair was made; its selector chooses among several prompts.
        device: where to open it; None: where the config says.
        fitted: the selector's own product, where it was fitted on held-out text (`idp.stages.select` of a record).
    """
    loaded, bank = open_bank(model, compressed, repair, device)
    if bank is None or len(bank) == 1:
        return RepairedModel(loaded, bank)
    options = getattr(recovery, "selector", None)
    return RepairedModel(
        loaded, bank, selection.restored(options, fitted and fitted.path) if options is not None else None
    )


def open_bank(
    model: schema.Model, compressed: Product, repair: Product | None, device: str | None = None
) -> tuple[models.LoadedModel, PromptBank | None]:
    """The model in memory, with the repair's adapter on it where there is one, and the repair's bank beside it."""
    model = replace(model, device=device or model.device)
    loaded = models.open_model(models.model_folder(compressed), model)
    if repair is None:
        return loaded, None
    if (repair.path / "adapter").exists():
        loaded = lora.attach(loaded, repair.path / "adapter")
    return loaded, PromptBank.load(repair.path / "bank") if (repair.path / "bank").exists() else None


def open_variants(
    model: schema.Model,
    compressed: Product,
    repair: Product | None,
    recovery: schema.Recovery,
    merged: bool,
    fitted: Product | None = None,
) -> dict[str, RepairedModel]:
    """What latency compares, by name: the compressed model and its repairs, on shared weights where that is possible.

    Prompts: `prompt`, and `idp` where there are several. LoRA: `lora`, and with `merged` also `lora_merged`.
    """
    folder = models.model_folder(compressed)
    plain = models.open_model(folder, model)
    variants = {"compressed": RepairedModel(plain)}
    if repair is None:
        return variants
    if (repair.path / "adapter").exists():
        for name, merge in {"lora": False, "lora_merged": True}.items():
            if merged or not merge:
                attached = lora.attach(models.open_model(folder, model), repair.path / "adapter", merge)
                variants[name] = RepairedModel(attached)
        return variants
    bank = PromptBank.load(repair.path / "bank")
    variants["prompt"] = RepairedModel(plain, PromptBank(bank.prompts[:1], bank.names[:1]))
    if len(bank) > 1:
        variants["idp"] = RepairedModel(plain, bank, selection.restored(recovery.selector, fitted and fitted.path))
    return variants
