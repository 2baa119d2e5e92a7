r"""Tables for a paper: LaTeX with booktabs, numbers aligned at their decimal points (dcolumn), bounds beside them.

Both packages are in every TeX (Debian: texlive-latex-recommended), which siunitx is not.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

PACKAGES = r"\usepackage{booktabs,dcolumn,graphicx}"
FITTED = (  # a table wider than the text is made smaller, any other stays as it is
    r"  }\leavevmode",
    r"  \ifdim\wd0>\linewidth\resizebox{\linewidth}{!}{\box0}\else\box0\fi",
)
INTERVAL, PLUS_MINUS, NONE = "interval", "pm", "none"
BOUNDS = (INTERVAL, PLUS_MINUS, NONE)
LABEL = re.compile(r"[A-Za-z0-9:._-]+")
MISSING = "---"
HEAD = 10  # characters of a line of a head, unless a word is longer
ESCAPED = {
    "\\": r"\textbackslash{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "\u00d7": r"$\times$",
    "→": r"$\to$",
    "≤": r"$\le$",
    "≥": r"$\ge$",
    "≈": r"$\approx$",
    "\u2212": r"$-$",
    "²": r"$^2$",
    "³": r"$^3$",
    "¹": r"$^1$",
}
KNOWN = re.compile(
    "[\n\t -~\u00a0-\u017f\u2013\u2014\u2018\u2019\u201c\u201d\u2026]"
)  # to pdfLaTeX without more packages


@dataclass(frozen=True)
class Cell:
    """What stands in one place: text, or a number with its bounds, where it has any."""

    text: str = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    bold: bool = False


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Args:
        key: of its cells in the rows.
        title: in the head.
        decimals: behind the point; None: a column of text.
        scale: by which its numbers and their bounds are multiplied, such as 100 for percent.
        signed: whether a number above 0 has a plus.
        bounds: `interval` gives [low, high] beside a number that has both, `pm` half that width (or, where they differ,
            how far each end is), `none` nothing.
    """

    key: str
    title: str
    decimals: int | None = None
    scale: float = 1
    signed: bool = False
    bounds: str = INTERVAL

    def shown(self, value: float, signed: bool = False) -> str:
        """A number as it stands in this column; what rounds to nothing has no sign of harm."""
        rounded = round(self.scale * value, self.decimals or 0) + 0.0
        return f"{rounded:{'+' if signed else ''},.{self.decimals or 0}f}"


def document_table(
    columns: Sequence[Column],
    rows: Sequence[Mapping[str, Cell]],
    *,
    caption: str = "",
    label: str = "",
    notes: Sequence[str] = (),
) -> str:
    """A floating table.

    Args:
        columns: as they stand.
        rows: cells by the column's key; what a row lacks is missing.
        caption: text, which is escaped.
        label: for references, such as `tab:repairs`; only what matches `LABEL`.
        notes: comments at the head of the file.

    Raises:
        ValueError: a label that LaTeX may misread.
    """
    if label and not LABEL.fullmatch(label):
        raise ValueError(f"label {label!r}: use letters, digits and . : _ -")
    drawn = [_Drawn(column, [row.get(column.key, Cell()) for row in rows]) for column in columns]
    lines = [f"% needs {PACKAGES}", *(f"% {line}" for note in notes for line in note.splitlines())]
    lines += [r"\begin{table}", r"  \centering", r"  \small", r"  \setlength{\tabcolsep}{4pt}"]
    lines += [rf"  \caption{{{escape(caption)}}}"] if caption else []
    lines += [rf"  \label{{{label}}}"] if label else []
    lines += [r"  \smallskip", ""] if caption else []
    lines += [r"  \setbox0=\hbox{%", rf"  \begin{{tabular}}{{@{{}}{''.join(each.spec for each in drawn)}@{{}}}}"]
    lines += [r"    \toprule"]
    lines += [f"    {' & '.join(each.head for each in drawn)} \\\\", r"    \midrule"]
    lines += [f"    {' & '.join(each.cells[number] for each in drawn)} \\\\" for number in range(len(rows))]
    return "\n".join([*lines, r"    \bottomrule", r"  \end{tabular}%", *FITTED, r"\end{table}", ""])


def escape(text: str) -> str:
    """Text with what LaTeX reads as commands, or does not know, put in its own spelling."""
    spelled = "".join(ESCAPED.get(c) or (c if KNOWN.match(c) else f"[U+{ord(c):04X}]") for c in text)
    return re.sub(r"-(?=-)", "-{}", " ".join(spelled.split()))  # two hyphens are no dash


