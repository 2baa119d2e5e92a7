"""Text for calibration, training and perplexity: documents in parts that never overlap, cut into equal blocks."""

from __future__ import annotations

import functools
import hashlib
import json
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from idp import registry, text_files
from idp.config import DENSE, Corpus, Model, conf_dir, one_line
from idp.errors import UserError

if TYPE_CHECKING:
    import torch

    from idp.store import Identity, Store
    from idp.tasks.tasks import TaskSource

# Shares of the documents. The heldout part chooses the best checkpoint, so perplexity is reported on another.
SHARES = {"train": 0.7, "calibration": 0.1, "heldout": 0.1, "perplexity": 0.1}
PARTS = tuple(SHARES)


@dataclass(frozen=True)
class DenseModel:
    """A run's dense model, before there is one: its config, and its key."""

    model: Model
    key: str


@dataclass(frozen=True)
class Made:
    """How a model makes a text: the source, the product that holds it, how many tokens, and whether it is there."""

    source: Any
    product: Identity
    tokens: int
    there: bool


@dataclass(frozen=True)
class Text:
    """A corpus that has been read."""

    name: str
    documents: list[str]  # for train and calibration, and for heldout where that has no documents of its own
    fingerprint: str  # sha256 of all documents, whatever their order
    made_from: tuple[str, ...]  # tasks whose text it holds
    test_documents: list[str] | None  # the perplexity part, where the corpus has a test split
    heldout_documents: list[str] | None = None  # the heldout part, where the corpus has a validation split
    place: str = ""  # where it was read from, for messages
    made: Made | None = None  # of what a model makes

    @property
    def awaited(self) -> bool:
        """Whether a model is still to make it: there are no documents yet."""
        return self.made is not None and not self.made.there

    @functools.cached_property
    def by_hash(self) -> dict[str, str]:
        """The documents by their hashes, in their order."""
        return _by_hash(self.documents)

    @functools.cached_property
    def heldout_by_hash(self) -> dict[str, str]:
        """Those of the heldout part, where it has documents of its own."""
        return _by_hash(self.heldout_documents or [])


def open_corpus(cfg: Corpus, data_dir: str | None, store: Store | None = None, dense: DenseModel | None = None) -> Text:
    """Reads a corpus from its source; of one that the dense model makes, and that is not there yet, all but documents.

    Raises:
        UserError: the text cannot be had, or a file cannot be read.
    """
    source = registry.corpus(cfg)
    if DENSE in source.needs and dense is not None and store is not None:
        return _made(source, store, dense)
    pools, place = source.read(data_dir, store)
    pools = {name: documents[: cfg.documents] for name, documents in pools.items()}
    hashes = {name: sorted(_by_hash(documents)) for name, documents in pools.items()}
    hashes["perplexity"] = [_hash(document) for document in pools.get("perplexity", [])]  # read as one text: in order
    return Text(
        name=cfg.name,
        documents=pools["train"],
        fingerprint=_hash(json.dumps(hashes, sort_keys=True)),
        made_from=tuple(cfg.made_from),
        test_documents=["\n\n".join(pools["perplexity"])] if "perplexity" in pools else None,
        heldout_documents=pools.get("heldout"),
        place=place,
    )


def _made(source: Any, store: Store, dense: DenseModel) -> Text:
    """What the dense model makes: known by that model and the options, since its content is not known beforehand."""
    identity = source.product(dense.model, dense.key)
    finished = store.finished(identity)
    documents = source.documents_of(finished.path)[: source.documents] if finished is not None else []
    made = Made(source, identity, source.tokens, finished is not None)
    fingerprint = _hash(json.dumps([identity.key, source.documents]))
    return Text(source.name, documents, fingerprint, tuple(source.made_from), None, None, dense.model.name, made)


def make_awaited(texts: Iterable[Text], model: Model, dense: Path, store: Store) -> bool:
    """Has the dense model make those texts that are not there yet, and says whether there were any.

    Args:
        texts: of a run.
        model: the model's config.
        dense: the folder of the dense model.
        store: where they are kept.
    """
    awaited = {text.made.product.key: text.made for text in texts if text.made is not None and text.awaited}
    for made in awaited.values():
        store.obtain(made.product, functools.partial(made.source.make, model, dense))
    return bool(awaited)


