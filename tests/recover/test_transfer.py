"""A repair that was learned on one compressed model, used on another of the same model, without training."""

import json
import shutil
from pathlib import Path

import pytest

from idp.errors import UserError
from idp.prompting.bank import PromptBank
from idp.recover import transfer

TINY = (
    "model=tiny_llama",
    "budget=smoke",
    "tracker=none",
    "task=arc_easy",
    "evaluation.perplexity=[]",
    "baselines=false",
)
RECOVERIES = {
    "prompt": ["recovery=prompt", "recovery.length=4"],
    "idp": ["recovery=idp", "recovery.lengths=[3,5]", "recovery.selector.softmax=pre"],
    "lora": ["recovery=lora"],
}


def product(record, tmp_path):
    return tmp_path / "outputs" / "store" / "recover" / record["idp"]["stages"]["recover"]["key"]


def run_of(record, tmp_path):
    return tmp_path / "outputs" / "runs" / record["idp"]["name"]


@pytest.mark.parametrize("kind", RECOVERIES)
def test_learned_on_one_compressor_used_on_another_and_on_dense(kind, run_here, tmp_path, monkeypatch):
    source = run_here(*TINY, "compressor=rtn3", *RECOVERIES[kind])
    monkeypatch.setattr("idp.recover.making._text", lambda *_: pytest.fail("it asked for training text"))
    first, place = product(source, tmp_path), run_of(source, tmp_path)
    keys = {source["idp"]["stages"]["measure"]["key"]}
    for compressor, named in {"magnitude50": place, "none": place / "record.json"}.items():
        record = run_here(*TINY, f"compressor={compressor}", "recovery=transfer", f"recovery.from={named}")
        about = record["idp"]
        assert about["row"] == "repaired" and about["compressor"] == compressor and about["training"] is None
        assert about["parameters"] == source["idp"]["parameters"]
        assert about["repair_bytes"] == source["idp"]["repair_bytes"] > 0
        assert about["transfer"] == {
            "from": str(named),
            "key": first.name,
            "kind": kind,
            "compressor": "rtn3",
            "corpus": "bridges",
            "seed": 0,
        }
        for file in first.rglob("*.safetensors"):
            assert (product(record, tmp_path) / file.relative_to(first)).read_bytes() == file.read_bytes()
        keys.add(about["stages"]["measure"]["key"])
        keys.add(about["stages"]["recover"]["key"])
        if kind == "idp":
            assert list(about["selection"]["arc_easy"]) == list(source["idp"]["selection"]["arc_easy"])
            assert about["config"]["recovery"]["selector"]["softmax"] == "pre"
    assert len(keys) == 5, "one key for two models' measurements"


def test_a_transfer_of_a_transfer_is_the_first_repair(run_here, tmp_path):
    source = run_here(*TINY, "compressor=rtn3", *RECOVERIES["prompt"])
    base = (*TINY, "compressor=none", "recovery=transfer")
    direct = run_here(*base, f"recovery.from={run_of(source, tmp_path)}")
    over = run_here(*TINY, "compressor=rtn4", "recovery=transfer", f"recovery.from={run_of(source, tmp_path)}")
    again = run_here(*base, f"recovery.from={run_of(over, tmp_path)}")
    assert again["idp"]["stages"]["recover"]["key"] == direct["idp"]["stages"]["recover"]["key"]
    assert again["idp"]["transfer"]["compressor"] == "rtn3"
    assert again["idp"]["transfer"]["from"] == str(run_of(over, tmp_path))


def test_prompts_in_few_bits_are_transferred_as_they_are(run_here, tmp_path):
    stored = [*RECOVERIES["idp"], "recovery.storage.bits=4"]
    source = run_here(*TINY, "compressor=rtn3", *stored)
    first = product(source, tmp_path)
    base = (*TINY, "compressor=none", "recovery=transfer", "recovery/selector=attention")
    record = run_here(*base, f"recovery.from={first}")
    assert record["idp"]["repair_bytes"] == 8 * (32 + 4)
    assert record["idp"]["transfer"]["corpus"] is None  # a repair's own folder does not tell
    (one, *_), (other, *_) = (PromptBank.load(place / "bank").prompts for place in (first, product(record, tmp_path)))
    assert one.equal(other)


def test_another_model_is_refused_and_named(run_here, tmp_path):
    source = run_here(*TINY, "compressor=none", *RECOVERIES["prompt"])
    overrides = (*TINY, "model=tiny_opt", "compressor=rtn4", "recovery=transfer")
    message = (
        r"learned on another model, tiny_llama \(hidden size 64\); this run's model is tiny_opt \(hidden size 64\)"
    )
    with pytest.raises(UserError, match=message):
        run_here(*overrides, f"recovery.from={run_of(source, tmp_path)}")
    made = list((tmp_path / "outputs" / "store" / "compress").iterdir())
    assert len(made) == 1, "the other model was compressed before it was refused"


def test_places_that_hold_no_repair(run_here, tmp_path):
    record = run_here(*TINY, "compressor=none", *RECOVERIES["prompt"])
    run = run_of(record, tmp_path)

    def refused(place, message):
        with pytest.raises(UserError, match=message) as caught:
            transfer.find_repair(str(place))
        assert "\n" not in str(caught.value)

    refused(tmp_path / "nowhere", "no such file or folder; name a run's folder")
    refused(tmp_path, "there is no record.json or repair.json in it")
    peft = next(product(record, tmp_path).rglob("adapter_config.json")).parent
    refused(peft, "it is a PEFT adapter, not a run's repair; .* recovery/bank=assembled")
    (tmp_path / "other.json").write_text("{}")
    refused(tmp_path / "other.json", "not a record of idp.run")
    nothing = json.loads((run / "record.json").read_text())
    nothing["idp"]["stages"]["recover"] = None
    (tmp_path / "other.json").write_text(json.dumps(nothing))
    refused(tmp_path / "other.json", r"that run made no repair \(recovery=none\)")
    shutil.copytree(product(record, tmp_path), tmp_path / "copied")
    refused(tmp_path / "copied", "a repair outside its store")

    file = next(product(record, tmp_path).rglob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    refused(run, "does not match its hash")
    shutil.rmtree(product(record, tmp_path))
    refused(run, "its repair .* is in neither")


def test_a_bank_without_its_selector_asks_for_one(run_here, tmp_path, compose):
    record = run_here(*TINY, "compressor=none", *RECOVERIES["idp"])
    place = product(record, tmp_path)
    recovery = compose("recovery=transfer", f"recovery.from={place}").recovery
    with pytest.raises(UserError, match="it holds 2 prompts, and what chose among them is not known; add recovery/sel"):
        recovery.find()


def test_text_that_was_trained_on_is_not_evaluated(run_here, tmp_path):
    record = run_here(*TINY, "compressor=none", *RECOVERIES["prompt"])
    place = run_of(record, tmp_path)
    values = json.loads((place / "record.json").read_text())
    values["idp"]["config"]["corpus"]["made_from"] = ["arc_easy"]
    (place / "record.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="trained on corpus bridges, which is made from arc_easy, which this run"):
        run_here(*TINY, "compressor=rtn4", "recovery=transfer", f"recovery.from={place}")


def test_a_record_moved_with_its_store_is_found(run_here, tmp_path):
    record = run_here(*TINY, "compressor=none", *RECOVERIES["prompt"])
    moved = tmp_path / "moved"
    shutil.move(tmp_path / "outputs", moved)
    found = transfer.find_repair(str(moved / "runs" / record["idp"]["name"]))
    assert Path(found.repair.path).is_relative_to(moved) and found.lengths == [4]
