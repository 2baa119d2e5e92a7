"""Tables of a record, as GitHub Markdown."""

from __future__ import annotations

from typing import Any

from tabulate import tabulate

from idp.evaluate.tasks import main_metric
from idp.report import knowledge


def rows_of(record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """lm-eval's `results` of each model of a run, baselines first: dense, compressed, repaired as far as measured."""
    about = record["idp"]
    return {row: found["results"] for row, found in about["baselines"].items()} | {about["row"]: record["results"]}


def main_scores(record: dict[str, Any], results: dict[str, Any]) -> dict[str, float]:
    """Each task's main score, by the name that was asked for."""
    scores = {}
    for task, data in record["idp"]["data"].items():
        metrics = results[data["stand_in"] or task]
        scores[task] = metrics[main_metric(data["stand_in"] or task, metrics)]
    return scores


def run_table(record: dict[str, Any]) -> str:
    """The table that ends a run: each task's score dense, compressed and repaired, with its standard error.

    `recovery` is repaired / dense (compressed / dense where nothing was repaired). A task for which another's
    documents stand in is marked.
    """
    about, models = record["idp"], rows_of(record)
    scores = {row: main_scores(record, results) for row, results in models.items()}
    compared = "dense" in models and len(models) > 1
    lines = []
    hidden = knowledge.folded(about)
    for task, data in about["data"].items():
        if task in hidden:
            continue
        runs = data["stand_in"] or task
        key = main_metric(runs, record["results"][runs])
        error = record["results"][runs].get(key.replace(",", "_stderr,", 1))
        lines.append(
            [
                f"{task} (stand-in: {runs})" if data["stand_in"] else task,
                key.split(",")[0],
                *_line({row: scores[row][task] for row in models}, "{:.3f}", compared),
                f"{error:.3f}" if isinstance(error, (int, float)) else "",
                str(data["documents"]),
            ]
        )
    if len(lines) > 1:
        means = {row: sum(values.values()) / len(values) for row, values in scores.items()}
        lines.append(["mean", "", *_line(means, "{:.3f}", compared), "", ""])
    for corpus, value in about["perplexity"].items():
        values = {row: found["perplexity"][corpus] for row, found in about["baselines"].items()}
        line = _line({**values, about["row"]: value}, "{:.2f}", compared)
        lines.append([corpus, "perplexity", *line[: len(models)], *([""] if compared else []), "", ""])
    headers = ["task", "metric", *models, *(["recovery"] if compared else []), "stderr", "documents"]
    return tabulate(lines, headers=headers, tablefmt="github", disable_numparse=True)


def run_summary(record: dict[str, Any]) -> str:
    """What stands below the table: budget, parameters, weights, stand-ins, and which prompts were chosen."""
    about = record["idp"]
    parameters, weights = about["parameters"], about["weights"]
    lines = [
        f"- budget: {about['budget']}; {record['config']['model']} in {record['config']['model_dtype']}",
        f"- parameters: {parameters['model']:,} in the model, {parameters['added']:,} added by the repair"
        f" ({about.get('repair_bytes', 0):,} bytes stored)",
        f"- weights: {weights['bits_per_weight']:.2f} bits each, {weights['sparsity']:.1%} zeros,"
        f" {weights['packed_bytes'] / 1e6:.1f} MB packed{_in_effect(weights)}",
    ]
    if about.get("selector") and about["selector"]["peeks"]:
        lines.append(
            "- selector: oracle, an upper bound that peeks: each document's best prompt after the fact; no method"
        )
    if origin := about.get("transfer"):
        lines.append(
            f"- repair: {origin['kind']}, learned elsewhere: compressor {origin['compressor'] or 'not known'}, corpus"
            f" {origin['corpus'] or 'not known'} ({origin['from']})"
        )
    for task, data in about["data"].items():
        if data["stand_in"]:
            lines.append(f"- {task}: its documents were not to be had; {data['stand_in']} stands in for it")
    for task, count in about["truncated"].items():
        lines.append(f"- {task}: {count} contexts were longer than the model's window and were cut on the left")
    lines += knowledge.sections(record)
    if about["selection"] and len(next(iter(about["selection"].values()))) > 1:
        prompts = list(next(iter(about["selection"].values())))
        rows = [[task, *counts.values()] for task, counts in about["selection"].items()]
        lines += ["", "Documents that were given each prompt:", ""]
        lines.append(tabulate(rows, headers=["task", *prompts], tablefmt="github"))
        lines += selection_notes(about)
    if about.get("controls") and about["controls"]["mean"]:
        lines += ["", controls_table(about)]
    if about["latency"]:
        lines += ["", latency_table(about["latency"])]
    return "\n".join(lines)


def _in_effect(weights: dict[str, Any]) -> str:
    """Bytes with the zeros left out, where that is less than packed."""
    if weights["effective_bytes"] >= weights["packed_bytes"]:
        return ""
    return f", {weights['effective_bytes'] / 1e6:.1f} MB with the zeros left out (computed)"


def latency_table(latency: dict[str, Any]) -> str:
    """Prefill and decode latency, the ratio to the compressed model first."""
    lines = [
        [
            row["variant"],
            row["batch_size"],
            row["input_tokens"],
            *(
                f"{row[part][key]:.{digits}f}"
                for part in ("prefill", "decode")
                for key, digits in (("ratio", 3), ("p50", 1), ("p90", 1), ("p99", 1))
            ),
        ]
        for row in latency["rows"]
    ]
    headers = ["model", "batch", "input tokens"]
    headers += [f"{part} {name}" for part in ("prefill", "decode") for name in ("ratio", "p50 ms", "p90", "p99")]
    ran = latency["backend"]
    note = f"ratio to {latency['reference']}; {ran['library']}; {ran['device']}, {ran['dtype']}, {ran['attention']}"
    return f"{tabulate(lines, headers=headers, tablefmt='github', disable_numparse=True)}\n\n{note}"


def selection_notes(about: dict[str, Any]) -> list[str]:
    """Lines on how evenly prompts were chosen: one that names the tasks on which the selector collapsed."""
    selector = about.get("selector")
    if not selector or not selector["collapsed"]:
        return []
    tasks = ", ".join(selector["collapsed"])
    shares = [selector["entropy"][task]["share"] for task in selector["collapsed"]]
    return [
        "",
        f"WARNING: the selector ({selector['kind']}) has collapsed: one prompt has 95 % or more of the documents of"
        f" {tasks} (entropy at most {max(shares):.0%} of an even choice).",
    ]


def controls_table(about: dict[str, Any]) -> str:
    """What each way to choose a prompt scores on the same documents, per task and as the mean over tasks."""
    controls, kind = about["controls"], about["selector"]["kind"]
    rows = {**controls["tasks"], **({"mean": controls["mean"]} if len(controls["tasks"]) > 1 else {})}
    ways = [way for way in ("worst", "random", "best", "chosen", "oracle") if way in controls["mean"]]
    if about["selector"]["peeks"]:
        ways.remove("chosen")
    lines = []
    for task, found in rows.items():
        low, high = found["gap_interval"]
        cells = [f"{found[way]:.3f}" for way in ways]
        lines.append([task, *cells, f"{found['agreement']:.3f}", f"{found['gap']:+.3f} ({low:+.3f} to {high:+.3f})"])
    for corpus, found in controls["perplexity"].items():
        lines.append([f"{corpus} perplexity", *(f"{found[way]:.2f}" for way in ways), "", ""])
    headers = {"worst": "worst held-out", "best": "best held-out", "chosen": kind, "oracle": "oracle (peeks)"}
    headers = ["task", *(headers.get(way, way) for way in ways), "as good as oracle", "gap to random (95 %)"]
    table = tabulate(lines, headers=headers, tablefmt="github", disable_numparse=True)
    return f"Each way to choose among the prompts, on the same documents:\n\n{table}"


def _line(values: dict[str, float], form: str, compared: bool) -> list[str]:
    cells = [form.format(value) for value in values.values()]
    if compared:
        last = list(values.values())[-1]
        cells.append(f"{last / values['dense']:.2f}" if values["dense"] else "")
    return cells
