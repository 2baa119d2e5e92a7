"""A finished run: its record, what the record says of its model, and the stored products that it names."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from idp.beginning import AUTO
from idp.config import Choice, Compressor, Fitting, Model, Recovery, Selector, conf_dir
from idp.errors import UserError
from idp.records import reading
from idp.records.record import RECORD
from idp.records.schema import Record
from idp.registry import load_plugins, restore
from idp.store import Product, Store

if TYPE_CHECKING:
    from idp.prompting.repaired import RepairedModel

MADE_BY = {"load": "dense model", "compress": "compressed model", "recover": "repair", "select": "fitted selector"}


@dataclass
class StoredRecovery(Recovery):
    """What is still needed of a recovery once its repair is made: how one of several prompts is chosen."""

    selector: Selector | None = None

    @property
    def choice(self) -> Choice | None:
        return Choice(self.selector, Fitting(), False) if self.selector is not None else None


@dataclass
class Finished:
    """A finished run.

    `model` has the dtype that was measured, also on a machine whose `auto` is another. `places` are the folders in
    which its store may be.
    """

    label: str  # how the user named it
    record: Record
    model: Model
    compressor: Compressor
    recovery: StoredRecovery
    batch_tokens: int
    places: list[Path]

    @property
    def name(self) -> str:
        """The run's name."""
        return self.record["idp"]["name"]

    @property
    def variants(self) -> list[str]:
        """The models that the run has, of dense, compressed and repaired."""
        made = ["dense"]
        if self.record["idp"]["compressor"] != "none":
            made.append("compressed")
        if self.record["idp"]["stages"]["recover"] is not None:
            made.append("repaired")
        return made

    def check(self, variant: str) -> None:
        """Refuses a variant that the run does not have, that cannot be used, or whose products are not in the store.

        Raises:
            UserError: as said.
        """
        if variant not in self.variants:
            why = "repaired nothing (recovery=none)" if variant == "repaired" else "compressed nothing"
            raise UserError(f"{self.label}: the run {why}; it has {' and '.join(self.variants)}")
        if variant == "repaired" and self.recovery.selector is not None and self.record["idp"].get("selector"):
            self.recovery.selector.check_usable()
        for stage in self._stages(variant):
            if (made := self.record["idp"]["stages"].get(stage)) is None:
                raise UserError(f"{self.label}: the run has no stage {stage}")
            self._store(stage, made["key"])

    def open(self, variant: str, device: str | None = None, dtype: str | None = None) -> RepairedModel:
        """One of the run's models in memory.

        Args:
            variant: dense, compressed or repaired.
            device: where to; None: as in the run.
            dtype: of the weights; None: the one that was measured.

        Raises:
            UserError: the run does not have it, or what was stored of it is gone or damaged.
        """
        from idp.errors import out_of_memory_is_explained
        from idp.recover.opening import open_repaired

        self.check(variant)
        model = replace(self.model, dtype=dtype or self.model.dtype)
        if device is not None:
            model = replace(model, device=device, device_map=None)
        weights = self.made(self._weights(variant))
        repair, fitted = (self.product(stage) if variant == "repaired" else None for stage in ("recover", "select"))
        with out_of_memory_is_explained("load"):
            return open_repaired(model, weights, repair, self.recovery, fitted=fitted)

    def product(self, stage: str) -> Product | None:
        """The verified product of `load`, `compress`, `recover` or `select`; None where the run made none.

        Raises:
            UserError: it is not in the store, or damaged.
        """
        about = self.record["idp"]["stages"].get(stage)
        if about is None:
            return None
        store = self._store(stage, about["key"])
        try:
            return store.get(stage, about["key"])
        except UserError as error:
            command = command_of(self.record)
            raise UserError(f"{error}: {command}" if command else str(error)) from error

    def made(self, stage: str) -> Product:
        """As `product`, of a stage that the run went through.

        Raises:
            UserError: it did not, or the product is not in the store, or damaged.
        """
        product = self.product(stage)
        if product is None:
            raise UserError(f"{self.label}: the run has no stage {stage}")
        return product

    def _weights(self, variant: str) -> str:
        return "load" if variant == "dense" or "compressed" not in self.variants else "compress"

    def _stages(self, variant: str) -> list[str]:
        if variant != "repaired":
            return [self._weights(variant)]
        selects = self.record["idp"]["stages"].get("select") is not None
        return [self._weights(variant), "recover", *(["select"] if selects else [])]

    def _store(self, stage: str, key: str) -> Store:
        found = [place for place in self.places if (place / stage / key).is_dir()]
        if not found:
            raise UserError(
                f"{self.label}: its {MADE_BY[stage]} ({key[:12]}) is not in {' or in '.join(map(str, self.places))};"
                f" name the run's store with store=..., or run it again: {command_of(self.record) or 'its command'}"
            )
        return Store(found[0])


