"""A stored repair in memory, on the model that it repairs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from idp import config as schema
from idp import models
from idp.prompting.bank import PromptBank
from idp.prompting.repaired import RepairedModel
from idp.prompting.variants import Adapters, Variants
from idp.recover import lora, selection
from idp.store import Product


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
) -> Variants:
    """What latency compares, by name: the compressed model and its repairs, on one set of weights.

    Prompts: `prompt` or `prefix`, and `idp` where there are several. LoRA: `lora`, and with `merged` also
    `lora_merged`. Both: `lora_idp`, and with `merged` also `lora_idp_merged`. Merged, an adapter is in weights that
    have the compressed model's shapes: those are timed in their place.
    """
    plain = models.open_model(models.model_folder(compressed), model)
    variants = Variants(compressed=RepairedModel(plain))
    if repair is None:
        return variants
    bank = PromptBank.load(repair.path / "bank") if (repair.path / "bank").exists() else None

    def selector() -> Any:
        several = bank is not None and len(bank) > 1
        return selection.restored(recovery.selector, fitted and fitted.path) if several else None

    if (repair.path / "adapter").exists():
        name = "lora" if bank is None else "lora_idp"
        attached = lora.attach(plain, repair.path / "adapter")
        variants.adapters = Adapters(attached.model)
        variants[name] = RepairedModel(attached, bank, selector())  # its prompts ran through the adapter
        variants.adapted = {name}
        if merged:
            variants.stand_in(f"{name}_merged", "compressed", variants[name])
        return variants
    variants[bank.kind] = RepairedModel(plain, bank.first())
    if len(bank) > 1:
        variants["idp"] = RepairedModel(plain, bank, selector())
    return variants
