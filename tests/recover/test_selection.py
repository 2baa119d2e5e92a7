"""Selectors in whole runs: every YAML, what is shared through the store, and what the record and the terminal say."""

import functools
import json
import pickle
import random

import numpy as np
import pytest
import torch
from pyarrow import parquet
from safetensors.torch import load_file, save_file

from idp.errors import UserError
from idp.records.tables import run_summary, run_table
from idp.recover import selection
from idp.recover.opening import open_repaired
from idp.store import Store
from idp.usage import options

SMALL = (
    "model=tiny_llama",
    "compressor=rtn3",
    "recovery=idp",
    "recovery.lengths=[3,5,8]",
    "recovery.training.learning_rate=0.1",
    "budget=smoke",
    "task=arc_easy",
    "task.documents=24",
    "tracker=none",
    "baselines=false",
    "evaluation.perplexity_window=64",
)


@pytest.fixture(scope="module")
def where(tmp_path_factory):
    """A store for the whole module, so that the bank is trained once, and a text that is read quickly."""
    root = tmp_path_factory.mktemp("selection")
    draw = random.Random(0)
    words = ["the", "bridge", "river", "repairs", "old", "new", "stone", "over", "builds", "two", "seven", "and"]
    text = root / "text.txt"
    text.write_text("\n\n".join(" ".join(draw.choices(words, k=60)) for _ in range(300)))
    return (f"store={root / 'store'}", "corpus=local", f"corpus.path={text}", "corpus.name=bridges")


def measured(record):
    return record["idp"]["stages"]["measure"]


def chosen_of(record):
    return [list(counts.values()) for counts in record["idp"]["selection"].values()]


# What a selector needs of its bank, or how much it is shown.
BANKS = {
    "gain": ("recovery.empty_prompt=true",),
    "mixture": ("recovery.lengths=[5,5,5]",),
    "router": ("recovery.selector.documents=4",),
}
ADDED = {"attention_calibrated": 6, "mixture": 6, "nearest": 192, "learned": 195, "router": 195, "gain": 1}
PROMPTLESS = {"arrow"}  # reads low-rank experts: tests/recover/test_lowrank_experts.py


@pytest.mark.parametrize("selector", sorted({*options("recovery/selector")} - PROMPTLESS))
def test_every_selector_runs_from_end_to_end(selector, run_here, where):
    record = run_here(*SMALL, *where, f"recovery/selector={selector}", *BANKS.get(selector, ()))
    about = record["idp"]
    kind = "attention" if selector in ("attention_calibrated", "mixture") else selector
    fitted = selector in ("attention_calibrated", "mixture", "fixed", "nearest", "learned", "router", "gain")
    assert about["selector"]["kind"] == kind and ("select" in about["stages"]) == fitted
    assert sum(chosen_of(record)[0]) == 24
    prompts = (15 if selector == "mixture" else 16) * 64
    assert about["parameters"]["added"] == prompts + about["selector"]["added"]
    trained = {"learned": 3 * 64 + 3, "router": 3 * 64 + 3}.get(selector, 0)
    assert about["parameters"]["trainable"] == prompts + trained
    assert about["selector"]["added"] == ADDED.get(selector, 0)
    task, mean = about["controls"]["tasks"]["arc_easy"], about["controls"]["mean"]
    mixed = selector == "mixture"  # of which `chosen` is the prompt that weighs most, by itself
    assert mixed or task["chosen"] == pytest.approx(record["results"]["arc_easy"]["acc,none"])
    assert task["oracle"] >= max(*task["prompts"], task["chosen"]) and mean["oracle"] == task["oracle"]
    low, high = task["gap_interval"]
    assert low <= task["gap"] <= high and mean["gap_interval"] == task["gap_interval"]
    loss = about["controls"]["heldout_loss"]
    assert task["best"] == task["prompts"][loss.index(min(loss))]
    assert task["worst"] == task["prompts"][loss.index(max(loss))]
    perplexity = about["controls"]["perplexity"]["bridges"]
    assert perplexity["chosen"] == pytest.approx(about["perplexity"]["bridges"])
    assert perplexity["oracle"] <= min(perplexity["prompts"]) + 1e-6
    summary = run_summary(record)
    assert "oracle (upper bound)" in summary and "gain over random choice" in summary
    if fitted and selector not in ("fixed", "router"):  # which is fitted to outcomes: test_router.py
        assert about["selector"]["heldout_loss"] == pytest.approx(loss)
        assert about["selector"]["oracle_loss"] <= about["selector"]["chosen_loss"]


