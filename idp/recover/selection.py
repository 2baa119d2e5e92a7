"""Which prompt for which input: fits a selector, and keeps it as a product of its own.

Two products hang on a repair's key: `heldout`, each prompt's loss on each held-out block, which all selectors of a bank
share, and `select`, one fitted selector: to those losses, or to outcomes on documents of tasks (`graded`). A selector
that has nothing to learn makes none.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idp import config as schema
from idp import models, registry
from idp.beginning import Beginning, begun
from idp.errors import UserError, out_of_memory_is_explained
from idp.progress import progress
from idp.prompting.bank import CENTRES, CENTRES_FILE, EMPTY, beginning_of
from idp.recover import graded
from idp.recover.graded import GradedOutcomes
from idp.store import Identity, Product, Store, write_json

if TYPE_CHECKING:
    import torch

    from idp.prompting.bank import PromptBank
    from idp.prompting.selectors.base import Selector

log = logging.getLogger(__name__)

VERSION = 1
STATE, DESCRIPTION, LOSSES = "selector.safetensors", "selector.json", "losses.safetensors"

OpenBank = Callable[[], "tuple[models.LoadedModel, PromptBank]"]


class NotKnownYet(Exception):
    """What decides a key is known once a stage is done, whose name it has."""


@dataclass(frozen=True)
class BankIdentity:
    """What of a bank decides the selectors of it."""

    prompts: list[str]  # their names, in order
    beginning: Beginning | None  # the BOS that they were made with; None: not known
    centred: bool  # whether it brings the centres of their text


@dataclass(frozen=True)
class Selection:
    """How a run chooses among the prompts of a bank; in a plan, products are there as their identities."""

    options: schema.Selector
    prompts: list[str]  # their names, in order
    fitted: Any  # the selector's product; None where it learns nothing
    heldout: Any  # each prompt's loss on held-out text; None where nothing needs it

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the choice beside the bank, for keys: the best prompt by held-out loss is that prompt.

        Raises:
            NotKnownYet: that is asked of a selector that is still to be fitted, and settles on another then.
        """
        if self.fitted is None:
            return self.options.identity | registry.code_of(self.options)
        settled = self.options
        if self.options.settles:
            if not isinstance(self.fitted, Product):
                raise NotKnownYet("select")
            settled = self.options.settled(self.fitted.read(DESCRIPTION))
        return settled.identity | registry.code_of(settled) | ({"fitted": self.fitted.key} if settled.fits else {})

    @property
    def description(self) -> dict[str, Any]:
        """Kind, parameters and what held-out text said of it."""
        if self.fitted is not None:
            return self.fitted.read(DESCRIPTION)
        return {"kind": self.options.kind, "added": 0, "trainable": 0}

    @property
    def heldout_loss(self) -> list[float] | None:
        """Mean loss of each prompt on held-out text, nats per token."""
        return _losses(self.heldout).double().mean(0).tolist() if self.heldout is not None else None

    @property
    def oracle_loss_by_luck(self) -> float | None:
        """What each block's best of as many equal prompts would lose: `oracle_loss` is mostly that."""
        if self.heldout is None:
            return None
        losses = _losses(self.heldout).double()
        half = (losses.max(1).values - losses.min(1).values) / 2
        return float((losses.mean(1) - half).mean())


def select(
    recovery: schema.Recovery,
    model: schema.Model,
    repair: Product | None,
    text: Any,
    open_bank: OpenBank,
    store: Store,
    outcomes: GradedOutcomes | None = None,
) -> Selection | None:
    """The selection of a repair's bank, its selector fitted where it learns; None for one prompt.

    Args:
        recovery: its `selector`, `fit` and `controls` are read.
        model: the model's config: its dtype and device decide the numbers.
        repair: the product of stage 3.
        text: the training corpus, whose held-out part is read; no task's documents.
        open_bank: brings model and bank into memory; called only if there is something to compute.
        store: where products live.
        outcomes: of each prompt on tasks, for a selector that learns from that.

    Raises:
        UserError: a prompt's number that the bank does not have, or centres that are not the bank's.
    """
    bank = _bank_of(repair)
    if repair is None or bank is None:
        return None
    planned = selection_of(recovery, model, repair.key, bank, text, outcomes.keys if outcomes is not None else ())
    if planned is None:
        return None
    assert recovery.choice is not None  # or nothing would be planned
    options, fit, prompts = planned.options, recovery.choice.fit, planned.prompts
    options.check_prompts(len(prompts))
    opened = _Once(open_bank)
    heldout = fitted = None
    with out_of_memory_is_explained("select"):
        if planned.fitted is not None and outcomes is not None:  # first: scores are measured with models of their own
            fitted = store.obtain(planned.fitted, lambda folder: _fit_to_outcomes(options, opened, outcomes, folder))
        if planned.heldout is not None:
            heldout = store.obtain(planned.heldout, lambda folder: _measure_losses(opened, fit, text, prompts, folder))
        if planned.fitted is not None and outcomes is None:
            given = _given(options, bank)
            fitted = store.obtain(
                planned.fitted,
                lambda folder: (
                    _take_centres(options, repair.path / "bank" / CENTRES_FILE, len(prompts), folder)
                    if given
                    else _fit(options, opened, fit, text, heldout, folder)
                ),
                after=[heldout] if heldout is not None and not given else [],
            )
    return Selection(options, prompts, fitted, heldout)