def named_corpus(
    name: str, cfg: Corpus, data_dir: str | None, store: Store | None = None, dense: DenseModel | None = None
) -> Text:
    """The run's own corpus for `corpus`, else the one of `conf/corpus/<name>.yaml`, else a text file at that path."""
    if name in ("corpus", cfg.name):
        return open_corpus(cfg, data_dir, store, dense)
    known = {file.stem: file for folder in _conf_folders() for file in sorted((folder / "corpus").glob("*.yaml"))}
    if name in known:
        return open_corpus(_of_file(known[name]), data_dir, store, dense)
    if not text_files.is_text_file(Path(name)):
        listed = ", ".join(sorted(known))
        raise UserError(f"no corpus {name}: use corpus (the run's own), {listed}, or the path of a text file")
    file: dict[str, Any] = {"name": Path(name).name, "source": "local", "path": name}
    file |= {"text_field": "text", "made_from": []}
    return open_corpus(Corpus(**file, subset=None, files=None, splits=None, documents=None), data_dir)


def _conf_folders() -> list[Path]:
    """Where YAML files lie: those that ship with it, and over them the user's, which Hydra was told of."""
    from hydra.core.hydra_config import HydraConfig

    found = [conf_dir()]
    if HydraConfig.initialized():
        sources = HydraConfig.get().runtime.config_sources
        found += [Path(source.path) for source in reversed(sources) if source.schema == "file"]
    return found


def _of_file(file: Path) -> Corpus:
    """A corpus as its YAML says it.

    Raises:
        UserError: it cannot be read, or its options are not those of its source.
    """
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        loaded = cast(DictConfig, OmegaConf.load(file))
        loaded.pop("defaults", None)
        node = registry.sources().get(str(loaded.get("source")), Corpus)
        return cast(Corpus, OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(node), loaded)))
    except OmegaConfBaseException as error:
        raise UserError(f"{file}: {one_line(error)}") from error


def part(text: Text, name: str) -> list[str]:
    """The documents of a part, each once and in an order that depends on their content alone; no two parts overlap.

    By a hash of each document, train, calibration, heldout and perplexity are 70, 10, 10 and 10 % of them. A corpus
    with its own test split has that as perplexity, in its own order; one with its own validation split has that as
    heldout, and as perplexity too, half and half, where there is no test split.
    """
    if name not in PARTS:
        raise ValueError(f"no part {name}: {', '.join(PARTS)}")
    names = [each for each in PARTS if each != "perplexity" or text.test_documents is None]
    if name not in names:
        return text.test_documents or []
    pool = heldout = text.heldout_by_hash
    if text.heldout_documents is not None and name in ("heldout", "perplexity"):
        names = [each for each in names if each in ("heldout", "perplexity")]
    else:
        names = [each for each in names if each not in ("heldout", "perplexity") or text.heldout_documents is None]
        pool = {key: document for key, document in text.by_hash.items() if key not in heldout}
    whole = sum(SHARES[each] for each in names)
    low = sum(SHARES[each] for each in names[: names.index(name)]) / whole
    high = 1.0 if name == names[-1] else low + SHARES[name] / whole
    return [document for key, document in pool.items() if low <= int(key[:13], 16) / 16**13 < high]


