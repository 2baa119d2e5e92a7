"""Finished results that lie where nothing can be written: every command that reads opens them, and leaves no trace.

The run that they are of was made in a folder that a group shares; what it and its readers write is for that group.
"""

import os
import stat

import pytest

import idp
from idp import generate
from idp.analyze.__main__ import main as analyze
from idp.errors import UserError
from idp.export.__main__ import main as export
from idp.records.sweeps import Sweep, SweepCell
from idp.report.__main__ import main as report
from idp.store_command import main as store_command
from idp.sweep.__main__ import main as sweep
from tests.others import GROUP, read_only

QUICK = ("model=tiny_llama", "budget=smoke", "task=arc_easy", "tracker=none", "evaluation.perplexity=[]")
QUICK += ("compressor=rtn4", "recovery=prompt", "recovery.length=2", "baselines=false")


@pytest.fixture(scope="module")
def group_folder(tmp_path_factory):
    """A folder whose group, which all in it is of, may write; and the umask that goes with it."""
    folder = tmp_path_factory.mktemp("shared")
    if os.geteuid() == 0:
        os.chown(folder, -1, GROUP)
    folder.chmod(0o2775)
    before = os.umask(0o002)
    yield folder
    os.umask(before)


@pytest.fixture(scope="module")
def words(bridges):
    return (*QUICK, *bridges)


@pytest.fixture(scope="module")
def finished(group_folder, compose, words):
    """The folder of a finished run, on a disk that is read-only; a sweep's beside it."""
    from idp.pipeline import run

    outputs = group_folder / "outputs"
    folder = run(compose(*words, f"output={outputs}"))[1].parent
    Sweep(outputs / "sweeps" / "mine", ["-m"], str(outputs), "basic", [SweepCell(["seed=0"], str(folder))]).write()
    with read_only(outputs):
        yield folder


@pytest.fixture
def elsewhere(group_folder, request):
    """A folder beside, which can be written in."""
    folder = group_folder / request.node.name.partition("[")[0]
    folder.mkdir()
    return folder


def is_for_the_group(folder):
    """Whether all below a folder is the group's to read and write."""
    for path in (folder, *folder.rglob("*")):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode & 0o777 == (0o775 if path.is_dir() else 0o664), path
        assert path.stat().st_gid == folder.parent.stat().st_gid, path
        assert not path.is_dir() or mode & stat.S_ISGID, path
    return True


def test_what_a_run_writes_is_for_the_group(finished):
    assert is_for_the_group(finished.parents[1])


def test_its_models_answer(finished, capsys):
    generate.main([f"record={finished}", "prompt=The river", "max_new_tokens=3"])
    assert "repaired" in capsys.readouterr().out
    model = idp.load(finished)
    assert model.generate(["The river"], 2) and idp.load(finished, variant="dense").perplexity(["The old bridge."])


def test_it_is_exported(finished, elsewhere, capsys):
    export([f"record={finished}", f"out={elsewhere / 'mine'}"])
    assert "exported:" in capsys.readouterr().out
    assert is_for_the_group(elsewhere / "mine")
    with pytest.raises(SystemExit, match=r"error: out=.*Read-only file system|error: out=.*Permission denied"):
        export([f"record={finished}", f"out={finished / 'export'}"])


def test_it_is_reported(finished, elsewhere, capsys, monkeypatch):
    report([str(finished.parent), f"output={elsewhere / 'report'}"])
    assert "wrote:" in capsys.readouterr().out and is_for_the_group(elsewhere / "report")
    monkeypatch.chdir(finished.parents[1])
    report([str(finished.parent)])  # which would be written here
    shown = capsys.readouterr().out
    assert "rtn4" in shown and "note: output=outputs/report: " in shown and "wrote:" not in shown
    with pytest.raises(SystemExit, match="error: output=mine: .*choose another folder"):
        report([str(finished.parent), "output=mine"])


def test_it_is_compared(finished, elsewhere, capsys):
    analyze(["compare", str(finished.parent)])
    shown = capsys.readouterr().out
    assert "# What compression costs" in shown and "note: not written: " in shown and "out=..." in shown
    analyze(["compare", str(finished.parent), f"out={elsewhere}"])
    assert "written:" in capsys.readouterr().out and is_for_the_group(elsewhere / "analysis")
    with pytest.raises(SystemExit, match="error: .*choose a folder with out="):
        analyze(["compare", str(finished.parent), f"out={finished}"])


def test_its_layers_are_compared(finished, elsewhere, capsys):
    analyze(["similarity", f"record={finished}", "documents=1", "tokens=64", f"out={elsewhere}"])
    shown = capsys.readouterr().out
    assert "written:" in shown and (elsewhere / "analysis" / "similarity.json").is_file()
    assert not (finished.parents[1] / "store" / "similarity").exists()


def test_what_there_was_to_choose(group_folder, compose, words, capsys):
    from idp.pipeline import run

    outputs = group_folder / "banks"
    others = [word for word in words if not word.startswith(("recovery", "baselines"))]
    bank = ("recovery=idp", "recovery.lengths=[2,3]", "recovery.fit.blocks=2")
    folder = run(compose(*others, *bank, f"output={outputs}"))[1].parent
    with read_only(outputs):
        analyze(["choice", f"record={folder}"])
        assert "note: not written: " in capsys.readouterr().out
    assert not (outputs / "store" / "embeddings").exists()


def test_its_store_is_listed(finished, capsys):
    store_command(["list", str(finished.parents[1] / "store")])
    assert "recover" in capsys.readouterr().out


def test_the_status_of_its_sweep(finished, capsys):
    sweep(["status", str(finished.parents[1] / "sweeps" / "mine")])
    assert "1 done" in capsys.readouterr().out


def test_its_repair_is_used_by_another_run(finished, elsewhere, compose, words):
    from idp.pipeline import run

    others = [word for word in words if not word.startswith("recovery")]
    given = ("recovery=transfer", f"recovery.from={finished}", "compressor=rtn3")
    record, _ = run(compose(*others, *given, f"output={elsewhere / 'outputs'}"))
    assert record["idp"]["stages"]["recover"]


def test_the_same_run_reads_all_from_its_store(finished, elsewhere, compose, words):
    from idp.pipeline import run

    places = (f"output={elsewhere / 'outputs'}", f"store={finished.parents[1] / 'store'}")
    record, _ = run(compose(*words, *places))
    assert record["idp"]["stages"]["recover"]["reused"]
    with pytest.raises(UserError, match="^store=.*: cannot write there .* Choose another folder with store="):
        run(compose(*words, "recovery.length=3", *places))
