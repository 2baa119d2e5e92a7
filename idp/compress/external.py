"""`compressor=external`: a checkpoint that someone else compressed, as a product of the compress stage.

It must be of the architecture that `model` says. Its weights become plain numbers, so that every repair and every
comparison runs on it as on our own; what they are is measured, and its size is that of its own files.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idp import fetched, hub, models
from idp.compress.compressors.pruning_quantization import PruningQuantization
from idp.compress.formats import agreement, integers, library
from idp.compress.formats.checkpoint import Checkpoint
from idp.compress.formats.claims import Decompressed, measure
from idp.compress.recipe import compressed_layers
from idp.config import Model
from idp.errors import UserError, out_of_memory_is_explained
from idp.models import LoadedModel, ModelSource, quantized, weights
from idp.models.gguf import model as ggufs
from idp.models.weight_files import WeightFiles
from idp.store import Identity, Product, Store, verification, write_json

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

VERSION = 2


def find_checkpoint(compressor: PruningQuantization, store: Store | None = None) -> ModelSource | None:
    """Where the checkpoint of `compressor.path` is, known by its content; None where none is asked for.

    Raises:
        UserError: it is not there, not a model, or its weights are pickled.
    """
    if compressor.path is None:
        return None
    place = Path(compressor.path).expanduser().absolute()
    if place.is_file() and place.suffix == ".gguf":
        return models.gguf_source(place)
    if place.is_dir():
        Checkpoint(place).quantization()
        return models.folder_source(place)
    if place.exists() or not re.fullmatch(r"[\w.\-]+/[\w.\-]+", compressor.path):
        raise UserError(f"compressor.path={compressor.path}: no such folder or GGUF file")
    try:
        found = fetched.repository(compressor.path, compressor.revision, "compressor", store)
    except UserError as error:
        raise UserError(f"{error} (there is no folder {place} either)") from error
    quantized.refuse_unread(f"compressor.path={compressor.path}", quantized.described(found.config))
    return ModelSource("hub", None, {"repository": compressor.path, "commit": found.commit})


def check(
    compressor: PruningQuantization, source: ModelSource, model: Model, empty: LoadedModel, store: Store | None = None
) -> None:
    """Checks that a checkpoint computes what the model computes, from its config, its tokenizer and its headers.

    Args:
        compressor: what names it.
        source: where it is.
        model: the model that it should be a compression of.
        empty: that model without weights.
        store: which knows what has been fetched.

    Raises:
        UserError: the first difference.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from idp.compress.experts import stacked_experts

    where = f"compressor.path={compressor.path}"
    if stacked_experts(empty.model):
        raise UserError(
            f"{where}: {type(empty.model).__name__} is a mixture of experts, whose experts are read from no external"
            " checkpoint yet; compress it here"
        )
    place = place_of(compressor, source, store)
    try:
        if source.kind == "gguf":
            config = ggufs.config_of(place, like=empty.model.config)
        else:
            config = AutoConfig.from_pretrained(place, trust_remote_code=model.trust_remote_code)
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        agreement.compare_configs(where, config, empty.model, model.name, stated_alone=source.kind == "gguf")
        with torch.device("meta"):
            other = AutoModelForCausalLM.from_config(config, trust_remote_code=model.trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{where}: not a causal language model: {hub.first_line(error)}") from error
    if not compressed_layers(empty.model):
        raise UserError(
            f"{where}: {type(empty.model).__name__} has no torch.nn.Linear layers, of which compressor=external reads"
            " packed weights and measures sizes; use a model that has"
        )
    here, there = dict(empty.model.state_dict()), dict(other.state_dict())
    for name in [*here, *there]:
        if name not in here or name not in there:
            raise UserError(f"{where}: does not fit {model.name}: only one of them has {name}")
        if here[name].shape != there[name].shape:
            raise UserError(
                f"{where}: does not fit {model.name}: {name} is {list(there[name].shape)} there and"
                f" {list(here[name].shape)} in {model.name}"
            )
    if source.kind != "gguf":
        Checkpoint(place).quantization()  # of one from the hub not seen before
        trust = model.trust_remote_code
        if note := agreement.compare_tokenizers(where, place, empty.tokenizer, model.name, trust):
            log.warning("%s: %s", where, note)


def compress(
    compressor: PruningQuantization, source: ModelSource, model: Model, dense: Product, store: Store
) -> Product:
    """Stage 2 with a checkpoint of others: its plain weights in the model's dtype, and what they are.

    Args:
        compressor: what names it.
        source: where it is; its content is part of the key.
        model: the model that it is a compression of.
        dense: that model's product: architecture and tokenizer are taken from it.
        store: where products live.

    Raises:
        UserError: it cannot be read, does not fit the model, or its weights are not what it claims.
    """
    import torch

    def make(folder: Path) -> None:
        from idp.compress.stage import refuse_not_finite

        dense_folder = models.model_folder(dense)
        empty = models.open_empty(dense_folder, model)
        shapes = {name: list(layer.weight.shape) for name, layer in compressed_layers(empty.model).items()}
        place = place_of(compressor, source, store)
        with verification.while_read(dense_folder):
            found = _read(place, source, model, empty, shapes, _weights_of(dense_folder))
        loaded = _fitted(compressor, found, empty, model, tied=_tied(place, source, model))
        refuse_not_finite(loaded)
        layers = compressed_layers(loaded)
        measured = measure(found, ((name, layer.weight.data) for name, layer in layers.items()))
        about = {"format": found.kind, "notes": found.notes}
        parameters = sum(parameter.numel() for parameter in loaded.parameters())
        write_json(folder / "weights.json", {"parameters": parameters, **measured, "external": about})
        settings = place if source.kind != "gguf" and (place / weights.GENERATION_CONFIG).is_file() else dense_folder
        weights.save(loaded, folder / "model", settings)
        empty.tokenizer.save_pretrained(folder / "model")

    with out_of_memory_is_explained("load"), torch.no_grad():
        product = store.obtain(identity(compressor, source, model, dense.key), make)
    about = product.read("weights.json")["external"]
    for note in about["notes"]:
        log.warning("compressor.path=%s (%s): %s", compressor.path, about["format"], note)
    return product


def identity(compressor: PruningQuantization, source: ModelSource, model: Model, dense: str) -> Identity:
    """What the product is, by the key of the dense model; the checkpoint's content is part of it."""
    config = {"external": {"kind": source.kind, **source.identity}, **models.numerics(model)}
    return Identity("compress", dense, config, VERSION, compressor.label)


def place_of(compressor: PruningQuantization, source: ModelSource, store: Store | None = None) -> Path:
    """The checkpoint's folder or file, downloaded if need be; a store knows what has been fetched."""
    if source.kind != "hub":
        assert source.place is not None
        return source.place
    assert compressor.path is not None
    return fetched.model(compressor.path, source.identity["commit"], "compressor", store, pickles=False)


def _weights_of(folder: Path) -> Callable[[str], torch.Tensor | None]:
    """The dense model's weights, by the name of their layer; None for one that is not stored under that name."""
    files = WeightFiles(folder, str(folder))

    def weight(layer: str) -> torch.Tensor | None:
        name = f"{layer}.weight"
        names = (name, name.partition(".")[2])  # older checkpoints leave the first part out
        return next((files.tensor(name) for name in names if name in files.entries), None)

    return weight


def _tied(place: Path, source: ModelSource, model: Model) -> bool | None:
    """Whether the checkpoint's own config ties its head to its embeddings; None for GGUF, where the tensors say it."""
    from transformers import AutoConfig

    if source.kind == "gguf":
        return None
    config = AutoConfig.from_pretrained(place, trust_remote_code=model.trust_remote_code)
    return weights.ties(config)


def _read(
    place: Path,
    source: ModelSource,
    model: Model,
    empty: LoadedModel,
    shapes: dict[str, list[int]],
    dense: Callable[[str], torch.Tensor | None],
) -> Decompressed:
    dtype = models.dtype_of(model)
    if source.kind == "gguf":
        return library.read_gguf(place, list(shapes), dtype)
    checkpoint = Checkpoint(place)
    described = checkpoint.quantization()
    method = described.get("quant_method")
    if method == "compressed-tensors":
        return library.read_compressed_tensors(checkpoint, list(shapes), model.trust_remote_code)
    if method is None:
        return library.read_plain(checkpoint, list(shapes), dtype)
    head = empty.model.get_output_embeddings()  # some quantise it as well
    named = {name: list(head.weight.shape) for name, module in empty.model.named_modules() if module is head}
    if method == "awq":
        return integers.read_awq(checkpoint, described, shapes | named, dtype)
    return integers.read_gptq(checkpoint, described, shapes | named, dtype, dense)


def _fitted(
    compressor: PruningQuantization, found: Decompressed, empty: LoadedModel, model: Model, *, tied: bool | None
) -> Any:
    """The dense model's architecture with the checkpoint's weights; every tensor must have its place.

    Raises:
        UserError: the first tensor that is missing, left over or of another shape.
    """
    where = f"compressor.path={compressor.path}: does not fit {model.name}"
    _tie(where, found.state, empty.model, tied)
    weights.check_experts(where, found.state)
    shapes = {name: tuple(tensor.shape) for name, tensor in found.state.items()}
    with weights.silent() as messages:
        try:
            loaded, about = type(empty.model).from_pretrained(
                None,
                config=empty.model.config,
                state_dict={name: _Taken(found.state, name) for name in found.state},
                dtype=models.dtype_of(model),
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
        except (RuntimeError, ValueError, KeyError) as error:
            raise UserError(f"{where}: {weights.first_fault(error, messages)}") from error
    for name, there, here in sorted(about["mismatched_keys"]):
        raise UserError(f"{where}: {name} is {list(there)} there and {list(here)} in {model.name}")
    for name in sorted(about["missing_keys"]):
        raise UserError(f"{where}: it has no {name}")
    for name in sorted(about["unexpected_keys"]):
        if not weights.harmless(name, empty.model.config, shapes.get(name)):
            raise UserError(f"{where}: {model.name} has no {name}")
    found.state.clear()
    return loaded.eval().requires_grad_(False)


class _Taken:
    """A tensor of a state dict that leaves it as it is read (`tensor[...]`), so that no second set is kept."""

    def __init__(self, state: dict[str, torch.Tensor], name: str):
        self.state, self.name = state, name

    def __getitem__(self, _: Any) -> torch.Tensor:
        return self.state.pop(self.name)


def _tie(where: str, state: dict[str, Any], model: Any, tied: bool | None) -> None:
    """A head that one of the two models ties to its embeddings: dropped if it is equal, filled in if it is missing.

    Args:
        where: what a fault begins with.
        state: the checkpoint's weights; changed in place.
        model: the dense model.
        tied: whether the checkpoint's own config ties them; None: its tensors say it.

    Raises:
        UserError: it has no head, or one that is not what a config says.
    """
    import torch

    head, embeddings = (
        _weight_of(model, module) for module in (model.get_output_embeddings(), model.get_input_embeddings())
    )
    if head is None or embeddings not in state:
        return
    if head not in state and tied is False:
        raise UserError(
            f"{where}: it has no {head}, and its config does not tie it to {embeddings}; take a complete copy"
        )
    if head in state and not torch.equal(state[head], state[embeddings]):
        if weights.ties(model.config):
            raise UserError(f"{where}: its {head} is not its {embeddings}, which this model ties")
        if tied:
            raise UserError(f"{where}: its {head} is not its {embeddings}, which its own config ties")
    if weights.ties(model.config):
        state.pop(head, None)
    elif head not in state:
        state[head] = state[embeddings].clone()  # of its own memory: one of two that share it would not be saved


def _weight_of(model: Any, module: Any) -> str | None:
    return next((f"{name}.weight" for name, found in model.named_modules() if found is module and name), None)
