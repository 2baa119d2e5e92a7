"""Sweeps with the launchers that need no SLURM: their cells are listed, and they end the same."""

import json
import os

import pytest

from idp.sweep.__main__ import main

from ..processes import python

SMALL = ("model=tiny_llama", "budget=smoke", "task=arc_easy", "tracker=none", "baselines=false")
SMALL += ("evaluation.perplexity=[]",)


def listed(tmp_path, capsys):
    """The sweeps' folders, and where the cells of the last one stand."""
    folders = sorted((tmp_path / "outputs" / "sweeps").iterdir(), key=lambda folder: folder.stat().st_mtime)
    main(["status", "--json", str(folders[-1])])
    return folders, json.loads(capsys.readouterr().out)


def test_a_sweep_has_a_folder_of_its_own_and_says_what_failed(idp_run, tmp_path, capsys):
    idp_run("-m", *SMALL, "compressor=none,rtn3", "recovery.length=2000,4", "recovery=prompt", fails=True)
    folders, found = listed(tmp_path, capsys)
    assert sorted(stands["state"] for stands in found) == ["done", "done", "failed", "failed"]
    assert all("do not fit in the model's window" in stands["remark"] for stands in found if stands["state"] != "done")
    assert sorted(path.name for path in folders[0].iterdir()) == ["multirun.yaml", "sweep.json"]

    idp_run("-m", *SMALL, "recovery=prompt", "recovery.length=4", "compressor=none,rtn3")  # joins what it has in common
    folders, found = listed(tmp_path, capsys)
    assert len(folders) == 2 and [stands["state"] for stands in found] == ["done", "done"]
    main(["status", str(folders[0])])
    assert "4 cells: 2 done, 2 failed" in capsys.readouterr().out
    main(["resume", str(folders[1])])
    assert "nothing is missing, and nothing failed" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="only hydra.launcher"):
        main(["resume", str(folders[0]), "seed=3"])


@pytest.mark.parametrize("launcher", [["joblib", "hydra.launcher.n_jobs=2"], ["submitit_local"]])
def test_cells_side_by_side(launcher, idp_run, tmp_path, capsys):
    name, *options = launcher
    idp_run("-m", f"hydra/launcher={name}", *options, *SMALL, "compressor=rtn3", "recovery=none,hard_prompt")
    folders, found = listed(tmp_path, capsys)
    assert len(folders) == 1 and [stands["state"] for stands in found] == ["done", "done"]
    assert len(list((tmp_path / "outputs/store/compress").iterdir())) == 1


def test_resume_gives_the_command_again(idp_run, tmp_path, capsys):
    words = ("-m", *SMALL, "recovery=none,hard_prompt")
    idp_run(*words)
    folders, found = listed(tmp_path, capsys)
    (tmp_path / "outputs" / "runs" / os.path.basename(found[1]["cell"]["folder"]) / "record.json").unlink()
    done = python("-m", "idp.sweep", "resume", folders[-1], env={**os.environ, "PYTEST_FORKS": "1"})
    assert done.returncode == 0, done.stderr
    assert [stands["state"] for stands in listed(tmp_path, capsys)[1]] == ["done", "done"]


def test_without_slurm_it_is_said_in_a_line(idp_run, tmp_path):
    nowhere = {**os.environ, "PATH": str(tmp_path)}
    done = idp_run("-m", *SMALL, "hydra/launcher=slurm", fails=True, env=nowhere)
    assert "error: hydra/launcher=slurm: nothing was submitted: " in done.stderr
    assert "Traceback" not in done.stderr
