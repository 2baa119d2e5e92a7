"""The Python API gives what the evaluation and a plain loop give, and says in one line what is wrong with its input."""

import json
import math
import random
import shutil
import subprocess
import sys

import pytest
import torch
from pyarrow import parquet

import idp
from idp.api import LanguageModel
from idp.errors import UserError
from idp.prompting.repaired import RepairedModel

from .prompting.test_prefix import ByFirstToken, plain_logits

BANK = ("compressor=gptq3", "recovery=idp", "recovery.lengths=[3,5]", "recovery.training.learning_rate=0.1")
FITTED = (*BANK, "recovery/selector=learned", "recovery.controls=false")
LORA = ("compressor=gptq3", "recovery=lora", "recovery.training.learning_rate=0.1")
TEXTS = [f"{'abcdef'[i % 6]} {'word ' * (i % 5)}and then" for i in range(13)]


@pytest.fixture
def banked(open_tiny, make_bank):
    """A model with three prompts, of which the first token of an input picks one."""
    loaded = open_tiny("llama")
    bank = make_bank(loaded, [4, 11, 30])
    repaired = RepairedModel(loaded, bank, ByFirstToken())
    return loaded, bank, lambda batch_tokens=4096: LanguageModel(repaired, batch_tokens, name="tiny")


def evaluated(folder, variant):
    rows = parquet.read_table(folder / "samples.parquet").to_pylist()
    return [row for row in rows if row["model"] == variant]


@pytest.mark.parametrize("overrides", [BANK, FITTED, LORA], ids=["idp", "fitted", "lora"])
def test_scores_are_those_of_the_evaluation(overrides, finished_run):
    folder, _ = finished_run(*overrides, "baselines=true")
    seen = {}
    for variant in ("dense", "compressed", "repaired"):
        rows = evaluated(folder, variant)
        model = idp.load(folder, variant=variant)
        found = model.score([row["context"] for row in rows], [row["choices"] for row in rows])
        assert len(found) == 8
        for row, scores in zip(rows, found, strict=True):
            assert scores.loglikelihoods == pytest.approx(row["loglikelihoods"], abs=1e-4)
            assert scores.greedy == row["greedy"]
            assert scores.best == row["loglikelihoods"].index(max(row["loglikelihoods"]))
            assert scores.tokens == [len(choice.encode()) for choice in row["choices"]]  # a token is a byte here
            assert scores.prompt == (model.prompts[row["prompt"]] if row["prompt"] is not None else None)
        seen[variant] = found
    assert seen["dense"] != seen["compressed"] != seen["repaired"]
    assert [scores.prompt is not None for scores in seen["repaired"]] == [overrides is not LORA] * 8


def test_generation_is_the_plain_greedy_loop(banked):
    loaded, bank, model = banked
    answers = model(256).generate(TEXTS, max_new_tokens=12, stop="s")
    for text, answer in zip(TEXTS, answers, strict=True):
        tokens = loaded.tokenizer(text)["input_ids"]
        prompt, context = tokens[0] % 3, list(tokens)
        for _ in range(12):
            context.append(int(plain_logits(loaded, bank.prompts[prompt], context)[-1].argmax()))
        new = context[len(tokens) :]
        new = new[: new.index(0)] if 0 in new else new
        assert answer.text == loaded.tokenizer.decode(new, skip_special_tokens=True).split("s")[0]
        assert answer.prompt == bank.names[prompt]
    assert any(len(answer.text) > 3 for answer in answers)


def test_together_or_one_by_one(banked):
    _, bank, model = banked
    rng = random.Random(0)
    texts = rng.sample(TEXTS, len(TEXTS))
    choices = [[" yes", " no, not at all"][: 1 + i % 2] for i in range(len(texts))]
    together, alone = model(100), model()
    assert together.generate(texts, 8) == [alone.generate([text], 8)[0] for text in texts]
    for text, own, scores in zip(texts, choices, together.score(texts, choices), strict=True):
        (single,) = alone.score([text], [own])
        assert scores.loglikelihoods == pytest.approx(single.loglikelihoods, abs=1e-4)
        assert (scores.tokens, scores.greedy, scores.prompt) == (single.tokens, single.greedy, single.prompt)
    chosen = together.choose(texts)
    assert chosen == [answer.prompt for answer in alone.generate(texts, 1)] and set(chosen) == set(bank.names)
    assert together.perplexity(texts) == pytest.approx([alone.perplexity([text])[0] for text in texts], rel=1e-5)


def test_one_list_of_choices_serves_all_contexts(banked):
    _, _, model = banked
    assert model().score(["a b", "c"], [" yes", " no"]) == model().score(["a b", "c"], [[" yes", " no"]] * 2)