def find_run(place: str | Path, store: str | Path | None = None) -> Finished:
    """The run of a record.

    Args:
        place: the run's `record.json`, or its folder.
        store: the folder of stored products, if it was moved.

    Raises:
        UserError: there is no record, because the run failed perhaps, or it is not one.
    """
    label = f"record={place}"
    record, file = reading.read(place, label)
    return of_record(record, store, label, file)


def of_record(
    record: Record, store: str | Path | None = None, label: str = "record", file: Path | None = None
) -> Finished:
    """The run of a record that has been read.

    Args:
        record: the record.
        store: the folder of stored products, if it was moved.
        label: what the record is called in messages.
        file: where it was read from.

    Raises:
        UserError: it is not a record.
    """
    absent: list[UserError] = []
    try:
        config = record["idp"]["config"]
        absent += _load_plugins(config.get("plugins", []))
        places = [Path(store).expanduser()] if store else reading.stores(config["store"], file and file.parent)
        recovery = config["recovery"]
        chosen = recovery.get("selector")
        return Finished(
            label,
            record,
            replace(
                restore(Model, {"bos": AUTO, **config["model"]}, "model"),  # records before it was an option
                dtype=record["config"]["model_dtype"],
            ),
            restore(Compressor, config["compressor"], "compressor"),
            StoredRecovery(recovery["kind"], restore(Selector, chosen, "recovery.selector") if chosen else None),
            int(record["idp"].get("batch_tokens") or config["evaluation"]["batch_tokens"]),  # older ones: the config's
            places,
        )
    except UserError as error:
        raise UserError(f"{label}: {next(iter(absent), error)}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{label}: not a record of idp.run ({type(error).__name__}: {error})") from error


def _load_plugins(names: list[str]) -> list[UserError]:
    """Imports the plug-ins of a run, whose kinds it may be of; what is wrong with those that do not import."""
    found = []
    for name in names:
        try:
            load_plugins([name])
        except UserError as error:  # its tracker may be all that is missing
            found.append(error)
    return found


def newest(output: str | Path | None = None) -> Path:
    """The record of the run that finished last.

    Args:
        output: the folder of runs and of the store; None: the config's.

    Raises:
        UserError: none has finished.
    """
    if output is None:
        from omegaconf import OmegaConf

        output = OmegaConf.load(conf_dir() / "config.yaml").output
    runs = Path(output) / "runs"
    records = sorted(runs.glob(f"*/{RECORD}"), key=lambda file: file.stat().st_mtime)
    if not records:
        raise UserError(
            f"no run has finished under {runs}; make one with `python -m idp.run compressor=gptq4 recovery=idp"
            " budget=smoke`, or name one with record=..."
        )
    return records[-1]


def command_of(record: Record) -> str | None:
    """The command line that made a record; None where it was made from Python."""
    words = record["idp"].get("environment", {}).get("command", "").split(" ", 1)
    program = Path(words[0])
    if program.name == "idp" or program.parts[-2:] == ("idp", "run.py"):
        return " ".join(["python -m idp.run", *words[1:]])
    return None
