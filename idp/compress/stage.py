"""Compresses a dense model with llmcompressor, freezes it to plain weights and measures what they are."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idp import models
from idp.compress import recipe
from idp.compress.freeze import freeze
from idp.compress.measure import measure_weights
from idp.compress.terminal import counting, quiet
from idp.config import Compressor, Model, Quantization
from idp.errors import out_of_memory_is_explained
from idp.models import LoadedModel
from idp.progress import progress
from idp.store import Product, Store, write_json

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

VERSION = 1


def check(compressor: Compressor, empty: LoadedModel, text: Any) -> int | None:
    """Checks the compressor against the model's layers and the calibration text; returns the group size in use.

    Args:
        compressor: what is asked for.
        empty: the model without weights.
        text: the calibration corpus.

    Raises:
        UserError: a method that is not available, a group size that does not divide a layer's width, or too little
            text.
    """
    from idp.corpus import blocks

    recipe.check_supported(compressor)
    if compressor.sparsity.method or compressor.quantization.method:
        calibration = compressor.calibration
        blocks(text, "calibration", empty.tokenizer, calibration.length, calibration.samples, calibration.seed)
    if compressor.quantization.method is None:
        return None
    return recipe.resolve_group_size(compressor.quantization, recipe.compressed_layers(empty.model))


def compress(
    compressor: Compressor, group_size: int | None, model: Model, dense: Product, text: Any, store: Store
) -> Product:
    """Stage 2: the compressed model as a product, or, for `compressor=none`, the dense one measured.

    Args:
        compressor: what to do.
        group_size: as `check` resolved it.
        model: the model's config: its dtype and device decide the numbers.
        dense: the load stage's product.
        text: the calibration corpus, an `idp.corpus.Text`.
        store: where products live.
    """
    sparsity, quantization = compressor.sparsity, compressor.quantization
    works = bool(sparsity.method or quantization.method)
    config: dict[str, Any] = {"sparsity": asdict(sparsity) if sparsity.method else None}
    config["quantization"] = {**asdict(quantization), "group_size": group_size} if quantization.method else None
    if works:
        config |= {"calibration": {**asdict(compressor.calibration), "corpus": text.fingerprint}}
        config |= models.numerics(model)

    def make(folder: Path) -> None:
        source = models.model_folder(dense)
        if works:
            _compress(compressor, group_size, model, source, text, folder)
        else:
            loaded = models.open_model(source, model)
            write_json(folder / "weights.json", _measure(loaded.model, None, None, False))
            write_json(folder / "source.json", {"folder": str(source)})

    with out_of_memory_is_explained("compress"):
        return store.get_or_make(
            "compress", parent=dense.key, config=config, version=VERSION, make=make, label=recipe.label(compressor)
        )


def _compress(
    compressor: Compressor, group_size: int | None, model: Model, source: Path, text: Any, folder: Path
) -> None:
    from idp.corpus import blocks

    loaded = models.open_model(source, model)
    calibration = compressor.calibration
    inputs = blocks(text, "calibration", loaded.tokenizer, calibration.length, calibration.samples, calibration.seed)
    with progress(_decoder_layers(loaded.model), f"compress {recipe.label(compressor)}", unit="layers") as bar, quiet():
        _oneshot(loaded.model, [*recipe.build(compressor, group_size), counting(bar)], inputs)
        _save(loaded, compressor.quantization, group_size, folder)


def _save(loaded: LoadedModel, quantization: Quantization, group_size: int | None, folder: Path) -> None:
    """Plain weights for evaluation, what they are, and the grids that they lie on."""
    from safetensors.torch import save_file

    grids = freeze(loaded.model)
    write_json(
        folder / "weights.json",
        _measure(loaded.model, quantization.bits, group_size, quantization.symmetric),
    )
    loaded.model.save_pretrained(folder / "model")
    loaded.tokenizer.save_pretrained(folder / "model")
    if grids:
        save_file({name: tensor.contiguous() for name, tensor in grids.items()}, folder / "grids.safetensors")


def _oneshot(model: Any, modifiers: list[Any], inputs: torch.Tensor) -> None:
    """Runs llmcompressor layer by layer; `inputs` is [samples, tokens]."""
    from llmcompressor import oneshot
    from llmcompressor.core import reset_session
    from torch.utils.data import DataLoader

    reset_session()  # a session outlives its call: without this a second compression repeats the first's recipe
    samples = [{"input_ids": row, "attention_mask": row.new_ones(row.shape)} for row in inputs]
    oneshot(
        model=model,
        dataset=DataLoader(samples, batch_size=1, shuffle=False),
        recipe=modifiers,
        num_calibration_samples=len(samples),
        shuffle_calibration_samples=False,
        max_seq_length=inputs.shape[1],
        pipeline="sequential",
    )
    reset_session()


def _measure(model: Any, bits: int | None, group_size: int | None, symmetric: bool) -> dict[str, Any]:
    layers = recipe.compressed_layers(model)
    inside = sum(layer.weight.numel() for layer in layers.values())
    total = sum(parameter.numel() for parameter in model.parameters())
    return {
        "parameters": total,
        **measure_weights(layers, total - inside, bits=bits, group_size=group_size, symmetric=symmetric),
    }


def _decoder_layers(model: Any) -> int:
    return model.config.get_text_config().num_hidden_layers
