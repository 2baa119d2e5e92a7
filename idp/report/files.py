"""What a report is written as."""

from __future__ import annotations

FORMATS = ("markdown", "csv", "parquet", "latex", "plots", "page")
MARKDOWN, CSV, LATEX, PAGE, PLOTS = "report.md", "table.csv", "table.tex", "index.html", "plots"
RESULTS_CSV, RESULTS_PARQUET, PAPER = "results.csv", "results.parquet", "paper.tex"
RECORDS = "records.csv"
