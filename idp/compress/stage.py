"""Compresses a dense model, freezes it to plain weights and measures what they are."""

from __future__ import annotations

import contextlib
import gc
import json
import logging
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idp import models
from idp.beginning import Beginning, begun
from idp.compress import kept, recipe
from idp.compress.freeze import freeze
from idp.compress.measure import check_claims, measure_weights
from idp.compress.saved import measure_saved
from idp.compress.terminal import counting, quiet
from idp.config import Compressor, Model
from idp.errors import UserError, out_of_memory_is_explained
from idp.models import LoadedModel
from idp.progress import progress
from idp.store import Identity, Product, Store, write_json

if TYPE_CHECKING:
    import torch
    from torch import nn

log = logging.getLogger(__name__)

VERSION = 2

# Architectures whose calibration was the model's own forward pass also while llmcompressor's tracer made it; the others
# take no product from that time.
TRACED_RIGHT = ("llama", "qwen2", "qwen3", "gemma3_text")


def check(compressor: Compressor, empty: LoadedModel, text: Any) -> int | None:
    """Checks the compressor against the model's layers and the calibration text; returns the group size in use.

    Args:
        compressor: what is asked for.
        empty: the model without weights.
        text: the calibration corpus.

    Raises:
        UserError: a pattern or group size that does not divide a layer's width, blocks longer than the model's window,
            or too little text.
    """
    if not works(compressor):
        return None
    length, room = compressor.calibration.length, empty.model.config.get_text_config().max_position_embeddings
    if length > room:
        raise UserError(f"compressor.calibration.length={length}: the model's window is {room}; use {room} or less")
    group_size = recipe.check(compressor, empty.model)
    calibration_blocks(compressor, text, empty)
    return group_size


def works(compressor: Compressor) -> bool:
    """Whether there is anything to do."""
    return bool(compressor.sparsity.method or compressor.quantization.method)


def calibration_blocks(compressor: Compressor, text: Any, loaded: LoadedModel) -> torch.Tensor:
    """Token ids [samples, length]: the same for every compressor with the same `calibration` options.

    Where the model's texts begin with a BOS each sequence does; it takes the place of the last token.

    Raises:
        UserError: the text is too short.
    """
    from idp.corpora.corpus import blocks

    calibration = compressor.calibration
    found = blocks(text, "calibration", loaded.tokenizer, calibration.length, calibration.samples, calibration.seed)
    return begun(found, loaded.bos)[:, : calibration.length]


def compress(
    compressor: Compressor, group_size: int | None, model: Model, dense: Product, text: Any, store: Store
) -> Product:
    """Stage 2: the compressed model as a product, or, for `compressor=none`, the dense one measured.

    Args:
        compressor: what to do.
        group_size: as `check` resolved it.
        model: the model's config: its dtype and device decide the numbers.
        dense: the load stage's product.
        text: the calibration corpus, an `idp.corpora.corpus.Text`.
        store: where products live.

    Raises:
        UserError: a dense weight is not finite, or the compressed weights do not show what the config claims.
    """

    def make(folder: Path) -> None:
        source = models.model_folder(dense)
        if works(compressor):
            _compress(compressor, group_size, model, source, text, folder)
        else:
            _measure_dense(model, source, folder)

    with out_of_memory_is_explained("compress"):
        folder = models.model_folder(dense)
        product = store.obtain(identity(compressor, group_size, model, dense.key, folder, text), make)
    _say_what_was_singular(product)
    return product


