"""The cases of `tests.faults.people`: what is done to a finished sweep's folder, and how it has to stand afterwards."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from idp.records.record import RECORD
from idp.status import LOCK, STATUS
from tests.faults.people import GROUP, NOBODY, SWEEP, Place, Unavailable
from tests.faults.runs import Fault, difference

Case = Callable[[Place, Place], None]
CASES: list[tuple[str, Case]] = []


def case(kind: str) -> Callable[[Case], Case]:
    """Adds a function to the cases of a kind; its docstring is what is done."""

    def add(function: Case) -> Case:
        CASES.append((kind, function))
        return function

    return add


def _as_whole(place: Place, whole: Place) -> None:
    if (where := difference(whole.records(), place.records(), "record")) is not None:
        raise Fault(f"not the undisturbed run's: {where}")


def _lost(place: Place) -> Path:
    """Takes a run's folder away; it is to be made again."""
    run = place.runs[1]
    shutil.rmtree(run)
    return run


def _goes_on(place: Place, whole: Place) -> None:
    """A run is lost: `resume` makes it again, in this place, from what is stored here."""
    _lost(place)
    place.wants("done", "missing")
    before = place.products()
    place.idp("sweep", "resume", str(place.list))
    place.wants("done", "done")
    if again := [name for name, when in place.products().items() if before.get(name) not in (None, when)]:
        raise Fault(f"made again: {again}")
    _as_whole(place, whole)


def _is_used(place: Place, user: int | None = None) -> None:
    """What is finished answers, is exported, and is drawn, into a folder elsewhere."""
    run, elsewhere = str(place.runs[0]), place.folder.parent / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    elsewhere.chmod(0o777)
    place.idp("generate", f"record={run}", "prompt=The bridge", "max_new_tokens=2", user=user)
    place.idp("export", f"record={run}", f"out={elsewhere / 'export'}", user=user)
    place.idp("report", str(place.output), f"output={elsewhere / 'report'}", user=user)
    place.idp("analyze", "compare", run, str(place.runs[1]), user=user)


@case("move")
def output_is_renamed(place: Place, whole: Place) -> None:
    """the output is renamed"""
    place.output = place.output.rename(place.folder / "renamed")
    place.wants("done", "done")
    _goes_on(place, whole)
    _is_used(place)
    if (place.folder / "outputs").exists():
        raise Fault("the old output was made again")


@case("move")
def project_is_renamed(place: Place, whole: Place) -> None:
    """the project's folder is renamed, with the output in it"""
    moved = Place(place.folder.rename(place.folder.with_name("with an apostrophe's space")))
    moved.wants("done", "done")
    _goes_on(moved, whole)
    _is_used(moved)


@case("move")
def output_goes_elsewhere(place: Place, whole: Place) -> None:
    """the output goes to another folder, deeper"""
    deep = place.folder / "a" / "b"
    deep.mkdir(parents=True)
    shutil.move(place.output, deep / "out")
    place.output = deep / "out"
    place.wants("done", "done")
    _is_used(place)


@case("move")
def half_made_is_moved(place: Place, whole: Place) -> None:
    """a run that was killed in its training is moved, and its command given with the new output"""
    shutil.rmtree(_lost(place), ignore_errors=True)
    for product in place.output.glob("store/recover/*"):
        if product.name not in (place.runs[0] / RECORD).read_text():
            shutil.rmtree(product)
    place.output = place.output.rename(place.folder / "renamed")
    before = place.products()
    place.sweep()
    if again := [name for name, when in before.items() if place.products().get(name) != when]:
        raise Fault(f"made again: {again}")
    _as_whole(place, whole)


@case("copy")
def copy_reads_its_own(place: Place, whole: Place) -> None:
    """the output is copied, and the original's weights are damaged"""
    shutil.copytree(place.output, place.folder / "copied")
    for file in place.output.glob("store/*/*/model/*.safetensors"):
        file.write_bytes(b"\0" * file.stat().st_size)
    place.output = place.folder / "copied"
    place.wants("done", "done")
    _is_used(place)
    place.sweep("task=piqa")


@case("copy")
def copy_leaves_the_original(place: Place, whole: Place) -> None:
    """the output is copied, and the copy goes on: nothing of the original changes"""
    original = Place(place.folder)
    before = original.files()
    place.output = Path(shutil.copytree(place.output, place.folder / "copied"))
    _goes_on(place, whole)
    if original.files() != before:
        raise Fault(f"changed: {sorted(set(original.files().items()) ^ set(before.items()))[0]}")


@case("copy")
def project_is_copied(place: Place, whole: Place) -> None:
    """the project is copied, and its recovery edited there"""
    before = place.files()
    copy = Place(Path(shutil.copytree(place.folder, place.folder.with_name("copy"))))
    copy.recovery(4)
    copy.sweep()
    copy.wants("done", "done", "done", "done")
    if place.files() != before:
        raise Fault("the original was changed")


