"""What W&B is told of a run: labels, summary and tables, each by the key that dashboards find it under."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from idp.records.schema import IdpBlock, Latency, LatencyRow, Record, TaskData, Test

# The columns of the tables that every finished run logs, the second where prompts were chosen.
TABLES = {
    "results": (
        *("task", "stand_in", "metric", "documents", "dense", "compressed", "repaired", "stderr"),
        *("difference", "low", "high", "against", "newly_right", "newly_broken"),
        *("damage_brought_back", "documents_broken", "documents_brought_back"),
    ),
    "selection": ("task", "prompt", "documents", "share"),
}


def labels(config: dict[str, Any], compressor: str) -> dict[str, str]:
    """What runs are told apart by, in a word each: model, compressor, recovery, budget, and study if any."""
    words = {
        "model": config["model"]["name"],
        "compressor": compressor,
        "recovery": config["recovery"]["kind"],
        "budget": config["budget"]["name"],
        "study": config["tracker"]["study"],
    }
    return {name: word for name, word in words.items() if word}


def key_of(task: str, data: TaskData) -> str:
    """What a task is called in keys: `nq_open_for_webqs` where another's documents stand in for it.

    So nobody averages or compares the one's scores as the other's. `data` is the task's part of the record's `data`.
    """
    return f"{data['stand_in']}_for_{task}" if data["stand_in"] else task


def summary(record: Record) -> dict[str, float]:
    """The figures that a run ends with; a baseline's stand below its name, such as `dense/score/mean`.

    `score/<task>` is a task's main score, the task called as by `key_of`. `gain/...` is the repaired model less the one
    that was repaired, `damage/...` dense minus compressed, each with the ends of its 95 % interval.
    `latency/<part>_ms` is the run's own model at the first batch size and length that were timed.
    """
    from idp.records.scores import main_scores

    about = record["idp"]
    values: dict[str, float | None] = {
        "params/model": about["parameters"]["model"],
        "params/added": about["parameters"]["added"],
        "params/trainable": about["parameters"]["trainable"],
        "repair/bytes": about["repair_bytes"],
        "weights/sparsity": about["weights"]["sparsity"],
        "weights/bits_per_weight": about["weights"]["bits_per_weight"],
        "weights/packed_bytes": about["weights"]["packed_bytes"],
        "weights/effective_bytes": about["weights"]["effective_bytes"],
        "score/mean_tasks": len(about["data"]),
        "score/mean_stand_ins": sum(bool(data["stand_in"]) for data in about["data"].values()),
    }
    rows = {"": (record["results"], about["perplexity"])}
    rows |= {f"{row}/": (found["results"], found["perplexity"]) for row, found in about["baselines"].items()}
    for prefix, (results, perplexity) in rows.items():
        for task, metrics in results.items():
            for key, value in metrics.items():
                if isinstance(value, (int, float)) and "," in key:
                    values[f"{prefix}{task}/{key.removesuffix(',none').replace(',', '_')}"] = value
        scores = main_scores(record, results)
        values |= {f"{prefix}score/{key_of(task, about['data'][task])}": score for task, score in scores.items()}
        values[f"{prefix}score/mean"] = sum(scores.values()) / len(scores)
        values |= {f"{prefix}ppl/{corpus}": value for corpus, value in perplexity.items()}
    values |= _differences(record) | _fidelity(about) | _groups(about) | _cost(about) | _latency(about["latency"])
    for task, found in (about["selector"] or {"entropy": {}})["entropy"].items():
        values[f"selection/{task}/entropy"] = found["nats"]
    if about["selector"]:  # a score that was chosen with the answers in hand is no method's
        values["selection/peeks"] = int(about["selector"].get("peeks", False))
    mean = (about["controls"] or {}).get("mean") or {}
    values |= {f"controls/{way}": value for way, value in mean.items() if isinstance(value, float)}
    losses = {name: training["heldout_loss"] for name, training in (about["training"] or {}).items()}
    if losses:
        values |= {f"heldout/{name}/best_loss": loss for name, loss in losses.items()}
        values["heldout/best_loss"] = sum(losses.values()) / len(losses)  # what a sweeper minimises
    return {key: value for key, value in values.items() if value is not None}


def _differences(record: Record) -> dict[str, float | None]:
    """What the repair gained and what compression took, over all tasks and of each."""
    from idp.records.differences import damage, last_step

    values: dict[str, float | None] = {}
    gain = last_step(record) if record["idp"]["row"] == "repaired" else None
    for name, sign, found in (("gain", 1, gain), ("damage", -1, damage(record))):
        if found is None:
            continue
        tests = {key_of(task, record["idp"]["data"][task]): test for task, test in found["tasks"].items()}
        for key, test in {"mean": found["mean"], **tests}.items():
            if test is None:
                continue
            values |= _signed(f"{name}/{key}", sign, test)
        if found["mean"] is not None:
            values[f"{name}/mean_detectable"] = found["mean"]["detectable"]
        if (graded := found["graded"]) and graded["mean"]:
            values |= _signed(f"{name}/graded_mean", sign, graded["mean"])
        if share := found.get("damage_brought_back"):
            values |= {"damage/brought_back": share["share"]}
            values |= {f"damage/brought_back_{end}": share[end] for end in ("low", "high")}
    return values


def _signed(key: str, sign: int, test: Test) -> dict[str, float]:
    """A difference and the ends of its interval; -1 turns it round."""
    low, high = sorted(sign * test[end] + 0.0 for end in ("low", "high"))  # + 0.0: no minus before a zero
    return {key: sign * test["difference"] + 0.0, f"{key}_low": low, f"{key}_high": high}


def _fidelity(about: IdpBlock) -> dict[str, float]:
    """How far each model is from dense, on texts and on the tasks' own contexts: `fidelity/<text or task>/mean_kl`."""
    values: dict[str, float] = {}
    for row, parts in (about.get("fidelity") or {}).items():
        prefix = "" if row == about["row"] else f"{row}/"
        tasks = {key_of(task, about["data"][task]): found for task, found in parts.get("tasks", {}).items()}
        for name, found in {**parts.get("texts", {}), **tasks}.items():
            values |= {f"{prefix}fidelity/{name}/{key}": value for key, value in _flat(found).items()}
    return values


