"""Transfer (Xu et al., 2305.11186): a repair that was learned on one compressed model, used on another of the same one.

Nothing is trained. The transferred repair is a product of its own, made from the model that it now repairs, so that
what is measured with it is never taken for what was measured where it was learned.
"""

from __future__ import annotations

import copy
import json
import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Optional

from idp import config, models, registry
from idp.beginning import BEFORE, PLACES, WITHIN, Beginning
from idp.config import Choice, Fitting, Selector, controls_option, empty_prompt_option, keyword_option, option
from idp.errors import UserError
from idp.prompting.bank import CENTRES_FILE, PromptBank, beginning_of
from idp.records import reading
from idp.records.record import RECORD
from idp.records.schema import Record
from idp.recover.context import RepairContext, RepairResult
from idp.recover.given import Given
from idp.status import STATUS
from idp.store import MANIFEST, Product, Store

if TYPE_CHECKING:
    from idp.tasks.tasks import TaskSource

log = logging.getLogger(__name__)

REPAIR = "repair.json"


@dataclass
@keyword_option("from", "str", "the run whose repair is used: its record.json, its folder, or the repair's own folder")
class Transfer(config.Recovery):
    selector: Optional[Selector] = field(
        default=None, metadata={"help": "how one of several prompts is chosen; null: as in the run that it is from"}
    )
    bos: Optional[str] = option(
        "where the model's BOS token stands: before, after or none; null: as where the repair was learned",
        choices=(None, *PLACES),
    )
    controls: bool = controls_option()
    fit: Fitting = field(default_factory=Fitting)
    empty_prompt: bool = empty_prompt_option()

    version: ClassVar[int] = 1
    awaits: ClassVar[str] = "from"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset()

    @property
    def holds_empty(self) -> bool:
        return self.empty_prompt

    @property
    def choice(self) -> Choice | None:
        return Choice(self.selector, self.fit, self.controls) if self.selector is not None else None

    @property
    def parts(self) -> dict[str, Any]:
        return {"selector": self.selector} if self.selector is not None else {}

    @property
    def label(self) -> str:
        return f"transfer of {self._origin[:12]}"

    @property
    def _source(self) -> RepairSource:
        return find_repair(getattr(self, "from"))

    @property
    def _origin(self) -> str:
        return getattr(self, "from") if self.awaited else self._source.origin

    def content(self) -> dict[str, Any]:
        return {"transfer": self._origin}

    def bank_ahead(self, lengths: list[int]) -> tuple[list[str], bool]:
        if self.awaited:
            return super().bank_ahead(lengths)
        bank = self._source.repair.path / "bank"
        names = self._source.repair.read("bank/bank.json")["names"] if bank.is_dir() else []
        return names, (bank / CENTRES_FILE).exists()

    def find(self) -> tuple[Transfer, RepairSource]:
        """The recovery with the selector that will be used: its own, else that of the run that it is from.

        Raises:
            UserError: there is no such repair, or several prompts and nothing to choose one with.
        """
        source = self._source
        selector = self.selector or source.selector
        if self.empty_prompt and (0 in source.lengths or not source.lengths):
            what = (
                "it holds the empty prompt already" if source.lengths else "it holds no prompts, which one could join"
            )
            raise UserError(f"recovery.from={source.place}: {what}; leave out recovery.empty_prompt")
        if selector is None and len(source.lengths) + self.empty_prompt > 1:
            raise UserError(
                f"recovery.from={source.place}: it holds {len(source.lengths)} prompts, and what chose among them is"
                " not known; add recovery/selector=attention"
            )
        return (self.choosing(selector) if selector is not None else self), source

    def choosing(self, selector: Selector) -> Transfer:
        other = copy.copy(self)  # `replace` leaves out what is not part of __init__
        other.selector = selector
        return other

    def check(self, place: str = "recovery") -> None:
        if not getattr(self, "from"):
            raise UserError(
                f"{place}.from is not set: name the run whose repair is used, such as {place}.from=outputs/runs/<its"
                " folder>"
            )
        if self.selector is not None:
            self.selector.check()
            self.fit.check()

    def check_model(self, empty: models.LoadedModel) -> None:
        if self.selector is not None:
            lengths = self.bank_lengths()
            self.selector.check_model(empty.model.config.get_text_config(), len(lengths))
            experts = bool(lengths) and not any(lengths)
            self.selector.check_members(prompts=not experts, experts=experts)
            (self.selector.check_mixing if experts else self.selector.check_bank)(lengths)

    def prompt_lengths(self, tokenizer: Any = None) -> list[int]:
        return [] if self.awaited else self._source.lengths

    def beginning(self, bos: tuple[int, ...]) -> Beginning:
        """The BOS that the repair was learned with, where that is known, at its place or at the one asked for."""
        learned = None if self.awaited else self._source.beginning
        learned = learned or Beginning(bos)
        if learned.place == WITHIN and self.bos in (None, BEFORE):  # it is among the prompts' own rows
            return learned
        return replace(learned, place=self.bos) if self.bos is not None else learned

    def make(self, context: RepairContext) -> RepairResult:
        return RepairResult(whole=self._source.repair)