def identity(
    compressor: Compressor, group_size: int | None, model: Model, dense: str, folder: Path, text: Any
) -> Identity:
    """What the compressed model is, before there is one.

    Args:
        compressor: what to do.
        group_size: as `check` resolved it.
        model: the model's config.
        dense: the key of the load stage's product.
        folder: of that model's config and tokenizer; no weight of it is read.
        text: the calibration corpus.
    """
    sparsity, quantization = compressor.sparsity, compressor.quantization
    config: dict[str, Any] = {"sparsity": asdict(sparsity) if sparsity.method else None}
    config["quantization"] = {**asdict(quantization), "group_size": group_size} if quantization.method else None
    if works(compressor):
        config |= {"calibration": {**asdict(compressor.calibration), "corpus": text.fingerprint}}
        config |= models.numerics(model)
        config |= Beginning(models.bos_of(folder, model)).identity()
    model_type = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    if recipe.needs_data(compressor) and model_type not in TRACED_RIGHT:
        config["calibration"]["forward"] = "own"
    if _has_experts(folder):
        config["experts"] = "linear"  # products without it left them dense, lost them, or did not count them
    return Identity("compress", dense, config, VERSION, recipe.label(compressor))


def _has_experts(folder: Path) -> bool:
    """Whether the config of a model says that it has experts; every such class has an option that is called so."""
    return "expert" in (folder / "config.json").read_text(encoding="utf-8")


def refuse_not_finite(model: nn.Module) -> None:
    """Refuses a model with a NaN or an infinity in its weights.

    Raises:
        UserError: names the first tensor that has one.
    """
    import torch

    for name, parameter in model.named_parameters():
        bad = int((~torch.isfinite(parameter)).sum())
        if bad:
            raise UserError(
                f"compress: {name} of the input model has {bad:,} weights that are NaN or infinite; load another copy"
                " of the model, or one saved in another dtype"
            )


def _compress(
    compressor: Compressor, group_size: int | None, model: Model, source: Path, text: Any, folder: Path
) -> None:
    """Compresses, saves, and measures what was saved; never more than one model in memory."""
    from idp.compress import experts

    loaded = models.open_model(source, model)
    refuse_not_finite(loaded.model)
    inputs = calibration_blocks(compressor, text, loaded)
    scales, singular, stored = _apply(compressor, group_size, loaded, inputs, folder)
    del loaded
    dense = models.open_model(source, model).model
    places = experts.places(dense)
    experts.split(dense)
    weights = measure_saved(
        folder / "model",
        dense,
        recipe.compressed_layers(dense),
        inputs,
        scales,
        places,
        bits=compressor.quantization.bits,
        group_size=group_size,
        symmetric=compressor.quantization.symmetric,
        pattern=compressor.sparsity.pattern,
    )
    check_claims(compressor, weights)
    write_json(folder / "weights.json", weights | singular.within(weights["layers"]) | {"stored": stored})


