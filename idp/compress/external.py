"""`compressor=external`: a checkpoint that someone else compressed, as a product of the compress stage.

It must be of the architecture that `model` says. Its weights become plain numbers, so that every repair and every
comparison runs on it as on our own; what they are is measured, and its size is that of its own files.
"""

from __future__ import annotations

import logging
import math
import re
from pathlib import Path
from typing import Any

from idp import hub, models
from idp.compress.formats import integers, library
from idp.compress.formats.checkpoint import Checkpoint
from idp.compress.formats.claims import Decompressed, measure
from idp.compress.recipe import compressed_layers, label
from idp.config import Compressor, Model
from idp.errors import UserError, out_of_memory_is_explained
from idp.models import LoadedModel, Source
from idp.store import Product, Store, write_json

log = logging.getLogger(__name__)

VERSION = 1
# What two models of one architecture must agree in, in the order in which a difference is named.
AGREE = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "rms_norm_eps",
    "rope_theta",
)


def find(compressor: Compressor) -> Source | None:
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
        commit = hub.commit(compressor.path, compressor.revision, "compressor")
    except UserError as error:
        raise UserError(f"{error} (there is no folder {place} either)") from error
    return Source("hub", None, {"repository": compressor.path, "commit": commit})


def check(compressor: Compressor, source: Source, model: Model, empty: LoadedModel) -> None:
    """Checks that a checkpoint is of the model's architecture, from its config alone.

    Args:
        compressor: what names it.
        source: where it is.
        model: the model that it should be a compression of.
        empty: that model without weights.

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
    place = _place(compressor, source)
    try:
        if source.kind == "gguf":
            config = models.gguf_config(place)
        else:
            config = AutoConfig.from_pretrained(place, trust_remote_code=model.trust_remote_code)
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        _compare_configs(where, config, empty.model.config, model.name)
        with torch.device("meta"):
            other = AutoModelForCausalLM.from_config(config, trust_remote_code=model.trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{where}: not a causal language model: {hub.first_line(error)}") from error
    here, there = dict(empty.model.state_dict()), dict(other.state_dict())
    for name in [*here, *there]:
        if name not in here or name not in there:
            raise UserError(f"{where}: does not fit {model.name}: only one of them has {name}")
        if here[name].shape != there[name].shape:
            raise UserError(
                f"{where}: does not fit {model.name}: {name} is {list(there[name].shape)} there and"
                f" {list(here[name].shape)} in {model.name}"
            )


def compress(compressor: Compressor, source: Source, model: Model, dense: Product, store: Store) -> Product:
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

    config = {"external": {"kind": source.kind, **source.identity}, **models.numerics(model)}

    def make(folder: Path) -> None:
        from idp.compress.stage import refuse_not_finite

        empty = models.open_empty(models.model_folder(dense), model)
        shapes = {name: list(layer.weight.shape) for name, layer in compressed_layers(empty.model).items()}
        found = _read(_place(compressor, source), source, model, empty, shapes)
        loaded = _fitted(compressor, found, empty, model)
        refuse_not_finite(loaded)
        layers = compressed_layers(loaded)
        weights = measure(found, ((name, layer.weight.data) for name, layer in layers.items()))
        about = {"format": found.kind, "notes": found.notes}
        parameters = sum(parameter.numel() for parameter in loaded.parameters())
        write_json(folder / "weights.json", {"parameters": parameters, **weights, "external": about})
        loaded.save_pretrained(folder / "model")
        empty.tokenizer.save_pretrained(folder / "model")

    with out_of_memory_is_explained("load"), torch.no_grad():
        product = store.get_or_make(
            "compress", parent=dense.key, config=config, version=VERSION, make=make, label=label(compressor)
        )
    about = product.read("weights.json")["external"]
    for note in about["notes"]:
        log.warning("compressor.path=%s (%s): %s", compressor.path, about["format"], note)
    return product


def _place(compressor: Compressor, source: Source) -> Path:
    """The checkpoint's folder or file, downloaded if need be."""
    if source.kind != "hub":
        return source.place
    return hub.download(compressor.path, source.identity["commit"], "compressor", pickles=False)


def _read(place: Path, source: Source, model: Model, empty: LoadedModel, shapes: dict[str, list[int]]) -> Decompressed:
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
    read = integers.read_gptq if method == "gptq" else integers.read_awq
    return read(checkpoint, described, shapes | named, dtype)


def _fitted(compressor: Compressor, found: Decompressed, empty: LoadedModel, model: Model) -> Any:
    """The dense model's architecture with the checkpoint's weights; every tensor must have its place.

    Raises:
        UserError: the first tensor that is missing, left over or of another shape.
    """
    where = f"compressor.path={compressor.path}: does not fit {model.name}"
    _tie(where, found.state, empty.model)
    loaded, about = type(empty.model).from_pretrained(
        None,
        config=empty.model.config,
        state_dict=found.state,
        dtype=models.dtype_of(model),
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    for name, there, here in sorted(about["mismatched_keys"]):
        raise UserError(f"{where}: {name} is {list(there)} there and {list(here)} in {model.name}")
    for name in sorted(about["missing_keys"]):
        raise UserError(f"{where}: it has no {name}")
    for name in sorted(about["unexpected_keys"]):
        raise UserError(f"{where}: {model.name} has no {name}")
    found.state.clear()
    return loaded.eval().requires_grad_(False)


def _tie(where: str, state: dict[str, Any], model: Any) -> None:
    """A head that one of the two models ties to its embeddings: dropped if it is equal, filled in if it is missing."""
    import torch

    head, embeddings = (
        _weight_of(model, module) for module in (model.get_output_embeddings(), model.get_input_embeddings())
    )
    if head is None or embeddings not in state:
        return
    if not model.config.get_text_config().tie_word_embeddings:
        state.setdefault(head, state[embeddings])
    elif head in state and not torch.equal(state.pop(head), state[embeddings]):
        raise UserError(f"{where}: its {head} is not its {embeddings}, which this model ties")


def _weight_of(model: Any, module: Any) -> str | None:
    return next((f"{name}.weight" for name, found in model.named_modules() if found is module and name), None)


def _compare_configs(where: str, there: Any, here: Any, name: str) -> None:
    there, here = there.get_text_config(), here.get_text_config()
    if there.model_type != here.model_type:
        raise UserError(f"{where}: does not fit {name}: it is a {there.model_type}, {name} is a {here.model_type}")
    for option in AGREE:
        theirs, ours = _value(there, option), _value(here, option)
        close = theirs == ours
        if isinstance(theirs, float) and isinstance(ours, (int, float)):
            close = math.isclose(theirs, ours, rel_tol=1e-5)  # GGUF keeps them in single precision
        if theirs is not None and ours is not None and not close:
            raise UserError(f"{where}: does not fit {name}: {option} is {theirs} there and {ours} in {name}")


def _value(config: Any, option: str) -> Any:
    if option == "rope_theta":
        parameters = getattr(config, "rope_parameters", None) or {}
        return parameters.get("rope_theta", getattr(config, "rope_theta", None))
    return getattr(config, option, None)
