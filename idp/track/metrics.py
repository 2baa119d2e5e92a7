"""What W&B is told of a run: labels, summary and tables, each by the key that dashboards find it under."""

from __future__ import annotations

from typing import Any

# The columns of the tables that every finished run logs, the second where prompts were chosen.
TABLES = {
    "results": ("task", "stand_in", "metric", "documents", "dense", "compressed", "repaired", "stderr", "recovery"),
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


def summary(record: dict[str, Any]) -> dict[str, float]:
    """The figures that a run ends with; a baseline's stand below its name, such as `dense/score/mean`.

    `score/<task>` is the task's main score by the name that was asked for, `score/recovery` the mean's share of the
    dense model's, `latency/<part>_ms` the run's own model at the first batch size and length that were timed.
    """
    from idp.report.tables import main_scores

    about = record["idp"]
    values: dict[str, float] = {
        "params/model": about["parameters"]["model"],
        "params/added": about["parameters"]["added"],
        "params/trainable": about["parameters"]["trainable"],
        "repair/bytes": about["repair_bytes"],
        "weights/sparsity": about["weights"]["sparsity"],
        "weights/bits_per_weight": about["weights"]["bits_per_weight"],
        "weights/packed_bytes": about["weights"]["packed_bytes"],
        "weights/effective_bytes": about["weights"]["effective_bytes"],
    }
    rows = {"": (record["results"], about["perplexity"])}
    rows |= {f"{row}/": (found["results"], found["perplexity"]) for row, found in about["baselines"].items()}
    for prefix, (results, perplexity) in rows.items():
        for task, metrics in results.items():
            for key, value in metrics.items():
                if isinstance(value, (int, float)) and "," in key:
                    values[f"{prefix}{task}/{key.removesuffix(',none').replace(',', '_')}"] = value
        scores = main_scores(record, results)
        values |= {f"{prefix}score/{task}": score for task, score in scores.items()}
        values[f"{prefix}score/mean"] = sum(scores.values()) / len(scores)
        values |= {f"{prefix}ppl/{corpus}": value for corpus, value in perplexity.items()}
    if values.get("dense/score/mean"):
        values["score/recovery"] = values["score/mean"] / values["dense/score/mean"]
    values |= _latency(about["latency"])
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
    return values


def _latency(latency: dict[str, Any] | None) -> dict[str, float]:
    values, own = {}, None
    for row in (latency or {}).get("rows", []):
        name = f"latency/{row['variant']}/{row['batch_size']}x{row['input_tokens']}"
        values |= {f"{name}/{part}_{key}": row[part][key] for part in ("prefill", "decode") for key in ("p50", "ratio")}
        if row["variant"] != "dense" and not row["variant"].endswith("_merged"):  # the last of these is the run's own
            own = own if own is not None and own["variant"] == row["variant"] else row
    if own is not None:
        values |= {f"latency/{part}_ms": own[part]["p50"] for part in ("prefill", "decode")}
    return values


def tables(record: dict[str, Any]) -> dict[str, tuple[list[str], list[list[Any]]]]:
    """Columns and rows of each table: one row per task; one per task and prompt. What was not measured is None."""
    found = {"results": _results(record)}
    if record["idp"]["selection"]:
        found["selection"] = [
            [task, prompt, count, count / sum(counts.values())]
            for task, counts in record["idp"]["selection"].items()
            for prompt, count in counts.items()
        ]
    return {name: (list(TABLES[name]), rows) for name, rows in found.items()}


def _results(record: dict[str, Any]) -> list[list[Any]]:
    from idp.evaluate.tasks import main_metric
    from idp.report.tables import main_scores, rows_of

    models, own = rows_of(record), record["idp"]["row"]
    scores = {row: main_scores(record, results) for row, results in models.items()}
    rows = []
    for task, data in record["idp"]["data"].items():
        runs = data["stand_in"] or task
        metric = main_metric(runs, record["results"][runs])
        error = record["results"][runs].get(metric.replace(",", "_stderr,", 1))
        dense = scores.get("dense", {}).get(task)
        rows.append(
            [
                task,
                data["stand_in"],
                metric.split(",")[0],
                data["documents"],
                *(scores[row][task] if row in scores else None for row in ("dense", "compressed", "repaired")),
                error if isinstance(error, (int, float)) else None,
                scores[own][task] / dense if dense else None,
            ]
        )
    return rows
