"""A model that is not here: its layers on `meta`, and what runs on it keep on disk and hold in memory."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from idp import config as schema
from idp.bench.work import trainings
from idp.config import Config
from idp.errors import UserError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from idp.models import Source
    from idp.store import Store

BITS = 16  # of a dense weight: bfloat16 or float16
KEPT_POSITION = 1024  # bytes that one position of the dense model's predictions takes (idp.evaluate.divergence)
FLOAT = 4  # bytes of a repair's numbers


@dataclass
class Larger:
    """A model known by its shape, or by the number of its weights alone (`model` is None)."""

    name: str
    parameters: float
    model: PreTrainedModel | None
    downloaded: bool  # it comes from the hub
    converted: bool  # its weights are written out into the store

    @property
    def bytes(self) -> float:
        """Of its weights in 16 bits."""
        return self.parameters * BITS / 8


def of_config(model: schema.Model, parameters: float | None, store: Store | None) -> Larger:
    """The model of a config: by the number of its weights where that is said, else by its shape.

    Raises:
        UserError: nothing here says how large it is.
    """
    random, hub = model.source == "random", model.source == "hub"
    if parameters is not None:
        return Larger(model.name, parameters, None, hub, random)
    made = on_meta(shape_of(model, store))
    return Larger(
        model.name,
        sum(parameter.numel() for parameter in made.parameters()),
        made,
        hub,
        random or model.source == "embedded" or str(model.path).endswith(".gguf"),
    )


def shape_of(model: schema.Model, store: Store | None) -> PretrainedConfig:
    """The config of a model: of a known shape by its name, else from where the model is.

    Raises:
        UserError: it is on the hub, and neither known by name nor to be had.
    """
    from idp import models
    from idp.bench.shapes import SHAPES, config_of
    from idp.evaluate import guard
    from idp.models.gguf import model as ggufs

    if model.name in SHAPES:
        return config_of(model.name)
    if model.source == "local" and Path(model.path or "").is_dir():  # to find it would hash its files
        return guard.config_of(models.Source("folder", Path(model.path), {}), model)
    try:
        source = _found(model, store)
        return ggufs.config_of(source.place) if source.kind == "gguf" else guard.config_of(source, model)
    except UserError as error:
        raise UserError(f"{error}; or give the number of its weights, such as parameters=6.7e9") from error


def tokenizer_of(model: schema.Model, store: Store | None) -> tuple[PreTrainedTokenizerBase, str]:
    """A model's tokenizer and whose it is: the embedded model's where its own is not here, else one of bytes."""
    from transformers import AutoTokenizer

    from idp import models
    from idp.models.gguf import header, tokenizer

    embedded = dataclasses.replace(model, source="embedded", path=None)
    for name, tried in ((model.name, model), ("the embedded model", embedded)):
        try:
            source = _found(tried, store, offline=True)
            if source.kind == "random":
                return models.byte_tokenizer(), name
            if source.kind == "gguf":
                return tokenizer.build(tokenizer.check(header.read(source.place))), name
            if source.place is not None:
                return AutoTokenizer.from_pretrained(source.place, trust_remote_code=model.trust_remote_code), name
        except (UserError, OSError, ValueError):
            continue
    return models.byte_tokenizer(), "bytes: more tokens than any model's"


def stored(config: Config, larger: Larger) -> dict[str, float]:
    """What a run keeps in the store, in bytes, each product by a key: runs that share it keep it once."""
    from idp.bench.work import identity_of, repair_of

    made, repair = identity_of(config), repair_of(config)
    found = {}
    if larger.converted:
        found["load"] = larger.bytes
    if config.compressor.needs:
        found[f"compress {made}"] = compressed_bytes(config, larger)
    if repair is not None:
        found[f"recover {repair}"] = repair_bytes(config, larger)
    if config.evaluation.fidelity and config.baselines:
        from idp.evaluate.fidelity import TEXT_POSITIONS

        tokens = min(config.evaluation.perplexity_tokens or TEXT_POSITIONS, TEXT_POSITIONS)
        for corpus in config.evaluation.perplexity:
            found[f"reference {corpus} {tokens}"] = tokens * KEPT_POSITION
    return found


def compressed_bytes(config: Config, larger: Larger) -> float:
    """Bytes of a compressed model: quantised layers packed, all else in 16 bits, zeros among them."""
    from idp.compress import recipe
    from idp.compress.sizes import layer_bytes

    resolved = config.compressor.resolve(larger.model) if larger.model is not None else None
    claims = config.compressor.claims(resolved)
    if claims.bits is None:
        return larger.bytes
    if larger.model is None:
        return larger.parameters * claims.bits / 8
    layers = recipe.compressed_layers(larger.model)
    packed = sum(
        layer_bytes(*layer.weight.shape, BITS, claims.bits, claims.group_size, claims.symmetric)
        for layer in layers.values()
    )
    return packed + (larger.parameters - sum(layer.weight.numel() for layer in layers.values())) * BITS / 8


def repair_bytes(config: Config, larger: Larger) -> float:
    """Bytes of a repair: prompts as float32 embeddings, prefixes as keys and values, adapters."""
    if larger.model is None:
        return 0.0
    from idp.models import LoadedModel

    empty, numbers, recovery = LoadedModel(larger.model, None, ()), 0, config.recovery
    while recovery is not None:
        numbers += recovery.numbers(empty)
        recovery = recovery.beneath
    return float(numbers * FLOAT)


def training_peaks(config: Config, larger: Larger) -> tuple[float, float] | None:
    """The most bytes that a training step holds: as it is, and with all that is spared where memory runs out.

    None where nothing is trained, or the model is known by the number of its weights alone.
    """
    from idp.bench.shapes import SHAPES

    if larger.name not in SHAPES:
        return None
    found = [
        _peaks(
            larger.name,
            "lora" if of.adapts and of.beneath is None else of.method,
            training.objective == "distill",
            training.batch_size,
            training.sequence_length,
            max(lengths, default=0),
        )
        for of, training, lengths, _ in trainings(config.recovery)
    ]
    return (max(plain for plain, _ in found), max(spared for _, spared in found)) if found else None


@functools.cache
def _peaks(shape: str, method: str, distilled: bool, rows: int, tokens: int, length: int) -> tuple[float, float]:
    from idp.bench.memory import CHECKPOINTED, PLAIN, Step, peaks

    kind = method if method in ("lora", "prefix") else "prompt"
    if distilled and kind == "prompt":
        kind = "distilled prompt"
    found = peaks(Step(shape, kind, rows, tokens, length or 1))
    beside = found["weights"] if distilled and kind != "distilled prompt" else 0  # a teacher beside it
    return found[PLAIN] + beside, found[CHECKPOINTED]


def on_meta(config: PretrainedConfig) -> PreTrainedModel:
    """A model of that shape without numbers."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.tie_weights()
    return model


def _found(model: schema.Model, store: Store | None, offline: bool = False) -> Source:
    from idp import hub, models

    with hub.offline() if offline else contextlib.nullcontext():
        return models.find(model, store)