def test_a_bank_with_the_empty_prompt_from_end_to_end(run_here, where, tmp_path):
    """It is made from the trained bank, behind it the compressed model is itself, and it goes where the bank goes."""
    import idp

    calibrated = (*SMALL, *where, "recovery/selector=attention_calibrated")
    without = run_here(*calibrated)
    record = run_here(*calibrated, "recovery.empty_prompt=true", "baselines=true")
    store = Store(record["idp"]["config"]["store"])
    repair = store.get("recover", record["idp"]["stages"]["recover"]["key"])
    assert repair.manifest["parent"] == without["idp"]["stages"]["recover"]["key"], "the prompts were not trained again"
    about, parts = record["idp"], record["idp"]["selection"]["arc_easy"]
    assert about["parameters"]["added"] == 16 * 64 + 7 and about["repair_bytes"] == without["idp"]["repair_bytes"]
    assert list(parts)[-1] == "empty" and sum(parts.values()) == 24
    outcomes = about["controls"]
    assert outcomes["prompts"][-1] == "empty"
    assert (
        outcomes["tasks"]["arc_easy"]["prompts"][-1]
        == about["baselines"]["compressed"]["results"]["arc_easy"]["acc,none"]
    )
    perplexity = about["controls"]["perplexity"]["bridges"]["prompts"]
    assert perplexity[-1] == pytest.approx(about["baselines"]["compressed"]["perplexity"]["bridges"], rel=1e-4)
    assert "empty_prompt" not in without["idp"]["config"]["recovery"]

    words = (*SMALL, *where, "recovery/selector=fixed", "recovery.selector.prompt=3", "recovery.controls=false")
    alone = run_here(*words, "recovery.empty_prompt=true")
    assert alone["idp"]["stages"]["measure"]["reused"], "it is the control that was measured already"
    few = run_here(*words, "recovery.empty_prompt=true", "recovery.storage.bits=8")
    assert few["idp"]["selection"]["arc_easy"]["empty"] == 24
    folder = tmp_path / "outputs" / "runs" / few["idp"]["name"]
    compressed, repaired = (idp.load(folder, variant=variant) for variant in ("compressed", "repaired"))
    texts = ["The bridge", "two seven"]
    assert [a.text for a in repaired.generate(texts, 4)] == [a.text for a in compressed.generate(texts, 4)]
    assert repaired.choose(texts) == ["empty", "empty"]

    base = ("recovery=transfer", f"recovery.from={tmp_path / 'outputs' / 'runs' / without['idp']['name']}")
    moved = run_here(*SMALL[:2], *SMALL[5:], *where, *base, "recovery.empty_prompt=true", "recovery/selector=gain")
    assert list(moved["idp"]["selection"]["arc_easy"])[-1] == "empty" and moved["idp"]["selector"]["kind"] == "gain"
    for more, what in (
        (("recovery.empty_prompt=true",), "recovery.selector=attention reads a prompt's own tokens, and the empty"),
        (("recovery/selector=gain",), "this bank has no empty prompt; add recovery.empty_prompt=true"),
        (("recovery/selector=mixture",), "prompts of 3, 5, 8 tokens cannot be mixed"),
        (("recovery/selector=random", "recovery.selector.temperature=1"), "random does not say by how much a prompt"),
    ):
        with pytest.raises(UserError, match=what) as caught:
            run_here(*SMALL, *where, *more)
        assert "\n" not in str(caught.value)


