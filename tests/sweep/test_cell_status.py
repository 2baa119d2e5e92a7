"""Where cells stand, by the status files and by what squeue and sacct say."""

import json
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest

from idp.errors import UserError
from idp.records.record import RECORD
from idp.records.sweeps import Command, Submission, Sweep, SweepCell, newest, read
from idp.status import Status
from idp.store.lease import process_token
from idp.sweep import __main__ as command
from idp.sweep import queue
from idp.sweep.cell_status import statuses, table
from idp.sweep.cells import _before, submit, submitted


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """`slurm(squeue=..., sacct=...)`: commands that print these lines."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}/bin:/usr/bin")

    def says(**commands):
        for name, lines in commands.items():
            script = tmp_path / "bin" / name
            script.write_text("#!/bin/sh\n" + (f"cat <<'END'\n{lines}\nEND\n" if lines is not None else "exit 1\n"))
            script.chmod(0o755)

    says(squeue="", sacct=None)
    return says


@pytest.fixture
def sweep(tmp_path):
    """A sweep of three cells that nobody started."""
    cells = [SweepCell([f"seed={seed}", "task=piqa"], str(tmp_path / "runs" / f"run-{seed}")) for seed in range(3)]
    made = Sweep(tmp_path / "sweeps" / "one", ["-m", "seed=0,1,2"], str(tmp_path), "slurm", cells)
    made.write()
    return made


def status(cell, submission=None, record=False, **values):
    """A run's status file, as the run itself would have written it."""
    folder = Path(cell.folder)
    folder.mkdir(parents=True, exist_ok=True)
    said = Status(folder, folder.name)
    if submission:
        values |= {"submission": submission}
    said.update(**values)
    if record:
        (folder / RECORD).write_text("{}")
    return folder


def test_what_was_written_is_read(sweep):
    assert read(sweep.folder) == sweep
    assert newest(sweep.folder.parent) == sweep.folder
    with pytest.raises(UserError, match="no sweep here"):
        read(sweep.folder.parent)
    (sweep.folder / "sweep.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        read(sweep.folder)


def test_a_sweep_that_slurm_knows_nothing_of(sweep, slurm):
    done, failed, _ = sweep.cells
    status(done, state="done", record=True)
    status(failed, state="failed", error="recover: out of memory", stage="recover")
    slurm(squeue=None)  # is not asked
    found = statuses(sweep)
    assert [stands.state for stands in found] == ["done", "failed", "missing"]
    assert found[1].remark == "recover: out of memory"
    shown = table(sweep, found)
    assert "3 cells: 1 done, 1 failed, 1 missing" in shown
    assert "seed=1" in shown and "task=piqa" not in shown


def test_the_command_finds_the_last_sweep(sweep, slurm, monkeypatch, capsys):
    monkeypatch.setattr(command, "_sweeps", lambda: sweep.folder.parent)
    for words in (["status", "--json"], ["status", "json=true"], ["status", str(sweep.folder), "--json"]):
        command.main(words)
        found = json.loads(capsys.readouterr().out)
        assert [each["cell"]["overrides"][0] for each in found] == ["seed=0", "seed=1", "seed=2"]
    command.main(["status"])
    assert "seed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "folder", "launcher"),
    [
        ([], None, []),
        (["hydra.launcher.timeout_min=5"], None, ["hydra.launcher.timeout_min=5"]),
        (["{folder}", "hydra.launcher.timeout_min=5"], "{folder}", ["hydra.launcher.timeout_min=5"]),
        (["folder={folder}"], "{folder}", []),
    ],
)
def test_resume_tells_the_folder_from_the_launcher(words, folder, launcher, sweep, monkeypatch):
    seen = []
    monkeypatch.setattr(command, "act", lambda *given: seen.extend(given))
    command.main(["resume", *(word.format(folder=sweep.folder) for word in words)])
    assert seen == ["resume", command.ResumeOptions(folder and folder.format(folder=sweep.folder)), launcher]


def test_done_takes_a_record(sweep, slurm):
    status(sweep.cells[0], state="done")
    assert statuses(sweep)[0].state == "failed"


