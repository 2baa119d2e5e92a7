"""The store's contracts: whole products or none, damage found, one maker however many ask."""

import json
import multiprocessing
import os
import random
import signal
import socket
import time
import types

import pytest

from idp.errors import UserError
from idp.store import CHECKPOINT, MANIFEST, Identity, Store, canonical, digest, sealed, stopwatch, unsealed, write_json
from idp.store.lease import TAKEN_AFTER_SECONDS


def ask(store, make, parent=None, config=None, version=1):
    return store.get_or_make("stage", parent=parent, config=config or {"a": 1}, version=version, make=make)


def writes(text="hello"):
    def make(folder):
        (folder / "inner").mkdir()
        (folder / "inner" / "file.txt").write_text(text)

    return make


def fails(folder):
    raise AssertionError("a finished product was made again")


def test_a_second_asking_reuses(tmp_path):
    first = ask(Store(tmp_path), writes())
    second = ask(Store(tmp_path), fails)
    assert not first.reused and second.reused
    assert first.path == second.path and (second.path / "inner" / "file.txt").read_text() == "hello"
    assert second.manifest["config"] == {"a": 1} and second.manifest["libraries"]["torch"]


def test_everything_that_made_it_is_in_the_key(tmp_path):
    store = Store(tmp_path)
    keys = {
        ask(store, writes()).key,
        ask(store, writes(), parent="x").key,
        ask(store, writes(), config={"a": 2}).key,
        ask(store, writes(), version=2).key,
    }
    assert len(keys) == 4
    assert digest({"b": 1, "a": [1, 2]}) == digest({"a": [1, 2], "b": 1}) != digest({"b": 1, "a": [2, 1]})
    assert canonical({"ü": 1.5}) == '{"\\u00fc":1.5}'


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "add"])
@pytest.mark.parametrize("target", ["inner/file.txt", MANIFEST])
def test_damage_is_found_set_aside_and_mended(tmp_path, caplog, damage, target):
    store = Store(tmp_path)
    file = ask(store, writes()).path / target
    content = file.read_bytes()
    if damage == "flip":
        place = random.Random(0).randrange(len(content))
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    elif damage == "truncate":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "delete":
        file.unlink()
    else:
        (file.parent / "intruder").write_text("")
    mended = ask(store, writes())
    assert not mended.reused and (mended.path / "inner" / "file.txt").read_text() == "hello"
    assert "damaged" in caplog.text
    assert len(list(tmp_path.glob("stage/*.damaged-*"))) == 1
    assert ask(store, fails).reused


def test_every_byte_of_the_manifest_counts(tmp_path):
    store = Store(tmp_path)
    manifest = ask(store, writes()).path / MANIFEST
    whole = json.loads(manifest.read_text())
    whole["config"]["a"] = 2
    manifest.write_text(json.dumps(whole))
    assert not ask(store, writes()).reused


def test_a_failed_maker_leaves_nothing_but_its_checkpoint(tmp_path):
    store = Store(tmp_path)

    def dies(folder):
        (folder / "half").write_text("half a file")
        (folder / CHECKPOINT).mkdir()
        (folder / CHECKPOINT / "step").write_text("7")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        ask(store, dies)

    def goes_on(folder):
        assert not (folder / "half").exists()
        assert (folder / CHECKPOINT / "step").read_text() == "7"
        (folder / "whole").write_text("done")

    product = ask(store, goes_on)
    assert sorted(path.name for path in product.path.iterdir()) == [MANIFEST, "whole"]


def obtained(store, name, make, after=()):
    return store.obtain(Identity("stage", None, {"name": name}, 1), make, after)


@pytest.fixture
def works(monkeypatch):
    """`works(seconds)`: lets so much time pass for the store's stopwatches."""
    now = [0.0]
    monkeypatch.setattr(stopwatch, "time", types.SimpleNamespace(perf_counter=lambda: now[0]))

    def pass_by(seconds):
        now[0] += seconds

    return pass_by