def test_the_oracle_is_each_document_s_best_and_is_called_so(run_here, where, tmp_path):
    record = run_here(*SMALL, *where, "recovery/selector=oracle", "task=commonsense")
    folder = tmp_path / "outputs" / "runs" / record["idp"]["name"]
    outcomes = parquet.read_table(folder / "selection.parquet").to_pylist()
    names = record["idp"]["controls"]["prompts"]
    for task, metric in (("hellaswag", "acc_norm"), ("piqa", "acc")):
        rows = [row for row in outcomes if row["task"] == task]
        best = [max(row[name] for name in names) for row in rows]
        result = record["results"][task]
        assert result[f"{metric},none"] == pytest.approx(sum(best) / 24)
        assert result[f"{metric}_stderr,none"] == pytest.approx(np.std(best, ddof=1) / 24**0.5)
        assert result[f"{metric},none"] >= max(record["idp"]["controls"]["tasks"][task]["prompts"])
        assert all(row[names[row["chosen"]]] == value for row, value in zip(rows, best, strict=True))
    assert record["idp"]["selector"]["peeks"] and "an upper bound: it uses the labels" in run_summary(record)
    assert "hellaswag" in run_table(record)


def test_what_selectors_of_one_bank_share(run_here, where):
    attention = run_here(*SMALL, *where)
    store = Store(attention["idp"]["config"]["store"])
    losses = lambda: sorted(path.name for path in (store.root / "heldout").glob("*/"))  # noqa: E731
    before = losses()
    learned = run_here(*SMALL, *where, "recovery/selector=learned", "recovery.selector.penalty=0.02")
    again = run_here(*SMALL, *where, "recovery/selector=learned", "recovery.selector.penalty=0.02")
    stricter = run_here(*SMALL, *where, "recovery/selector=learned", "recovery.selector.penalty=0.03")
    assert learned["idp"]["stages"]["recover"]["key"] == attention["idp"]["stages"]["recover"]["key"]
    assert len({measured(record)["key"] for record in (attention, learned, stricter)}) == 3
    assert measured(again) == measured(learned) | {"reused": True} and again["idp"]["stages"]["select"]["reused"]
    assert losses() == before, "held-out losses are the bank's"
    key = learned["idp"]["stages"]["select"]["key"]
    product = store.get("measure", next(iter(store.root.glob("measure/*"))).name)
    users = [
        manifest["config"]["selector"]
        for path in store.root.glob("measure/*/manifest.json")
        if (manifest := json.loads(path.read_text()))["config"]["selector"]
    ]
    assert any(user.get("fitted") == key for user in users) and product.manifest["parent"]
    # The best prompt by held-out loss is a prompt's number: both are the control that was measured already.
    best = run_here(*SMALL, *where, "recovery/selector=fixed")
    number = best["idp"]["selector"]["prompt"]
    named = run_here(*SMALL, *where, "recovery/selector=fixed", f"recovery.selector.prompt={number}")
    assert measured(best)["reused"] and measured(named)["reused"] and measured(best)["key"] == measured(named)["key"]
    assert "select" not in named["idp"]["stages"] and best["results"] == named["results"]


def test_another_process_opens_the_fitted_selector(run_here, where, compose, tmp_path):
    """What a pool of processes is sent, and what anybody needs to open a record's model."""
    learned = (*SMALL, *where, "recovery/selector=learned", "recovery.controls=false", "evaluation.perplexity=[]")
    record = run_here(*learned)
    assert record["idp"]["controls"] is None and "gain over random choice" not in run_summary(record)
    store, config = Store(record["idp"]["config"]["store"]), compose(*learned)
    products = [store.get(stage, record["idp"]["stages"][stage]["key"]) for stage in ("compress", "recover", "select")]
    compressed, repair, fitted = products
    open_model = functools.partial(open_repaired, config.model, compressed, repair, config.recovery, fitted=fitted)
    repaired = pickle.loads(pickle.dumps(open_model))("cpu")
    state = load_file(fitted.path / selection.STATE)
    context = [5, 6, 7, 8, 9]
    mean = repaired.model.get_input_embeddings().weight[torch.tensor(context)].mean(0)
    assert repaired.choose([context]).tolist() == [int((state["weight"] @ mean + state["bias"]).argmax())]