@pytest.mark.parametrize(
    "text",
    [
        "null",
        "[]",
        "{}",
        '"done"',
        "",
        "{",
        '{"state": "done"}',
        '{"state": "running", "pid": "7", "started": "today"}',
    ],
)
def test_an_odd_status_file_costs_its_own_cell_alone(text, sweep, slurm):
    place = status(sweep.cells[0], state="done", record=True)
    (place / "status.json").write_text(text)
    status(sweep.cells[1], state="done", record=True)
    found = statuses(sweep)
    assert [each.state for each in found] == ["unknown", "done", "missing"] and found[0].open
    assert found[0].remark.startswith(str(place / "status.json")) and "\n" not in found[0].remark
    assert "1 done, 1 missing, 1 unknown" in table(sweep, found)


def test_a_start_that_is_no_time_and_a_record_that_is_gone(sweep, slurm):
    place = status(sweep.cells[0], state="running", started="yesterday")
    status(sweep.cells[1], state="done")
    found = statuses(sweep)
    assert found[0].state == "unknown" and "(it lacks started)" in found[0].remark and place.name in found[0].remark
    assert found[1].state == "failed" and "record.json is gone" in found[1].remark


@pytest.mark.parametrize("text", ["", "null", "[]", '{"name": 1, "time": "now", "folders": {}}', '{"other": 1}'])
def test_an_odd_submission_file_costs_no_listing(text, sweep, slurm, caplog):
    made = submit(sweep, "idp-a", sweep.cells)
    submitted(sweep, made, "7")
    file = sweep.folder / "submissions" / "idp-b.json"
    file.write_text(text)
    slurm(squeue="7|0|RUNNING|None|idp-a")
    assert len(statuses(sweep)) == 3
    assert any(str(file) in line and "cannot be read" in line for line in caplog.messages)


@pytest.mark.parametrize(
    "text", ["", "null", "[]", '{"cells": null}', '{"cells": [{}]}', '{"cells": [{"overrides": 3, "folder": 4}]}']
)
def test_a_broken_list_is_named_and_written_anew_by_the_command(text, sweep, caplog):
    (sweep.folder / "sweep.json").write_text(text)
    with pytest.raises(UserError, match=r"sweep.json: cannot be read \(.*\); give the sweep's command again"):
        read(sweep.folder)
    assert _before(sweep.folder) is None
    assert any("it is written anew now" in line for line in caplog.messages)


def test_a_run_of_this_machine_is_running_while_its_process_lives(sweep, slurm):
    folder = status(sweep.cells[0], state="running", stage="measure")
    (folder / ".lock").write_text("")
    assert statuses(sweep)[0].state == "running"
    values = json.loads((folder / "status.json").read_text())
    (folder / "status.json").write_text(json.dumps(values | {"pid": 2**22 - 3}))
    assert (statuses(sweep)[0].state, statuses(sweep)[0].remark) == ("failed", "killed at stage measure")


def test_a_number_that_another_process_has_now_is_no_run(sweep, slurm):
    """As after a reboot, or in a container that was started anew: the number lives, the lease may still look fresh."""
    folder = status(sweep.cells[0], state="running", stage="measure")
    (folder / ".lock").write_text("")
    values = json.loads((folder / "status.json").read_text())
    place, _, start = values["process"].rpartition("/")

    def state(seconds=0.0, **other):
        (folder / "status.json").write_text(json.dumps({**values, **other}))
        os.utime(folder / ".lock", (time.time() - seconds,) * 2)
        return statuses(sweep)[0].state

    assert state(3600) == "running", "a process that stands still lives"
    assert state(process=f"{place}/{int(start) - 1}") == "failed", "an earlier process of this number"
    boot, _, namespace = place.rpartition("/")
    for elsewhere in (
        f"another-boot/{namespace}/{start}",
        f"{boot}/1/{start}",
    ):  # it may also be a machine of this name
        assert (state(process=elsewhere), state(3600, process=elsewhere)) == ("running", "failed")
    del values["process"]  # of an earlier version
    assert (state(), state(3600), state(pid=2**22 - 3)) == ("running", "failed", "failed")
    child = os.fork()
    if not child:
        os._exit(0)
    try:
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        assert process_token(child) is None, "one that ended, and whose parent has not asked how"
    finally:
        os.waitpid(child, 0)


def test_a_run_elsewhere_is_running_while_its_lock_is_touched(sweep, slurm):
    folder = status(sweep.cells[0], state="running", host="node7", process="boot/1/2")
    (folder / ".lock").write_text("")
    assert statuses(sweep)[0].state == "running"
    os.utime(folder / ".lock", (time.time() - 3600,) * 2)
    assert statuses(sweep)[0].state == "failed"


