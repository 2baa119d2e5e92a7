"""`idp <command>`: every module under one name, help without its libraries, and the nearest for a typo."""

from __future__ import annotations

import importlib
import subprocess
import sys
from dataclasses import is_dataclass
from importlib import import_module
from pathlib import Path

import pytest

import idp
from idp import cli, completion
from idp.commands import COMMANDS

from .processes import python

ROOT = Path(__file__).parent.parent
SLOW = ("torch", "transformers", "hydra", "numpy", "scipy", "datasets", "llmcompressor", "wandb", "lm_eval", "pandas")
HELP = """
import sys
from idp.cli import main
try:
    main({words!r})
except SystemExit as ended:
    assert not ended.code, ended.code
print("imported:", *sorted({slow!r} & sys.modules.keys()))
"""


def ended(capsys, *words):
    """What a command that fails says, and its exit status."""
    with pytest.raises(SystemExit) as stopped:
        cli.main(words)
    return stopped.value.code, capsys.readouterr()


@pytest.mark.parametrize("words", [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)], ids=" ".join)
def test_help_imports_no_slow_library(words):
    code = HELP.format(words=words, slow=set(SLOW))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    *shown, imported = done.stdout.splitlines()
    assert shown and imported == "imported:", imported


def test_help_names_every_command(capsys):
    cli_help = ended(capsys, "--help")
    assert cli_help[0] == 0
    for name in COMMANDS:
        assert f"\n  {name} " in cli_help[1].out
    assert ended(capsys)[0] == 2  # the same, as a mistake


def test_version(capsys):
    cli.main(["--version"])
    shown = capsys.readouterr().out
    assert shown.startswith(f"idp {idp.__version__} (Python 3.") and "torch 2." in shown and "transformers 5." in shown


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("rnu", "run"), ("plna", "plan"), ("reprot", "report"), ("analyse", "analyze"), ("exprot", "export"), ("st", "")],
)
def test_a_typo_is_answered_with_the_nearest(typed, meant, capsys):
    said, _ = ended(capsys, typed, "x=1")
    assert said.startswith(
        f"error: {typed}: no such command{f'; did you mean {meant}?' if meant else ' (there are run'}"
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["report", "--formts", "page"], "error: --formts: options are .*; did you mean --formats?"),
        (["analyze", "clams"], "error: clams: no such analysis; .*; did you mean claims?"),
        (["compare", "ruins=x"], "error: ruins=x: options are runs=, out=, .*; did you mean runs=?"),
        (["store", "prun"], "error: prun: no such action; .*; did you mean prune?"),
        (["store", "prune", "--orphan"], "error: --orphan: .*; did you mean --orphans?"),
        (["sweep", "resum"], "error: resum: no such action; .*; did you mean resume?"),
        (["sweep", "status", "--jsn"], "error: --jsn: .*; did you mean --json?"),
        (["dashboard", "--dryrun", "x"], "error: --dryrun: .*; did you mean --dry-run?"),
        (["fetch", "--chek"], "error: --chek: .*; did you mean --check?"),
        (["export", "recrod=x"], "error: recrod=x: .*; did you mean record=?"),
        (["generate", "promt=x"], "error: promt=x: .*; did you mean prompt=?"),
        (["bench", "trainin"], "error: trainin: no such benchmark; did you mean training? .*training)"),
        (["run", "--multirn"], "error: --multirn: .*; did you mean --multirun?"),
        (["run", "--compressor", "gptq4"], "error: --compressor: .* write compressor=..."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_so_is_one_in_an_option(words, said):
    done = python("-m", "idp", *words)
    assert done.returncode == 1 and not done.stdout
    (line,) = done.stderr.strip().splitlines()
    parts = said.split(".*")
    assert line.startswith(parts[0]) and line.endswith(parts[-1]), line


@pytest.mark.parametrize("words", [["run"], []], ids=["idp run", "idp"])
def test_a_run_by_this_name_is_the_run(words):
    overrides = ["--cfg", "job", "compressor=gptq3"]
    if not words:
        overrides = overrides[2:] + overrides[:2]  # as `idp compressor=gptq3 ...` once began it
    done, same = python("-m", "idp", *words, *overrides), python("-m", "idp.run", *overrides)
    assert done.returncode == same.returncode == 0, done.stderr
    assert done.stdout == same.stdout and "bits: 3" in done.stdout
    note = "note: idp compressor=gptq3 ... is short for idp run compressor=gptq3 ...\n"
    assert done.stderr == ("" if words else note)


def test_each_command_becomes_its_module(monkeypatch, tmp_path):
    """`sys.argv` is what the module has when `python -m` starts it: sweeps and records keep it."""
    for command in COMMANDS.values():
        module = import_module(command.module)
        seen = []
        monkeypatch.setattr(module, "main", lambda seen=seen: seen.extend(sys.argv))
        monkeypatch.setattr(sys, "argv", ["idp"])
        cli.main([command.name, "a=b"])
        assert seen == [module.__file__, *command.before, "a=b", *command.after]
    assert COMMANDS["plan"].after == ("--plan",) and COMMANDS["compare"].before == ("compare",)


def test_options_are_found_for_completion():
    for command in COMMANDS.values():
        if command.options is not None:
            options = getattr(import_module(command.module), command.options)
            assert all(map(is_dataclass, options.values() if isinstance(options, dict) else [options]))


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("idp re", ["report"]),
        ("idp analyze ", ["claims", "compare", "displaced", "choice", "similarity"]),
        ("idp analyze claims m", ["margin="]),
        ("idp analyze claims --m", ["--margin"]),
        ("idp export record=x o", ["out=", "only=", "overwrite="]),
        ("idp export record=x rec", []),
        ("idp store prune --d", ["--dry-run"]),
        ("idp compare ", ["runs=", "out=", "metric=", "json=", "csv=", "latex="]),
        ("idp bench tra", ["training"]),
        ("idp nothing ", None),
        ("idp run compr", None),
        ("idp plan compr", None),
        ("idp compressor=gp", None),
    ],
)
def test_what_a_shell_offers(line, offered):
    assert completion.offers(line) == offered


def test_a_benchmark_of_the_checkout_is_said_to_be_there(tmp_path):
    """What only the wheel has: the package without the repository about it."""
    (tmp_path / "idp").symlink_to(ROOT / "idp")
    code = "import sys; sys.path[0] = {!r}; {}"
    fresh = code.format(str(tmp_path), "import idp.bench as b; print(*b.__path__)")
    done = subprocess.run([sys.executable, "-c", fresh], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.split() == [str(tmp_path / "idp" / "bench")], done.stderr
    for words in (["idp", "bench"], ["idp", "bench", "training"], ["idp.bench.training"]):
        start = f"sys.argv[1:] = {words[1:]!r}; import runpy; runpy.run_module({words[0]!r}, run_name='__main__')"
        fresh = code.format(str(tmp_path), start)
        done = subprocess.run([sys.executable, "-c", fresh], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 1 and "is in benchmarks/ of the repository, and not installed" in done.stderr


def test_benchmarks_of_this_checkout_are_found_by_both_names():
    from idp.bench import BENCHMARKS

    for name in BENCHMARKS:
        assert callable(importlib.import_module(f"idp.bench.{name}").main)
    listed = {file.stem for file in (ROOT / "benchmarks").glob("*.py") if "def main(" in file.read_text()}
    assert listed <= set(BENCHMARKS)
