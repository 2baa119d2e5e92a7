"""The grammar that all command lines share."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from idp.command import help_text, parse, parse_action, word
from idp.errors import UserError


@dataclass
class Options:
    """One of each kind."""

    runs: list[str] = word("folders", positional=True, default_factory=list)
    out: str | None = word("where", default=None)
    max_tokens: int = word("tokens", default=5)
    margin: float = word("points", default=1.0)
    kind: list[str] = word("kinds", default_factory=list)
    keep: int | None = word("how many", default=None)
    dry_run: bool = word("only say", default=False)


@dataclass
class Needed:
    """A required option, and one plain word at most."""

    record: str = word("a record")
    folder: str | None = word("a folder", positional=True, default=None)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], Options()),
        (["kind=[a, b]", "x"], Options(runs=["x"], kind=["a", "b"])),
        (["out=a=b"], Options(out="a=b")),
        (["--out", "a=b"], Options(out="a=b")),
        (["--out=a"], Options(out="a")),
        (["max_tokens=7"], Options(max_tokens=7)),
        (["max-tokens=7"], Options(max_tokens=7)),
        (["--max-tokens", "7"], Options(max_tokens=7)),
        (["--max_tokens=7"], Options(max_tokens=7)),
        (["--keep", "-1"], Options(keep=-1)),
        (["margin=0.5"], Options(margin=0.5)),
        (["--margin", "2"], Options(margin=2.0)),
        (["dry_run=true"], Options(dry_run=True)),
        (["--dry-run=False"], Options()),
        (["--dry-run"], Options(dry_run=True)),
        (["--dry-run", "true", "x"], Options(runs=["x"], dry_run=True)),
        (["--dry-run", "x"], Options(runs=["x"], dry_run=True)),
        (["a", "b", "out=c"], Options(runs=["a", "b"], out="c")),
        (["a", "runs=b, c"], Options(runs=["a", "b", "c"])),
        (["--runs", "a", "b", "--dry-run"], Options(runs=["a", "b"], dry_run=True)),
        (["x", "--kind", "a", "b"], Options(runs=["x"], kind=["a", "b"])),
        (["--kind", "a,b", "--dry-run", "x"], Options(runs=["x"], kind=["a,b"], dry_run=True)),
        (["kind=a,b"], Options(kind=["a", "b"])),
    ],
)
def test_words_of_either_form(words, expected):
    assert parse(Options, words) == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ouy=x"], "ouy=x: options are runs=, out=, max_tokens=.*; did you mean out="),
        (["--dryrun"], "--dryrun: options are .*; did you mean --dry-run"),
        (["--max_tokns", "3"], "did you mean --max-tokens"),
        (["-x"], "-x: options are"),
        (["out=a", "--out", "b"], "--out: out is given twice"),
        (["out=a", "out=b"], "out=b: out= is given twice"),
        (["out="], r"out=: give a value \(where\)"),
        (["--out"], r"--out: give a value \(where\)"),
        (["--out", "--dry-run"], r"--out: give a value"),
        (["max_tokens=few"], "max_tokens=few: use a whole number"),
        (["--max-tokens", "1.5"], "--max-tokens 1.5: use a whole number"),
        (["margin=much"], "margin=much: use a number"),
        (["dry_run=yes"], "dry_run=yes: use true or false"),
    ],
)
def test_a_mistake_is_one_line(words, message):
    with pytest.raises(UserError, match=message):
        parse(Options, words)


def test_what_is_needed_is_asked_for():
    with pytest.raises(UserError, match="^record= is missing: a record$"):
        parse(Needed, [])
    with pytest.raises(UserError, match="^b: one folder is enough$"):
        parse(Needed, ["record=x", "a", "b"])
    assert parse(Needed, ["a", "--record", "x"]) == Needed("x", "a")


def test_a_folder_with_an_equals_sign(tmp_path):
    (tmp_path / "seed=1").mkdir()
    assert parse(Options, [str(tmp_path / "seed=1")]).runs == [str(tmp_path / "seed=1")]


def test_actions():
    actions = {"status": Options, "resume": Needed}
    assert parse_action(actions, ["status", "--kind", "a"], "action") == ("status", Options(kind=["a"]))
    with pytest.raises(UserError, match="^statsu: no such action; choose one of status, resume; did you mean status"):
        parse_action(actions, ["statsu"], "action")
    with pytest.raises(UserError, match="^which action"):
        parse_action(actions, [], "action")


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_a_reader_that_has_seen_enough_hears_no_error():
    code = "from idp.command import failures_in_one_line as f\nwith f():\n  [print(n) for n in range(10**6)]"
    line = shlex.join([sys.executable, "-c", code]) + " | head -1"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_help_has_every_option():
    shown = help_text(Options, "Opening")
    assert shown.startswith("Opening\n") and "RUNS or runs=..." in shown and "dry_run=... or --dry-run" in shown
    assert len(shown.splitlines()) == 8