def bank_ahead(recovery: schema.Recovery, bos: tuple[int, ...], lengths: list[int]) -> BankIdentity:
    """What the bank of a recovery will be; `bos` is the BOS of the model, `lengths` are those of its prompts."""
    empty = [EMPTY] if recovery.holds_empty else []
    names, centred = recovery.bank_ahead(lengths[: len(lengths) - len(empty)])
    return BankIdentity([*names, *empty], recovery.beginning(bos), centred and not empty)


def selection_of(
    recovery: schema.Recovery,
    model: schema.Model,
    repair: str,
    bank: BankIdentity,
    text: Any,
    outcomes: Sequence[str] = (),
) -> Selection | None:
    """The selection of a bank, with what its products are; None where there is one prompt, or nothing to choose with.

    Args:
        recovery: its `choice` is read.
        model: the model's config.
        repair: the key of the repair.
        bank: the repair's.
        text: the training corpus.
        outcomes: the keys of each prompt's scores on tasks, for a selector that learns from them.
    """
    choice = recovery.choice
    if len(bank.prompts) < 2 or choice is None:
        return None
    options, fit = choice.selector, choice.fit
    computed = models.numerics(model) | (bank.beginning.identity() if bank.beginning is not None else {})
    about = {"corpus": text.fingerprint, **computed}
    fits, given, graded_fit = options.fits and not options.uses_labels, _given(options, bank), choice.learns_outcomes
    heldout = fitted = None
    if choice.controls or (fits and not given and not graded_fit):
        config = {"blocks": fit.blocks, "tokens": fit.tokens, **about}
        heldout = Identity("heldout", repair, config, VERSION, f"{len(bank.prompts)} prompts")
    if fits:
        source = {} if given else {"fit": fit.identity, **about}
        if graded_fit:
            source = {"outcomes": list(outcomes), **computed}
        config = {"selector": options.identity, **source, **registry.code_of(options)}
        fitted = Identity("select", repair, config, VERSION, options.kind)
    return Selection(options, bank.prompts, fitted, heldout)


def _given(options: schema.Selector, bank: BankIdentity) -> bool:
    """Whether a bank brings what a selector would have to be fitted for."""
    return options.fits and not options.uses_labels and options.takes_centres and bank.centred


def prompts_of(repair: Product | None) -> list[str]:
    """The names of the prompts of a stored repair's bank, in order; none where it has no bank."""
    bank = _bank_of(repair)
    return bank.prompts if bank is not None else []


def _bank_of(repair: Product | None) -> BankIdentity | None:
    """What of a stored repair's bank decides; None where it has none."""
    if repair is None or not (repair.path / "bank" / "bank.json").exists():
        return None
    described = repair.read("bank/bank.json")
    return BankIdentity(described["names"], beginning_of(described)[0], (repair.path / "bank" / CENTRES_FILE).exists())


def restored(options: schema.Selector, fitted: Path | None) -> Selector:
    """The selector that a config describes, as it was fitted: `fitted` is the folder of its product, or of an export.

    Raises:
        UserError: it needs a fit and there is none, or it is another selector's, or it uses the labels.
    """
    from safetensors.torch import load_file

    options.check_usable()
    selector = options.build()
    selector.temperature = options.temperature
    if not options.fits:
        return selector
    if fitted is None or not (fitted / STATE).is_file():
        raise UserError(f"recovery.selector={options.kind}: it has not been fitted on held-out text; run idp.run first")
    try:
        selector.restore(load_file(fitted / STATE))
    except KeyError as error:
        raise UserError(f"{fitted}: not a fitted {options.kind} selector: {error} is missing") from error
    return selector


class _Once:
    """Opens model and bank when first asked, and binds them."""

    def __init__(self, open_bank: OpenBank):
        self.open_bank = open_bank
        self.made: tuple[models.LoadedModel, Any] | None = None

    def __call__(self) -> tuple[models.LoadedModel, Any]:
        from idp.prompting.prefix import bind

        if self.made is None:
            loaded, bank = self.open_bank()
            self.made = loaded, bind(loaded.model, bank, bank.beginning or Beginning(loaded.bos))
        return self.made


