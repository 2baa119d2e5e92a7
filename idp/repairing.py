"""`idp.repair`: a repair of a model object, made from Python by the stages that a run goes through.

repaired = idp.repair(model, tokenizer, dense=dense, method="lowrank", text=documents, rank=8)
repaired.generate(["The capital of France is"])
repaired.save("repairs/mine")
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from idp import asked, stages
from idp.config import Config
from idp.errors import UserError, out_of_memory_is_explained
from idp.language_model import LanguageModel

if TYPE_CHECKING:
    from collections.abc import Iterator

    from omegaconf import DictConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from idp.prompting.repaired import RepairedModel
    from idp.store import Product

DTYPES = ("float32", "bfloat16", "float16")
BASE = "base_model_name_or_path"  # PEFT's, of what an adapter goes on


class Repaired(LanguageModel):
    """A repaired model in memory, as `idp.load` gives one, with what the repair is made of.

    Attributes:
        added: how many numbers the repair keeps beside the model.
        trained: how many of them were trained.
    """

    def __init__(self, repaired: RepairedModel, batch_tokens: int, made: Made):
        """Makes one of what the stages gave."""
        super().__init__(repaired, batch_tokens, name=made.name)
        about = made.repair.read("repair.json")
        self.added, self.trained = int(about["added"]), int(about["trainable"])
        self._made = made

    def save(self, folder: str | Path) -> Path:
        """Writes the repair by itself, without the model's weights: `adapter/` and `bank/prompt_*/` in PEFT's format.

        Args:
            folder: where to; it is made.

        Raises:
            UserError: something is there already, or it cannot be written.
        """
        from idp.store import MANIFEST, write_json

        place = Path(folder).expanduser()
        if place.exists() and (not place.is_dir() or any(place.iterdir())):
            raise UserError(f"{place}: there is something already; name a folder that is new or empty")
        try:
            shutil.copytree(self._made.repair.path, place, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST))
            for file in (*place.rglob("adapter_config.json"), *place.rglob("bank.json")):
                described = json.loads(file.read_text(encoding="utf-8"))
                write_json(file, {**described, BASE: self._made.name})
        except OSError as error:
            raise UserError(f"{place}: cannot be written: {error.strerror}") from error
        return place


@dataclass
class Made:
    """What a repair came of: the model's name, the product, and the folder that this lies in until it is freed."""

    name: str
    repair: Product
    kept: tempfile.TemporaryDirectory[str] | None


def repair(
    model: PreTrainedModel | str | Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    method: str = "lowrank",
    text: Sequence[str] | str | Path | None = None,
    dense: PreTrainedModel | str | Path | None = None,
    budget: str = "small",
    store: str | Path | None = None,
    overrides: Sequence[str] = (),
    **options: Any,
) -> Repaired:
    """Makes a repair of a compressed model; the model itself stays as it is.

    Models are written into a store and go through the stages of a run: what is refused there is refused here, and the
    same store gives the same repair again without computing it.

    Args:
        model: a causal language model of transformers, compressed by whatever means, or its folder. Its dtype and
            device are those of the repair.
        tokenizer: of a model in memory.
        method: which recovery: `lowrank`, `lora`, `prompt`, `idp`, ... (`recovery=` of a run).
        text: documents to calibrate and train on, or a txt, jsonl or parquet file; None: the embedded corpus.
        dense: the model that it was made from, in memory or by its folder, where the method reads it.
        budget: how much work is spent: smoke, small, medium, paper.
        store: a folder for what is made; None: a temporary one, which goes with what is returned.
        overrides: further words of a run's command line, such as `seed=1` or `compressor.calibration.samples=16`.
        options: of the method, such as `rank=8` or `training={"steps": 100}` (`recovery.rank` and so on of a run).

    Raises:
        UserError: in one line, what is wrong: an option, a model that cannot be repaired so, or too little text.
    """
    from idp.plan.preflight import preflight
    from idp.recover import opening

    kept = tempfile.TemporaryDirectory(prefix="idp-repair-")
    work, root = Path(kept.name), Path(store).expanduser() if store is not None else Path(kept.name) / "store"
    with out_of_memory_is_explained("repair"):
        places = {
            name: _folder(given, name, tokenizer, work / name)
            for name, given in (("model", model), ("dense", dense))
            if given is not None
        }
        config = _config(method, budget, overrides, options, places, _text(text, work), model, root)
        if not config.recovery.repairs:
            raise UserError(f"method={method}: makes no repair; choose one, such as lowrank, lora, prompt or idp")
        _check_dense(config, method, dense is not None)
        plan = preflight(config)
        plan.hold()
        loaded = stages.load(plan)
        compressed = stages.compress(plan, loaded)
        made = stages.recover(plan, loaded, compressed)
        assert made is not None  # it repairs
        selection = stages.select(plan, compressed, made)
        fitted = selection.fitted if selection is not None else None
        opened = opening.open_repaired(plan.config.model, compressed, made, plan.config.recovery, fitted=fitted)
    return Repaired(opened, plan.batch_tokens, Made(config.model.name, made, kept if store is None else None))


