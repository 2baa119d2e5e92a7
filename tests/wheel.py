"""`python -m tests.wheel`: the package as users install it, built and tried from a folder that is no checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import idp

ROOT = Path(__file__).resolve().parents[1]
HELP_SECONDS = 5.0  # on a machine that does other things at the same time; alone it is a tenth of that
RUNS = (  # words of `idp`, and what it prints
    (["--version"], f"idp {idp.__version__} ("),
    (["--help"], "usage: idp <command>"),
    (["run", "--help"], "recovery.training.learning_rate"),
    (["run", "--cfg", "job", "compressor=gptq3", "recovery=idp"], "bits: 3"),
    (["report", "--help"], "usage: idp report"),
    (["store", "--help"], "idp store prune"),
    (["bench", "--help"], "idp bench [benchmark]"),
)


def main() -> None:
    """Builds, installs beside this environment's libraries, and tries; the first thing that is wrong ends it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pip = [sys.executable, "-m", "pip"]
        subprocess.run([*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT], check=True)
        (wheel,) = folder.glob("idp-*.whl")
        check_files(zipfile.ZipFile(wheel).namelist())
        site = folder / "site"
        subprocess.run([*pip, "install", "--quiet", "--no-deps", "--target", site, wheel], check=True)
        check_runs(site)
    print(f"{wheel.name}: holds what it should, and runs outside a checkout")


def check_files(names: list[str]) -> None:
    """What is in the wheel."""
    wanted = {"idp/py.typed", "idp/conf/config.yaml", "idp/report/assets/page.html", "hydra_plugins/idp_optuna.py"}
    assert wanted <= set(names), wanted - set(names)
    strange = [
        each for each in names if not each.startswith(("idp/", "hydra_plugins/", f"idp-{idp.__version__}.dist-"))
    ]
    assert not strange, strange


def check_runs(site: Path) -> None:
    """The installed command, in an empty folder."""
    environment = {**os.environ, "PYTHONPATH": str(site)}
    empty = site.parent / "elsewhere"
    empty.mkdir()

    def run(*words: str, fails: bool = False) -> str:
        done = subprocess.run(words, cwd=empty, env=environment, capture_output=True, text=True)
        assert (done.returncode != 0) == fails, (words, done.stdout[-2000:], done.stderr[-2000:])
        return done.stderr if fails else done.stdout

    command = str(site / "bin" / "idp")
    place = run(sys.executable, "-c", "import idp, idp.config as c; print(idp.__file__, c.conf_dir())").split()
    assert [Path(each).is_relative_to(site) for each in place] == [True, True], place
    for words, said in RUNS:
        start = time.perf_counter()
        assert said in run(command, *words), (words, said)
        seconds = time.perf_counter() - start
        assert "--help" not in words or seconds < HELP_SECONDS, (words, seconds)
        print(f"idp {' '.join(words)}: {seconds:.2f} s")
    assert run(command, "run", "--cfg", "job") == run(sys.executable, "-m", "idp.run", "--cfg", "job")
    for words in ([command, "bench"], [sys.executable, "-m", "idp.bench.training"]):
        assert "is in benchmarks/ of the repository, and not installed" in run(*words, fails=True)
    assert not list(empty.iterdir()), list(empty.iterdir())


if __name__ == "__main__":
    main()