def _flat(found: dict[str, Any]) -> dict[str, float]:
    """The numbers of a dictionary and of those in it, such as `flips_right_to_wrong`."""
    parts = {key: value for key, value in found.items() if isinstance(value, (int, float))}
    for name, part in found.items():
        if isinstance(part, dict):
            parts |= {f"{name}_{key}": value for key, value in _flat(part).items()}
    return parts


def _groups(about: IdpBlock) -> dict[str, float]:
    """Means over groups of tasks: `group/<name>`, a baseline's below its own name."""
    values = {}
    for group, rows in (about.get("groups") or {}).items():
        for row, found in rows.items():
            prefix = "" if row == about["row"] else f"{row}/"
            values[f"{prefix}group/{group.replace(' ', '_')}"] = found["score"]
    return values


def _cost(about: IdpBlock) -> dict[str, float]:
    """Seconds and peak memory of each stage, of the process that made it."""
    values = {f"seconds/{stage}": found["seconds"] for stage, found in about["stages"].items() if found is not None}
    values |= {f"peak_memory_bytes/{stage}": peak for stage, peak in about["peak_memory_bytes"].items()}
    devices = about.get("device_peak_bytes", {})  # none on a CPU, nor in records from before they were asked
    return values | {f"device_peak_bytes/{stage}": max(peaks.values()) for stage, peaks in devices.items()}


def _latency(latency: Latency | None) -> dict[str, float]:
    values: dict[str, float] = {}
    final: LatencyRow | None = None
    for row in latency["rows"] if latency else []:
        name = f"latency/{row['variant']}/{row['batch_size']}x{row['input_tokens']}"
        for part, figures in (("prefill", row["prefill"]), ("decode", row["decode"])):
            values |= {f"{name}/{part}_p50": figures["p50"], f"{name}/{part}_ratio": figures["ratio"]}
        if row["variant"] != "dense" and not row["variant"].endswith("_merged"):  # the last of these is the run's own
            final = final if final is not None and final["variant"] == row["variant"] else row
    if final is not None:
        values |= {"latency/prefill_ms": final["prefill"]["p50"], "latency/decode_ms": final["decode"]["p50"]}
    return values


def tables(record: Record) -> dict[str, tuple[list[str], list[list[Any]]]]:
    """Columns and rows of each table: one row per task; one per task and prompt. What was not measured is None."""
    found = {"results": _results(record)}
    if record["idp"]["selection"]:
        found["selection"] = [
            [task, prompt, count, count / sum(counts.values())]
            for task, counts in record["idp"]["selection"].items()
            for prompt, count in counts.items()
        ]
    return {name: (list(TABLES[name]), rows) for name, rows in found.items()}


def _results(record: Record) -> list[list[Any]]:
    from idp.records.differences import last_step
    from idp.records.scores import main_metric, main_scores, rows_of

    scores = {row: main_scores(record, results) for row, results in rows_of(record).items()}
    step, rows = last_step(record), []
    for task, data in record["idp"]["data"].items():
        runs = data["stand_in"] or task
        metric = main_metric(runs, record["results"][runs])
        error = record["results"][runs].get(metric.replace(",", "_stderr,", 1))
        test: Mapping[str, Any] = (step["tasks"].get(task) if step else None) or {}
        rows.append(
            [
                task,
                data["stand_in"],
                metric.split(",")[0],
                data["documents"],
                *(scores[row][task] if row in scores else None for row in ("dense", "compressed", "repaired")),
                error if isinstance(error, (int, float)) else None,
                *(test.get(key) for key in ("difference", "low", "high")),
                step["before"] if step and test else None,
                test.get("gained"),
                test.get("lost"),
                (test.get("damage_brought_back") or {}).get("share"),
                test.get("broken"),
                test.get("brought_back"),
            ]
        )
    return rows