def _config(
    method: str,
    budget: str,
    overrides: Sequence[str],
    options: Mapping[str, Any],
    places: Mapping[str, Path],
    text: Path | None,
    model: Any,
    store: Path,
) -> Config:
    """The config of the run that would do the same, which evaluates nothing."""
    from idp.checks import check

    corpus = "embedded" if text is None else "local"
    words = ["model=local", f"recovery={method}", f"budget={budget}", f"corpus={corpus}", "tracker=none"]
    words += ["compressor=external"] if "dense" in places else ["compressor=none"]
    with _said_of_a_repair():
        composed = _composed([*words, "evaluation.perplexity=[]", *asked.texts(overrides, "overrides", True)])
        composed.model.path = str(places.get("dense", places["model"]))
        composed.model.name = _name(model)
        if not isinstance(model, (str, Path)):
            composed.model.update(_as_it_is(model))
        if "dense" in places:
            composed.compressor.path = str(places["model"])
        if text is not None:
            composed.corpus.path, composed.corpus.name = str(text), "given"
        composed.store, composed.output = str(store), str(store)
        _set(composed.recovery, options, method)
        config = check(composed)
    return replace(config, task=replace(config.task, names=[]))


def _composed(words: list[str]) -> DictConfig:
    from idp.composed import Composer, with_plus
    from idp.registry import register

    register(words)
    return Composer().compose(with_plus(words))


@contextmanager
def _said_of_a_repair() -> Iterator[None]:
    """Hydra's errors as one line each."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from idp.usage import explain

    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error).replace("recovery=", "method=")) from error


def _set(node: Any, options: Mapping[str, Any], method: str, above: str = "") -> None:
    """Gives a recovery's options the values that are said, each of which it must have.

    Raises:
        UserError: it has none of that name, or no such value.
    """
    from idp.command import nearest

    for name, value in options.items():
        if name not in node:
            known = sorted(str(each) for each in node if each != "kind")
            raise UserError(
                f"{above}{name}: method={method} has no such option{nearest(name, known)} (it has {', '.join(known)})"
            )
        if isinstance(value, Mapping) and name in node and hasattr(node[name], "keys"):
            _set(node[name], cast("Mapping[str, Any]", value), method, f"{above}{name}.")
        else:
            node[name] = value


def _check_dense(config: Config, method: str, given: bool) -> None:
    from idp.config import DENSE
    from idp.recover.identity import needs

    if DENSE in needs(config.recovery) and not given:
        raise UserError(
            f"method={method}: it learns from the model that was compressed; give that as dense=..., or use one that"
            ' reads text alone, such as method="prompt"'
        )


def _folder(given: Any, name: str, tokenizer: Any, place: Path) -> Path:
    """A model's folder: its own, or one that it is written into.

    Raises:
        UserError: it is neither a model of transformers nor a folder, or cannot be written as it is.
    """
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    if isinstance(given, (str, Path)):
        folder = Path(given).expanduser().absolute()
        if not folder.is_dir():
            raise UserError(f"{name}={given}: no such folder; give a folder, or a model of transformers")
        return folder
    if not isinstance(given, PreTrainedModel):
        raise UserError(
            f"{name}: give a model of transformers or its folder, not {type(given).__name__} (of a PEFT model what"
            " merge_and_unload gives)"
        )
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise UserError(f"tokenizer: give the model's, not {asked.described(tokenizer)}")
    if any(parameter.device.type == "meta" for parameter in given.parameters()):
        raise UserError(f"{name}: some of its weights are not in memory (offloaded, on meta); give its folder instead")
    try:
        with torch.no_grad():
            given.save_pretrained(place)
        tokenizer.save_pretrained(place)
    except (OSError, ValueError, RuntimeError, NotImplementedError) as error:
        raise UserError(f"{name}: cannot be written as a checkpoint: {' '.join(str(error).split())[:300]}") from error
    return place


def _as_it_is(model: Any) -> dict[str, Any]:
    """The dtype and the device of a model in memory, as options of a run.

    Raises:
        UserError: a dtype that none has.
    """
    dtype = str(model.get_input_embeddings().weight.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise UserError(f"model: its dtype is {dtype}; bring it to one of {', '.join(DTYPES)}")
    spread = {str(place) for place in getattr(model, "hf_device_map", {}).values()}
    return {"dtype": dtype, "device": str(model.device), "device_map": "auto" if len(spread) > 1 else None}


def _name(model: Any) -> str:
    given = str(model) if isinstance(model, (str, Path)) else str(getattr(model, "name_or_path", ""))
    return Path(given).name or type(model).__name__


def _text(given: Any, work: Path) -> Path | None:
    """The file of the text; None where none is given.

    Raises:
        UserError: it is neither texts nor a file.
    """
    if given is None:
        return None
    if isinstance(given, (str, Path)):
        file = Path(given).expanduser()
        if not file.is_file():
            shown = asked.described(str(given))
            raise UserError(f"text: no such file: {shown}; give a text file, or documents as a list of texts")
        return file.absolute()
    if not isinstance(given, Iterable):
        raise UserError(f"text: give documents as a list of texts, or a text file, not {asked.described(given)}")
    documents, file = asked.texts(given, "text"), work / "text.jsonl"
    lines = (json.dumps({"text": document}, ensure_ascii=False) for document in documents)
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return file