def test_the_queue_says_what_waits_and_runs(sweep, slurm):
    submitted(sweep, submit(sweep, "idp-1f", sweep.cells), "12")
    status(sweep.cells[0], "idp-1f", state="running", stage="recover")
    slurm(
        squeue="12|0|RUNNING|None|idp-1f\n12|1|PENDING|Resources|idp-1f\n12|2|RUNNING|None|idp-1f\n9|N/A|RUNNING|None|x"
    )
    found = statuses(sweep)
    assert [(stands.state, stands.job, stands.remark) for stands in found] == [
        ("running", "12_0", "recover"),
        ("queued", "12_1", "Resources"),
        ("running", "12_2", "starting"),
    ]
    status(sweep.cells[0], "idp-1f", state="queued", stage="recover")
    slurm(squeue="12|0|PENDING|BeginTime|idp-1f\n12|1|PENDING|Resources|idp-1f\n12|2|RUNNING|None|idp-1f")
    assert statuses(sweep)[0].remark == "BeginTime, goes on at recover"


def test_jobs_that_are_gone(sweep, slurm):
    submitted(sweep, submit(sweep, "idp-1f", sweep.cells), "12")
    status(sweep.cells[0], "idp-1f", state="running", stage="recover", job="12_0")
    status(sweep.cells[2], "idp-1f", state="done", record=True)
    (sweep.folder / "jobs").mkdir()
    log = sweep.folder / "jobs" / "12_1_0_log.err"
    log.write_text("ImportError: libcudart.so")
    found = statuses(sweep)
    assert [stands.state for stands in found] == ["failed", "failed", "done"]
    assert found[0].remark == "killed at stage recover"
    assert found[1].remark == f"ended before the run began; see {log}"
    slurm(sacct="12_0|OUT_OF_MEMORY|idp-1f\n12_1|CANCELLED by 0|idp-1f\n7|FAILED|other")
    found = statuses(sweep)
    assert found[0].remark == "killed at stage recover; OUT_OF_MEMORY"
    assert found[1].remark == f"ended before the run began; CANCELLED; see {log}"


def test_an_earlier_failure_is_not_that_of_the_last_job(sweep, slurm):
    folder = status(sweep.cells[0], "idp-old", state="failed", error="an old mistake")
    values = json.loads((folder / "status.json").read_text())
    (folder / "status.json").write_text(json.dumps(values | {"started": "2020-01-01T00:00:00Z"}))
    assert statuses(sweep)[0].remark == "an old mistake"
    submit(sweep, "idp-new", sweep.cells)
    assert statuses(sweep)[0].remark == "ended before the run began"
    status(sweep.cells[0], state="failed", error="a new one, by hand")
    assert statuses(sweep)[0].remark == "a new one, by hand"


def test_another_sweep_may_have_submitted_the_cell(sweep, slurm):
    other = Sweep(sweep.folder.parent / "two", [], "", "slurm", sweep.cells[1:2])
    other.write()
    submit(other, "idp-2f", other.cells)
    slurm(squeue="31|N/A|PENDING|Priority|idp-2f")
    assert [stands.state for stands in statuses(sweep)] == ["missing", "queued", "missing"]


def test_the_queue_is_asked_by_job_whoever_asks(sweep, slurm, tmp_path, monkeypatch):
    submitted(sweep, submit(sweep, "idp-1f", sweep.cells), "12")
    monkeypatch.setenv("LOGNAME", "nobody")
    (tmp_path / "bin" / "squeue").write_text(
        '#!/bin/sh\ncase "$*" in *--user*|*--me*) exit 0;; *--name=idp-1f*) echo "12|0|RUNNING|None|idp-1f";; esac\n'
    )
    assert [stands.state for stands in statuses(sweep)] == ["running", "failed", "failed"]


