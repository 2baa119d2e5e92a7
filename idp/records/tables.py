"""Tables of a record, as GitHub Markdown."""

from __future__ import annotations

from typing import Any

from tabulate import tabulate

from idp.config import GRAPH
from idp.records import knowledge
from idp.records.differences import Change, damage, in_points, last_step, unit_of, with_interval
from idp.records.schema import IdpBlock, Latency, Record, Weights
from idp.records.scores import lower_is_better, main_metric, main_scores, rows_of


def run_table(record: Record) -> str:
    """The table that ends a run: each task's score dense, compressed and repaired, and what the last step changed.

    That is the difference of the run's own model to the one that it was made from, on the same documents, with its 95 %
    interval (above 0: better); of a repair the share of the damage that it brings back, where there is any beyond
    noise; how many documents turned right and wrong; and the models' KL to dense, where it was measured. A task for
    which another's documents stand in is marked.
    """
    models, change = rows_of(record), Change(record)
    scores = {row: main_scores(record, results) for row, results in models.items()}
    tasks = list(record["idp"]["data"])
    hidden = knowledge.folded(record["idp"])
    lines = [_task_line(record, task, scores, change) for task in tasks if task not in hidden]
    lines += [_group_line(record, group, scores, change) for group in record["idp"].get("groups") or {}]
    if len(tasks) > 1:
        means = {row: f"{sum(values.values()) / len(values):.3f}" for row, values in scores.items()}
        if any(lower_is_better(record, task) for task in tasks):
            means = dict.fromkeys(means, "")  # of scores where more is better and others where less is: no score
        documents = sum(data["documents"] for data in record["idp"]["data"].values())
        lines.append(["mean", "", *means.values(), *change.of_mean(tasks), "", f"{documents:,}"])
    lines += [_text_line(record, corpus, list(models), change) for corpus in record["idp"]["perplexity"]]
    headers = ["task", "metric", *models, *change.headers, "stderr", "documents"]
    if change.step is not None:  # whose intervals say more than each score's own error
        place = headers.index("stderr")
        headers, lines = headers[:place] + headers[place + 1 :], [line[:place] + line[place + 1 :] for line in lines]
    return tabulate(lines, headers=headers, tablefmt="github", disable_numparse=True) + _not_compared(record, change)


def run_summary(record: Record) -> str:
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
    if fidelity := about.get("fidelity"):
        lines.append(f"- KL to dense: nats per token, {' / '.join(fidelity)}")
    if Change(record).has_texts:
        lines.append("- differences of texts: by how many nats per token they are predicted better")
    for found in filter(None, (damage(record), last_step(record) if about["row"] == "repaired" else None)):
        if graded := found["graded"]:
            lines.append(
                f"- probability of the right choice (graded outcome, tasks: {len(graded['tasks'])}), {found['after']}"
                f" minus {found['before']}, in percentage points: {with_interval(graded['mean'])}"
            )
    if (selector := about.get("selector")) and selector["peeks"]:
        lines.append(f"- selector: {selector['kind']}, an upper bound: it uses the labels, so it is no method")
    if origin := about.get("transfer"):
        lines.append(
            f"- repair: {origin['kind']}, learned elsewhere: compressor {origin['compressor'] or 'not known'}, corpus"
            f" {origin['corpus'] or 'not known'} ({origin['from']})"
        )
    for task, data in about["data"].items():
        if data["stand_in"]:
            lines.append(f"- {task}: dataset unavailable, {data['stand_in']} substituted (not comparable)")
    for task, count in about["truncated"].items():
        lines.append(f"- {task}: {count} contexts were longer than the model's window and were cut on the left")
    for task, count in (about.get("merged_choices") or {}).items():
        lines.append(f"- {task}: {count} choices merge into their context and were encoded apart from it")
    lines += knowledge.sections(record)
    if about["selection"] and len(next(iter(about["selection"].values()))) > 1:
        prompts = list(next(iter(about["selection"].values())))
        rows = [[task, *counts.values()] for task, counts in about["selection"].items()]
        lines += ["", "Documents that were given each prompt:", ""]
        lines.append(tabulate(rows, headers=["task", *prompts], tablefmt="github"))
        lines += selection_notes(about)
    if (controls := about.get("controls")) and controls["mean"]:
        lines += ["", controls_table(about)]
    if about["latency"]:
        lines += ["", latency_table(about["latency"])]
    return "\n".join(lines)


def _in_effect(weights: Weights) -> str:
    """Bytes with the zeros left out, where that is less than packed."""
    if weights["effective_bytes"] >= weights["packed_bytes"]:
        return ""
    return f", {weights['effective_bytes'] / 1e6:.1f} MB with the zeros left out (computed)"


def latency_table(latency: Latency) -> str:
    """Prefill and decode latency, the ratio to the compressed model first."""
    lines = []
    for row in latency["rows"]:
        line: list[Any] = [row["variant"], row["batch_size"], row["input_tokens"]]
        for part in (row["prefill"], row["decode"]):
            line += [f"{part['ratio']:.3f}", f"{part['p50']:.1f}", f"{part['p90']:.1f}", f"{part['p99']:.1f}"]
        lines.append(line)
    on_gpu = any(row.get("peak_memory_bytes") for row in latency["rows"])
    headers = ["model", "batch", "input tokens"]
    headers += [f"{part} {name}" for part in ("prefill", "decode") for name in ("ratio", "p50 ms", "p90", "p99")]
    if on_gpu:
        headers.append("peak GiB")
        for line, row in zip(lines, latency["rows"], strict=True):
            line.append(f"{(row['peak_memory_bytes'] or 0) / 2**30:.1f}")
    ran = latency["backend"]
    note = f"ratio to {latency['reference']}; {ran['library']}; {ran['device']}, {ran['dtype']}, {ran['attention']}"
    if on_gpu:
        graph = ran.get("decode") == GRAPH
        how = "replays a CUDA graph" if graph else "is launched by the host, whose gaps are in its times"
        note += f"; decode {how}"
    if by_shape := latency.get("by_shape"):
        note += f"; {', '.join(by_shape)}: the same kernels, timed on the weights of {latency['reference']}"
    return f"{tabulate(lines, headers=headers, tablefmt='github', disable_numparse=True)}\n\n{note}"


