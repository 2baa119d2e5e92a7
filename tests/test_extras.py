"""What the main job does not need may be missing: it runs without, and a feature that needs it says what to install."""

import json
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from idp.errors import UserError

from .processes import python

ROOT = Path(__file__).parent.parent
MODULES = {  # of each extra that a user may leave out
    "dashboard": ["wandb_workspaces"],
    "joblib": ["hydra_plugins.hydra_joblib_launcher"],
    "plots": ["matplotlib"],
    "slurm": ["submitit", "hydra_plugins.hydra_submitit_launcher"],
    "sweep": ["optuna"],
}
HIDDEN = [name for names in MODULES.values() for name in names]


def without(*names: str, module: str = "idp.run") -> str:
    """Code that runs a module's `main` where the modules of these names are not installed."""
    return f"import sys; sys.modules.update(dict.fromkeys({list(names)})); from {module} import main; main()"


@pytest.fixture
def hide(monkeypatch):
    """`hide(name)`: makes the import of a module fail as if it were not installed."""

    def hidden(name: str) -> None:
        for known in [each for each in sys.modules if each == name or each.startswith(f"{name}.")]:
            monkeypatch.delitem(sys.modules, known)
        monkeypatch.setitem(sys.modules, name, None)

    return hidden


def test_every_extra_for_users_is_in_all_and_known_here():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (everything,) = map(Requirement, extras.pop("all"))
    assert everything.extras == set(MODULES) == set(extras) - {"dev", "docs"}
    assert {"all"} <= next(each for each in map(Requirement, extras["dev"]) if each.name == "idp").extras


def test_every_pin_and_range_has_its_reason():
    project = (ROOT / "pyproject.toml").read_text().partition("\ndependencies = ")[2].partition("[project.scripts]")[0]
    ranges = [line for line in project.splitlines() if line.lstrip().startswith('"') and ("=" in line or '",' in line)]
    extras = [line for line in project.splitlines() if " = [" in line and ">=" in line]
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line]
    assert len(ranges) > 20 and len(extras) >= 5 and len(pins) > 30
    for line in (*ranges, *extras, *pins):
        assert "idp[" in line or len(line.partition(" # ")[2]) > 5, line


def test_a_run_and_its_tables_need_no_extra(bridges, tmp_path):
    small = ["model=tiny_llama", "task=arc_easy", "budget=smoke", "compressor=rtn4", "recovery=prompt", *bridges]
    words = [*small, "baselines=false", "evaluation.perplexity=[]", f"output={tmp_path / 'outputs'}"]
    done = python("-c", without(*HIDDEN), *words)  # with W&B
    assert done.returncode == 0, done.stderr
    record = Path(done.stdout.strip().splitlines()[-1].removeprefix("record: "))
    assert "arc_easy" in done.stdout and json.loads(record.read_text())["results"]
    done = python("-c", without(*HIDDEN, module="idp.report.__main__"), str(record), f"output={tmp_path / 'report'}")
    assert done.returncode == 0, done.stderr
    assert "note: no plots: drawing them needs matplotlib: pip install 'idp[plots]'" in done.stdout
    assert {file.name for file in (tmp_path / "report").iterdir()} == {
        *("report.md", "table.csv", "table.tex", "paper.tex", "results.csv", "results.parquet", "records.csv"),
        "index.html",
    }


@pytest.mark.parametrize("words", [["--cfg", "job"], ["--cfg", "job", "recovery=idp", "compressor=gptq3", "task=all"]])
def test_a_config_is_shown_without_extras(words):
    done = python("-c", without(*HIDDEN), *words)
    assert done.returncode == 0 and done.stdout.startswith("model:") and not done.stderr, done.stderr


@pytest.mark.parametrize(
    ("word", "extra", "package"),
    [
        ("hydra/launcher=joblib", "joblib", "hydra-joblib-launcher"),
        ("hydra/launcher=submitit_local", "slurm", "hydra-submitit-launcher"),
        ("hydra/launcher=slurm", "slurm", "hydra-submitit-launcher"),
        ("hydra/sweeper=optuna", "sweep", "optuna>=4.4"),
    ],
)
def test_a_launcher_or_sweeper_that_is_missing_is_named(word, extra, package):
    words = ["-m", word, "recovery=prompt", "recovery.length=choice(1,2)"]
    done = python("-c", without(*HIDDEN), *words, cold=True)
    assert done.returncode == 1
    assert done.stderr.strip() == f"error: {word} needs {package}: pip install 'idp[{extra}]'"


def test_an_optuna_that_is_too_old_is_as_none(hide):
    pytest.importorskip("optuna", minversion="4.4")
    from idp.extras import needs

    hide("optuna.storages.journal")  # as before Optuna 4
    with (
        pytest.raises(UserError, match=r"needs optuna>=4.4: pip install 'idp\[sweep\]'"),
        needs("x", "optuna>=4.4", "sweep"),
    ):
        import optuna.storages.journal  # noqa: F401


def test_the_dashboard_names_what_it_needs(hide):
    from idp.dashboard import specification

    hide("wandb_workspaces")
    with pytest.raises(UserError, match=r"^idp.dashboard needs wandb-workspaces: pip install 'idp\[dashboard\]'$"):
        specification([], "me", "demo")


def test_plots_that_were_asked_for_are_not_left_out(hide, tmp_path):
    from idp.records.collect import Collection
    from idp.report.write import write

    hide("matplotlib")
    with pytest.raises(UserError, match=r"formats=plots needs matplotlib: pip install 'idp\[plots\]'$"):
        write(Collection([], [], []), tmp_path, ["plots"])