@case("copy")
def copy_of_a_live_run(place: Place, whole: Place) -> None:
    """the output is copied while a run goes on in it: the copy's run is not that one"""
    _says_it_runs(place, os.getpid(), None)
    copy = Place(Path(shutil.copytree(place.folder, place.folder.with_name("copy"))))
    os.utime(copy.runs[1] / LOCK, (0, 0))
    place.wants("done", "running")
    copy.wants("done", "failed")


def _says_it_runs(place: Place, pid: int, process: str | None) -> None:
    """The second run says that it is going on in a process."""
    from idp.store.lease import process_token

    run = place.runs[1]
    (run / RECORD).unlink()
    said = json.loads((run / STATUS).read_text())
    said |= {"state": "running", "stage": "recover", "pid": pid, "process": process or process_token(pid)}
    (run / STATUS).write_text(json.dumps(said))
    (run / LOCK).touch()


@case("edit")
def yaml_is_edited(place: Place, whole: Place) -> None:
    """the recovery's YAML is edited, and the command given again: both cells run, the old ones are shown as such"""
    place.recovery(4)
    place.sweep()
    place.wants("done", "done", "done", "done")
    shown = place.idp("sweep", "status", str(place.list))
    if shown.count("before it was edited") != 2:
        raise Fault(f"the old cells are not told apart:\n{shown}")


@case("edit")
def yaml_is_edited_into_what_fails(place: Place, whole: Place) -> None:
    """the YAML is edited into what cannot work, and back: failed cells are listed as failed, none is run again"""
    before = place.products()
    place.recovery(5000)
    place.sweep(code=1)
    place.wants("done", "done", "failed", "failed")
    place.recovery(3)
    place.sweep()
    place.wants("done", "done", "failed", "failed")
    if place.products() != before:
        raise Fault("something was made again")
    place.idp("sweep", "wait", str(place.list), code=0)


@case("edit")
def yaml_is_gone(place: Place, whole: Place) -> None:
    """the YAML is taken away: the command is refused in one line, the list stays"""
    shutil.rmtree(place.folder / "conf")
    said = place.sweep(code=1)
    if "error: " not in said:
        raise Fault(said)
    place.wants("done", "done")


@case("reboot")
def machine_was_started_again(place: Place, whole: Place) -> None:
    """a run said that it was going on when the machine went down"""
    _says_it_runs(place, os.getpid(), "00000000-0000-0000-0000-000000000000/1/1")
    os.utime(place.runs[1] / LOCK, (0, 0))
    place.wants("done", "failed")
    place.idp("sweep", "resume", str(place.list))
    place.wants("done", "done")
    _as_whole(place, whole)


@case("reboot")
def pid_is_another_s(place: Place, whole: Place) -> None:
    """a run's pid was given to another process of this boot"""
    from idp.store.lease import place_of_processes

    _says_it_runs(place, os.getpid(), f"{place_of_processes()}/1")
    place.wants("done", "failed")


@case("reboot")
def locks_are_left(place: Place, whole: Place) -> None:
    """the locks of processes that are gone are left everywhere"""
    gone = subprocess.Popen(["true"])
    gone.wait()
    for folder in (*place.runs, place.output / "store" / "locks"):
        folder.mkdir(exist_ok=True)
        (folder / LOCK).write_text(f"{gone.pid}\n{os.uname().nodename}\n")
    _goes_on(place, whole)


@case("read-only")
def disk_cannot_be_written(place: Place, whole: Place) -> None:
    """the output is on a disk that cannot be written: it answers, is exported, drawn, compared and listed"""
    with _read_only(place.output):
        before = place.files()
        place.wants("done", "done")
        _is_used(place)
        place.idp("store", "list", str(place.output / "store"))
        if place.files() != before:
            raise Fault("something was written")


@case("read-only")
def repair_is_taken_from_there(place: Place, whole: Place) -> None:
    """a repair on such a disk is put on another compressed model"""
    with _read_only(place.output):
        words = [word for word in SWEEP if not word.startswith(("seed=", "recovery=", "compressor="))]
        other = ["compressor=rtn4", "recovery=transfer", f"recovery.from={place.runs[0]}", "output=other"]
        place.idp("run", *words, "corpus.path=text.txt", *other)


@case("read-only")
def run_there_is_refused(place: Place, whole: Place) -> None:
    """a run whose output cannot be written is refused in one line"""
    shutil.rmtree(place.runs[1])
    with _read_only(place.output):
        said = place.sweep(code=1)
        if "error: " not in said or "output=" not in said:
            raise Fault(said[-2000:])


