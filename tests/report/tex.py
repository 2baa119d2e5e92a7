"""A TeX, where one is at hand: tables are compiled, and their text read back."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


def compiled(table: str, folder: Path, packages: str = r"\usepackage{booktabs,dcolumn,graphicx}") -> str:
    """The log of pdfLaTeX over a document that holds a table; it skips where there is no TeX, fails where it does."""
    program = shutil.which("pdflatex")
    if program is None:
        pytest.skip("no pdflatex: apt-get install texlive-latex-recommended")
    folder.mkdir(parents=True, exist_ok=True)
    text = (
        rf"\documentclass{{article}}{packages}\begin{{document}}{table} See Table~\ref{{tab:repairs}}.\end{{document}}"
    )
    (folder / "table.tex").write_text(text)
    words = [program, "-interaction=nonstopmode", "-halt-on-error", "table.tex"]
    for _ in range(2):  # the second time references are known
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, errors="replace")
        assert done.returncode == 0, done.stdout[-3000:]
    return (folder / "table.log").read_text(errors="replace")