class _Drawn:
    """One column as LaTeX: of numbers with bounds, two of them under one head."""

    def __init__(self, column: Column, cells: Sequence[Cell]):
        self.column = column
        numbers = [cell for cell in cells if cell.value is not None and math.isfinite(cell.value)]
        self.bounded = column.decimals is not None and column.bounds != NONE and any(map(_has_bounds, numbers))
        self.width = 2 if self.bounded else 1
        beside = self._beside(cells) if self.bounded else []
        self.cells = [
            f"{self._cell(cell)} & {beside[number]}" if self.bounded and cell.value is not None else self._cell(cell)
            for number, cell in enumerate(cells)
        ]
        self.spec = self._spec(numbers) + (r"@{\,}>{\footnotesize}l" if self.bounded else "")
        title = _stacked(column.title)
        centred = rf"\multicolumn{{{self.width}}}{{c}}{{{title}}}"
        self.head = title if column.decimals is None else centred

    def _spec(self, numbers: Sequence[Cell]) -> str:
        if self.column.decimals is None:
            return "l"
        if not self.column.decimals:
            return "r"
        shown = [self.column.shown(cell.value or 0.0, self.column.signed) for cell in numbers]
        before = max((len(text.partition(".")[0]) for text in shown), default=1)
        wider = any(cell.bold for cell in numbers)  # bold digits are
        return f"D{{.}}{{.}}{{{before + wider}.{self.column.decimals + wider}}}"

    def _cell(self, cell: Cell) -> str:
        if self.column.decimals is None or cell.value is None:
            shown = escape(cell.text) if self.column.decimals is None or cell.text else MISSING
            if shown[:1] in ("[", "*"):  # behind the end of a row these are an argument of it
                shown = f"{{}}{shown}"
            shown = rf"\textbf{{{shown}}}" if cell.bold and shown else shown
            return shown if self.column.decimals is None else rf"\multicolumn{{{self.width}}}{{c}}{{{shown}}}"
        if not math.isfinite(cell.value):
            return r"\multicolumn{1}{c}{$\infty$}"
        parts = self.column.shown(cell.value, self.column.signed).replace(",", "{,}").split(".")
        if len(parts) == 1:
            return rf"\textbf{{{parts[0]}}}" if cell.bold else f"${parts[0]}$"
        return ".".join(rf"\mathbf{{{part}}}" for part in parts) if cell.bold else ".".join(parts)

    def _beside(self, cells: Sequence[Cell]) -> list[str]:
        pairs = [_pair(cell, self.column.bounds) for cell in cells]
        shown = [tuple(self.column.shown(end) for end in pair) if pair else None for pair in pairs]
        ends = [_padded([each[side] for each in shown if each]) for side in (0, 1)]
        found, places = [], iter(zip(*ends, strict=True))
        for each in shown:
            if each is None:
                found.append("")
                continue
            low, high = next(places)
            if self.column.bounds == INTERVAL:
                found.append(f"$[{low},\\ {high}]$")
            else:
                found.append(rf"$\pm {high}$" if each[0] == each[1] else f"${{}}^{{+{each[1]}}}_{{-{each[0]}}}$")
        return found


def _stacked(title: str) -> str:
    """A head in lines of few words, so that it makes its column no wider than the numbers do."""
    lines = [escape(line) for line in textwrap.wrap(title, HEAD, break_long_words=False, break_on_hyphens=False)]
    stacked = r"\\".join(lines)
    return rf"\shortstack{{{stacked}}}" if len(lines) > 1 else stacked


def _has_bounds(cell: Cell) -> bool:
    return cell.low is not None and cell.high is not None


def _pair(cell: Cell, bounds: str) -> tuple[float, float] | None:
    """The ends of a cell's interval, or how far they are from its value."""
    if cell.value is None or cell.low is None or cell.high is None or not math.isfinite(cell.high - cell.low):
        return None
    return (cell.low, cell.high) if bounds == INTERVAL else (cell.value - cell.low, cell.high - cell.value)


def _padded(texts: Sequence[str]) -> list[str]:
    """Numbers of one number of decimals, with room before the shorter ones so that they stand below one another."""
    negative = any(text.startswith("-") for text in texts)
    whole = max((len(text.lstrip("-").partition(".")[0]) for text in texts), default=0)
    found = []
    for text in texts:
        digits = text.lstrip("-")
        room = rf"\phantom{{{'0' * lacking}}}" if (lacking := whole - len(digits.partition(".")[0])) else ""
        sign = "{-}" if text.startswith("-") else r"\phantom{{-}}" if negative else ""
        found.append(room + sign + digits.replace(",", "{,}"))
    return found