def _measure_losses(opened: _Once, fit: schema.Fitting, text: Any, prompts: list[str], folder: Path) -> None:
    """Each prompt's mean loss on each held-out block, [blocks, prompts], nats per token."""
    import torch
    from safetensors.torch import save_file

    from idp.prompting.repaired import head_is_bare
    from idp.prompting.selectors.likelihood import log_probabilities

    loaded, prefixes = opened()
    bare, found = head_is_bare(loaded.model), []
    blocks = begun(_blocks(fit, text, loaded), prefixes.beginning.ahead_of_text).tolist()
    with progress(len(blocks), f"held-out loss of {len(prompts)} prompts", unit="blocks") as bar:
        for block in blocks:
            found.append(-log_probabilities(loaded.model, prefixes, [block], bare).cpu())
            bar.update(1)
    losses = torch.cat(found).contiguous()
    save_file({"losses": losses}, folder / LOSSES)
    write_json(
        folder / "heldout.json",
        {"prompts": prompts, "loss": losses.double().mean(0).tolist(), "blocks": len(blocks), "tokens": fit.tokens},
    )


def _losses(heldout: Product) -> torch.Tensor:
    from safetensors.torch import load_file

    return load_file(heldout.path / LOSSES)["losses"]


def _blocks(fit: schema.Fitting, text: Any, loaded: models.LoadedModel) -> torch.Tensor:
    """Held-out blocks, the same for every seed and bank, so that losses compare."""
    from idp.corpora.corpus import blocks

    return blocks(text, "heldout", loaded.tokenizer, fit.tokens, fit.blocks, 0, at_most=True)


def _fit_to_outcomes(options: schema.Selector, opened: _Once, outcomes: GradedOutcomes, folder: Path) -> None:
    outcomes.gather()  # before there is a model of this one's in memory
    loaded, prefixes = opened()
    selector, described = graded.fit(options, loaded, prefixes, outcomes.read(loaded, prefixes))
    _save(selector, described, folder)


def _save(selector: Selector, described: dict[str, Any], folder: Path) -> None:
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous() for name, tensor in selector.state().items()}, folder / STATE)
    write_json(folder / DESCRIPTION, described | selector.described())


def _fit(
    options: schema.Selector, opened: _Once, fit: schema.Fitting, text: Any, heldout: Product | None, folder: Path
) -> None:
    assert heldout is not None  # what fits is compared on held-out text first
    (loaded, prefixes), losses = opened(), _losses(heldout)
    blocks = _blocks(fit, text, loaded)[:, : fit.context_tokens]
    contexts = begun(blocks, prefixes.beginning.ahead_of_text).tolist()  # as texts begin in scoring

    def fitted(rows: slice) -> Selector:
        selector = options.build()
        selector.bind(loaded.model, prefixes)
        selector.fit(contexts[rows], losses[rows])
        return selector

    selector = fitted(slice(None))
    mean = losses.double().mean(0)
    described = {
        "kind": options.kind,
        "added": selector.added,
        "trainable": selector.trainable,
        "blocks": len(contexts),
        "heldout_loss": mean.tolist(),
        # Nats per token over the blocks: of what was chosen, of the best prompt of each block, of a random one.
        "chosen_loss": float(_chosen(selector, contexts, losses).mean()),
        "oracle_loss": float(losses.double().min(1).values.mean()),
        "random_loss": float(mean.mean()),
    }
    if len(contexts) >= 4:  # fitted on one half and tried on the other: what the fit is worth on text it has not seen
        halves = [slice(0, None, 2), slice(1, None, 2)]
        unseen = [_chosen(fitted(mine), contexts[other], losses[other]) for mine, other in (halves, reversed(halves))]
        described["chosen_loss_unseen"] = float(sum(part.sum() for part in unseen) / len(contexts))
    _save(selector, described, folder)


def _chosen(selector: Selector, contexts: list[list[int]], losses: torch.Tensor) -> torch.Tensor:
    """The losses of the prompts that a selector chooses, [contexts]."""
    return losses.double().gather(1, graded.choices(selector, contexts)[:, None])[:, 0]


def _take_centres(options: schema.Selector, file: Path, prompts: int, folder: Path) -> None:
    """A fitted selector from the centres that a bank brings."""
    from safetensors.torch import load_file

    centres = load_file(file)[CENTRES]
    if centres.dim() != 2 or len(centres) != prompts:
        raise UserError(f"{file}: centres are {tuple(centres.shape)}, the bank has {prompts} prompts")
    selector = options.build()
    selector.restore({CENTRES: centres})
    described = {"kind": options.kind, "added": selector.added, "trainable": 0, "source": "bank"}
    _save(selector, described, folder)