def test_seconds_leave_out_what_else_was_obtained_and_total_seconds_do_not(tmp_path, works):
    store = Store(tmp_path)

    def upper(folder):
        obtained(store, "middle", middle)
        obtained(store, "lower", fails)
        works(1)

    def middle(folder):
        obtained(store, "lower", lambda folder: works(30))
        works(10)

    def again(folder):
        obtained(store, "upper", fails)
        works(2)

    text = obtained(store, "text", lambda folder: works(5))
    first = obtained(store, "upper", upper, [text])
    assert first.seconds == 1 and sorted(first.prerequisites.values()) == [5, 10, 30]
    assert first.total_seconds == 46  # the lowest counts once, though two asked for it
    second = obtained(store, "again", again)  # all that it is made upon was there
    assert second.seconds == 2 and second.total_seconds == 48
    assert second.prerequisites.keys() == {*first.prerequisites, f"stage/{first.key}"}
    assert second.summary() == {"key": second.key, "reused": False, "seconds": 2, "total_seconds": 48}


def test_an_attempt_that_was_killed_counts_until_its_last_checkpoint(tmp_path, works):
    store = Store(tmp_path)

    def dies(folder):
        obtained(store, "beneath", lambda folder: works(20))
        since = json.loads((folder / stopwatch.STOPWATCH).read_text())
        (folder / CHECKPOINT).mkdir(exist_ok=True)
        (folder / CHECKPOINT / "step").write_text("7")
        written = since["since"] + since["elsewhere"] + 30
        os.utime(folder / CHECKPOINT / "step", (written, written))
        works(30 + 20)  # the second part is lost with the process
        raise RuntimeError("killed")

    for _ in range(2):
        with pytest.raises(RuntimeError, match="killed"):
            obtained(store, "above", dies)
    product = obtained(store, "above", lambda folder: works(10))
    assert product.seconds == pytest.approx(30 + 30 + 10)
    assert sorted(path.name for path in product.path.iterdir()) == [MANIFEST]


@pytest.mark.parametrize("checkpoint", [None, "empty"])
def test_one_that_fails_without_a_checkpoint_leaves_nothing(tmp_path, checkpoint):
    def half(folder):
        (folder / "half").write_text("half")
        if checkpoint:
            (folder / CHECKPOINT).mkdir()
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        ask(Store(tmp_path), half)
    assert not list((tmp_path / "stage").iterdir())


def slow_maker(root, number, out):
    def make(folder):
        time.sleep(0.3)
        (folder / "maker").write_text(str(number))

    product = ask(Store(root), make)
    (out / f"{number}").write_text(json.dumps([product.reused, (product.path / "maker").read_text()]))


