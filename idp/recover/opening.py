"""A stored repair in memory, on the model that it repairs."""

from __future__ import annotations

from dataclasses import replace

from idp import config as schema
from idp import models
from idp.prompting.bank import PromptBank
from idp.prompting.repaired import RepairedModel
from idp.prompting.selectors.base import Selector
from idp.prompting.variants import Attached, Variants
from idp.recover import selection
from idp.recover.weight_side import WeightSide, has_weight_side, method_of
from idp.store import Product


def open_repaired(
    model: schema.Model,
    compressed: Product,
    repair: Product | None,
    recovery: schema.Recovery | None,
    device: str | None = None,
    fitted: Product | None = None,
) -> RepairedModel:
    """The model in memory with its repair on it, on `device` or the config's, ready to be measured.

    Args:
        model: the model's config.
        compressed: the product of stage 2.
        repair: that of stage 3; None for the compressed model itself.
        recovery: whose `choice` is that among several prompts; None where there is no repair.
        device: where to open it; None: where the config says.
        fitted: the selector's own product, where it was fitted on held-out text (`idp.stages.select` of a record).
    """
    loaded, bank = open_bank(model, compressed, repair, device)
    return RepairedModel(loaded, bank, _selector(bank, recovery, fitted))


def open_bank(
    model: schema.Model, compressed: Product, repair: Product | None, device: str | None = None
) -> tuple[models.LoadedModel, PromptBank | None]:
    """The model in memory, with the repair's weight side on it where it has one, and the repair's bank beside it."""
    model = replace(model, device=device or model.device)
    loaded = models.open_model(models.model_folder(compressed), model)
    if repair is None:
        return loaded, None
    return WeightSide.of(repair.path).attach(loaded), _bank(repair)


def open_variants(
    model: schema.Model,
    compressed: Product,
    repair: Product | None,
    recovery: schema.Recovery | None,
    merged: bool,
    fitted: Product | None = None,
) -> Variants:
    """What latency compares, by name: the compressed model and its repairs, on one set of weights.

    Prompts: `prompt` or `prefix`, and `idp` where there are several. What changes the layers goes by its method, such
    as `lora` and `lora_idp`, or by its kind. With `merged` an adapter is also timed as it is once it is in the weights
    (`lora_merged`): those have the compressed model's shapes, so they are timed in their place.
    """
    plain = models.open_model(models.model_folder(compressed), model)
    variants = Variants(compressed=RepairedModel(plain))
    if repair is None:
        return variants
    bank = _bank(repair)
    if has_weight_side(repair.path):
        side, name = WeightSide.of(repair.path), method_of(repair.path)
        with Attached(plain.model) as variants.attached:
            attached = side.attach(plain)
        # Its prompts ran through the weight side.
        variants[name] = RepairedModel(attached, bank, _selector(bank, recovery, fitted))
        variants.adapted = {name}
        if merged and side.adapter is not None:
            variants.stand_in(f"{name}_merged", "compressed", variants[name])
        return variants
    assert bank is not None  # a repair has one side at least
    variants[bank.kind] = RepairedModel(plain, bank.first())
    if len(bank) > 1:
        variants["idp"] = RepairedModel(plain, bank, _selector(bank, recovery, fitted))
    return variants


def _bank(repair: Product) -> PromptBank | None:
    return PromptBank.load(repair.path / "bank") if (repair.path / "bank").exists() else None


def _selector(bank: PromptBank | None, recovery: schema.Recovery | None, fitted: Product | None) -> Selector | None:
    """What chooses among the prompts of a bank; None where there is nothing to choose among."""
    choice = recovery.choice if recovery is not None else None
    if bank is None or len(bank) < 2 or choice is None:
        return None
    return selection.restored(choice.selector, fitted.path if fitted is not None else None)
