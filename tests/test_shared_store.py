"""Stores that cannot be written, and stores of several users: read without a trace, written for the whole group."""

import os
import stat
import time
from pathlib import Path

import pytest

from idp import store_command
from idp.errors import UserError
from idp.store import CHECKPOINT, Store
from tests.others import GROUP, NOBODY, as_user, read_only, shared_folder

ANOTHER = 4242


@pytest.fixture
def shared():
    with shared_folder() as folder:
        yield folder


def ask(root, value=1, make=None, stage="stage"):
    """The product's path and whether it was there, which another process can hand over."""
    product = Store(root).get_or_make(stage, parent=None, config={"value": value}, version=1, make=make or writes)
    return product.path, product.reused


def writes(folder):
    (folder / "inner").mkdir(mode=0o700)
    secret = folder / "inner" / "file.txt"
    secret.write_text("hello")
    secret.chmod(0o600)  # as safetensors and `tempfile` leave it


def fails(folder):
    raise AssertionError("a finished product was made again")


def listing(root):
    return {path: (path.stat().st_mtime_ns, stat.S_IMODE(path.stat().st_mode)) for path in sorted(root.rglob("*"))}


def test_opening_a_store_writes_nothing(tmp_path):
    store = Store(tmp_path / "store")
    with pytest.raises(UserError, match="it is not there"):
        store.get("load", "0" * 64)
    assert not store.root.exists()


def test_a_read_only_store_is_read(tmp_path, capsys):
    root = tmp_path / "store"
    place, _ = ask(root)
    for empty in (root / "locks",):  # a copy may lack what is empty
        empty.rmdir()
    before = listing(root)
    with read_only(root):
        assert ask(root, make=fails) == (place, True)
        assert Store(root).get("stage", place.name).path == place
        store_command.main(["list", str(root)])
        store_command.main(["verify", str(root)])
        with pytest.raises(UserError, match=f"store={root}: cannot write there .*{root}.* Choose another folder with"):
            ask(root, value=2)
    assert listing(root) == before
    assert "none damaged" in capsys.readouterr().out


def test_nothing_is_removed_from_a_read_only_store(tmp_path):
    root = tmp_path / "store"
    place, _ = ask(root)
    with read_only(root), pytest.raises(SystemExit, match="cannot be removed"):
        words = ["prune", str(root), "--kind", "stage", "--unused-for", "0d", "--named", "--yes"]
        store_command.main(words)
    assert ask(root, make=fails) == (place, True)


@pytest.mark.parametrize("umask", [0o002, 0o022, 0o077])
def test_products_have_the_permissions_that_the_umask_says(tmp_path, umask):
    before = os.umask(umask)
    try:
        ask(tmp_path / "store")
    finally:
        os.umask(before)
    for path, (_, mode) in listing(tmp_path / "store").items():
        assert mode & 0o777 == (0o777 if path.is_dir() else 0o666) & ~umask, path


def test_users_of_a_group_share_a_store(shared):
    root = shared / "store"
    place, reused = as_user(ask, root)
    assert not reused
    assert as_user(ask, root, 1, fails, user=ANOTHER) == (place, True)
    assert not as_user(ask, root, 2, user=ANOTHER)[1]
    for path in root.rglob("*"):
        about = path.stat()
        assert about.st_gid == GROUP and about.st_uid in (NOBODY, ANOTHER), path
        wanted = 0o2775 if path.is_dir() else 0o664
        assert stat.S_IMODE(about.st_mode) == wanted, path


def test_a_probe_that_another_user_left_is_in_nobodys_way(shared):
    """Earlier versions wrote one; its writer may have been killed."""
    root = shared / "store"
    as_user(ask, root)
    as_user((root / "locks" / ".probe").write_text, "", umask=0o022)
    assert not as_user(ask, root, 2, user=ANOTHER)[1]


def test_folders_that_the_group_may_not_write_in_are_named(shared):
    root = shared / "store"
    as_user(ask, root, umask=0o022)

    def refused(value):
        with pytest.raises(UserError) as raised:
            ask(root, value)
        return str(raised.value)

    said = as_user(refused, 2, user=ANOTHER)
    assert f"Permission denied: {root / 'locks'}" in said and "writable for their group" in said
    assert as_user(ask, root, 1, fails, user=ANOTHER)[1]


def half(folder):
    """As a run that is killed: it leaves its lease, and a checkpoint with which another can go on."""
    (folder / "half").write_text("half a file")
    (folder / CHECKPOINT).mkdir()
    (folder / CHECKPOINT / "step").write_text("7")
    os._exit(0)


def goes_on(folder):
    assert (folder / CHECKPOINT / "step").read_text() == "7"
    assert not (folder / "half").exists()
    (folder / "whole").write_text("done")


@pytest.mark.parametrize("umask", [0o002, 0o022])
def test_another_users_killed_run_is_taken_over(shared, umask):
    root = shared / "store"
    for folder in (root, root / "locks", root / "stage"):
        folder.mkdir()
        os.chown(folder, NOBODY, GROUP)
        folder.chmod(0o2775)
    with pytest.raises(EOFError):
        as_user(ask, root, 1, half, umask=umask)
    assert list((root / "locks").iterdir())
    started = time.monotonic()
    place, reused = as_user(ask, root, 1, goes_on, user=ANOTHER, umask=0o002)
    assert not reused and time.monotonic() - started < 60
    assert [path.name for path in place.glob("[!m]*")] == ["whole"]
    assert {path.stat().st_uid for path in (place, *place.iterdir())} == {ANOTHER}
    assert not list((root / "locks").iterdir())


def test_another_users_damaged_product_is_set_aside(shared):
    root = shared / "store"
    place, _ = as_user(ask, root)
    (place / "inner" / "file.txt").write_text("damaged")
    again, reused = as_user(ask, root, user=ANOTHER)
    assert again == place and not reused and Path(f"{place}.damaged-0").exists()
    assert place.stat().st_uid == ANOTHER


def test_another_users_product_is_removed_whole_or_not_at_all(shared):
    root = shared / "store"
    place, _ = as_user(ask, root)
    place.chmod(0o2755)

    def prune():
        words = ["prune", str(root), "--kind", "stage", "--unused-for", "0d", "--named", "--yes"]
        with pytest.raises(SystemExit, match="cannot be removed"):
            store_command.main(words)

    as_user(prune, user=ANOTHER)
    assert as_user(ask, root, 1, fails) == (place, True)