def selection_notes(about: IdpBlock) -> list[str]:
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


def controls_table(about: IdpBlock) -> str:
    """What each way to choose a prompt scores on the same documents, per task and as the mean over tasks."""
    controls, selector, unit = about["controls"], about["selector"], unit_of(about)
    assert controls is not None and selector is not None  # several prompts were chosen among
    kind, uses_labels = selector["kind"], selector["peeks"]
    rows = {**controls["tasks"], **({"mean": controls["mean"]} if len(controls["tasks"]) > 1 else {})}
    ways = [way for way in ("worst", "random", "best", "chosen", "oracle") if way in controls["mean"]]
    if uses_labels and all(found["chosen"] == found["oracle"] for found in rows.values()):
        ways.remove("chosen")
    luck = "oracle_by_luck" in controls["mean"]  # records before it was told apart have none
    ways += ["oracle_by_luck"] * luck
    lines = []
    for task, found in rows.items():
        gain = dict(zip(("low", "high"), found["gap_interval"], strict=True), difference=found["gap"])
        cells = [f"{found[way]:.3f}" for way in ways]
        lines.append([task, *cells, f"{found['agreement']:.3f}", with_interval(gain, unit)])
        if luck:
            ends = zip(("low", "high"), found["beyond_luck_interval"], strict=True)
            lines[-1].append(with_interval(dict(ends, difference=found["beyond_luck"]), unit))
    for corpus, found in controls["perplexity"].items():
        lines.append([f"{corpus} perplexity", *(f"{found[way]:.2f}" for way in ways), "", "", *[""] * luck])
    titles = {"worst": "worst held-out", "best": "best held-out", "oracle": "oracle (upper bound)"}
    titles |= {"chosen": f"{kind} (upper bound)" if uses_labels else kind, "oracle_by_luck": "oracle by luck"}
    headers = ["task", *(titles.get(way, way) for way in ways), "matches the oracle"]
    interval = f"({in_points(unit)}95 % CI)"
    headers += [f"gain over random choice {interval}", *[f"oracle beyond luck {interval}"] * luck]
    table = tabulate(lines, headers=headers, tablefmt="github", disable_numparse=True)
    paragraphs = [f"Each way to choose among the prompts, on the same documents:\n\n{table}"]
    if luck:
        paragraphs.append(
            "oracle by luck: what it would score if the prompts were equal and their answers differed as often as"
            " these do; beyond luck: what there is to choose"
        )
    return "\n\n".join(paragraphs)


def _task_line(record: Record, task: str, scores: dict[str, dict[str, float]], change: Change) -> list[str]:
    data = record["idp"]["data"][task]
    runs = data["stand_in"] or task
    key = main_metric(runs, record["results"][runs])
    error = record["results"][runs].get(key.replace(",", "_stderr,", 1))
    return [
        f"{task} (stand-in: {runs})" if data["stand_in"] else task,
        key.split(",")[0] + (" (lower is better)" if lower_is_better(record, task) else ""),
        *(f"{values[task]:.3f}" for values in scores.values()),
        *change.of_task(task),
        f"{error:.3f}" if isinstance(error, (int, float)) else "",
        f"{data['documents']:,}",
    ]


def _group_line(record: Record, group: str, scores: dict[str, dict[str, float]], change: Change) -> list[str]:
    """The unweighted mean over a group's tasks."""
    found, data = record["idp"]["groups"][group], record["idp"]["data"]
    tasks = found[record["idp"]["row"]]["tasks"]
    documents = sum(data[task]["documents"] for task in tasks if task in data)
    return [
        f"{group} ({len(tasks)} tasks)",
        "mean",
        *(f"{found[row]['score']:.3f}" if row in found else "" for row in scores),
        *change.of_group(group, tasks),
        "",
        f"{documents:,}",
    ]


def _text_line(record: Record, corpus: str, rows: list[str], change: Change) -> list[str]:
    about = record["idp"]
    values = {row: found["perplexity"].get(corpus) for row, found in about["baselines"].items()}
    values[about["row"]] = about["perplexity"][corpus]
    shown = ("inf" if values[row] is None else f"{values[row]:.2f}" for row in rows)  # JSON has no infinity
    return [corpus, "perplexity", *shown, *change.of_text(corpus), "", ""]


def _not_compared(record: Record, change: Change) -> str:
    """Why the table has no differences, or which of its tasks have none."""
    about = record["idp"]
    if change.step is not None:
        left_out = ", ".join(change.step["left_out"])
        text = f"\n\nNo difference of {left_out}, whose score is no mean over documents; the mean's is without it."
        return text if left_out else ""
    if about["baselines"]:
        return (
            "\n\nThis record is from before differences were part of one: the same command adds them, and measures"
            " nothing anew."
        )
    if about["row"] == "dense":
        return "\n\nNothing was compressed or repaired, so there is nothing to compare."
    return f"\n\nNothing to compare with: the {about['row']} model alone was measured (baselines=false)."
