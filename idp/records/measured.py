"""Measured models: a run's record says what up to three of them scored; the same model of several runs is one."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from idp.records.schema import (
    Baseline,
    Comparison,
    IdpBlock,
    Latency,
    Parameters,
    Record,
    Repair,
    SelectorBlock,
    Training,
    Weights,
)
from idp.records.scores import main_metric
from idp.store import digest

WHOLE_BITS = 16  # per weight that nothing compressed, as `bits_per_weight` counts it whatever the dtype
DENSE, COMPRESSED, REPAIRED = "dense", "compressed", "repaired"
ADAPTED = ("lora", "lora_idp")  # the kinds with an adapter that there were before records said what a repair is made of


@dataclass(frozen=True)
class Score:
    """What one model scored on one task, and where the outcome of each document is."""

    task: str  # asked for
    runs: str  # what ran: another task where it stands in
    metric: str  # lm-eval's key of the main metric, such as acc_norm,none
    value: float
    stderr: float | None
    documents: int
    metrics: dict[str, Any]  # all of lm-eval's for this task
    higher_is_better: bool
    samples: Path | None  # Parquet; None where the file is gone
    row: str  # which rows of it: those of `model` dense, compressed or repaired

    @property
    def stand_in(self) -> str | None:
        """The task whose documents stand in for this one's."""
        return self.runs if self.runs != self.task else None


@dataclass(frozen=True)
class Perplexity:
    """Of running text: `tokens` scored in windows of `window`."""

    value: float
    stderr: float | None  # of the mean negative log-likelihood, in nats
    tokens: int | None
    window: int | None


@dataclass
class ModelScores:
    """One model that was measured: dense, compressed, or repaired in one way with one seed."""

    id: str  # hash of what made it and of what it was measured on
    parent: str | None  # `id` of the model that it was made from; None for dense, and where that was not measured
    role: str  # dense, compressed, repaired
    model: str
    dtype: str
    compressor: str  # none, gptq4, ...
    recovery: str  # none, prompt, idp, ...
    selector: str | None  # how one prompt of several is chosen
    uses_labels: bool  # an upper bound, no method
    seed: int  # of training
    budget: str
    setting: str  # `Setting.id`
    keys: dict[str, str]  # of the stored products: load, compress, recover, select
    config: dict[str, Any]  # the parts that made it: compressor, recovery, corpus
    parameters: Parameters
    repair_bytes: int
    weights: Weights
    store: Path  # the folder of stored products, as the run's config names it
    runs: list[str] = field(default_factory=list)  # names of the runs that measured it, newest first
    folders: list[Path] = field(default_factory=list)  # theirs
    tasks: dict[str, Score] = field(default_factory=dict)
    perplexity: dict[str, Perplexity] = field(default_factory=dict)
    latency: Latency | None = None  # of the run
    selection: dict[str, dict[str, int]] = field(default_factory=dict)  # of each task: documents given each prompt
    controls: dict[str, Any] | None = None
    transfer: dict[str, Any] | None = None  # where the repair was learned, if elsewhere
    training: dict[str, Training] | None = None
    repair: Repair | None = None  # what it is made of, as the record says: method, prompts, adapter
    chooser: SelectorBlock | None = None  # what the record says of its selector
    comparisons: dict[str, Comparison] = field(default_factory=dict)  # by the row before: what its own run found
    peaks: dict[str, int] = field(default_factory=dict)  # bytes: of the `host`, of a `device`; see `peaks_of`
    fidelity: dict[str, Any] | None = None  # to dense: of `texts` and `tasks` what `idp.evaluate.fidelity` measures

    @property
    def method(self) -> str:
        """The method of the literature that its repair is: prompt, idp, lora, or another by the kind's name."""
        return self.repair["method"] if self.repair is not None else self.recovery

    @property
    def adapter(self) -> bool:
        """Whether its repair changes weights, by an adapter."""
        if self.repair is not None:
            return self.repair["adapter"]
        return (self.transfer or {"kind": self.recovery})["kind"] in ADAPTED

    @property
    def prompt_lengths(self) -> list[int]:
        """Tokens of each prompt that its repair puts before the input, where that is known."""
        if self.repair is not None:
            return self.repair["prompts"]
        config = self.config["recovery"] or {}
        return config.get("lengths") or ([config["length"]] if "length" in config else [])

    @property
    def constant(self) -> bool:
        """Whether its selector gives every input the same prompt by design."""
        is_fixed = self.selector == "fixed"
        return self.chooser.get("constant", is_fixed) if self.chooser else is_fixed

    @property
    def published(self) -> bool:
        """Whether its selector is the one that IDP's paper describes."""
        is_attention = self.selector == "attention"
        return self.chooser.get("published", is_attention) if self.chooser else is_attention

    @property
    def mean(self) -> float | None:
        """The unweighted mean of the tasks' main scores."""
        return sum(score.value for score in self.tasks.values()) / len(self.tasks) if self.tasks else None