@dataclass
class RepairSource(Given):
    """A stored repair, and what is known of the run that learned it."""

    place: str  # as the user named it
    repair: Product
    dense: str  # the key of the dense model that it was learned on
    record: Record | None  # None for a repair's own folder

    @property
    def origin(self) -> str:
        """The key of the repair where it was learned, through however many transfers it came here."""
        return self.repair.read(REPAIR).get("transfer", self.repair.key)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each prompt; none for an adapter alone."""
        bank = self.repair.path / "bank"
        return PromptBank.load(bank).lengths if bank.is_dir() else []

    @property
    def beginning(self) -> Beginning | None:
        """The BOS that its prompts were learned with; None for an adapter alone, or where it is not known."""
        bank = self.repair.path / "bank"
        return beginning_of(self.repair.read("bank/bank.json"))[0] if bank.is_dir() else None

    @property
    def selector(self) -> config.Selector | None:
        """What chose among its prompts in the run that it is from."""
        values = self.record["idp"]["config"]["recovery"].get("selector") if self.record else None
        return registry.restore(config.Selector, values, "recovery.selector") if values else None

    def check(self, model: config.Model, dense: str, empty: models.LoadedModel, beginning: Beginning) -> None:
        """Refuses a repair that was learned on another model than this run's, and says if it was with another BOS.

        Raises:
            UserError: names both models and, for prompts, both hidden sizes.
        """
        if self.beginning is not None and self.beginning.tokens != empty.bos:
            log.warning(
                "recovery.from=%s: its prompts were learned with the BOS tokens %s, and are used with them; the other"
                " rows' texts begin with %s (model.bos=%s)",
                self.place,
                list(self.beginning.tokens),
                list(empty.bos),
                model.bos,
            )
        if self.dense == dense:
            return
        theirs = self.record["idp"]["config"]["model"]["name"] if self.record else self.dense[:12]
        bank = self.repair.path / "bank"
        size = f" (hidden size {PromptBank.load(bank).prompts[0].shape[1]})" if bank.is_dir() else ""
        hidden_size = empty.model.get_input_embeddings().weight.shape[1]
        raise UserError(
            f"recovery.from={self.place}: it was learned on another model, {theirs}{size}; this run's model is"
            f" {model.name} (hidden size {hidden_size}). A repair goes over to other compressors of its own model;"
            " prompts of equal hidden size can be tried with recovery=idp recovery/bank=assembled"
        )

    @property
    def corpora(self) -> list[dict[str, Any]]:
        """The options of all text that it was trained on, that of prompts which it went on from among it, as far as
        records tell; none for a repair's own folder."""
        if self.record is None:
            return []
        about = self.record["idp"]["config"]
        found = [about["corpus"]]
        for place in _earlier(about["recovery"]):
            try:
                found += find_repair(place).corpora
            except UserError:
                log.warning(
                    "%s: it goes on from %s, which is no run that can be read: what that was trained on is not known",
                    self.place,
                    place,
                )
        return found

    def refuse_evaluated(self, tasks: list[TaskSource]) -> None:
        """As `refuse_trained_on`, as far as its run's record tells."""
        refuse_trained_on(self.corpora, tasks, f"recovery.from={self.place}")

    def provenance(self) -> dict[str, Any]:
        """What the record says: from where, and the compressor, corpus and seed that it was learned with, if known."""
        origin: dict[str, Any] = {"from": self.place, "key": self.origin, "kind": self.repair.read(REPAIR)["kind"]}
        if self.record is None:
            return {**origin, "compressor": None, "corpus": None, "seed": None}
        about = self.record["idp"]
        if learned := about.get("transfer"):  # where it was learned, not where it was transferred to
            return {**learned, **origin}
        values = about["config"]
        return {**origin, "compressor": about["compressor"], "corpus": values["corpus"]["name"], "seed": values["seed"]}