def test_perplexity_is_that_of_the_text_alone(open_tiny, make_bank):
    loaded = open_tiny("llama")
    bank = make_bank(loaded, [6])
    text = "a quiet harbour"
    tokens = loaded.tokenizer(text)["input_ids"]
    for prompts, prompt in ((bank, bank.prompts[0]), (None, torch.zeros(0, 64))):
        logits = plain_logits(loaded, prompt, [0, *tokens[:-1]]).log_softmax(-1)
        mean = logits.gather(1, torch.tensor(tokens)[:, None]).mean().item()
        found = LanguageModel(RepairedModel(loaded, prompts), 512).perplexity([text])
        assert found == pytest.approx([math.exp(-mean)], rel=1e-4)


def test_an_input_longer_than_the_window_is_cut_and_said(banked, caplog):
    _, _, model = banked
    (answer,) = model().generate(["a " * 3000], 4)
    assert answer.prompt is not None and "1 of the requests were longer than the 2018 tokens" in caplog.text


@pytest.mark.parametrize("overrides", [BANK, FITTED, LORA], ids=["idp", "fitted", "lora"])
def test_an_export_is_the_run(overrides, finished_run, tmp_path):
    from idp.export.checkpoint import export
    from idp.export.options import ExportOptions

    folder, _ = finished_run(*overrides, "baselines=true")
    export(ExportOptions(str(folder), str(tmp_path / "mine")))
    for variant in ("compressed", "repaired"):
        own, theirs = (idp.load(place, variant=variant) for place in (folder, tmp_path / "mine"))
        assert own.prompts == theirs.prompts
        for one, other in zip(*(model.score(TEXTS, [" yes", " no"]) for model in (own, theirs)), strict=True):
            assert one.loglikelihoods == pytest.approx(other.loglikelihoods, abs=1e-4) and one.prompt == other.prompt
        assert own.generate(TEXTS, 6) == theirs.generate(TEXTS, 6)
    with pytest.raises(UserError, match="this export holds no dense model, only compressed and repaired"):
        idp.load(tmp_path / "mine", variant="dense")
    (tmp_path / "mine" / "export.json").write_text("{}")
    with pytest.raises(UserError, match=r"export\.json: not an export's"):
        idp.load(tmp_path / "mine")


def test_what_a_record_may_be(finished_run):
    folder, record = finished_run(*BANK, "baselines=true")
    answers = [
        idp.load(place, device="cpu", dtype=torch.float32).generate(TEXTS[:2], 5)
        for place in (folder, str(folder), folder / "record.json", record)
    ]
    assert all(found == answers[0] for found in answers)
    low = idp.load(record, dtype="bfloat16")
    assert repr(low) == f"<repaired model of {record['idp']['name']}: bfloat16 on cpu, 2 prompts>"


def test_import_is_instant_and_brings_nothing_heavy():
    script = "import idp, sys; assert 'load' in dir(idp); print([n for n in ('torch', 'hydra') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
    with pytest.raises(AttributeError, match="has no attribute 'lod'"):
        _ = idp.lod


def one_line(call, message):
    with pytest.raises(UserError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.generate([]), "texts is empty: give at least one text"),
        (lambda m: m.generate("one"), r"texts: give a list of texts, not 'one' \(str\)"),
        (lambda m: m.generate(7), r"texts: give a list of texts, not 7 \(int\)"),
        (lambda m: m.generate(["a", None]), r"texts\[1\] is not a text: None \(NoneType\)"),
        (lambda m: m.generate(["\ud800"]), r"texts\[0\] is not valid Unicode"),
        (lambda m: m.generate(["a"], 0), "max_new_tokens=0: use a whole number, 1 or more"),
        (lambda m: m.generate(["a"], 2.5), "max_new_tokens=2.5: use a whole number"),
        (lambda m: m.generate(["a"], 2018), "the model's window holds 2018 tokens .* use 2017 or less"),
        (lambda m: m.generate(["a"], stop=[""]), "stop: an empty text would end every answer"),
        (lambda m: m.generate(["a"], stop=[3]), r"stop\[0\] is not a text: 3"),
        (lambda m: m.score([], []), "contexts is empty"),
        (lambda m: m.score(["a"], "yes"), "choices: give a list of choices for each context"),
        (lambda m: m.score(["a", "b"], [["x"]]), "there are 2 contexts and 1 lists of choices"),
        (lambda m: m.score(["a"], []), "there are 1 contexts and 0 lists of choices"),
        (lambda m: m.score(["a"], [[]]), r"choices\[0\] is empty"),
        (lambda m: m.score(["a", "b"], [["x"], ["y", 1]]), r"choices\[1\]\[1\] is not a text: 1"),
        (lambda m: m.score(["a", "b"], [["x"], ["y", ""]]), r"choices\[1\]\[1\] has no tokens"),
        (lambda m: m.choose([]), "texts is empty"),
        (lambda m: m.perplexity(["a", ""]), r"texts\[1\] has no tokens"),
    ],
)
def test_one_line_for_each_wrong_input(call, message, banked):
    one_line(lambda: call(banked[2]()), message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"variant": "small"}, "variant=small: use dense, compressed, repaired"),
        ({"dtype": "int8"}, "dtype=int8: use auto, float32, bfloat16, float16"),
        ({"device": "cuda:99"}, "device=cuda:99: there are . CUDA devices here"),
        ({"device": "gpu"}, "device=gpu: use auto, cpu, cuda or cuda:N"),
        ({"store": "/nowhere"}, r"its compressed model \(.{12}\) is not in /nowhere; name the run's store with store="),
        ({"store": "/nowhere", "variant": "dense"}, r"its dense model \(.{12}\) is not in /nowhere"),
    ],
)
def test_one_line_for_each_wrong_argument(arguments, message, finished_run):
    folder, _ = finished_run(*BANK, "baselines=true")
    one_line(lambda: idp.load(folder, **arguments), message)


