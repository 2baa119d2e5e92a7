"""Compresses a dense model, freezes it to plain weights and measures what they are."""

from __future__ import annotations

import contextlib
import gc
import json
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idp import models, registry
from idp.beginning import Beginning, begun
from idp.compress import kept, recipe, sizes
from idp.compress.context import CompressionContext
from idp.compress.freeze import GRIDS, freeze
from idp.compress.measure import check_claims, measure_weights
from idp.compress.saved import measure_saved
from idp.compress.terminal import quiet
from idp.config import CALIBRATION, DENSE, Compressor, Model
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


def find_checkpoint(compressor: Compressor, store: Store | None = None) -> models.ModelSource | None:
    """Where the weights are that a compressor takes from others; None where it compresses here.

    Raises:
        UserError: they are not there.
    """
    return compressor.find(store)


def check(
    compressor: Compressor,
    empty: LoadedModel,
    text: Any,
    model: Model | None = None,
    source: models.ModelSource | None = None,
    store: Store | None = None,
) -> Any:
    """Checks the compressor against the model's layers and the calibration text.

    Args:
        compressor: what is asked for.
        empty: the model without weights.
        text: the calibration corpus.
        model: the model's config.
        source: what `find_checkpoint` gave.
        store: which knows what has been fetched.

    Returns:
        what its options come to with this model, such as the group size in use; `compress` is given it.

    Raises:
        UserError: a pattern or group size that does not divide a layer's width, blocks longer than the model's window,
            or too little text.
    """
    if not compressor.needs:
        return None
    if not works(compressor):
        return compressor.check_model(empty, model=model, source=source, store=store)
    length, room = compressor.calibration.length, empty.model.config.get_text_config().max_position_embeddings
    if length > room:
        raise UserError(f"compressor.calibration.length={length}: the model's window is {room}; use {room} or less")
    recipe.check_layers(empty.model)
    compressor.check_model(empty, model=model, source=source, store=store)
    from idp.corpora.corpus import check_blocks

    of = compressor.calibration
    check_blocks(text, "calibration", empty.tokenizer, of.length, of.samples, of.seed)
    return compressor.resolve(empty.model)


def works(compressor: Compressor) -> bool:
    """Whether the dense model is compressed here; else it stays as it is, or others have done it."""
    return DENSE in compressor.needs


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
    compressor: Compressor,
    resolved: Any,
    model: Model,
    dense: Product,
    text: Any,
    store: Store,
    source: models.ModelSource | None = None,
) -> Product:
    """Stage 2: the compressed model as a product, or, for `compressor=none`, the dense one measured.

    Args:
        compressor: what to do.
        resolved: what `check` gave.
        model: the model's config: its dtype and device decide the numbers.
        dense: the load stage's product.
        text: the calibration corpus, an `idp.corpora.corpus.Text`.
        store: where products live.
        source: what `find_checkpoint` gave.

    Raises:
        UserError: a dense weight is not finite, or the compressed weights do not show what the compressor claims.
    """
    if source is not None:
        return compressor.take(source, model, dense, store)
    if not works(compressor):
        return uncompressed(model, dense, store)
    folder = models.model_folder(dense)
    identified = identity(compressor, resolved, model, dense.key, folder, text)
    return _stored(identified, store, lambda made: _compress(compressor, resolved, model, folder, text, made))


def uncompressed(model: Model, dense: Product, store: Store) -> Product:
    """The dense model as a product of this stage, which measures its weights."""
    folder = models.model_folder(dense)
    return _stored(uncompressed_identity(dense.key, folder), store, lambda made: _measure_dense(model, folder, made))


def _stored(identified: Identity, store: Store, make: Callable[[Path], None]) -> Product:
    with out_of_memory_is_explained("compress"):
        product = store.obtain(identified, make)
    _say_what_was_singular(product)
    return product


def identity(
    compressor: Compressor,
    resolved: Any,
    model: Model,
    dense: str,
    folder: Path,
    text: Any,
    source: models.ModelSource | None = None,
) -> Identity:
    """What the compressed model is, before there is one.

    Args:
        compressor: what to do.
        resolved: what `check` gave.
        model: the model's config.
        dense: the key of the load stage's product.
        folder: of that model's config and tokenizer; no weight of it is read.
        text: the calibration corpus.
        source: what `find_checkpoint` gave.
    """
    if source is not None:
        return compressor.taken(source, model, dense)
    if not works(compressor):
        return uncompressed_identity(dense, folder)
    config, claims = compressor.identity(resolved), compressor.claims(resolved)
    if sizes.claims_of(config) != claims:  # what is read of a product without knowing its kind
        config["claims"] = asdict(claims)
    config |= registry.code_of(compressor, *compressor.parts.values())
    config |= {"calibration": {**asdict(compressor.calibration), "corpus": text.fingerprint}}
    config |= models.numerics(model)
    config |= Beginning(models.bos_of(folder, model)).identity()
    model_type = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    if CALIBRATION in compressor.needs and model_type not in TRACED_RIGHT:
        config["calibration"]["forward"] = "own"
    return Identity("compress", dense, config | _of_experts(folder), VERSION, compressor.label)


