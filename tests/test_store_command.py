"""`python -m idp.store`: what is there, whether it is whole, and what may go."""

import json
import os
import time

import pytest

from idp import store_command as store_command
from idp.store import Store, digest

DAY = 86400


def made(store, stage, parent=None, config=None, label="", files=("value.json",)):
    def make(folder):
        for name in files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("x" * 1000)

    return store.get_or_make(stage, parent=parent, config=config or {}, version=1, make=make, label=label)


def aged(product, days):
    os.utime(product.path, (time.time() - days * DAY,) * 2)


@pytest.fixture
def shelf(tmp_path):
    """A store of two compressed models and a repair, of which one record needs the first model and the repair."""
    store = Store(tmp_path / "store")
    weights = ("model/model.safetensors",)
    products = {"load": made(store, "load", label="tiny", files=weights)}
    load = products["load"].key
    products["gptq4"] = made(store, "compress", load, {"a": 4}, "gptq4", weights)
    products["gptq3"] = made(store, "compress", load, {"a": 3}, "gptq3", weights)
    products["repair"] = made(store, "recover", products["gptq4"].key, {}, "prompt")
    products["of repair"] = made(store, "measure", products["repair"].key, {}, "repaired arc_easy")
    products["of gptq3"] = made(store, "measure", products["gptq3"].key, {}, "compressed arc_easy")
    products["none"] = made(store, "compress", load, {}, "none")
    products["of none"] = made(store, "measure", products["none"].key, {}, "dense arc_easy")
    products["guard"] = made(store, "guard", None, {}, "tiny")
    run = tmp_path / "runs" / "mine"
    run.mkdir(parents=True)
    keys = {name: {"key": products[of].key} for name, of in {"compress": "gptq4", "recover": "repair"}.items()}
    (run / "record.json").write_text(json.dumps({"idp": {"stages": keys}}))
    (run / "status.json").write_text(json.dumps({"state": "done", "started": "2026-01-01T00:00:00Z"}))
    for product in products.values():
        aged(product, 10)
    return products


def call(tmp_path, capsys, *words):
    action, *rest = words
    store_command.main([action, str(tmp_path / "store"), *rest])
    return capsys.readouterr().out


def there(shelf):
    return {name for name, product in shelf.items() if product.path.exists()}


def test_list_says_what_each_is(shelf, tmp_path, capsys):
    said = call(tmp_path, capsys, "list")
    assert "tiny gptq4 prompt" in said and "tiny gptq3 compressed arc_easy" in said
    rows = json.loads(call(tmp_path, capsys, "list", "--json"))
    by_key = {row["key"]: row for row in rows}
    row = by_key[shelf["repair"].key]
    assert row["what"] == "tiny gptq4 prompt" and row["runs"] == ["mine"] and row["kind"] == "recover"
    assert row["bytes"] == sum(file.stat().st_size for file in shelf["repair"].path.iterdir())
    assert by_key[shelf["gptq3"].key]["runs"] == []
    assert [line.split()[:2] for line in said.splitlines() if line.startswith("all ")] == [["all", "9"]]
    assert {row["kind"] for row in json.loads(call(tmp_path, capsys, "list", "--json", "--kind", "load"))} == {"load"}


def test_orphans_go_and_what_a_record_needs_stays(shelf, tmp_path, capsys):
    said = call(tmp_path, capsys, "prune", "--orphans")
    assert "tiny gptq3" in said and "to remove: 2 products" in said and "nothing was removed" in said
    assert there(shelf) == set(shelf)
    assert "to remove: 2" in call(tmp_path, capsys, "prune", "--orphans", "--dry-run", "--yes")
    assert there(shelf) == set(shelf)
    assert "removed 2 products" in call(tmp_path, capsys, "prune", "--orphans", "--yes")
    assert there(shelf) == set(shelf) - {"gptq3", "of gptq3"}
    assert sorted(path.name for path in (tmp_path / "store").glob("*/*.removed-*")) == []
    again = made(
        Store(tmp_path / "store"), "compress", shelf["load"].key, {"a": 3}, "gptq3", ("model/model.safetensors",)
    )
    assert not again.reused and again.key == shelf["gptq3"].key


def test_a_record_is_never_broken_unasked(shelf, tmp_path, capsys):
    said = call(tmp_path, capsys, "prune", "--kind", "compress", "recover", "--yes")
    assert "left: 2 needed by records (--named takes it as well)" in said
    assert there(shelf) == set(shelf) - {"gptq3", "none"}
    said = call(tmp_path, capsys, "prune", "--kind", "recover", "--named", "--yes")
    assert "the model of mine cannot be opened or exported then" in said and "repair" not in there(shelf)


