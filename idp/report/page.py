"""The report as one HTML page that opens offline: data, scripts and style are all in the file.

Texts of models and data sets reach the page as JSON in which `<` is escaped, and the scripts set them as text alone;
beyond that, the page's content security policy runs no script but those that were inlined here.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import time
from importlib import resources
from typing import Any

import idp
from idp.records.cell import Cell
from idp.records.collect import Collection
from idp.report.comparisons import Difference
from idp.report.costs import cost_table
from idp.report.documents import documents, line
from idp.report.embedded import embedded
from idp.report.formats import MISSING, Entry, Table
from idp.report.frontier import verdicts
from idp.report.layers import depth_and_part, similarity, weights_by_layer
from idp.report.nine_tasks import score_table
from idp.report.view import View

ROOM = 6_000_000  # bytes for documents' texts, all settings together
OUTCOMES = 3_000_000  # and for their outcomes
SENTENCES = 4  # of the headline
LIBRARIES = ("vendor/d3.min.js", "vendor/plot.umd.min.js")
SCRIPTS = (
    "address",
    "core",
    "statistics",
    "differences",
    "map",
    "scatter",
    "table",
    "compare",
    "prompts",
    "behaviours",
    "layers",
    "main",
)


def page(found: Collection, views: list[View], title: str) -> str:
    """The whole page."""
    scripts = [_asset(name) for name in LIBRARIES] + ["\n".join(_asset(f"{name}.js") for name in SCRIPTS)]
    for script in scripts:
        if "</script" in script.lower():
            raise ValueError("a script that ends its own element")
    hashes = " ".join(f"'sha256-{_sha256(script)}'" for script in scripts)
    parts = {
        "POLICY": f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:",
        "TITLE": html.escape(title),
        "STYLE": _asset("page.css"),
        "DATA": as_json(data(found, views, title)),
        "SCRIPTS": "\n".join(f"<script>{script}</script>" for script in scripts),
    }
    before, *rest = _asset("page.html").split("{{")
    return before + "".join(parts[name] + after for name, after in (piece.split("}}", 1) for piece in rest))


def as_json(value: Any) -> str:
    """JSON that may stand inside a script element: no `<`, and null for what JSON has no number for."""
    text = json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def data(found: Collection, views: list[View], title: str) -> dict[str, Any]:
    """All that the page shows."""
    each = max(1, len(views))
    return {
        "title": title,
        "version": idp.__version__,
        "made": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "runs": len(found.records),
        "told": found.notices,
        "headline": headline(found, views),
        "views": [_view(view, ROOM // each, OUTCOMES // each) for view in views],
    }


def headline(found: Collection, views: list[View]) -> list[str]:
    """What the runs show, in some sentences: of each compressed model with several repairs, else of the newest run."""
    said = [sentence for view in views for sentence in verdicts(view)]  # which may begin with a name
    newest = [str(record["idp"]["conclusion"]) for record in found.records if record["idp"].get("conclusion")]
    return (said or newest[:1])[:SENTENCES]


def _view(view: View, room: int, room_for_outcomes: int) -> dict[str, Any]:
    tables = score_table(view), cost_table(view)
    titles = view.headings
    return {
        "id": view.setting.id,
        "title": view.title,
        "tasks": [{"id": task, "title": titles[task]} for task in view.tasks],
        "groups": view.groups,
        "means": [key for key in titles if key not in view.tasks],
        "columns": _columns(tables),
        "notes": [note for table in tables for note in table.notes],
        "rows": [_row(view, tables, number) for number in range(len(view.rows))],
        "documents": documents(view, room),
        "outcomes": embedded(view, room_for_outcomes),
        "layers": {
            row.id: layers for row in view.plain if row.first.role != "dense" and (layers := _layers(row.first))
        },
        "similarity": {row.id: like for row in view.rows if (like := similarity(row.first)) is not None},
        "selection": {row.id: row.first.selection for row in view.repaired if row.first.selection},
    }


def _columns(tables: tuple[Table, ...]) -> list[dict[str, Any]]:
    columns = {column.key: column for table in tables for column in table.columns}
    numeric = {key for table in tables for row in table.rows for key, entry in row.items() if entry.value is not None}
    return [
        {"key": key, "title": column.title, "of": column.of, "numeric": key in numeric}
        for key, column in columns.items()
    ]


def _row(view: View, tables: tuple[Table, ...], number: int) -> dict[str, Any]:
    row = view.rows[number]
    entries = {key: entry for table in tables for key, entry in table.rows[number].items()}
    against = {
        found.before: {key: _interval(test) for key in view.headings if (test := found.of(key)) is not None}
        for found in (view.compared.get(row.id), view.to_dense.get(row.id))
        if found is not None
    }
    return {
        "id": row.id,
        "parent": row.parent,
        "line": [each.id for each in line(view, row)],
        "name": row.name,
        "role": row.first.role,
        "compressor": row.compressor,
        "kind": row.first.recovery,
        "uses_labels": row.first.uses_labels,
        "controls": _controls(row),
        "runs": [name for model in row.members for name in model.runs][:12],
        "count": row.runs,
        "one_seed": row.of_one_seed,
        "against": against,
        "cells": {key: _cell(entry) for key, entry in entries.items() if entry is not MISSING and entry.text},
    }


def _controls(row: Cell) -> dict[str, Any] | None:
    """What other ways to choose among a repair's prompts score, by task and in the mean."""
    known = row.first.controls
    if not known or not known.get("mean"):
        return None
    wanted = ["worst", "random", "best", "chosen", "oracle", "oracle_by_luck"]
    wanted += ["gap", "gap_interval", "beyond_luck", "beyond_luck_interval"]
    short = {name: {key: of[key] for key in wanted if key in of} for name, of in known["tasks"].items()}
    return {"tasks": short, "mean": {key: known["mean"][key] for key in wanted if key in known["mean"]}}


def _interval(found: Difference) -> list[float | None]:
    """Difference, low, high, p, the least that would be detected."""
    return [_rounded(each) for each in (found.difference, found.low, found.high, found.p, found.detectable)]


def _cell(entry: Entry) -> list[Any]:
    """Text, value, whether bold, standard error."""
    return [entry.text, _rounded(entry.value), int(entry.bold), _rounded(entry.stderr)]


def _layers(model: Any) -> list[list[Any]]:
    """Depth, part, sparsity, weight change and bits of each compressed layer."""
    rows = []
    for name, figures in weights_by_layer(model).items():
        if (place := depth_and_part(name)) is not None:
            values = [figures.get(key) for key in ("sparsity", "reconstruction_error", "bits_per_weight")]
            rows.append([*place, *map(_rounded, values)])
    return rows


def _rounded(value: float | None) -> float | None:
    return value if value is None or isinstance(value, int) else float(f"{value:.6g}")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def _asset(name: str) -> str:
    return resources.files("idp.report").joinpath("assets", name).read_text(encoding="utf-8")


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