def uncompressed_identity(dense: str, folder: Path) -> Identity:
    """The dense model of that key as a product of this stage; `folder` has its config."""
    return Identity("compress", dense, {"sparsity": None, "quantization": None} | _of_experts(folder), VERSION, "none")


def _of_experts(folder: Path) -> dict[str, str]:
    # Products without it left them dense, lost them, or did not count them.
    return {"experts": "linear"} if _has_experts(folder) else {}


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


def _compress(compressor: Compressor, resolved: Any, model: Model, source: Path, text: Any, folder: Path) -> None:
    """Compresses, saves, and measures what was saved; never more than one model in memory."""
    from idp.compress import experts

    loaded, claims = models.open_model(source, model), compressor.claims(resolved)
    refuse_not_finite(loaded.model)
    inputs = calibration_blocks(compressor, text, loaded)
    scales, singular, stored = _apply(compressor, resolved, loaded, inputs, folder)
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
        bits=claims.bits,
        group_size=claims.group_size,
        symmetric=claims.symmetric,
        pattern=claims.pattern,
    )
    check_claims(claims, weights)
    about = {"stored": stored, "calibrated": CALIBRATION in compressor.needs}
    write_json(folder / "weights.json", weights | singular.within(weights["layers"]) | about)


@dataclass
class Singular:
    """What calibration could not tell: inputs that it never moved, Hessians not inverted, experts hardly reached."""

    dead_inputs: dict[str, int]  # by layer
    not_inverted: list[str]  # lines
    tokens: dict[str, int]  # of each layer that did not get every calibration token
    few: list[str]  # of those, the layers with too few to be calibrated on them

    @classmethod
    def of(cls, context: CompressionContext, captured: list[str]) -> Singular:
        """What was counted as `context` was done, and the lines that llmcompressor said meanwhile."""
        failed = Counter(line for line in captured if "inver" in line.lower())  # SparseGPT says it layer by layer
        lines = [line if count == 1 else f"{line} ({count} layers)" for line, count in failed.items()]
        few = [name for name, each in context.reach.items() if each.few]
        counts = {name: each.count for name, each in context.dead.items() if each.count and name not in few}
        tokens = {name: each.count for name, each in context.reach.items() if not each.whole}
        return cls(counts, lines, tokens, few)

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
    compressor: Compressor, resolved: Any, loaded: LoadedModel, inputs: torch.Tensor, folder: Path
) -> tuple[dict[str, torch.Tensor], Singular, dict[str, int]]:
    """Compresses `loaded` in place and saves it under `folder`: its weights, and the grids that they lie on.

    Returns:
        the scales that were folded into the layers, what calibration could not tell, and how layers are kept.
    """
    import torch
    from safetensors.torch import save_file

    from idp.compress import experts

    model = loaded.model
    experts.split(model)
    total = model.config.get_text_config().num_hidden_layers
    with progress(total, f"compress {compressor.label}", unit="layers") as bar, quiet() as captured:
        from idp.compress import oneshot

        context = CompressionContext(model, recipe.compressed_layers(model), inputs, resolved, folder, bar)
        with torch.no_grad():
            compressor.apply(context)
        grids = freeze(model) | context.grids
        experts.stack(model)
        stored = kept.save(model, folder / "model", grids, compressor.claims(resolved))
        (folder / "model" / "recipe.yaml").unlink(missing_ok=True)  # llmcompressor's, empty once its session is over
        oneshot.release(model)
        gc.collect()  # calibration activations hang on circles of references
    loaded.tokenizer.save_pretrained(folder / "model")
    for name, tensors in ((GRIDS, grids), ("scales.safetensors", context.scales)):
        if tensors:
            save_file({key: each.clone().contiguous() for key, each in tensors.items()}, folder / name)
    return context.scales, Singular.of(context, captured), stored


def _measure_dense(model: Model, source: Path, folder: Path) -> None:
    from idp.compress import experts

    loaded = models.open_model(source, model)
    refuse_not_finite(loaded.model)
    with contextlib.suppress(UserError):  # experts of a kind that no compressor knows count as what stays dense
        experts.split(loaded.model)
    layers = {name: layer.weight.data for name, layer in recipe.compressed_layers(loaded.model).items()}
    measured = measure_weights(layers.items(), bits=None, group_size=None, symmetric=False)
    write_json(folder / "weights.json", {"parameters": loaded.parameters, **measured})
    models.write_source(folder, source)


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