def blocks(
    text: Text, name: str, tokenizer: Any, length: int, count: int | None, seed: int, at_most: bool = False
) -> torch.LongTensor:
    """`count` blocks of `length` tokens from a part; all that it holds where count is None, and with `at_most` all
    that it holds where that is fewer.

    Documents are shuffled by `seed` (those of the perplexity part keep their order), tokenized without special
    tokens, joined by the tokenizer's end-of-sequence token, and cut.

    Returns:
        token ids [count, length], at least one row.

    Raises:
        UserError: the part is too small.
    """
    import torch

    documents = list(part(text, name))
    if name != "perplexity":
        random.Random(seed).shuffle(documents)
    separator = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    tokens: list[int] = []
    for start in range(0, len(documents), 64):
        if count is not None and len(tokens) >= count * length:
            break
        for ids in tokenizer(documents[start : start + 64], add_special_tokens=False, verbose=False)["input_ids"]:
            tokens += separator + list(ids) if tokens else list(ids)
    found = len(tokens) // length if count is None else min(len(tokens) // length, count)
    needed = 1 if count is None or at_most else count
    if found < needed:
        place = text.place if text.documents else f"{text.place}, which is a test split only"
        if len(text.documents) == 1:  # all of it goes to one part
            place += ", one single document: those of a txt file are separated by blank lines"
        raise UserError(
            f"corpus {text.name}: part {name} holds {len(tokens):,} tokens, {needed} blocks of {length} need "
            f"{needed * length:,}: use a larger corpus, or fewer or shorter sequences (read from {place})"
        )
    return torch.tensor(tokens[: found * length], dtype=torch.long).view(found, length)


def check_blocks(text: Text, name: str, tokenizer: Any, length: int, count: int, seed: int) -> None:
    """Refuses a part that does not hold `count` blocks; one that a model is still to make by what it should hold.

    Raises:
        UserError: the part is too small.
    """
    if text.made is None or text.made.there:
        blocks(text, name, tokenizer, length, count, seed)
    elif (tokens := int(text.made.tokens * SHARES[name])) < count * length:
        raise UserError(
            f"corpus {text.name}: of corpus.tokens={text.made.tokens:,} part {name} will hold {tokens:,}, {count}"
            f" blocks of {length} need {count * length:,}: raise corpus.tokens, or use fewer or shorter sequences"
        )


def refuse_evaluated(text: Text, tasks: list[TaskSource]) -> None:
    """Refuses to calibrate or train on text of a task that is evaluated.

    By `made_from`, and by content: of up to 200 evenly spaced documents of each task the longest string of 60
    characters or more is looked for in the corpus, word for word; more than 2 % found is too many.

    Raises:
        UserError: names the task, and the share found.
    """
    for task in tasks:
        if shared := {task.name, task.runs}.intersection(text.made_from):
            raise UserError(
                f"corpus {text.name} is made from {sorted(shared)[0]}, which this run evaluates: choose another "
                f"corpus, or leave it out of task.names"
            )
    passages = {task.name: _long_strings(task.sample(200)) for task in tasks}
    occurring = _occurring({passage for found in passages.values() for passage in found}, text.documents)
    for name, found in passages.items():
        share = sum(passage in occurring for passage in found) / max(len(found), 1)
        if share > 0.02:
            raise UserError(
                f"corpus {text.name} holds {share:.0%} of the sampled documents of {name}, which this run evaluates: "
                f"choose another corpus, or leave {name} out of task.names"
            )


def _by_hash(documents: list[str]) -> dict[str, str]:
    hashed = {_hash(document): document for document in documents if document.strip()}
    return dict(sorted(hashed.items()))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _long_strings(documents: list[dict[str, Any]]) -> list[str]:
    """The longest string of each document, words joined by single spaces; documents without a long one drop out."""
    found = []
    for document in documents:
        longest = max((value for value in document.values() if isinstance(value, str)), key=len, default="")
        if len(longest) >= 60:
            found.append(" ".join(longest.split()))
    return found


def _occurring(passages: set[str], documents: list[str]) -> set[str]:
    """Those passages that some document contains.

    A document is searched for a passage only where it has the passage's longest inner word: some passages by millions
    of characters would take minutes.
    """
    probes: dict[str, set[str]] = {}
    for passage in passages:
        inner = passage.split()[1:-1]  # the outer words may be cut off within the document's own
        probes.setdefault(max(inner, key=len, default=""), set()).add(passage)
    occurring: set[str] = set()
    for document in documents:
        words = document.split()
        candidates = [passage for word in probes.keys() & {"", *words} for passage in probes[word]]
        joined = " ".join(words) if candidates else ""
        occurring |= {passage for passage in candidates if passage not in occurring and passage in joined}
    return occurring
