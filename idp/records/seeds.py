"""Which models differ by seeds alone: those are runs of one row of the tables."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from idp.records.measured import COMPRESSED, DENSE, REPAIRED, ModelScores
from idp.store import digest

SEED = "seed"
CALIBRATED = ("gptq", "awq", "sparsegpt", "wanda")  # the methods of older records that look at calibration text
TRAINING, CALIBRATION = "training", "calibration"
# Options that make no other model: seeds, where a repair lies, and what is measured or kept beside it; but for
# teacher=cached, which teaches a little otherwise.
SAME_MODEL = (SEED, "from", "controls", "checkpoint_every", "checkpointing", "teacher")


def seeds_of(model: ModelScores) -> dict[str, Any]:
    """Every seed that a model was made with: of calibration, of training, and of what a repair's own options name."""
    found: dict[str, Any] = {}
    if model.role == REPAIRED:
        learned = model.transfer or {}
        found[TRAINING] = model.seed if learned.get(SEED) is None else learned[SEED]
        found |= _named(model.config["recovery"] or {})
    compressor = model.config["compressor"] or {}
    if not compressor.get("path"):  # compressed elsewhere: nothing was calibrated here
        found[CALIBRATION] = (compressor.get("calibration") or {}).get(SEED)
    return found


def seeds_label(members: Sequence[ModelScores]) -> str:
    """The seeds of a row's runs: those of training, and of others those that vary between the runs."""
    every = [seeds_of(model) for model in members]
    words = []
    for name in dict.fromkeys(name for each in every for name in each):
        values = [each.get(name) for each in every]
        if name == CALIBRATION:
            wanted = calibrations(members) > 1
        else:
            wanted = name == TRAINING or (len(set(values)) > 1 and values != [each[TRAINING] for each in every])
        if wanted:
            text = ", ".join(map(str, dict.fromkeys(values)))
            words.append(text if name == TRAINING else f"{name} {text}")
    return "; ".join(words)


def seed_label(model: ModelScores, members: Sequence[ModelScores]) -> str:
    """The same of one run of a row: what tells it from the row's others."""
    seeds = seeds_of(model)
    words = [str(seeds[TRAINING])] if TRAINING in seeds else []
    return "; ".join([*words, f"{CALIBRATION} {seeds.get(CALIBRATION)}"] if calibrations(members) > 1 else words)


def calibrations(members: Iterable[ModelScores]) -> int:
    """How many compressed models stand behind the runs of a row."""
    return len({model.keys.get("compress") for model in members})


def weights_of(models: Iterable[ModelScores]) -> dict[str, str]:
    """Which compressed models differ by the calibration seed alone: an identity for each model's `id`.

    The key of a product hashes all that made it, configs say what that was. Where two products have one config and one
    seed, they differ in something that neither tells (the text behind a corpus' name, a version of the code): such
    products are never one row.
    """
    products: dict[str, dict[str, ModelScores]] = defaultdict(dict)  # made -> key -> a model on that product
    made_of: dict[tuple[str, ...], str] = {}  # keys -> made: as the first run that has the product says it
    of_model: dict[str, tuple[str, str]] = {}
    for model in models:
        key = model.keys.get("compress", "") if model.compressor != "none" else ""
        keys = model.setting, model.keys.get("load", ""), key
        made = made_of.setdefault(keys, digest([*keys[:2], seedless(compressed_by(model)) if key else None]))
        products[made].setdefault(key, model)
        of_model[model.id] = made, key
    ambiguous = {
        made: len({seeds_of(each).get(CALIBRATION) for each in found.values()}) < len(found)
        for made, found in products.items()
    }
    return {name: digest([made, key])[:12] if ambiguous[made] else made[:12] for name, (made, key) in of_model.items()}


