"""The record of a run, made of what its stages left."""

from __future__ import annotations

import functools
import os
import platform
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import idp
from idp.compress.sizes import recorded
from idp.config import Config, Recovery, values_of
from idp.evaluate import comparisons, groups
from idp.records.record import EMBEDDED, FORMERLY, SAMPLES, identity, save
from idp.records.schema import SCHEMA_VERSION, Record
from idp.store import peaks as peaks_of
from idp.store import versions

if TYPE_CHECKING:
    from idp.evaluate.measured import Measured
    from idp.models import LoadedModel
    from idp.recover.selection import Selection
    from idp.store import Product
    from idp.tasks.tasks import TaskSource


LONGEST_NAME = 80  # letters of a part of a run's name; file systems take 255 of the whole


@dataclass(frozen=True)
class RunResult:
    """What a run's stages made.

    Args:
        name: the run's name, which ends in the hash of its config.
        compressor: what the compressor does, in a word.
        config: the resolved config.
        load: the dense model.
        compress: the compressed model.
        recover: the repair; None where nothing is repaired.
        selection: how one of several prompts was chosen, if there were several.
        per_prompt: what each of those prompts scored by itself, if that was measured.
        measured: what each model scored, by `dense`, `compressed`, `repaired`; the last is the run's own result.
        latency: the latency product, if latency was measured.
        tasks: where the tasks' documents came from.
        documents: per task, as the budget allows.
        transfer: where the repair was learned, if not in this run.
        bos: the BOS in play, as `bos_of` has it.
    """

    name: str
    compressor: str
    config: dict[str, Any]
    load: Product
    compress: Product
    recover: Product | None
    selection: Selection | None
    per_prompt: list[Measured]
    measured: dict[str, Measured]
    latency: Product | None
    tasks: list[TaskSource]
    documents: int | None
    transfer: dict[str, Any] | None = None
    bos: dict[str, Any] | None = None

    @property
    def final(self) -> Measured:
        """What the run's own model scored."""
        return list(self.measured.values())[-1]


def _as_folder(name: str) -> str:
    """A name as a part of a folder's, whatever it is: `meta-llama/Llama-2-7b` is no folder within another one."""
    plain = re.sub(r"[^\w.+-]+", "-", name, flags=re.ASCII).strip(".-")
    return plain[-LONGEST_NAME:] or "unnamed"


def run_id_and_folder(config: Config) -> tuple[str, Path]:
    """A run's id, from the hash of its config, and its folder: an earlier version's, if there is one."""
    run_id = identity(values_of(config))[:12]
    parts = (config.model.name, config.compressor.label, config.recovery.kind, config.budget.name, run_id)
    folder = Path(config.output).expanduser() / "runs" / "-".join(map(_as_folder, parts))
    earlier = folder.with_name(folder.name.replace(EMBEDDED, FORMERLY, 1))
    return run_id, earlier if config.model.name == EMBEDDED and earlier.is_dir() and not folder.is_dir() else folder


def bos_of(recovery: Recovery, empty: LoadedModel, repair: Product | None) -> dict[str, Any] | None:
    """The BOS in play: its tokens, as text, and its place where there was a prompt; None where texts have none."""
    beginning = recovery.beginning(empty.bos)
    if not beginning.tokens:
        return None
    prompted = repair is not None and (repair.path / "bank").is_dir()
    tokens = list(beginning.tokens)
    text = empty.tokenizer.decode(tokens)
    return {"tokens": tokens, "text": text, "place": beginning.place if prompted else None}


