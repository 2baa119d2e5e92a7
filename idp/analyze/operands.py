"""The runs that a user names: of this package, or of lm-eval."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from idp.errors import UserError
from idp.records.lm_eval_output import load, newest, of_results, results_files
from idp.records.one_run import IDP, LM_EVAL, OneRun, of_record
from idp.records.record import RECORD
from idp.status import STATUS

ROWS = ("dense", "compressed", "repaired")
EXAMPLE = "idp compare outputs/runs/<run> results/<model>"


def are_single(places: Sequence[str]) -> bool:
    """Whether every place is one run, to be held against the others, and none a folder of runs.

    Raises:
        UserError: a run of lm-eval beside what is no run, or one that nothing is compared with.
    """
    kinds = [_kind(place) for place in places]
    if len(places) == 1:
        if kinds[0] == LM_EVAL or (kinds[0] == IDP and _row(places[0])[1]):
            raise UserError(f"{places[0]}: a single run; name what it is compared with: {EXAMPLE}")
        return False
    if all(kinds):
        return True
    # Runs of this package beside folders of such are one study.
    if alone := [place for place, kind in zip(places, kinds, strict=True) if kind == LM_EVAL or _row(place)[1]]:
        other = places[kinds.index(None)]
        if not Path(other).expanduser().exists():
            raise UserError(f"{other}: there is nothing here")
        raise UserError(
            f"{other}: neither a run of idp ({RECORD}) nor lm-eval's output (results_<date>.json), as {alone[0]} is;"
            f" name single runs: {EXAMPLE}"
        )
    return False


def open_runs(places: Sequence[str]) -> list[OneRun]:
    """The runs, each with a name of its own.

    Args:
        places: run folders or records of this package, `<run>@dense` for another of its models; result files or
            output folders of lm-eval.

    Raises:
        UserError: one of them is no such thing, or two are the same.
    """
    runs = [_open(place) for place in places]
    for number, run in enumerate(runs):
        for other, place in zip(runs[:number], places, strict=False):
            if (Path(run.place).resolve(), run.name) == (Path(other.place).resolve(), other.name):
                raise UserError(f"{places[number]}: the same run as {place}")
    counts = Counter(run.name for run in runs)
    return [
        replace(run, name=f"{run.name} ({place.rstrip('/')})") if counts[run.name] > 1 else run
        for run, place in zip(runs, places, strict=True)
    ]


def _kind(place: str) -> str | None:
    """Which program's run a place is; None: no single run."""
    path = Path(_row(place)[0]).expanduser()
    if path.is_file():
        is_record = path.name == RECORD or (path.suffix == ".json" and _has_idp(path, place))
        return IDP if is_record else LM_EVAL
    if (path / RECORD).is_file() or (path / STATUS).is_file():
        return IDP
    return LM_EVAL if path.is_dir() and results_files(path) else None


def _has_idp(path: Path, place: str) -> bool:
    values = load(path, place)
    return isinstance(values, dict) and "idp" in values


def _row(place: str) -> tuple[str, str | None]:
    """A place without the row that may be named behind it, and that row."""
    found = re.fullmatch(rf"(.+)@({'|'.join(ROWS)})", place)
    return (found[1], found[2]) if found and not Path(place).expanduser().exists() else (place, None)


def _open(place: str) -> OneRun:
    plain, row = _row(place)
    path = Path(plain).expanduser()
    if _kind(place) == IDP:
        return of_record(path, place, row)
    if row is not None:
        raise UserError(f"{place}: @{row} names a model of a run of idp, and this is none")
    if path.name.startswith("samples_"):
        raise UserError(f"{place}: the documents of one task; name the results_<date>.json beside it, or its folder")
    if path.is_file():
        return of_results(path, place)
    file, notes = newest(results_files(path), place)
    return of_results(file, place, notes)
