"""The answers of a run's models side by side, and one line for whatever goes wrong."""

import gc
import json
import os
import shlex
import weakref

import pytest

import idp
from idp import generate
from idp.api import Answer, LanguageModel
from idp.generate import main, side_by_side

BANK = ("compressor=gptq3", "recovery=idp", "recovery.lengths=[3,5]", "recovery.training.learning_rate=0.1")
QUICK = ("model=tiny_llama", "budget=smoke", "task=arc_easy", "tracker=none", "evaluation.perplexity=[]")


@pytest.fixture
def run(finished_run):
    return finished_run(*BANK, "baselines=true")[0]


def test_side_by_side(run, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    prompts = ["Once upon a time", "a question " * 20]
    main([f"record={run}", f"prompt={json.dumps(prompts)}", "max_new_tokens=40"])
    shown = capsys.readouterr().out
    assert all(len(line) <= 80 for line in shown.splitlines())
    assert shown.count("dense                      compressed                 repaired\n") == 2
    assert shown.startswith(f"run: {run.name}\n\n> Once upon a time\n")
    model = idp.load(run)
    for prompt, answer in zip(prompts, model.generate(prompts, 40), strict=True):
        assert f"  given {answer.prompt}, {model.prompts.index(answer.prompt) + 1} of 2 prompts\n" in shown
        assert answer.prompt == model.choose([prompt])[0]


def test_an_instruct_model_is_asked_by_its_template_unless_it_is_not_to_be(run, capsys, monkeypatch):
    read, real = [], LanguageModel.generate

    def generated(self, texts, *arguments, **options):
        read.append(texts)
        return real(self, texts, *arguments, **options)

    template = "{% for each in messages %}<{{ each['content'] }}>{% endfor %}"
    words = [f"record={run}", "prompt=Why?", "models=repaired", "max_new_tokens=2"]
    monkeypatch.setattr(LanguageModel, "generate", generated)
    main(words)
    real_init = LanguageModel.__init__

    def instructed(self, repaired, *arguments, **options):
        repaired.tokenizer.chat_template = template
        real_init(self, repaired, *arguments, **options)

    monkeypatch.setattr(LanguageModel, "__init__", instructed)
    for more in ([], ["chat=true"], ["chat=false"]):
        main([*words, *more])
    assert read == [["Why?"], ["<Why?>"], ["<Why?>"], ["Why?"]]


def test_answers_as_they_come_and_drawn_ones(run, capsys):
    words = [f"record={run}", 'prompt=["one","two"]', "models=compressed,repaired", "max_new_tokens=7"]
    for more in ([], ["temperature=1.5", "top_k=50", "top_p=0.9", "seed=4"]):
        main([*words, *more, "stream=true"])
        streamed = capsys.readouterr().out
        options = {"temperature": 1.5, "top_k": 50, "top_p": 0.9, "seed": 4} if more else {}
        for variant in ("compressed", "repaired"):
            model = idp.load(run, variant=variant)
            (answer,) = model.generate(["one"], 7, **options)
            number = model.prompts.index(answer.prompt) + 1 if answer.prompt else 0
            given = f"  given {answer.prompt}, {number} of 2 prompts\n" if answer.prompt else ""
            assert f"> one\n{given}{variant}\n{'-' * len(variant)}\n{generate._shown(answer.text)}\n\n" in streamed
    main([*words, "temperature=1.5", "seed=1"])
    first = capsys.readouterr().out
    main([*words, "temperature=1.5", "seed=2"])
    assert capsys.readouterr().out != first


def test_columns_are_wrapped_and_hold_whole_answers():
    answers = {
        "dense": Answer("one two three four five six seven\n\neight", None),
        "compressed": Answer("", None),
        "repaired": Answer(" bell\a tab\tend " + "x" * 30, "second"),
    }
    assert side_by_side("Why?", answers, ["first", "second"], 40).splitlines() == [
        "> Why?",
        "  given second, 2 of 2 prompts",
        "",
        "dense         compressed    repaired",
        "------------  ------------  ------------",
        "one two       (ended at     bell� tab",
        "three four    once)         end xxxxxxxx",
        "five six                    xxxxxxxxxxxx",
        "seven                       xxxxxxxxxx",
        "",
        "eight",
    ]
    alone = side_by_side("Why?", {"dense": Answer("so", None)}, [], 20)
    assert alone.splitlines() == ["> Why?", "", "dense", "-" * 20, "so"]
    assert side_by_side("Why?", {"dense": Answer(" \n", None)}, [], 20).endswith("(only white space)")


def test_one_model_in_memory_at_a_time(run, capsys, monkeypatch):
    alive, most, real = [], [], LanguageModel.__init__

    def counted(self, repaired, *arguments, **options):
        alive.append(weakref.ref(repaired.model))
        most.append(sum(reference() is not None for reference in alive))
        real(self, repaired, *arguments, **options)

    monkeypatch.setattr(LanguageModel, "__init__", counted)
    gc.collect()
    main([f"record={run}", "prompt=x", "max_new_tokens=2"])
    assert most == [1, 1, 1]


def test_the_newest_run_unless_one_is_named(run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(["prompt=x"])
    assert str(stopped.value).startswith("error: no run has finished under outputs/runs; make one with `python -m idp")
    record = (run / "record.json").read_text()
    for number, name in enumerate(["newer", "older"]):
        place = tmp_path / "outputs" / "runs" / name
        place.mkdir(parents=True)
        (place / "record.json").write_text(record.replace(run.name, name))
        os.utime(place / "record.json", (1000 - number, 1000 - number))
    (tmp_path / "outputs" / "runs" / "unfinished").mkdir()
    main(["prompt=x", "max_new_tokens=2", "models=dense"])
    assert capsys.readouterr().out.startswith("run: newer\n")


def test_prompts_from_a_file_and_what_ends_an_answer(run, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("first\n\n[INST] second [/INST]\n", encoding="utf-8")
    main([f"record={run}", f"file={tmp_path / 'prompts.txt'}", "models=repaired,dense", "max_new_tokens=9"])
    shown = capsys.readouterr().out
    assert "> first\n" in shown and "> [INST] second [/INST]\n" in shown and "compressed" not in shown
    assert generate.listed('["a", "b\\nc"]') == ["a", "b\nc"]
    for text in ("[INST] x", "[1, 2]", "[]", "12", "a"):
        assert generate.listed(text) == [text]
    (whole,) = idp.load(run).generate(["first"], 9)
    main([f"record={run}", "prompt=first", "models=repaired", "max_new_tokens=9", f"stop={whole.text[0]}"])
    assert capsys.readouterr().out.rstrip().endswith("---\n(ended at once)")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing to ask: give prompt=... or file=..."),
        (["record={run}"], "nothing to ask: give prompt=... or file=..."),
        (["prompt=x", "file=y"], "both prompt= and file= are given: which? give prompt=... or file=..."),
        (["prompt=x", "prompt=y"], "prompt=y: prompt= is given twice"),
        (["prompt="], "prompt=: give a value"),
        (["prmpt=x"], "did you mean prompt=?"),
        (["prompt=x", "record=/nowhere"], "record=/nowhere: no such file"),
        (["file=/nowhere"], "file=/nowhere: No such file or directory"),
        (["file={tmp}/empty"], "no prompt in it; write one on each line"),
        (["file={tmp}/bytes"], "not UTF-8 text"),
        (["prompt=x", "record={run}", "max_new_tokens=few"], "max_new_tokens=few: use a whole number"),
        (["prompt=x", "record={run}", "max_new_tokens=0"], "max_new_tokens=0: use a whole number, 1 or more"),
        (["prompt=x", "record={run}", "temperature=-1"], "temperature=-1.0: use 0 (the likeliest token) or more"),
        (["prompt=x", "record={run}", "top_p=0.5"], "top_k, top_p and seed are of drawn tokens: give a temperature"),
        (["prompt=x", "record={run}", "temperature=1", "top_p=0"], "top_p=0.0: use a share of probability above 0"),
        (["prompt=x", "record={run}", "temperature=1", "top_k=-1"], "top_k=-1: use a whole number, 0 or more"),
        (["prompt=x", "record={run}", "models=dence"], "models=dence: dence is none of dense, compressed, repaired"),
        (["prompt=x", "record={run}", "device=tpu7"], "device=tpu7: use auto, cpu, cuda or cuda:N"),
        (["prompt=x", "record={run}", "store=/nowhere"], "is not in /nowhere; name the run's store"),
        (["prompt=x", "record={plain}", "models=dense,repaired"], "the run repaired nothing (recovery=none)"),
    ],
)
def test_one_line_for_each_mistake(words, message, run, finished_run, tmp_path, capsys, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a model was opened")

    (tmp_path / "empty").write_text("\n \n")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\xff")
    places = {"{run}": run, "{tmp}": tmp_path}
    if any("{plain}" in word for word in words):
        places["{plain}"] = finished_run("compressor=gptq4", "baselines=true")[0]
    monkeypatch.setattr("idp.models.open_model", refuse)
    for sign, place in places.items():
        words = [word.replace(sign, str(place)) for word in words]
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert str(stopped.value).startswith("error: ") and message in str(stopped.value)
    assert "\n" not in str(stopped.value)


def test_the_unforeseen_is_one_line_as_well(run, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no room\nfor it")

    monkeypatch.delenv("IDP_DEBUG", raising=False)
    monkeypatch.setattr(LanguageModel, "generate", fail)
    with pytest.raises(SystemExit) as stopped:
        main([f"record={run}", "prompt=x"])
    assert str(stopped.value) == "error: RuntimeError: no room for it (IDP_DEBUG=1 shows where)"


def test_help(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    shown = capsys.readouterr().out
    assert stopped.value.code == 0 and "max_new_tokens=..." in shown and "64 unless you say" in shown


def test_a_run_names_the_next_command(idp_run, capsys):
    lines = idp_run(*QUICK, "recovery=hard_prompt", "baselines=false").stdout.strip().splitlines()
    assert lines[-1].startswith("record: ")
    (line,) = (line for line in lines if line.startswith("to see it answer: "))
    words = shlex.split(line.removeprefix("to see it answer: "))
    assert words[0].endswith("python") and words[1:3] == ["-m", "idp.generate"]
    main([*words[3:], "max_new_tokens=3"])
    assert "> What is 2+2?\n  given hard, 1 of 1 prompts\n" in capsys.readouterr().out