def test_a_colleague_whose_slurm_shows_no_jobs_of_others(sweep, slurm, monkeypatch):
    submitted(sweep, submit(sweep, "idp-1f", sweep.cells), "12")
    folder = status(sweep.cells[0], "idp-1f", state="running", stage="recover", host="node7", process="boot/1/2")
    (folder / ".lock").write_text("")
    status(sweep.cells[1], "idp-1f", state="failed", error="a mistake")
    assert [stands.state for stands in statuses(sweep)] == ["failed"] * 3, "one's own jobs are not in the queue"
    monkeypatch.setattr("os.geteuid", lambda: 12345)
    slurm(scontrol="PrivateData             = none")
    assert [stands.state for stands in statuses(sweep)] == ["running", "failed", "failed"]
    slurm(scontrol="PrivateData             = accounts,jobs")
    found = statuses(sweep)
    assert [stands.state for stands in found] == ["running", "failed", "queued"]
    assert found[2].remark == "or ended: SLURM shows you no jobs of others"


def test_where_all_is_done_no_queue_is_asked(sweep, slurm):
    submitted(sweep, submit(sweep, "idp-1f", sweep.cells), "12")
    for cell in sweep.cells:
        status(cell, "idp-1f", state="done", record=True)
    slurm(squeue=None)
    assert [stands.state for stands in statuses(sweep)] == ["done"] * 3


@pytest.mark.parametrize(
    ("says", "longest"),
    [("MaxArraySize  = 1001", 1000), ("MaxArraySize  = 51", 51), ("MaxArraySize = 0", 1), ("", 1000), (None, 1000)],
)
def test_arrays_are_as_long_as_slurm_has_them(says, longest, slurm):
    slurm(scontrol=says)
    assert queue.longest_array(1000) == longest


def test_resume_gives_every_command_of_a_folder_again(sweep, monkeypatch, tmp_path):
    first = Command(["-m", "seed=0"], str(tmp_path), "slurm")
    assert first.is_as(Command(["seed=0", "-m", "hydra.launcher.timeout_min=5"], "/elsewhere", "joblib"))
    sweep.earlier = [first, Command(["-m", "seed=1"], str(tmp_path), "basic")]
    sweep.write()
    given = []
    monkeypatch.setattr("subprocess.run", lambda words, cwd: given.append(words[2:]))
    monkeypatch.setattr("os.execv", lambda program, words: given.append(words[2:]))
    monkeypatch.chdir(tmp_path)
    command.resume(read(sweep.folder), ["hydra.launcher.mem_gb=64"])
    assert given == [
        ["idp.run", "-m", "seed=0", "hydra.launcher.mem_gb=64"],
        ["idp.run", "-m", "seed=1"],
        ["idp.run", "-m", "seed=0,1,2", "hydra.launcher.mem_gb=64"],
    ]


def test_a_queue_that_does_not_answer(sweep, slurm):
    submit(sweep, "idp-1f", sweep.cells)
    slurm(squeue=None)
    with pytest.raises(UserError, match="squeue does not answer: exit status 1"):
        statuses(sweep)


def test_jobs_are_numbered_as_squeue_shows_them():
    assert Submission("n", 0, ["a"], "7").number(0) == "7"
    assert Submission("n", 0, ["a", "b"], "7").number(1) == "7_1"
    assert Submission("n", 0, ["a", "b"]).number(1) is None


def _as_before(sweep):
    """The sweep's files as earlier versions wrote them, with absolute paths and no place."""
    for file in [sweep.folder / "sweep.json", *(sweep.folder / "submissions").glob("*.json")]:
        values = json.loads(file.read_text())
        values.pop("place", None)
        for cell in values.get("cells", []):
            cell["folder"] = os.path.normpath(sweep.folder / cell["folder"])
        if "folders" in values:
            values["folders"] = [os.path.normpath(sweep.folder / each) for each in values["folders"]]
        if "directory" in values:
            values["directory"] = sweep.directory
        file.write_text(json.dumps(values))


