"""`idp analyze <analysis> key=value ...`: what finished runs say, written beside their records."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from idp.command import failures_in_one_line, help_text, parse_action, quiet_libraries, wants_help, word
from idp.errors import UserError

quiet_libraries()

OPENING = """idp analyze: what finished runs say, written beside their records (analysis/<name>.md and .json)

  idp analyze claims                                  what the papers claim, and what these runs say
  idp analyze compare runs=outputs/runs               every repair and compressor: effect, interval, test
  idp analyze compare outputs/runs/<run> results/<model>   any two runs, lm-eval's too: the first is the baseline
  idp analyze displaced runs=outputs/runs             what became of the documents that compression broke
  idp analyze choice record=outputs/runs/<run>        what there is to choose between a bank's prompts
  idp analyze similarity record=outputs/runs/<run>    attention and activations against the dense model"""


@dataclass
class Runs:
    """Of an analysis of many runs."""

    runs: list[str] = word("folders of runs, or records (default: outputs/runs)", positional=True, default_factory=list)
    out: str | None = word("the folder under which analysis/ is made; else the first of the runs", default=None)


@dataclass
class ClaimsOptions(Runs):
    """Of the claim check."""

    margin: float = word("accuracy that counts as a difference, in points (default: 1)", default=1.0)


@dataclass
class CompareOptions(Runs):
    """Of comparisons: of all that one study measured, or of single runs with the first of them."""

    metric: str | None = word("of single runs: the metric of all tasks, else each task's main one", default=None)
    json: bool = word("print JSON in place of tables", default=False)
    csv: str | None = word("of single runs: a file for every figure", default=None)
    latex: str | None = word("of single runs: a file for a LaTeX table", default=None)


@dataclass
class RunOptions:
    """Of an analysis of one run, which opens its models."""

    record: str = word("a run's record.json, or its folder")
    out: str | None = word("the folder under which analysis/ is made; else the run's", default=None)


@dataclass
class ChoiceOptions(RunOptions):
    """Of what choosing could earn."""

    store: str | None = word("the store of the run's artifacts, if it was moved", default=None)


@dataclass
class Similarity(RunOptions):
    """Of the comparison with the dense model, layer by layer."""

    documents: int = word("documents of each task", default=16)
    tokens: int = word("tokens of a document at most", default=256)
    store: str | None = word("the store of the run's artifacts, if it was moved", default=None)


OPTIONS = {
    "claims": ClaimsOptions,
    "compare": CompareOptions,
    "displaced": Runs,
    "choice": ChoiceOptions,
    "similarity": Similarity,
}


def main(argv: Sequence[str] | None = None) -> None:
    """The command line: every failure is one line on standard error and a non-zero exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or wants_help(argv):
        print(OPENING)
        for name, kind in OPTIONS.items():
            print(help_text(kind, f"\n{name}:"))
        sys.exit(0 if argv else "error: which analysis?")
    with failures_in_one_line(command="analyze"):
        name, options = parse_action(OPTIONS, argv, "analysis")
        if isinstance(options, (ChoiceOptions, Similarity)):
            written = _of_run(name, options)
        elif isinstance(options, CompareOptions):
            written = _compare(options)
        else:
            written = _of_runs(name, options)
        to = sys.stderr if isinstance(options, CompareOptions) and options.json else sys.stdout
        for file in written:
            print(f"written: {file}", file=to)


def _compare(options: CompareOptions) -> list[Path]:
    from idp.analyze.operands import are_single, open_runs

    single = bool(options.runs) and are_single(options.runs)
    if not single:
        for name in ("metric", "csv", "latex"):
            if getattr(options, name) is not None:
                raise UserError(
                    f"{name}=: of single runs, such as idp compare a b; idp report writes the tables of a study"
                )
        return _of_runs("compare", options)
    from idp.analyze import pairwise, pairwise_shown
    from idp.analyze.files import put, write

    result = pairwise.compare_runs(open_runs(options.runs), options.metric)
    text = pairwise_shown.page(result)
    print(json.dumps(result, indent=1) if options.json else f"{text}\n")
    written = write(options.out, "compare", result, text) if options.out is not None else []
    for place, made in ((options.csv, pairwise_shown.comma_separated), (options.latex, pairwise_shown.latex)):
        if place is not None:
            written.append(put(Path(place).expanduser(), made(result)))
    return written


def _of_runs(name: str, options: Runs) -> list[Path]:
    from idp.analyze import claims, compare, displaced
    from idp.records.collect import collect

    margin = _margin(options.margin) if isinstance(options, ClaimsOptions) else ClaimsOptions.margin / 100
    places = options.runs or ["outputs/runs"]
    collection = collect(places)
    if name == "claims":
        result = claims.check(collection, margin)
        text = claims.page(result)
    else:
        made = {"compare": (compare.compare, compare.page), "displaced": (displaced.displaced, displaced.page)}
        analyse, page = made[name]
        result = analyse(collection)
        text = page(result)
    print(json.dumps(result, indent=1) if isinstance(options, CompareOptions) and options.json else f"{text}\n")
    return _written(options.out, places[0], name, result, text)


def _of_run(name: str, options: ChoiceOptions | Similarity) -> list[Path]:
    from idp.analyze import choice, similarity
    from idp.finished import find_run

    if isinstance(options, Similarity):
        for option, least in (("documents", 1), ("tokens", similarity.SHORTEST)):
            if getattr(options, option) < least:
                raise UserError(f"{option}={getattr(options, option)}: must be at least {least}")
    run = find_run(options.record, options.store)
    place = Path(options.record).expanduser()
    folder = place if place.is_dir() else place.parent
    if isinstance(options, Similarity):
        result = similarity.similarity(run, folder, options.documents, options.tokens)
        text = similarity.page(result)
    else:
        result = choice.choice(run, folder)
        text = choice.page(result)
    print(f"{text}\n")
    return _written(options.out, folder, name, result, text)


def _written(out: str | None, beside: str | Path, name: str, result: dict[str, Any], text: str) -> list[Path]:
    """The files; none, and a note, where the records lie on a disk that is read-only and no folder was asked for."""
    from idp.analyze.files import CannotWrite, write

    try:
        return write(out or beside, name, result, text)
    except CannotWrite as error:
        if out is not None:
            raise
        print(f"note: not written: {error}")
        return []


def _margin(points: float) -> float:
    if not 0 < points < 100:
        raise UserError(f"margin={points:g}: give points of accuracy between 0 and 100, such as margin=1")
    return points / 100


if __name__ == "__main__":
    main()
