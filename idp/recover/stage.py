"""Stage 3: makes a repair, stores it, and puts it back on its model."""

from __future__ import annotations

import logging
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from idp import config as schema
from idp import models
from idp.errors import UserError, out_of_memory_is_explained
from idp.prompting import selectors
from idp.prompting.bank import PromptBank
from idp.prompting.repaired import RepairedModel
from idp.recover import hard_prompt, lora, selection
from idp.recover import idp as dynamic
from idp.recover.training import History, Report
from idp.store import CHECKPOINT, Product, Store, write_json

log = logging.getLogger(__name__)

VERSION = 1


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
    if isinstance(recovery, schema.Idp):
        selectors.check(recovery.selector, config, len(recovery.lengths))
    longest = longest_prompt(recovery, empty)
    training = getattr(recovery, "training", None)
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
    if isinstance(recovery, schema.Idp) and (recovery.controls or selectors.needs_fit(recovery.selector)):
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
    if isinstance(recovery, schema.Idp):
        return max(recovery.lengths)
    return recovery.length if isinstance(recovery, schema.PromptTuning) else 0


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
    options = {name: value for name, value in asdict(recovery).items() if name not in ("selector", "fit", "controls")}
    trains = hasattr(recovery, "training")
    if trains:  # how often a checkpoint is written does not change what comes out
        options["training"] = {k: v for k, v in options["training"].items() if k != "checkpoint_every"}
    config = {"recovery": options, **models.numerics(model)}
    if trains:
        config |= {"seed": seed, "corpus": text.fingerprint}

    def make(folder: Path) -> None:
        loaded = models.open_model(models.model_folder(compressed), model)
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
        else:
            blocks = _text(recovery.training, text, loaded, seed)
            bank, histories = dynamic.make(recovery, loaded, blocks, seed=seed, checkpoint=checkpoint, report=report)
            trainable = bank.parameters
        if bank is not None:
            bank.save(folder / "bank", loaded.model.config, str(models.model_folder(compressed)))
        # A written prompt stores its text's embeddings, yet adds nothing: the model has them already.
        added = trainable
        write_json(folder / "repair.json", {"kind": recovery.kind, "added": added, "trainable": trainable})
        write_json(folder / "history.json", {name: vars(history) for name, history in histories.items()})

    with out_of_memory_is_explained("recover"):
        return store.get_or_make(
            "recover", parent=compressed.key, config=config, version=VERSION, make=make, label=recovery.kind
        )


def _text(training: schema.Training, text: Any, loaded: models.LoadedModel, seed: int) -> tuple[Any, Any]:
    """Training and held-out blocks. The held-out ones are the same for every seed, so that losses compare."""
    from idp.corpus import blocks

    wanted = training.steps * training.batch_size
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
    return RepairedModel(loaded, bank, selection.restored(options, fitted) if options is not None else None)


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
        variants["idp"] = RepairedModel(plain, bank, selection.restored(recovery.selector, fitted))
    return variants