def test_what_is_in_use_is_left(shelf, tmp_path, capsys):
    aged(shelf["gptq3"], 0.5)
    said = call(tmp_path, capsys, "prune", "--orphans", "--yes")
    assert "left: 1 used within the last day" in said and "gptq3" in there(shelf)
    aged(shelf["gptq3"], 10)
    lock = tmp_path / "store" / "locks" / f"compress-{shelf['gptq3'].key}.lock"
    lock.write_text("another's")
    assert "left: 1 being made" in call(tmp_path, capsys, "prune", "--orphans", "--yes")
    lock.unlink()
    run = tmp_path / "runs" / "going on"
    run.mkdir()
    started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 12 * DAY))
    (run / "status.json").write_text(json.dumps({"state": "running", "started": started}))
    (run / ".lock").write_text("its own")
    said = call(tmp_path, capsys, "prune", "--orphans", "--unused-for", "0d", "--yes")
    assert "used since going on began" in said and "gptq3" in there(shelf)
    os.utime(run / ".lock", (0, 0))  # that run is dead
    assert "removed 1 products" in call(tmp_path, capsys, "prune", "--orphans", "--kind", "compress", "--yes")


def test_by_age_and_number(shelf, tmp_path, capsys):
    aged(shelf["none"], 3)
    assert "to remove: 1 " in call(tmp_path, capsys, "prune", "--kind", "compress", "--unused-for", "5d")
    assert "to remove: 0 " in call(tmp_path, capsys, "prune", "--kind", "compress", "--older-than", "1h")
    said = call(tmp_path, capsys, "prune", "--kind", "compress", "--keep", "1")
    assert "to remove: 1 " in said and "gptq3" in said  # none was used last, gptq4 is needed


def test_leftovers(shelf, tmp_path, capsys):
    store = Store(tmp_path / "store")
    key = shelf["gptq3"].key
    (shelf["gptq3"].path / "model" / "model.safetensors").write_text("y" * 1000)
    made(store, "compress", shelf["load"].key, {"a": 3}, "gptq3", ("model/model.safetensors",))
    part = tmp_path / "store" / "recover" / f"{digest('b')}.12345678.part"
    part.mkdir()
    aside = tmp_path / "store" / "compress" / f"{key}.damaged-0"
    for folder in (aside, part):
        os.utime(folder, (time.time() - 2 * DAY,) * 2)
    said = call(tmp_path, capsys, "list")
    assert "damaged, set aside" in said and "unfinished" in said
    assert "removed 2 products" in call(tmp_path, capsys, "prune", "--leftovers", "--yes")
    assert not aside.exists() and not part.exists() and there(shelf) == set(shelf)


def test_verify_finds_what_is_damaged(shelf, tmp_path, capsys):
    assert "9 products" in call(tmp_path, capsys, "verify")
    (shelf["repair"].path / "value.json").write_text("y" * 1000)
    with pytest.raises(SystemExit) as ended:
        call(tmp_path, capsys, "verify")
    said = capsys.readouterr().out
    assert ended.value.code == 1 and "value.json does not match its hash" in said and ": 1 damaged" in said


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["prune"], "prune: say what: --orphans"),
        (["prune", "--unused-for", "soon"], "--unused-for soon: give a number and a unit"),
        (["prune", "--keep", "-1"], "--keep -1: a number of products"),
        (["list", "--kind", "compres"], "--kind compres: the store has compress, guard"),
    ],
)
def test_errors_are_one_line(shelf, tmp_path, capsys, words, line):
    with pytest.raises(SystemExit) as ended:
        call(tmp_path, capsys, *words)
    assert str(ended.value).startswith(f"error: {line}") and "\n" not in str(ended.value)


def test_without_records_nothing_is_taken_for_an_orphan(shelf, tmp_path, capsys):
    with pytest.raises(SystemExit, match="error: prune: no record under .*elsewhere says what is needed; give"):
        call(tmp_path, capsys, "prune", "--orphans", "--yes", "--runs", str(tmp_path / "elsewhere"))
    said = call(tmp_path, capsys, "prune", "--orphans", "--runs", str(tmp_path / "elsewhere"), str(tmp_path / "runs"))
    assert "to remove: 2 products" in said and there(shelf) == set(shelf)


def test_no_store(tmp_path):
    with pytest.raises(SystemExit, match="error: .*: no store is there; name its folder"):
        store_command.main(["list", str(tmp_path / "nowhere")])
    assert not (tmp_path / "nowhere").exists()
