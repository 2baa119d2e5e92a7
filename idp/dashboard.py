"""`idp dashboard [FOLDER or RECORD ...]`: a W&B workspace and a report, made for the runs that are there.

Panels are drawn from keys that these runs log (`idp/track/metrics.py`); one whose figures no run has is left out.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from idp.command import failures_in_one_line, help_text, parse, quiet_libraries, wants_help, word
from idp.errors import UserError
from idp.extras import needs
from idp.records import metrics
from idp.records.schema import Record
from idp.store import write_json

TITLE = "Repairs of compressed models"
STEP = "training_step"
WIDE, HALF = 24, 12
HELP = """usage: idp dashboard [FOLDER or RECORD ...] [key=value ...]

A W&B workspace and a report, made for the runs that are there.
"""


@dataclass
class DashboardOptions:
    """The words of the command line."""

    runs: list[str] = word("folders of runs, or records (default: outputs/runs)", positional=True, default_factory=list)
    project: str | None = word("W&B project; otherwise the one that the runs name", default=None)
    entity: str | None = word("W&B user or team; otherwise the one that the runs name, or your own", default=None)
    dry_run: str | None = word("a file: write the specification there as JSON; needs no account", default=None)


@dataclass
class Logged:
    """What a set of runs logs: tasks by key, summary keys, tables, curves, all in order, and their compressors."""

    tasks: list[str] = field(default_factory=list)
    summary: set[str] = field(default_factory=set)
    tables: set[str] = field(default_factory=set)
    parts: list[str] = field(default_factory=list)
    compressors: list[str] = field(default_factory=list)

    @classmethod
    def by(cls, records: list[Record]) -> Logged:
        """What the runs of these records have logged."""
        found = cls()
        for record in records:
            about = record["idp"]
            found.summary |= metrics.summary(record).keys()
            found.tables |= metrics.tables(record).keys()
            for known, new in (
                (found.tasks, [metrics.key_of(task, data) for task, data in about["data"].items()]),
                (found.parts, about["training"] or {}),
                (found.compressors, [about["compressor"]]),
            ):
                known += [name for name in new if name not in known]
        return found

    @property
    def corpora(self) -> list[str]:
        """The texts that have a perplexity."""
        return sorted(key.removeprefix("ppl/") for key in self.summary if key.startswith("ppl/"))

    @property
    def groups(self) -> list[str]:
        """The keys of groups of tasks."""
        return sorted(key for key in self.summary if key.startswith("group/"))

    @property
    def main_columns(self) -> list[str]:
        """What decides between repairs, as the report's page opens with it: mean, difference, share of the damage that
        is brought back, divergence from dense and perplexity of texts, added parameters."""
        shares = (f"damage/brought_back{end}" for end in ("", "_low", "_high"))
        texts = (f"fidelity/{text}/mean_kl" for text in self.corpora)
        return [
            *("score/mean", "score/mean_tasks", "score/mean_stand_ins"),
            *self.of("gain/mean", "gain/mean_low", "gain/mean_high", "damage/mean", *shares, *texts),
            *(f"ppl/{text}" for text in self.corpora),
            *self.of("params/added"),
        ]

    def of(self, *keys: str) -> list[str]:
        """Those of the keys that some run logs."""
        return [key for key in keys if key in self.summary]


def specification(records: list[Record], entity: str, project: str) -> tuple[Any, Any]:
    """The workspace and the report, unsaved; making them needs no server.

    Raises:
        UserError: `wandb-workspaces` is not installed.
    """
    with needs("idp.dashboard", "wandb-workspaces", "dashboard"):
        import wandb_workspaces.reports.v2 as reports
        import wandb_workspaces.workspaces as workspaces

    logged = Logged.by(records)
    columns = [f"summary:{key}" for key in (*logged.main_columns, *(f"score/{task}" for task in logged.tasks))]
    workspace = workspaces.Workspace(
        entity=entity,
        project=project,
        name=TITLE,
        sections=[
            workspaces.Section(name=name, panels=panels, is_open=True)
            for name, panels in _sections(logged, reports).items()
        ],
        settings=workspaces.WorkspaceSettings(x_axis=STEP, max_runs=100),
        runset_settings=workspaces.RunsetSettings(pinned_columns=columns),
    )
    report = reports.Report(
        entity=entity,
        project=project,
        title=TITLE,
        description="What compression took, what each repair brings back of it, and at what cost.",
        blocks=_blocks(logged, columns, reports),
        width="fluid",
    )
    return workspace, report


def _sections(logged: Logged, reports: Any) -> dict[str, list[Any]]:
    """The panels of each subject, by its heading; a subject without figures is left out."""
    scores, gains = ([f"{kind}/{task}" for task in logged.tasks] for kind in ("score", "gain"))
    sections = {
        "Scores": [
            _table("results", reports),
            _bars("Mean score", ["score/mean"], reports),
            _bars("Score by task", scores, reports),
            _bars("Score by group of tasks", logged.groups, reports),
        ],
        "Gain and cost": [
            _bars(
                "Gain over the model that was repaired, with the ends of its 95 % interval",
                logged.of("gain/mean_low", "gain/mean", "gain/mean_high"),
                reports,
            ),
            _bars("Gain by task", logged.of(*gains), reports),
            _scatter("Gain against added parameters", "params/added", "gain/mean", reports, log_x=True),
            _bars("Seconds by stage", sorted(key for key in logged.summary if key.startswith("seconds/")), reports),
            _scatter("Accuracy against decode latency (ms)", "latency/decode_ms", "score/mean", reports),
            _scatter("Accuracy against prefill latency (ms)", "latency/prefill_ms", "score/mean", reports),
            *(
                _scatter(f"Perplexity ({corpus}) against accuracy", f"ppl/{corpus}", "score/mean", reports, log_x=True)
                for corpus in logged.corpora
            ),
            *(
                _scatter(f"KL to dense ({corpus}) against score", f"fidelity/{corpus}/mean_kl", "score/mean", reports)
                for corpus in logged.corpora
            ),
        ],
        "Selection": [
            reports.CustomChart(
                query={"summaryTable": {"tableKey": "selection"}},
                chart_name="wandb/bar/v0",
                chart_fields={"label": "prompt", "value": "documents"},
                chart_strings={"title": "Documents given to each prompt"},
                layout=_half(reports),
            ),
            _table("selection", reports, _half(reports)),
        ],
        "Training": [
            reports.LinePlot(
                title=title,
                x=STEP,
                y=[f"{kind}/{part}/loss" for part in logged.parts],
                title_y="nats per token",
                layout=_half(reports),
            )
            for kind, title in (("train", "Training loss"), ("heldout", "Held-out loss"))
        ],
    }
    drawn = {}
    for name, panels in sections.items():
        if kept := [panel for panel in panels if _has_figures(panel, logged)]:
            drawn[name] = kept
    return drawn


def _blocks(logged: Logged, columns: list[str], reports: Any) -> list[Any]:
    """The report: the comparison table and each subject over all runs, then a section for each compressor."""
    shown = ["run:displayName", *columns]
    table = {"visible_columns": shown, "column_order": shown, "lock_columns": True}
    blocks: list[Any] = [
        reports.TableOfContents(),
        reports.H1("All runs"),
        reports.P(
            "Scores of every run by task; `nq_open_for_webqs` is nq_open's, which stands in for webqs. Gains are over"
            " the model that was repaired, on the same documents: one whose interval holds 0 shows nothing."
        ),
    ]
    for number, (name, panels) in enumerate(_sections(logged, reports).items()):
        runset = reports.Runset(name="All runs", **(table if number == 0 else {}))
        blocks += [reports.H2(name), reports.PanelGrid(runsets=[runset], panels=panels)]
    blocks.append(reports.H1("By compressor"))
    for compressor in logged.compressors:
        runset = reports.Runset(name=compressor, filters=f"Tags() in [{compressor!r}]", **table)
        panels = [panel for panels in _sections(logged, reports).values() for panel in panels]
        blocks += [reports.H2(compressor), reports.PanelGrid(runsets=[runset], panels=panels)]
    return blocks


def _table(name: str, reports: Any, layout: Any = None) -> Any:
    return reports.WeavePanelSummaryTable(table_name=name, layout=layout or reports.Layout(w=WIDE, h=10))


def _bars(title: str, keys: list[str], reports: Any) -> Any:
    return reports.BarPlot(title=title, metrics=keys, layout=_half(reports))


def _half(reports: Any) -> Any:
    return reports.Layout(w=HALF, h=8)


def _scatter(title: str, x: str, y: str, reports: Any, **options: Any) -> Any:
    x, y = (reports.SummaryMetric(name) for name in (x, y))
    return reports.ScatterPlot(title=title, x=x, y=y, layout=_half(reports), **options)


def _has_figures(panel: Any, logged: Logged) -> bool:
    """Whether any run logs what the panel draws."""
    if hasattr(panel, "table_name"):
        return panel.table_name in logged.tables
    if hasattr(panel, "query"):
        return panel.query["summaryTable"]["tableKey"] in logged.tables
    if hasattr(panel, "metrics"):
        return bool(panel.metrics)
    if isinstance(panel.y, list):
        return bool(panel.y)
    return {panel.x.name, panel.y.name} <= logged.summary


def outline(workspace: Any) -> str:
    """What one sees: the pinned columns of the run table, and each panel with the keys that it draws."""
    columns = [column.removeprefix("summary:") for column in workspace.runset_settings.pinned_columns]
    lines = ["Run table", f"  columns: {', '.join(columns)}"]
    for section in workspace.sections:
        lines += [section.name, *(f"  {_said(panel)}" for panel in section.panels)]
    return "\n".join(lines)


def _said(panel: Any) -> str:
    if hasattr(panel, "table_name"):
        return f"table: {panel.table_name}"
    if hasattr(panel, "query"):
        title, drawn = panel.chart_strings["title"], f"{panel.chart_fields['value']} by {panel.chart_fields['label']}"
        return f"bars: {title} ({drawn})"
    if hasattr(panel, "metrics"):
        return f"bars: {panel.title} ({_listed(panel.metrics)})"
    if isinstance(panel.y, list):
        return f"lines: {panel.title} ({_listed(panel.y)} over {STEP})"
    return f"scatterplot: {panel.title} ({panel.x.name}, {panel.y.name})"


def _listed(metrics: Sequence[Any], most: int = 3) -> str:
    keys = [metric if isinstance(metric, str) else metric.name for metric in metrics]
    more = f" and {len(keys) - most} more" if len(keys) > most else ""
    return ", ".join(keys[:most]) + more


def as_json(workspace: Any, report: Any) -> dict[str, Any]:
    """The specification as W&B stores it. The library has no public way to it short of saving."""
    options = {"by_alias": True, "exclude_none": True, "mode": "json"}
    return {
        "workspace": workspace._to_model().spec.model_dump(**options),
        "report": report._to_model().spec.model_dump(**options),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Saves both and prints their addresses, or with `--dry-run` writes what would be saved."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if wants_help(argv):
        print(help_text(DashboardOptions, HELP))
        return
    quiet_libraries()
    with failures_in_one_line(command="dashboard"):
        options = parse(DashboardOptions, argv)
        if options.dry_run:
            _check_folder(Path(options.dry_run))
        from idp.records.collect import collect

        records = collect(options.runs or ["outputs/runs"]).records
        tracker = records[-1]["idp"]["config"]["tracker"]
        project, entity = options.project or tracker.get("project") or "idp", options.entity or tracker.get("entity")
        if options.dry_run:
            file = Path(options.dry_run)
            workspace, report = specification(records, entity or "", project)
            write_json(file, as_json(workspace, report))
            print(outline(workspace))
            print(f"specification: {file}")
            return
        workspace, report = specification(records, entity or _own_entity(), project)
        try:
            print(f"workspace: {workspace.save().url}")
            print(f"report: {report.save().url}")
        except Exception as error:
            raise UserError(f"W&B: {' '.join(str(error).split())}; nothing else was changed") from error


def _check_folder(file: Path) -> None:
    if file.is_dir():
        raise UserError(f"--dry-run {file}: is a folder; name a file")
    if not file.parent.is_dir():
        raise UserError(f"--dry-run {file}: there is no folder {file.parent}; make it first (mkdir -p)")


def _own_entity() -> str:
    import wandb

    try:
        entity = wandb.Api().default_entity
    except Exception as error:
        raise UserError(f"W&B: {' '.join(str(error).split())}; log in with `wandb login`, or use --dry-run") from error
    if not entity:
        raise UserError("W&B: your account has no default entity; name one with --entity")
    return entity


if __name__ == "__main__":
    main()