def refuse_trained_on(corpora: list[dict[str, Any]], tasks: list[TaskSource], what: str) -> None:
    """Refuses what was trained on text of a task that is evaluated.

    Args:
        corpora: the options of the texts, as records have them; none where they are not known.
        tasks: those that are evaluated.
        what: the option and its value, for the message.

    Raises:
        UserError: names the corpus and the task.
    """
    for task in tasks:
        for corpus in corpora:
            if {task.name, task.runs}.intersection(corpus["made_from"]):
                raise UserError(
                    f"{what}: it was trained on corpus {corpus['name']}, which is made from {task.runs}, which this run"
                    " evaluates: leave it out of task.names"
                )


def _earlier(recovery: dict[str, Any]) -> list[str]:
    """The places of the repairs that one was made of, as its options name them."""
    joined = (recovery.get("bank") or {}).get("from") or []
    return [place for place in (recovery.get("init_from"), recovery.get("from"), *joined) if place]


def find_repair(place: str, setting: str = "recovery.from") -> RepairSource:
    """The repair that a record, a run's folder or a repair's own folder names, its files verified.

    Raises:
        UserError: there is no such place, that run made no repair, or its files are gone or damaged.
    """
    path = Path(place).expanduser().absolute()
    if (path / REPAIR).is_file():
        return _from_product(place, path, setting)
    if (path / "adapter_config.json").exists():
        raise UserError(
            f"{setting}={place}: it is a PEFT adapter, not a run's repair; a prompt in PEFT's format joins a bank with"
            f' recovery=idp recovery/bank=assembled "recovery.bank.from=[{place}]"'
        )
    if path.is_dir() and not (path / RECORD).exists() and not (path / STATUS).exists():
        raise UserError(
            f"{setting}={place}: there is no {RECORD} or {REPAIR} in it; name a run's folder, its {RECORD}, or a repair"
            " in a store"
        )
    record, file = reading.read(path, f"{setting}={place}")
    repair = record["idp"]["stages"].get("recover")
    if repair is None:
        raise UserError(f"{setting}={place}: that run made no repair (recovery=none)")
    places = reading.stores(record["idp"]["config"]["store"], file.parent)
    root = next((root for root in places if (root / "recover" / repair["key"]).is_dir()), None)
    if root is None:
        raise UserError(
            f"{setting}={place}: its repair ({repair['key'][:12]}) is in neither {' nor '.join(map(str, places))}; run"
            " it again"
        )
    loaded = record["idp"]["stages"]["load"]
    assert loaded is not None  # `read` refuses a record without it
    return RepairSource(place, Store(root).get("recover", repair["key"]), loaded["key"], record)


def _from_product(place: str, path: Path, setting: str) -> RepairSource:
    """A repair's own folder in a store; the products that it was made from name its dense model."""
    if path.parent.name != "recover":
        raise UserError(f"{setting}={place}: a repair outside its store; name its run's folder or {RECORD}")
    root = path.parents[1]
    repair = Store(root).get("recover", path.name)
    key, stage = repair.manifest["parent"], "compress"
    while (root / "recover" / key / MANIFEST).is_file():  # stored in fewer bits, it was made from the trained one
        key = Store(root).get("recover", key).manifest["parent"]
    try:
        manifest = json.loads((root / stage / key / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{setting}={place}: the compressed model that it was learned on ({key[:12]}) is gone from {root}; name its"
            f" run's {RECORD} instead"
        ) from error
    return RepairSource(place, repair, manifest["parent"], None)