def test_many_processes_one_maker(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    context = multiprocessing.get_context("fork")
    crowd = [context.Process(target=slow_maker, args=(tmp_path / "store", n, out)) for n in range(16)]
    for process in crowd:
        process.start()
    for process in crowd:
        process.join(120)
        assert process.exitcode == 0
    seen = [json.loads(file.read_text()) for file in out.iterdir()]
    assert len(seen) == 16 and sum(not reused for reused, _ in seen) == 1
    assert len({maker for _, maker in seen}) == 1


def stuck_maker(root, out):
    """Begins, stands still, and when it is woken goes on as if nothing had happened."""

    def make(folder):
        (folder / CHECKPOINT).mkdir(exist_ok=True)
        (folder / CHECKPOINT / "step").write_text("7")
        (out / "begun").write_text("")
        while not (out / "woken").exists():
            time.sleep(0.01)
        (folder / "maker").write_text("the one that stood still")

    product = ask(Store(root), make)
    (out / "end").write_text(json.dumps([product.reused, (product.path / "maker").read_text()]))


def takes_over(folder):
    assert (folder / CHECKPOINT / "step").read_text() == "7"
    (folder / "maker").write_text("the other")


@pytest.fixture
def stuck(tmp_path):
    """A process that has begun to make the product."""
    process = multiprocessing.get_context("fork").Process(target=stuck_maker, args=(tmp_path, tmp_path))
    process.start()
    while not (tmp_path / "begun").exists():
        time.sleep(0.01)
    yield process
    process.kill()
    process.join()


def test_a_maker_that_was_killed_is_found_out_at_once(tmp_path, stuck):
    stuck.kill()
    stuck.join()
    started = time.monotonic()
    assert not ask(Store(tmp_path), takes_over).reused
    assert time.monotonic() - started < TAKEN_AFTER_SECONDS


def test_a_maker_that_stood_still_loses_its_work_and_does_no_harm(tmp_path, monkeypatch, stuck):
    os.kill(stuck.pid, signal.SIGSTOP)
    (lock,) = (tmp_path / "locks").glob("*.lock")
    said = lock.read_text().replace(repr(TAKEN_AFTER_SECONDS), "0.5")  # as if it had promised to show itself as often
    lock.write_text(said)
    monkeypatch.setattr("idp.store.lease.TAKEN_AFTER_SECONDS", 0.5)
    product = ask(Store(tmp_path), takes_over)
    assert not product.reused and (product.path / "maker").read_text() == "the other"
    (tmp_path / "woken").write_text("")
    os.kill(stuck.pid, signal.SIGCONT)
    stuck.join(60)
    assert json.loads((tmp_path / "end").read_text()) == [True, "the other"]
    assert ask(Store(tmp_path), fails).reused
    assert not list(tmp_path.glob("stage/*.part"))


def test_a_maker_on_another_node_that_died(tmp_path, monkeypatch, stuck):
    """Of its process nothing can be known here, only that its lock is no longer touched."""
    stuck.kill()
    stuck.join()
    (lock,) = (tmp_path / "locks").glob("*.lock")
    lock.write_text(lock.read_text().replace(socket.gethostname(), "node7").replace(repr(TAKEN_AFTER_SECONDS), "2.0"))
    monkeypatch.setattr("idp.store.lease.TAKEN_AFTER_SECONDS", 2.0)
    started = time.monotonic()
    assert not ask(Store(tmp_path), takes_over).reused
    assert time.monotonic() - started >= 2


def test_a_lease_that_a_crash_of_the_node_left_empty_is_taken(tmp_path, monkeypatch):
    monkeypatch.setattr("idp.store.lease.TAKEN_AFTER_SECONDS", 0.5)
    key = digest({"stage": "stage", "parent": None, "config": {"a": 1}, "version": 1})
    lock = tmp_path / "locks" / f"stage-{key}.lock"
    lock.parent.mkdir()
    lock.touch()
    assert not ask(Store(tmp_path), writes()).reused
    assert not lock.exists()


def test_a_store_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write there .* Choose another folder with store="):
        ask(Store(tmp_path / "file" / "store"), fails)


class Rust(Exception):
    """As safetensors and tokenizers have errors of their own."""


@pytest.mark.parametrize(
    "error",
    [OSError(28, "No space left on device", "weights"), Rust("I/O error: No space left on device (os error 28)")],
)
def test_no_space_left(error, tmp_path):
    def full(folder):
        raise error

    with pytest.raises(UserError, match="No space left on device .*finished stages are kept"):
        ask(Store(tmp_path), full)
    assert ask(Store(tmp_path), writes()).path.exists()


def test_other_errors_are_not_blamed_on_the_disk(tmp_path):
    def breaks(folder):
        raise FileNotFoundError(2, "No such file or directory", "weights")

    with pytest.raises(FileNotFoundError):
        ask(Store(tmp_path), breaks)


def test_json_that_cannot_be_written_leaves_nothing(tmp_path):
    write_json(tmp_path / "value.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "value.json", {"a": object()})
    assert [path.name for path in tmp_path.iterdir()] == ["value.json"]
    assert json.loads((tmp_path / "value.json").read_text()) == {"a": 1}


def test_what_was_sealed_is_known_when_it_is_changed(tmp_path):
    write_json(tmp_path / "state.json", sealed({"loss": 1.25, "best": float("inf"), "steps": (1, 2)}))
    read = json.loads((tmp_path / "state.json").read_text())
    assert unsealed(read) == {"loss": 1.25, "best": None, "steps": [1, 2]}
    with pytest.raises(ValueError, match="does not match its hash"):
        unsealed({**read, "loss": 1.5})


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_store_without_permission(tmp_path):
    (tmp_path / "store").mkdir(mode=0o500)
    with pytest.raises(UserError, match="cannot write there"):
        ask(Store(tmp_path / "store"), fails)