def build(made: RunResult) -> Record:
    """The record of a run."""
    from idp.evaluate import fidelity
    from idp.records.conclusion import conclusion

    final, config, selection, latency = made.final, made.config, made.selection, made.latency
    record = _merged(final)
    weights = recorded(made.compress, measured_dtype(final))
    repair = made.recover.read("repair.json") if made.recover is not None else {"added": 0, "trainable": 0}
    chooser = selection.description if selection is not None else {"added": 0, "trainable": 0}
    stages = {"load": made.load, "compress": made.compress, "recover": made.recover}
    if selection is not None and selection.fitted is not None:
        stages["select"] = selection.fitted
    peaks = {stage: peaks_of([product]) for stage, product in stages.items() if product is not None}
    peaks |= {"measure": final.peaks()} | ({"latency": peaks_of([latency])} if latency is not None else {})
    record["config"] = {"model": config["model"]["name"], "model_dtype": measured_dtype(final), "limit": made.documents}
    record["idp"] = {
        "schema_version": SCHEMA_VERSION,
        "name": made.name,
        "compressor": made.compressor,
        "row": final.name,
        "batch_tokens": measured_batch_tokens(final),
        "budget": config["budget"]["name"],
        "config": config,
        "stages": {
            **{stage: product.summary() if product is not None else None for stage, product in stages.items()},
            "measure": final.summary(),
        },
        # Of the process that made a stage, and of the accelerators that it used, while it did.
        "peak_memory_bytes": {stage: each["peak_memory_bytes"] for stage, each in peaks.items()},
        "device_peak_bytes": {
            stage: each["device_peak_bytes"] for stage, each in peaks.items() if "device_peak_bytes" in each
        },
        "parameters": {
            "model": weights.pop("parameters"),
            "added": repair["added"] + chooser["added"],
            "trainable": repair["trainable"] + chooser["trainable"],
        },
        "repair_bytes": repair.get("bytes", 0),
        "repair": _repair(made.recover, config["recovery"]["kind"]),
        "transfer": made.transfer,
        "bos": made.bos,
        "weights": weights,
        "perplexity": _perplexity(final, "perplexity"),
        "perplexity_details": {corpus: product.read("perplexity.json") for corpus, product in final.corpora.items()},
        "fidelity": fidelity.recorded(made.measured),
        "latency": latency.read("latency.json") if latency is not None else None,
        "selection": (chosen := _chosen(final)),
        "selector": _selector(selection, chosen),
        "controls": _controls(made),
        "truncated": _counted(final, "truncated"),
        "merged_choices": _counted(final, "merged_choices"),
        "training": _training(made.recover),
        "search": _search(made.recover),
        "data": {source.name: _data(source, made.documents) for source in made.tasks},
        **groups.of_run(config["task"], made.measured, made.tasks),
        "baselines": {
            row: {
                "results": _merged(scores)["results"],
                "perplexity": _perplexity(scores, "perplexity"),
                "stage": scores.summary() | scores.peaks(),
            }
            for row, scores in made.measured.items()
            if scores is not final
        },
        "environment": environment(),
    }
    scored_as_one = {name: rows[final.name]["tasks"] for name, rows in (record["idp"].get("groups") or {}).items()}
    record["idp"]["comparisons"] = comparisons.of_run(made.measured, made.tasks, scored_as_one)
    whole = cast(Record, record)
    whole["idp"]["conclusion"] = conclusion(whole)
    return whole


def write(folder: Path, record: Record, made: RunResult) -> Path:
    """Writes the record and, beside it, the per-document outcomes of every model and every prompt; the record last."""
    import pyarrow as arrow
    from pyarrow import parquet

    tables = []
    for row, scores in made.measured.items():
        for task, product in scores.tasks.items():
            table = parquet.read_table(product.path / "samples.parquet")
            count = len(table)
            table = table.append_column("asked_for", arrow.array([task] * count))
            tables.append(table.append_column("model", arrow.array([row] * count)))
    temporary = folder / f".{SAMPLES}.tmp"
    parquet.write_table(arrow.concat_tables(tables, promote_options="permissive"), temporary)
    os.replace(temporary, folder / SAMPLES)
    if made.per_prompt:
        from idp.evaluate.selection import OUTCOMES, write_outcomes

        write_outcomes(folder / OUTCOMES, made.final, made.per_prompt, made.tasks)
    return save(folder, record)


def _counted(measured: Measured, name: str) -> dict[str, int]:
    """What was counted under a name while measuring, by task, where it is not nothing."""
    counts = {task: product.read("results.json")["idp"].get(name) for task, product in measured.tasks.items()}
    return {task: count for task, count in counts.items() if count}


def measured_dtype(measured: Measured) -> str:
    """The dtype that a model was measured in."""
    return measured.products[0].manifest["config"]["dtype"]


def measured_batch_tokens(measured: Measured) -> int | None:
    """The tokens per forward pass that a model was measured with; None where no product says."""
    return measured.products[0].manifest["config"].get("batch_tokens")


