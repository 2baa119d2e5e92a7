"""What a report is written as."""

from __future__ import annotations

FORMATS = ("markdown", "csv", "latex", "plots", "page")
MARKDOWN, CSV, LATEX, PAGE, PLOTS = "report.md", "table.csv", "table.tex", "index.html", "plots"
