"""Large weights are known by their times and hashed when they are opened: no damage is read as if it were whole."""

import os
import pickle
import shutil

import pytest

from idp import models, store
from idp.config import Model
from idp.store import Store, damage_of, verification
from idp.store.verification import Damaged, Stamps

MODEL = Model("tiny", "random", None, None, "float32", "cpu", None, False, "auto", {})
SHARD = "model/model.safetensors"


@pytest.fixture
def hashed(monkeypatch):
    """The names of the weights that are hashed, every file of weights counting as a large one, in a fresh process."""
    seen, plain = [], verification.hash_file
    monkeypatch.setattr(verification, "LARGE_BYTES", 0)
    monkeypatch.setattr(verification, "_hashed_here", set())

    def noted(path, stop=None):
        if path.suffix == ".safetensors":
            seen.append(path.name)
        return plain(path, stop)

    monkeypatch.setattr(verification, "hash_file", noted)
    return seen


@pytest.fixture
def ask(tmp_path, model_folders):
    def asked(root=tmp_path / "store"):
        return Store(root).get_or_make(
            "load",
            parent=None,
            config={"a": 1},
            version=1,
            make=lambda folder: shutil.copytree(model_folders("llama"), folder / "model") and None,
        )

    return asked


def flip(file, keep_times=True):
    """Flips one bit of a weight, and sets the times back as far as a program can."""
    content, stat = bytearray(file.read_bytes()), file.stat()
    content[-100] ^= 4
    with open(file, "r+b") as opened:  # in place: the same inode
        opened.write(content)
    if keep_times:
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def forget_the_process(monkeypatch):
    monkeypatch.setattr(verification, "_hashed_here", set())


def test_hashed_at_first_use_then_known_by_times_until_something_changes(ask, hashed, tmp_path):
    product = ask()
    assert hashed == []  # what was just written is hashed by the store itself
    assert ask().reused and hashed == ["model.safetensors"]
    assert ask().reused and Store(tmp_path / "store").get("load", product.key) and len(hashed) == 1
    os.utime(product.path / SHARD)
    assert ask().reused and len(hashed) == 2
    shutil.copytree(tmp_path / "store", tmp_path / "copy", copy_function=shutil.copy2)
    assert ask(tmp_path / "copy").reused and len(hashed) == 3
    assert ask(tmp_path / "copy").reused and len(hashed) == 3
    assert damage_of(product.path) is None and len(hashed) == 3
    assert damage_of(product.path, by_hash=True) is None and len(hashed) == 4


def test_small_files_are_hashed_every_time(ask, hashed, monkeypatch):
    monkeypatch.setattr(verification, "LARGE_BYTES", 64 << 20)
    product = ask()
    assert ask().reused and ask().reused and len(hashed) == 2
    assert not Stamps(product.path).file.exists()


def test_who_sets_the_time_back_is_found_out(ask, hashed, caplog):
    product = ask()
    assert ask().reused
    flip(product.path / SHARD)
    assert not ask().reused and "does not match its hash" in caplog.text
    assert ask().reused


def rot(product, monkeypatch):
    """A bit that changes on the disk without the file system's knowing."""
    monkeypatch.setattr(verification, "stamp_of", lambda path: (path.stat().st_size, 0, 0, 0))
    Stamps(product.path).forget()


def test_a_bit_that_rots_on_the_disk_is_found_when_the_weights_are_opened(ask, hashed, monkeypatch):
    product = ask()
    rot(product, monkeypatch)
    assert ask().reused
    flip(product.path / SHARD)
    assert ask().reused  # nothing tells yet
    forget_the_process(monkeypatch)
    with pytest.raises(Damaged, match=r"model\.safetensors: does not match its hash; give its command again") as raised:
        models.open_model(product.path / "model", MODEL)
    assert isinstance(pickle.loads(pickle.dumps(raised.value)), Damaged)  # as an evaluation process sends it
    assert not ask().reused
    models.open_model(product.path / "model", MODEL)


def test_a_header_that_cannot_be_read_is_damage_too(ask, hashed, monkeypatch):
    product = ask()
    with open(product.path / SHARD, "r+b") as opened:
        opened.write(b"\xff" * 16)
    with pytest.raises(Damaged):
        models.open_model(product.path / "model", MODEL)


def test_opened_again_it_is_not_hashed_again(ask, hashed, model_folders):
    product = ask()
    models.open_model(product.path / "model", MODEL)
    models.open_model(product.path / "model", MODEL)
    assert ask().reused and hashed == ["model.safetensors"]
    models.open_model(model_folders("llama"), MODEL)  # of no store: there is nothing to hold it to
    assert len(hashed) == 1


def test_where_stamps_cannot_be_written_it_is_hashed_each_time(ask, hashed, tmp_path):
    ask()
    (tmp_path / "store" / "verified").write_text("")
    assert ask().reused and ask().reused and len(hashed) == 2


def test_a_stamp_that_was_changed_only_costs_a_hash(ask, hashed):
    product = ask()
    assert ask().reused
    for text in ("not JSON", "[]", '{"model/model.safetensors": ["0", 1, 2, 3, 4]}'):
        Stamps(product.path).file.write_text(text)
        count = len(hashed)
        assert ask().reused and len(hashed) == count + 1


@pytest.mark.parametrize("compressor", ["rtn4"])
def test_a_run_makes_rotten_weights_anew_and_ends_as_it_should(
    compressor, compose, bridges, hashed, monkeypatch, tmp_path
):
    from idp.pipeline import run

    words = ("model=tiny_llama", "task=arc_easy", "budget=smoke", "tracker=none", "evaluation.perplexity=[]")
    words = (*words, *bridges, "baselines=false", "recovery=none", f"compressor={compressor}")
    config = compose(*words, f"output={tmp_path}")
    record, _ = run(config)
    (product,) = (tmp_path / "store" / "compress").glob("*")
    monkeypatch.setattr(verification, "stamp_of", lambda path: (path.stat().st_size, 0, 0, 0))
    run(config)
    flip(product / SHARD)
    for scores in (tmp_path / "store" / "measure").glob("*"):
        shutil.rmtree(scores)  # so that the model is opened
    forget_the_process(monkeypatch)
    again, _ = run(config)
    assert again["results"] == record["results"]
    assert [path.name for path in product.parent.glob("*.damaged-*")] == [f"{product.name}.damaged-0"]
    assert store.damage_of(product, by_hash=True) is None
