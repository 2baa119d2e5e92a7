"""The tables of docs/analysis.md: what their command prints, and what they must show."""

from pathlib import Path

from tests.analyze.simulations import DOCUMENTS, PLANNED, RUNS, SPREADS, STUDIES, Design, coverage_row, power_row

DOCS = Path(__file__).parents[2] / "docs" / "analysis.md"


def rows(first):
    """The rows of the table in the docs whose header begins so."""
    lines = DOCS.read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if [*cells(line), ""][: len(first)] == first)
    found = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            return found
        found.append(cells(line))
    return found


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_docs_have_what_the_command_prints():
    table = rows(["runs", "spread of runs", "documents", "coverage"])
    assert coverage_row(Design((3, 3)), STUDIES) in table
    assert power_row(PLANNED[0], STUDIES) in rows(["runs", "spread of runs", "documents", "detectable"])


def test_intervals_of_three_runs_or_more_hold_the_truth_in_95_percent():
    table = rows(["runs", "spread of runs", "documents", "coverage"])
    assert len(table) == len(RUNS) * len(SPREADS) * len(DOCUMENTS)
    for runs, _, _, coverage, _, error, *_ in table:
        if runs != "1 / 1":
            assert 0.93 <= float(coverage) <= 0.975 and 0.02 < float(error) < 0.08