@dataclass
class Setting:
    """Runs that may be compared: one model and dtype, and of each task and text the same sample."""

    id: str
    model: str
    dtype: str
    sample: dict[str, tuple]  # task or corpus -> what was read of it
    groups: dict[str, list[str]] = field(default_factory=dict)  # that its runs name: group -> its tasks

    @property
    def title(self) -> str:
        """What it is called: `smollm2_135m_instruct in bfloat16, 100 documents a task`."""
        counts = sorted({read[2] for name, read in self.sample.items() if name.startswith("task:")})
        documents = "" if not counts else f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
        return f"{self.model} in {self.dtype}" + (f", {documents} documents a task" if documents else "")

    @property
    def tasks(self) -> list[str]:
        """The tasks that any of its runs measured."""
        return [name.removeprefix("task:") for name in self.sample if name.startswith("task:")]

    @property
    def corpora(self) -> list[str]:
        """The texts on which any of its runs measured perplexity."""
        return [name.removeprefix("corpus:") for name in self.sample if name.startswith("corpus:")]

    def admits(self, sample: dict[str, tuple]) -> bool:
        """Whether nothing that both have read was read in another sample."""
        return all(self.sample.get(name, read) == read for name, read in sample.items())


def sample_of(record: Record) -> dict[str, tuple]:
    """What a run read of each task (what ran, fingerprint, documents) and of each text (tokens, window)."""
    about = record["idp"]
    read: dict[str, tuple] = {
        f"task:{task}": (data["stand_in"] or task, data["fingerprint"], data["documents"])
        for task, data in about["data"].items()
    }
    for corpus, found in about.get("perplexity_details", {}).items():
        read[f"corpus:{corpus}"] = (found["tokens"], found["window"])
    return read


def groups_of(record: Record) -> dict[str, list[str]]:
    """The groups of tasks that a run names, each with its tasks."""
    named = (record["idp"]["config"].get("task") or {}).get("groups") or {}
    found = {group: list(tasks) for group, tasks in named.items()}
    for group, rows in (record["idp"].get("groups") or {}).items():
        if rows:
            found[group] = list(next(iter(rows.values()))["tasks"])
    return found


def models_of(record: Record, folder: Path, setting: Setting) -> list[ModelScores]:
    """The models that one record tells of, baselines first.

    Args:
        record: as `idp.run` writes it.
        folder: the run's, in which the outcomes of documents are.
        setting: that the run belongs to.

    Raises:
        KeyError, TypeError, ValueError: the record lacks something.
    """
    found: dict[str, ModelScores] = {}
    for row in [*record["idp"]["baselines"], record["idp"]["row"]]:
        found[row] = _model(record, row, folder, setting)
    for row, model in found.items():
        above = {REPAIRED: COMPRESSED, COMPRESSED: DENSE}.get(row)
        if above is not None:
            kept = above if above == DENSE or model.compressor != "none" else DENSE
            model.parent = _identity(record, kept, setting)
    return list(found.values())


def _model(record: Record, row: str, folder: Path, setting: Setting) -> ModelScores:
    about = record["idp"]
    config, stages, final = about["config"], about["stages"], row == about["row"]
    repaired = row == REPAIRED
    selector = about.get("selector") if repaired else None
    compressor = "none" if row == DENSE else about["compressor"]
    keys = {stage: made["key"] for stage in _made_by(row, about) if (made := stages.get(stage))}
    parameters = about["parameters"]
    baseline = None if final else about["baselines"][row]
    return ModelScores(
        id=_identity(record, row, setting),
        parent=None,
        role=row,
        model=record["config"]["model"],
        dtype=record["config"]["model_dtype"],
        compressor=compressor,
        recovery=config["recovery"]["kind"] if repaired else "none",
        selector=selector["kind"] if selector else None,
        uses_labels=bool(selector and selector.get("peeks")),
        seed=config["seed"],
        budget=about["budget"],
        setting=setting.id,
        keys=keys,
        config={
            "compressor": config["compressor"] if compressor != "none" else None,
            "recovery": config["recovery"] if repaired else None,
            "corpus": config["corpus"] if row != DENSE else None,
        },
        parameters=parameters if repaired else {"model": parameters["model"], "added": 0, "trainable": 0},
        repair_bytes=about.get("repair_bytes", 0) if repaired else 0,
        weights=about["weights"] if compressor == about["compressor"] else _whole(about),
        store=Path(config["store"]).expanduser(),
        runs=[about["name"]],
        folders=[folder],
        tasks=_scores(record, (baseline or record)["results"], row, folder),
        perplexity=_perplexities(about, baseline),
        latency=about["latency"],
        selection=about["selection"] if repaired else {},
        controls=about.get("controls") if repaired else None,
        transfer=about.get("transfer") if repaired else None,
        training=about["training"] if repaired else None,
        repair=about.get("repair") if repaired else None,
        chooser=selector,
        comparisons={each["before"]: each for each in about.get("comparisons") or () if each["after"] == row},
        peaks=peaks_of(about, row),
        fidelity=(about.get("fidelity") or {}).get(row),
    )