def test_latency_is_of_the_selector_that_was_asked_for(run_here, where):
    latency = ("latency=default", "latency.batch_sizes=[1]", "latency.input_tokens=[8]", "latency.rounds=2")
    base = (*SMALL, *where, *latency, "latency.warmup=0", "latency.new_tokens=1", "evaluation.perplexity=[]")
    rows = run_here(*base, "recovery/selector=nearest")["idp"]["latency"]["rows"]
    assert [row["variant"] for row in rows] == ["compressed", "prompt", "idp"]
    assert rows != run_here(*base, "recovery/selector=random")["idp"]["latency"]["rows"]


def test_a_collapse_is_said_in_one_line_that_names_the_tasks(run_here, where):
    record = run_here(*SMALL, *where, "recovery/selector=attention", "recovery.selector.reduce=sum", "task=commonsense")
    about = record["idp"]
    for task, counts in about["selection"].items():
        largest = max(counts.values()) / sum(counts.values())
        assert (task in about["selector"]["collapsed"]) == (largest >= 0.95)
    about["selector"]["collapsed"] = ["hellaswag", "piqa"]
    (line,) = [line for line in run_summary(record).splitlines() if "collapsed" in line]
    assert line.startswith("WARNING: the selector (attention) has collapsed") and "hellaswag, piqa" in line
    about["selector"]["collapsed"] = []
    assert "collapsed" not in run_summary(record)


def test_a_bank_that_brings_its_centres_needs_no_fit(compose, tmp_path):
    """Banks made by cluster have centres of their own."""
    store = Store(tmp_path / "store")
    centres = torch.randn(2, 64)

    def make(folder):
        (folder / "bank").mkdir()
        (folder / "bank" / "bank.json").write_text(json.dumps({"names": ["a", "b"]}))
        save_file({"centres": centres}, folder / "bank" / "centres.safetensors")

    repair = store.get_or_make("recover", parent=None, config={}, version=1, make=make)
    config = compose("model=tiny_llama", "recovery=idp", "recovery/selector=nearest", "recovery.controls=false")
    text = type("Text", (), {"fingerprint": "f", "name": "none"})

    def never():
        raise AssertionError("nothing is to be computed")

    found = selection.select(config.recovery, config.model, repair, text, never, store)
    assert found.heldout is None and torch.equal(load_file(found.fitted.path / selection.STATE)["centres"], centres)
    selector = selection.restored(config.recovery.selector, found.fitted.path)
    assert torch.equal(selector.centres, centres) and found.description["source"] == "bank"
    assert found.identity["fitted"] == found.fitted.key


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["recovery/selector=fixed", "recovery.selector.prompt=3"], "recovery.selector.prompt=3: the bank has prompts"),
        (
            ["recovery/selector=fixed", "recovery.selector.prompt=mean"],
            "recovery.selector.prompt=mean: use best, worst",
        ),
        (["recovery/selector=fixed", "recovery.selector.prompt=-1"], "recovery.selector.prompt=-1: use best, worst or"),
        (
            ["recovery.fit.context_tokens=99"],
            "recovery.fit.context_tokens=99: a block has recovery.fit.tokens=64 tokens",
        ),
        (["recovery.fit.tokens=5000"], "recovery.fit.tokens=5000: with a prompt of 8 tokens it does not fit"),
        (["recovery/selector=oracle", "latency=default"], "recovery.selector=oracle chooses with the answers in hand"),
        (["recovery/selector=learned", "recovery.selector.penalty=-1"], "recovery.selector.penalty=-1"),
    ],
)
def test_mistakes_are_named_before_anything_is_trained(overrides, message, run_here, where, tmp_path):
    with pytest.raises(UserError) as caught:
        run_here(*SMALL, *where, *overrides, f"store={tmp_path / 'store'}")
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not list((tmp_path / "store").glob("recover/*"))


def test_a_selector_that_was_not_fitted_is_refused(compose):
    chosen = compose("recovery=idp", "recovery/selector=learned").recovery.selector
    with pytest.raises(UserError, match="has not been fitted on held-out text"):
        selection.restored(chosen, None)