def environment() -> dict[str, Any]:
    """Versions, device and git commit of this run."""
    import torch

    cuda = torch.cuda.is_available()
    return {
        "idp": idp.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions(),
        "device": torch.cuda.get_device_name() if cuda else cpu_name(),
        "devices": torch.cuda.device_count() if cuda else 0,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "git_commit": git_commit(),
        "command": shlex.join(sys.argv),
    }


def cpu_name() -> str:
    """What the CPU calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not on Linux
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


@functools.cache
def git_commit() -> str | None:
    """The commit of the checkout that this code is in; None outside one."""
    try:
        found = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() if found.returncode == 0 else None


def _merged(measured: Measured) -> dict[str, Any]:
    """The results of all tasks as lm-eval would give them together."""
    merged: dict[str, Any] = {}
    for product in measured.tasks.values():
        for key, value in product.read("results.json").items():
            if key != "idp":
                merged.setdefault(key, {}).update(value)
    return merged


def _repair(repair: Product | None, kind: str) -> dict[str, Any] | None:
    """What a repair is made of: tokens of each of its prompts, whether it changes layers; and the method that it is."""
    from idp.recover.weight_side import has_weight_side
    from idp.registry import recoveries

    if repair is None:
        return None
    banked = (repair.path / "bank" / "bank.json").is_file()
    return {
        "method": recoveries()[kind].method or kind,
        "prompts": repair.read("bank/bank.json")["lengths"] if banked else [],
        "adapter": has_weight_side(repair.path),
    }


def _chosen(final: Measured) -> dict[str, dict[str, int]]:
    """How many documents of each task were given each prompt, by the prompt's name."""
    counts = {task: product.read("results.json")["idp"]["selection"] for task, product in final.tasks.items()}
    return {task: selection for task, selection in counts.items() if selection}


def _selector(selection: Selection | None, chosen: dict[str, dict[str, int]]) -> dict[str, Any] | None:
    """The selector, and how evenly it chose. One prompt by design is no collapse, nor is a choice by the labels."""
    from idp.evaluate.selection import collapsed, entropy

    if selection is None:
        return None
    options, described = selection.options, selection.description
    if "oracle_loss" in described:
        described = {**described, "oracle_loss_by_luck": selection.oracle_loss_by_luck}
    return {
        **described,
        "peeks": options.uses_labels,
        "constant": options.constant,
        "published": options.published,
        "entropy": {task: entropy(list(counts.values())) for task, counts in chosen.items()},
        "collapsed": [] if options.constant or options.uses_labels else collapsed(chosen),
    }


def _controls(made: RunResult) -> dict[str, Any] | None:
    from idp.evaluate.selection import controls

    if not made.per_prompt or made.selection is None:
        return None
    # The seed is that of a bootstrap, whatever was trained.
    return controls(made.final, made.per_prompt, made.tasks, made.selection.heldout_loss, seed=0)


def _perplexity(measured: Measured, key: str) -> dict[str, float]:
    return {corpus: product.read("perplexity.json")[key] for corpus, product in measured.corpora.items()}


def _training(repair: Product | None) -> dict[str, Any] | None:
    """The held-out loss of each trained part, in nats per token: of its best step, of its start, and all of them."""
    if repair is None or not (histories := repair.read("history.json")):
        return None
    return {
        name: {
            "best_step": history["best_step"],
            "heldout_loss": history["best_loss"],
            "heldout_loss_at_start": history["heldout"][0]["loss"],
            "heldout": [[evaluated["step"], evaluated["loss"]] for evaluated in history["heldout"]],
            # What was done otherwise from a step on, such as smaller passes once memory had run out.
            **({"changes": history["changes"]} if history.get("changes") else {}),
        }
        for name, history in histories.items()
    }


def _search(repair: Product | None) -> dict[str, Any] | None:
    """What searches tried before the training, by held-out loss, and what they chose; None where there was none."""
    return repair.read("search.json") if repair is not None and (repair.path / "search.json").exists() else None


def _data(source: TaskSource, documents: int | None) -> dict[str, Any]:
    return {
        "source": source.source,
        "split": source.split,
        "documents": source.counted(documents),
        "documents_in_split": source.documents,
        "stand_in": source.runs if source.stand_in else None,
        "fingerprint": source.fingerprint,
        "note": source.note,
    }