@pytest.mark.parametrize("before", [False, True], ids=["relative", "absolute, as before"])
@pytest.mark.parametrize("copied", [False, True], ids=["moved", "copied"])
def test_a_sweep_elsewhere_lists_its_own_runs(copied, before, slurm, tmp_path):
    runs = tmp_path / "m1" / "runs"
    cells = [SweepCell([f"seed={seed}"], str(runs / f"run-{seed}")) for seed in range(2)]
    made = Sweep(tmp_path / "m1" / "sweeps" / "one", ["-m", "seed=0,1", "output=m1"], str(tmp_path), "slurm", cells)
    made.write()
    status(cells[0], record=True, state="done")
    submitted(made, submit(made, "idp-1", cells), "7")
    if before:
        _as_before(made)
    (shutil.copytree if copied else shutil.move)(tmp_path / "m1", tmp_path / "m2")
    there = read(tmp_path / "m2" / "sweeps" / "one")
    assert [cell.folder for cell in there.cells] == [str(tmp_path / "m2" / "runs" / f"run-{seed}") for seed in range(2)]
    done, open_one = statuses(there)
    assert done.state == "done"
    assert (open_one.state, open_one.job) == (("missing", None) if copied else ("failed", "7_1"))
    assert there.directory == str(tmp_path)
    place = tmp_path / "m2"
    assert there.command == ["-m", "seed=0,1", f"output='{place}'", f"hydra.sweep.dir='{place}/sweeps/one'"]
    there.write()
    assert read(there.folder) == there


def test_a_command_goes_with_its_directory_and_names_what_is_inside_the_output(tmp_path):
    given = tmp_path / "one"
    words = ["-m", "store=outputs/store", f"compressor.path={given}/outputs/mine", "corpus.path=texts/a.txt", "seed=0"]
    made = Sweep(given / "outputs" / "sweeps" / "1", words, str(given), "slurm", [])
    made.write()
    assert read(made.folder) == made
    shutil.copytree(given, tmp_path / "it's two")
    there = read(tmp_path / "it's two" / "outputs" / "sweeps" / "1")
    output = f"{tmp_path}/it\\'s two/outputs"
    assert there.directory == str(tmp_path / "it's two")
    moved = ["-m", f"store='{output}/store'", f"compressor.path='{output}/mine'", "corpus.path=texts/a.txt", "seed=0"]
    assert there.command == [*moved, f"output='{output}'", f"hydra.sweep.dir='{output}/sweeps/1'"]
    shutil.move(given / "outputs", tmp_path / "elsewhere")
    assert read(tmp_path / "elsewhere" / "sweeps" / "1").directory == str(given)


def test_a_folder_seen_by_another_path_is_the_same(tmp_path):
    made = Sweep(tmp_path / "m1" / "sweeps" / "one", ["-m", "seed=0"], str(tmp_path), "slurm", [])
    made.write()
    (tmp_path / "link").symlink_to(tmp_path / "m1")
    assert read(tmp_path / "link" / "sweeps" / "one").command == made.command


def test_a_copy_of_a_run_that_goes_on_is_not_that_run(slurm, tmp_path):
    made = Sweep(tmp_path / "m1" / "sweeps" / "one", [], str(tmp_path), "slurm", [])
    made.cells = [SweepCell(["seed=0"], str(tmp_path / "m1" / "runs" / "a"))]
    folder = Path(made.cells[0].folder)
    values = Status(folder, "a").values
    status(made.cells[0], state="running", **{name: values[name] for name in ("folder", "host", "pid", "process")})
    (folder / ".lock").touch()
    made.write()
    assert statuses(made)[0].state == "running"
    shutil.copytree(tmp_path / "m1", tmp_path / "m2")
    os.utime(tmp_path / "m2" / "runs" / "a" / ".lock", (0, 0))
    assert statuses(read(tmp_path / "m2" / "sweeps" / "one"))[0].state == "failed"


def test_a_run_of_an_edited_config_is_told_apart_and_its_new_one_is_open(slurm, sweep, tmp_path, monkeypatch):
    from types import SimpleNamespace

    from idp.sweep import cells as listing

    status(sweep.cells[0], record=True, state="done")
    new = [replace(cell, folder=f"{cell.folder}-new") for cell in sweep.cells]
    made = {tuple(cell.overrides): cell for cell in new}
    monkeypatch.setattr(listing, "_cell", lambda config, loader, overrides: made[tuple(overrides)])
    runtime = SimpleNamespace(choices={"hydra/launcher": "slurm"})
    config = SimpleNamespace(hydra=SimpleNamespace(sweep=SimpleNamespace(dir=str(sweep.folder)), runtime=runtime))
    again = listing.list_cells(config, None, [cell.overrides for cell in new])
    assert again.cells == [replace(sweep.cells[0], replaced=True), *new]  # what never ran leaves no line
    assert read(sweep.folder) == again
    assert [(each.state, each.open) for each in statuses(again)] == [("done", False), *[("missing", True)] * 3]
    assert "seed=0 (of the config before it was edited)" in table(again, statuses(again))