def test_a_variant_that_the_run_does_not_have(finished_run):
    unrepaired, _ = finished_run("compressor=gptq4", "baselines=true")
    one_line(lambda: idp.load(unrepaired), r"repaired nothing \(recovery=none\); it has dense and compressed")
    assert idp.load(unrepaired, variant="compressed").choose(["a"]) == [None]
    plain, _ = finished_run("compressor=none", "recovery=prompt", "recovery.length=3")
    one_line(lambda: idp.load(plain, variant="compressed"), "compressed nothing; it has dense and repaired")
    assert idp.load(plain).choose(["a", "b"]) == ["prompt_0_3_tokens"] * 2


def changed(record, change):
    record = json.loads(json.dumps(record))
    change(record["idp"]["config"])
    return record


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["recovery"]["selector"].update(kind="astrology"), r"recovery\.selector\.kind=astrology: this ver"),
        (lambda c: c["recovery"]["selector"].update(depth=2), r"recovery\.selector\.depth: this version has no such"),
        (lambda c: c["recovery"]["selector"].pop("layer"), r"recovery\.selector\.layer is not in the record"),
        (lambda c: c.pop("model"), r"record: not a record of idp\.run \(KeyError: 'model'\)"),
    ],
)
def test_a_record_of_another_version(change, message, finished_run):
    _, record = finished_run(*BANK, "baselines=true")
    one_line(lambda: idp.load(changed(record, change)), message)


def test_no_run_there(tmp_path):
    one_line(lambda: idp.load(tmp_path / "nothing"), "no such file")
    one_line(lambda: idp.load(tmp_path), r"there is no record\.json in it; a run writes it at its end")
    one_line(lambda: idp.load(7), "idp.load takes a path or a record, not int")
    one_line(lambda: idp.load({}), "record: not a record of idp.run")
    (tmp_path / "record.json").write_text("[1")
    one_line(lambda: idp.load(tmp_path), "not a record of idp.run")


def test_a_run_that_failed_or_goes_on(tmp_path, run_here):
    with pytest.raises(UserError, match="no layer is called nothing"):
        run_here("model=tiny_llama", "budget=smoke", "tracker=none", "recovery=lora", "recovery.targets=[nothing]")
    (status,) = tmp_path.glob("outputs/runs/*/status.json")
    for place in (status.parent, status.parent / "record.json"):
        one_line(lambda place=place: idp.load(place), r"the run failed \(.*no layer is called nothing.*\); mend that")
    status.write_text(json.dumps({**json.loads(status.read_text()), "state": "running", "stage": "recover"}))
    one_line(lambda: idp.load(status.parent), r"the run has not finished \(it was at recover\); wait for its record")


def test_products_that_are_gone_or_damaged(finished_run, tmp_path):
    folder, record = finished_run(*BANK, "baselines=true")
    store, stages = tmp_path / "store", record["idp"]["stages"]
    for stage in ("load", "compress", "recover"):
        place = folder.parents[1] / "store" / stage / stages[stage]["key"]
        shutil.copytree(place, store / stage / stages[stage]["key"])
    command = "/somewhere/idp/run.py model=tiny_llama compressor=gptq3 recovery=idp 'recovery.lengths=[3,5]'"
    record = json.loads(json.dumps(record))
    record["idp"]["environment"]["command"] = command
    again = r"python -m idp\.run model=tiny_llama compressor=gptq3 recovery=idp 'recovery\.lengths=\[3,5\]'"
    assert idp.load(record, store=store).generate(["a"], 3) == idp.load(folder).generate(["a"], 3)
    bank = store / "recover" / stages["recover"]["key"]
    weights = next(bank.rglob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1])
    one_line(lambda: idp.load(record, store=store), rf"safetensors does not match its hash; .*: {again}")
    shutil.rmtree(bank)
    one_line(lambda: idp.load(record, store=store), rf"its repair \(.{{12}}\) is not in .*, or run it again: {again}")
    assert idp.load(record, store=store, variant="compressed").generate(["a"], 3)