def peaks_of(about: IdpBlock, row: str) -> dict[str, int]:
    """The most memory that making and measuring a row took, in bytes: of the process, and of any one accelerator.

    Making a row is the last stage of it: loading, compressing, repairing and choosing. A figure that the record does
    not have is left out.
    """
    stages = {"dense": ["load"], "compressed": ["compress"]}.get(row, ["recover", "select"])
    final = row == about["row"]
    scored = None if final else about["baselines"][row].get("stage")
    stages = [*stages, "measure"] if final else stages
    host = [peak for stage, peak in about.get("peak_memory_bytes", {}).items() if stage in stages]
    devices = [each for stage, each in about.get("device_peak_bytes", {}).items() if stage in stages]
    if scored:
        devices.append(scored.get("device_peak_bytes", {}))
        host += [scored["peak_memory_bytes"]] if "peak_memory_bytes" in scored else []
    found = {
        "host": max(host, default=0),
        "device": max((peak for each in devices for peak in each.values()), default=0),
    }
    return {name: peak for name, peak in found.items() if peak}


def _identity(record: Record, row: str, setting: Setting) -> str:
    """Of what a model was made of: the keys of its products, and how a prompt is chosen."""
    about = record["idp"]
    keys = [made["key"] for stage in _made_by(row, about) if (made := about["stages"].get(stage))]
    chooser = about["config"]["recovery"].get("selector") if row == REPAIRED else None
    return digest([setting.id, row, keys, chooser])[:12]


def _made_by(row: str, about: IdpBlock) -> tuple[str, ...]:
    if row == REPAIRED:
        return "load", "compress", "recover", "select"
    return ("load",) if row == DENSE or about["compressor"] == "none" else ("load", "compress")


def _scores(record: Record, results: dict[str, Any], row: str, folder: Path) -> dict[str, Score]:
    from idp.records.record import SAMPLES

    samples = folder / SAMPLES
    scores = {}
    for task, data in record["idp"]["data"].items():
        runs = data["stand_in"] or task
        metrics = results[runs]
        metric = main_metric(runs, metrics)
        stderr = metrics.get(metric.replace(",", "_stderr,", 1))
        higher = record.get("higher_is_better", {}).get(runs, {}).get(metric.split(",")[0])
        scores[task] = Score(
            task,
            runs,
            metric,
            float(metrics[metric]),
            float(stderr) if isinstance(stderr, (int, float)) else None,
            data["documents"],
            {key: value for key, value in metrics.items() if isinstance(value, (int, float))},
            higher is not False,
            samples if samples.is_file() else None,
            row,
        )
    return scores


def _perplexities(about: IdpBlock, baseline: Baseline | None) -> dict[str, Perplexity]:
    values = about["perplexity"] if baseline is None else baseline["perplexity"]
    details = about.get("perplexity_details", {})
    found = {}
    for corpus, value in values.items():
        detail = details.get(corpus)
        found[corpus] = Perplexity(
            float("inf") if value is None else float(value),  # JSON has no infinity
            detail.get("stderr") if detail and baseline is None else None,
            detail.get("tokens") if detail else None,
            detail.get("window") if detail else None,
        )
    return found


def _whole(about: IdpBlock) -> Weights:
    """The weights of a model that nothing compressed, counted as its compressed one's are."""
    size = about["parameters"]["model"] * about["weights"].get("dense_bits", WHOLE_BITS) // 8
    return {
        "sparsity": 0.0,
        "bits_per_weight": float(WHOLE_BITS),
        "packed_bytes": size,
        "effective_bytes": size,
        "reconstruction_error": 0.0,
    }
