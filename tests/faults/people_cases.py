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
from idp.store.lease import lease_at, place_of_processes, process_token
from tests.faults.people import GROUP, OTHER, SWEEP, Place, Unavailable
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
    run = place.second
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


def _is_used(place: Place, stranger: bool = False) -> None:
    """What is finished answers, is exported, and is drawn, into a folder elsewhere."""
    run, elsewhere = str(place.first), place.folder.parent / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    elsewhere.chmod(0o777)
    place.idp("generate", f"record={run}", "prompt=The bridge", "max_new_tokens=2", stranger=stranger)
    place.idp("export", f"record={run}", f"out={elsewhere / 'export'}", stranger=stranger)
    place.idp("report", str(place.output), f"output={elsewhere / 'report'}", stranger=stranger)
    place.idp("analyze", "compare", run, str(place.second), stranger=stranger)


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
        if product.name not in (place.first / RECORD).read_text():
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
    os.utime(copy.second / LOCK, (0, 0))
    place.wants("done", "running")
    copy.wants("done", "failed")


def _says_it_runs(place: Place, pid: int, process: str | None) -> None:
    """The second run says that it is going on in a process."""
    run = place.second
    (run / RECORD).unlink()
    said = json.loads((run / STATUS).read_text())
    said |= {"state": "running", "stage": "recover", "pid": pid, "process": process or process_token(pid)}
    (run / STATUS).write_text(json.dumps(said))
    _leave_lock(run)


def _leave_lock(folder: Path) -> None:
    """A lock whose holder is gone."""
    pid = os.fork()
    if pid == 0:
        held = lease_at(folder / LOCK)
        held.acquire()
        os._exit(0)
    os.waitpid(pid, 0)


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
    os.utime(place.second / LOCK, (0, 0))
    place.wants("done", "failed")
    place.idp("sweep", "resume", str(place.list))
    place.wants("done", "done")
    _as_whole(place, whole)


@case("reboot")
def pid_is_another_s(place: Place, whole: Place) -> None:
    """a run's pid was given to another process of this boot"""
    _says_it_runs(place, os.getpid(), f"{place_of_processes()}/1")
    place.wants("done", "failed")


@case("reboot")
def locks_are_left(place: Place, whole: Place) -> None:
    """the locks of processes that are gone are left everywhere"""
    for folder in (*place.runs, place.list.parent):
        _leave_lock(folder)
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
        other = ["compressor=rtn4", "recovery=transfer", f"recovery.from={place.first}", "output=other"]
        place.idp("run", *words, "corpus.path=text.txt", *other)


@case("read-only")
def run_there_is_refused(place: Place, whole: Place) -> None:
    """a run whose output cannot be written is refused in one line"""
    shutil.rmtree(place.second)
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
    _belongs_to_another(place.folder, 0o755, 0o644)
    before = place.files()
    if (found := place.states(stranger=True)) != ["done", "done"]:
        raise Fault(f"the cells are {found}")
    _is_used(place, stranger=True)
    if place.files() != before:
        raise Fault("something was written")


@case("other user")
def colleague_shares_the_store(place: Place, whole: Place) -> None:
    """a colleague of the store's group runs another seed on it: what he writes belongs to the group as well"""
    _belongs_to_another(place.folder, 0o2775, 0o664)
    store = place.output / "store"
    words = [word for word in SWEEP if not word.startswith("seed=")]
    own = ["corpus.path=text.txt", "output=theirs", "store=outputs/store", "seed=5"]
    before = place.products()
    place.idp("run", "--config-dir=conf", *words, *own, stranger=True)
    if again := [name for name, when in before.items() if place.products()[name] != when]:
        raise Fault(f"made again: {again}")
    for path in store.rglob("*"):
        mode, group = path.stat().st_mode, path.stat().st_gid
        if group != GROUP or not mode & 0o020 or not mode & 0o004:
            raise Fault(f"{path.relative_to(store)} has mode {mode & 0o7777:o} and group {group}")
    place.sweep("seed=6")  # and the next run on it


def _belongs_to_another(folder: Path, folders: int, files: int) -> None:
    """Gives all of it to somebody else, and to a group that `stranger` is of."""
    for path in (folder, *folder.rglob("*")):
        try:
            os.chown(path, OTHER, GROUP)
        except PermissionError as error:
            raise Unavailable("only root can give files away") from error
        path.chmod(folders if path.is_dir() else files)


def _odd(
    label: str,
    states: tuple[str, str],
    spoil: Callable[[Place], None],
    in_the_way: Callable[[Place], Path] | None = None,
) -> None:
    """A case of the kind `odd files`: how the cells then stand. The sweep's own command mends it, or names what is in
    its way and goes on once that is gone.
    """

    def odd(place: Place, whole: Place) -> None:
        spoil(place)
        place.wants(*states)
        place.idp("report", str(place.output), f"output={place.folder / 'report'}")
        if in_the_way is not None:
            odd_one = in_the_way(place)
            if str(odd_one) not in place.sweep(code=1).replace("outputs/", f"{place.output}/"):
                raise Fault(f"{odd_one} is not named")
            odd_one.unlink() if odd_one.is_file() else odd_one.rmdir()
        place.sweep()
        place.wants("done", "done")
        _as_whole(place, whole)

    odd.__doc__ = label
    CASES.append(("odd files", odd))


def _file_for_folder(place: Place) -> None:
    shutil.rmtree(place.second)
    place.second.write_text("")


def _folder_for_file(place: Place) -> None:
    (place.second / STATUS).unlink()
    (place.second / STATUS).mkdir()


def _status(text: str, place: Place) -> None:
    (place.second / STATUS).write_text(text)


def _submission(text: str, place: Place) -> None:
    (place.list / "submissions").mkdir()
    (place.list / "submissions" / "idp-1.json").write_text(text)


def _strewn(place: Place) -> None:
    output = place.output
    for folder in (output, output / "runs", output / "store", place.first, place.list, place.list.parent):
        for name in (".DS_Store", "notes.txt", "record.json~", ".nfs000001"):
            (folder / name).write_text("x")
        (folder / "lost+found").mkdir(exist_ok=True)


for said in ("null", "[]", "{}", '"done"', "", "{", '{"state": "done"}', '{"state": 3, "stage": null}'):
    _odd(f"a status of {said or 'nothing'}", ("done", "unknown"), functools.partial(_status, said))
_odd("a record is missing", ("done", "failed"), lambda at: (at.second / RECORD).unlink())
_odd("a run's folder is a file", ("done", "missing"), _file_for_folder, lambda at: at.second)
_odd("a status is a folder", ("done", "unknown"), _folder_for_file, lambda at: at.second / STATUS)
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