@contextlib.contextmanager
def _read_only(folder: Path) -> Iterator[None]:
    """A block in which nothing in the folder can be written, by root neither."""
    for words in (["--bind", folder, folder], ["-o", "remount,ro,bind", folder]):
        done = subprocess.run(["mount", *map(str, words)], capture_output=True, text=True)
        if done.returncode:
            subprocess.run(["umount", str(folder)], capture_output=True)
            raise Unavailable(f"no folder can be mounted read-only here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@case("other user")
def colleague_looks(place: Place, whole: Place) -> None:
    """a colleague who may only read looks at the sweep and uses what is finished"""
    _may_be_read(place)
    if (found := place.states(user=NOBODY)) != ["done", "done"]:
        raise Fault(f"the cells are {found}")
    _is_used(place, user=NOBODY)


@case("other user")
def colleague_shares_the_store(place: Place, whole: Place) -> None:
    """a colleague of the store's group runs another seed on it: what he writes belongs to the group as well"""
    _may_be_read(place)
    store = place.output / "store"
    for path in (store, *store.rglob("*")):
        os.chown(path, -1, GROUP)
        path.chmod(0o2775 if path.is_dir() else 0o664)
    place.folder.chmod(0o777)
    words = [word for word in SWEEP if not word.startswith("seed=")]
    own = ["corpus.path=text.txt", "output=theirs", "store=outputs/store", "seed=5"]
    before = place.products()
    place.idp("run", "--config-dir=conf", *words, *own, user=NOBODY)
    if again := [name for name, when in before.items() if place.products()[name] != when]:
        raise Fault(f"made again: {again}")
    for path in store.rglob("*"):
        mode, group = path.stat().st_mode, path.stat().st_gid
        if group != GROUP or not mode & 0o020:
            raise Fault(f"{path.relative_to(store)} has mode {mode & 0o7777:o} and group {group}")
    place.sweep("seed=6")  # and the owner's next run on it


def _may_be_read(place: Place) -> None:
    if os.geteuid():
        raise Unavailable("only root can be another user")
    for path in (place.folder, *place.folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    for above in place.folder.parents:
        if not above.stat().st_mode & 0o001:
            raise Unavailable(f"{above} is closed to others")


def _odd(label: str, states: tuple[str, str], spoil: Callable[[Place], None]) -> None:
    """A case of the kind `odd files`: how the cells then stand; the sweep's own command mends it."""

    def odd(place: Place, whole: Place) -> None:
        spoil(place)
        place.wants(*states)
        place.idp("report", str(place.output), f"output={place.folder / 'report'}")
        place.sweep()
        place.wants("done", "done")
        _as_whole(place, whole)

    odd.__doc__ = label
    CASES.append(("odd files", odd))


def _file_for_folder(run: Path) -> None:
    shutil.rmtree(run)
    run.write_text("")


def _folder_for_file(file: Path) -> None:
    file.unlink()
    file.mkdir()


def _status(text: str, place: Place) -> None:
    (place.runs[1] / STATUS).write_text(text)


def _submission(text: str, place: Place) -> None:
    (place.list / "submissions").mkdir()
    (place.list / "submissions" / "idp-1.json").write_text(text)


def _strewn(place: Place) -> None:
    output = place.output
    for folder in (output, output / "runs", output / "store", place.runs[0], place.list, place.list.parent):
        for name in (".DS_Store", "notes.txt", "record.json~", ".nfs000001"):
            (folder / name).write_text("x")
        (folder / "lost+found").mkdir(exist_ok=True)


for said in ("null", "[]", "{}", '"done"', "", "{", '{"state": "done"}', '{"state": 3, "stage": null}'):
    _odd(f"a status of {said or 'nothing'}", ("done", "unknown"), functools.partial(_status, said))
_odd("a record is missing", ("done", "failed"), lambda at: (at.runs[1] / RECORD).unlink())
_odd("a run's folder is a file", ("done", "missing"), lambda at: _file_for_folder(at.runs[1]))
_odd("a status is a folder", ("done", "unknown"), lambda at: _folder_for_file(at.runs[1] / STATUS))
for said in ("", "null", "[]", '{"name": "x"}'):
    _odd(f"a submission of {said or 'nothing'}", ("done", "done"), functools.partial(_submission, said))
_odd("files of editors and systems", ("done", "done"), _strewn)


@case("odd files")
def list_is_broken(place: Place, whole: Place) -> None:
    """a sweep's list is cut: it is named, and the sweep's own command writes it anew"""
    file = place.list / "sweep.json"
    file.write_text(file.read_text()[:100])
    said = place.idp("sweep", "status", str(file.parent), code=1)
    if str(file) not in said:
        raise Fault(said)
    place.idp("report", str(place.output), f"output={place.folder / 'report'}")
    place.sweep()
    place.wants("done", "done")
    _as_whole(place, whole)