def identities(models: Sequence[ModelScores]) -> dict[str, str]:
    """The row that each model is a run of, by the model's `id`."""
    weights = weights_of(models)
    by_key = {model.keys["recover"]: model for model in models if "recover" in model.keys and not model.transfer}
    together: dict[str, list[ModelScores]] = defaultdict(list)
    for model in models:
        made = seedless(repaired_by(model, by_key)) if model.role == REPAIRED else None
        together[digest([model.setting, model.role, weights[model.id], made])[:12]].append(model)
    found: dict[str, str] = {}
    for identity, members in together.items():
        seeds = [sorted(seeds_of(model).items()) for model in members]
        if members[0].role == DENSE or any(seeds.count(each) > 1 for each in seeds):
            found |= {model.id: model.id for model in members}  # as above: what sets them apart is no seed
        else:
            found |= {model.id: identity for model in members}
    return found


def calibrated(weights: Mapping[str, Any], options: Mapping[str, Any]) -> bool:
    """Whether calibration text decided compressed weights, as a record tells it.

    Args:
        weights: the record's figures of them.
        options: the compressor's; records from before `calibrated` was written down name methods in them.
    """
    if "calibrated" in weights:
        return bool(weights["calibrated"])
    methods = {(options.get(part) or {}).get("method") for part in ("sparsity", "quantization")}
    return not options.get("path") and not methods.isdisjoint(CALIBRATED)


def by_chance(model: ModelScores) -> bool:
    """Whether another seed would have made another model: of what was trained, or compressed by what text showed."""
    if model.role != COMPRESSED:
        return model.role == REPAIRED
    return calibrated(model.weights, model.config["compressor"] or {})


def compressed_by(model: ModelScores) -> dict[str, Any] | None:
    """The options that made the weights; with the run's corpus where that is what calibrated them."""
    options = model.config["compressor"]
    if options is None or options.get("path") or (options.get("calibration") or {}).get("corpus") is not None:
        return options
    return {**options, **_corpus(model)}


def repaired_by(model: ModelScores, by_key: Mapping[str, ModelScores]) -> dict[str, Any]:
    """The options that made the repair, and of one that was learned elsewhere those that made it there.

    Args:
        model: the repaired model.
        by_key: the models whose repair was learned where it is, by its product's key.
    """
    made = {**(model.config["recovery"] or {}), **_corpus(model)}
    if model.transfer is None:
        return made
    learned = {key: model.transfer.get(key) for key in ("kind", "compressor", "corpus")}
    origin = by_key.get(model.transfer.get("key") or "")
    return {**made, "learned": learned | (repaired_by(origin, {}) if origin is not None else _size(model))}


def seedless(config: Any) -> Any:
    """A config without what makes no other model."""
    if isinstance(config, dict):
        # At null it does what was done before it was an option.
        stated = {key: value for key, value in config.items() if value is not None or key != "micro_batch_size"}
        return {key: seedless(value) for key, value in stated.items() if key not in SAME_MODEL or value == "cached"}
    return [seedless(value) for value in config] if isinstance(config, list) else config


def _corpus(model: ModelScores) -> dict[str, Any]:
    """Its name, and beneath that what else is said of it."""
    corpus = dict(model.config["corpus"] or {})
    return {"corpus": corpus.pop("name", None), **{f"corpus.{key}": value for key, value in corpus.items()}}


def _size(model: ModelScores) -> dict[str, Any]:
    """All that is known of a repair whose own run is not among these."""
    return {"added": model.parameters["added"], "repair_bytes": model.repair_bytes}


def _named(options: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Seeds within a repair's options, by where they stand."""
    found: dict[str, Any] = {}
    for key, value in options.items():
        if isinstance(value, dict):
            found |= _named(value, f"{above}{key} ")
        elif isinstance(value, list):
            found |= _named({str(n): item for n, item in enumerate(value) if isinstance(item, dict)}, f"{above}{key} ")
        elif key == SEED:
            found[f"{above}{SEED}".removesuffix(f" {SEED}")] = value
    return found