@dataclass
class Singular:
    """What calibration could not tell: inputs that it never moved, Hessians not inverted, experts hardly reached."""

    dead_inputs: dict[str, int]  # by layer
    not_inverted: list[str]  # lines
    tokens: dict[str, int]  # of each layer that did not get every calibration token
    few: list[str]  # of those, the layers with too few to be calibrated on them

    def within(self, layers: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """The totals; what is known of each layer goes into its row of `layers`."""
        for name, count in self.dead_inputs.items():
            layers[name]["dead_inputs"] = count
        for name, count in self.tokens.items():
            layers[name] |= {"calibration_tokens": count, "calibrated": name not in self.few}
        total = {"dead_inputs": sum(self.dead_inputs.values()), "not_inverted": self.not_inverted}
        if not self.tokens:
            return total
        fewest = min(self.tokens, key=self.tokens.__getitem__)
        reached = {"layers": len(self.tokens), "not_calibrated": len(self.few), "fewest": self.tokens[fewest]}
        return total | {"expert_tokens": reached | {"layer": fewest}}


def _apply(
    compressor: Compressor, group_size: int | None, loaded: LoadedModel, inputs: torch.Tensor, folder: Path
) -> tuple[dict[str, torch.Tensor], Singular, dict[str, int]]:
    """Compresses `loaded` in place and saves it under `folder`: its weights, and the grids that they lie on.

    Returns:
        the scales that AWQ folded into the layers, what calibration could not tell, and how layers are kept.
    """
    from safetensors.torch import save_file

    from idp.compress import experts

    model = loaded.model
    experts.split(model)
    layers = recipe.compressed_layers(model)
    total = model.config.get_text_config().num_hidden_layers
    with progress(total, f"compress {recipe.label(compressor)}", unit="layers") as bar, quiet() as said:
        from idp.compress import oneshot
        from idp.compress.dead import DeadInputsModifier
        from idp.compress.reach import ReachModifier

        modifiers = recipe.build(compressor, group_size, model)
        (folder / "recipe.yaml").write_text(recipe.as_yaml(modifiers), encoding="utf-8")  # goes with an export
        dead = DeadInputsModifier(names=list(layers))
        reach = ReachModifier(names=list(layers), tokens=inputs.numel()).before(modifiers)
        if recipe.needs_data(compressor):
            oneshot.run(model, [dead, reach, *modifiers, counting(bar)], inputs)
        else:
            oneshot.run(model, [*modifiers, counting(bar)], None)
        grids = freeze(model)
        experts.stack(model)
        stored = kept.save(model, folder / "model", grids, compressor.quantization, group_size)
        (folder / "model" / "recipe.yaml").unlink(missing_ok=True)  # llmcompressor's, empty once its session is over
        oneshot.release(model)
        gc.collect()  # calibration activations hang on circles of references
    loaded.tokenizer.save_pretrained(folder / "model")
    if grids:
        save_file({name: tensor.contiguous() for name, tensor in grids.items()}, folder / "grids.safetensors")
    scales = {name: scale for modifier in modifiers for name, scale in getattr(modifier, "scales", {}).items()}
    if scales:
        save_file({name: scale.clone() for name, scale in scales.items()}, folder / "scales.safetensors")
    failed = Counter(line for line in said if "inver" in line.lower())  # SparseGPT says it layer by layer
    lines = [line if count == 1 else f"{line} ({count} layers)" for line, count in failed.items()]
    counts = {name: count for name, count in dead.counts.items() if name not in reach.few}
    return scales, Singular(counts, lines, reach.reached, reach.few), stored


def _measure_dense(model: Model, source: Path, folder: Path) -> None:
    from idp.compress import experts

    loaded = models.open_model(source, model)
    refuse_not_finite(loaded.model)
    with contextlib.suppress(UserError):  # experts of a kind that no compressor knows count as what stays dense
        experts.split(loaded.model)
    layers = {name: layer.weight.data for name, layer in recipe.compressed_layers(loaded.model).items()}
    measured = measure_weights(layers.items(), bits=None, group_size=None, symmetric=False)
    write_json(folder / "weights.json", {"parameters": loaded.parameters, **measured})
    write_json(folder / "source.json", {"folder": str(source)})


def _say_what_was_singular(product: Product) -> None:
    """One line each for inputs that calibration never moved, Hessians not inverted, and experts hardly reached."""
    weights = product.read("weights.json")
    dead = {name: row["dead_inputs"] for name, row in weights["layers"].items() if "dead_inputs" in row}
    if dead:
        name = max(dead, key=dead.__getitem__)
        log.warning(
            "compress: dead inputs, zero for every calibration token: %d in %d of %d layers, most in %s (%d). Their"
            " columns count for nothing, as in the papers; more or other calibration text may reach them",
            sum(dead.values()),
            len(dead),
            len(weights["layers"]),
            name,
            dead[name],
        )
    for line in weights.get("not_inverted", []):
        log.warning("compress: %s", line)
    reached = weights.get("expert_tokens")
    if reached and reached["not_calibrated"]:
        log.warning(
            "compress: %d of %d matrices of experts were reached by too few calibration tokens to be calibrated on"
            " them (%s by %d): rounded to nearest or pruned by magnitude instead. More calibration text reaches more",
            reached["not_calibrated"],
            reached["layers"],
            reached["layer"],
            reached["fewest"],
        )
